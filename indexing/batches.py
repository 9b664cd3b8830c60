"""From the tables to `models.encoder.Batch`: the only place that reads rows for an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.store import open_table, unpack_cutouts
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa

    from redshelf.models.encoder import Batch


@dataclass(frozen=True)
class Photometry:
    """Catalogue photometry of N sources: fluxes and errors (N, B) float32, `state` (N, B) int8, `ebv` (N,)."""

    flux_ujy: npt.NDArray[np.float32]
    flux_error_ujy: npt.NDArray[np.float32]
    state: npt.NDArray[np.int8]
    ebv: npt.NDArray[np.float32]


def photometry_columns(bands: Sequence[str]) -> list[str]:
    """The columns of `sources` that `photometry` reads."""
    return [f"{what}_{band}" for what in ("flux", "flux_error", "state") for band in bands] + ["ebv"]


def photometry(table: pa.Table | pa.RecordBatch, bands: Sequence[str]) -> Photometry:
    """The photometry columns of a piece of `sources`, stacked by band."""

    def stack(what: str) -> npt.NDArray[Any]:
        return np.stack([table.column(f"{what}_{band}").to_numpy(zero_copy_only=False) for band in bands], axis=1)

    ebv = table.column("ebv").to_numpy(zero_copy_only=False)
    return Photometry(stack("flux"), stack("flux_error"), stack("state"), ebv)


def _positions(info: ShelfInfo, bands: Sequence[str]) -> list[int]:
    missing = [band for band in bands if band not in info.band_names]
    if missing:
        raise BadInput(f"the encoder needs band {missing[0]!r}; survey {info.survey} has {', '.join(info.band_names)}")
    return [info.band_names.index(band) for band in bands]


class Reader:
    """Reads rows of one shelf as batches in the band order of an encoder; opens the tables once."""

    def __init__(self, layout: Layout, info: ShelfInfo, *, bands: Sequence[str], needs: frozenset[str]) -> None:
        self.info, self.bands, self.needs = info, tuple(bands), needs
        self._chosen = _positions(info, bands)
        if "pixels" in needs and not info.has_images:
            raise BadInput(f"survey {info.survey} has no images: an encoder that needs pixels cannot embed it")
        self._sources = open_table(layout.sources)
        self._cutouts = open_table(layout.cutouts) if "pixels" in needs else None

    @property
    def rows(self) -> int:
        return int(self._sources.count_rows())

    def read(self, rows: npt.NDArray[np.int64]) -> Batch:
        """The sources at `rows` (any order; `row == position`), as one batch on the CPU."""
        import torch

        from redshelf.models.encoder import Batch

        order = np.argsort(rows, kind="stable")
        back = np.argsort(order, kind="stable")
        table = self._sources.take(rows[order], columns=photometry_columns(self.bands))
        measured = photometry(table, self.bands)
        pixels = mask = None
        state = measured.state
        if self._cutouts is not None:
            piece = self._cutouts.take(rows[order], columns=["pixels", "mask", "state"])
            stored, bad, pixel_state = unpack_cutouts(piece, len(self.info.bands), self.info.cutout_px)
            pixels = torch.from_numpy(stored[:, self._chosen][back]).float()
            mask = torch.from_numpy(bad[:, self._chosen][back])
            if "fluxes" not in self.needs:
                state = pixel_state[:, self._chosen]
        bands = [self.info.bands[i] for i in self._chosen]
        depth = torch.tensor([b.depth_ab for b in bands], dtype=torch.float32)
        fwhm = torch.tensor([b.psf_fwhm_arcsec for b in bands], dtype=torch.float32)
        return Batch(
            state=torch.from_numpy(np.ascontiguousarray(state[back])),
            pixels=pixels,
            pixel_mask=mask,
            flux_ujy=torch.from_numpy(measured.flux_ujy[back]),
            flux_error_ujy=torch.from_numpy(measured.flux_error_ujy[back]),
            depth_ab=depth,
            psf_fwhm_arcsec=fwhm,
            ebv=torch.from_numpy(measured.ebv[back]),
        )

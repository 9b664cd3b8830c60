"""From the tables to `models.encoder.Batch`: the only place that reads rows for an encoder.

`Reader` reads a span or any rows of a shelf; `in_memory` holds what a training run draws from again and again. Pixels
stay float16 as they are stored, which encoders widen themselves, and masks stay packed until a batch is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.memory import available_bytes, processes_here
from redshelf.indexing.store import band_masks, column_values, open_table
from redshelf.models.bands import State
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    import pyarrow as pa
    import torch
    from torch import Tensor

    from redshelf.models.encoder import Batch

MEMORY_SHARE = 0.25  # of the memory that is free, for the cutouts that a training run holds
LOAD_ROWS = 1024
SERIAL = 32_767  # elements that torch handles on one thread

Indices = npt.NDArray[np.int64]


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

    ebv = np.array(table.column("ebv").to_numpy(zero_copy_only=False))  # torch wants arrays that it may write to
    return Photometry(stack("flux"), stack("flux_error"), stack("state"), ebv)


@dataclass(frozen=True)
class Rows:
    """N sources as they are stored, bands in an encoder's order. Without images the last two are None."""

    state: npt.NDArray[np.int8]  # (N, B) of the pixels, or of the fluxes where the encoder needs those
    flux_ujy: npt.NDArray[np.float32]  # (N, B)
    flux_error_ujy: npt.NDArray[np.float32]  # (N, B)
    ebv: npt.NDArray[np.float32]  # (N,)
    pixels: npt.NDArray[np.float16] | None = None  # (N, B, H, W)
    mask: npt.NDArray[np.uint8] | None = None  # (N, B, ceil(H W / 8)): bits, 1 = bad

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, chosen: npt.NDArray[Any] | slice) -> Self:
        """The rows at `chosen`: a slice, positions, repeated ones too, or one bool a row."""
        return replace(self, **{name: value[chosen] for name, value in self.arrays().items()})

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays that there are, by name."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def bad(self) -> npt.NDArray[np.bool_]:
        """The mask, unpacked: (N, B, H, W), True = bad."""
        assert self.pixels is not None and self.mask is not None
        shape = self.pixels.shape
        bits = np.unpackbits(self.mask, axis=2, count=shape[2] * shape[3])
        return bits.reshape(shape).view(np.bool_)

    def visible(self) -> npt.NDArray[np.bool_]:
        """Which sources have a band at all, (N,): `models.backbone.visible`, from an eighth of the bytes."""
        seen = self.state != State.NOT_OBSERVED
        if self.mask is not None and self.pixels is not None:
            full = np.packbits(np.ones(self.pixels.shape[2] * self.pixels.shape[3], dtype=np.uint8))
            maybe = seen & (self.mask[:, :, 0] == full[0])  # the others have a good pixel among their first eight
            if maybe.any():
                seen[maybe] = (self.mask[maybe] != full).any(axis=1)
        return np.asarray(seen.any(axis=1))


def _positions(info: ShelfInfo, bands: Sequence[str]) -> list[int]:
    missing = [band for band in bands if band not in info.band_names]
    if missing:
        raise BadInput(f"the encoder needs band {missing[0]!r}; survey {info.survey} has {', '.join(info.band_names)}")
    return [info.band_names.index(band) for band in bands]


class Reader:
    """Reads rows of one shelf as batches in an encoder's band order; opens the tables once. Threads may share it."""

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

    @property
    def row_bytes(self) -> int:
        """Memory of one source in `Rows`."""
        n_bands, area = len(self.bands), self.info.cutout_px**2 if self._cutouts is not None else 0
        return n_bands * (9 + 2 * area + -(-area // 8)) + 4

    def read(self, rows: Indices) -> Batch:
        """The sources at `rows` (any order; `row == position`), as one batch on the CPU."""
        return self.batch(self.take(rows))

    def photometry(self, rows: Indices) -> Photometry:
        """Catalogue photometry of the sources at `rows`, in any order."""
        order, back = _sorted(rows)
        table = self._sources.take(rows[order], columns=photometry_columns(self.bands))
        found = photometry(table, self.bands)
        return Photometry(found.flux_ujy[back], found.flux_error_ujy[back], found.state[back], found.ebv[back])

    def take(self, rows: Indices) -> Rows:
        """The sources at `rows`, in any order and as often as they are named."""
        order, back = _sorted(rows)
        columns = photometry_columns(self.bands)
        sources = self._sources.take(rows[order], columns=columns)
        cutouts = None
        if self._cutouts is not None:
            cutouts = self._cutouts.take(rows[order], columns=["pixels", "mask", "state"])
        found = self._rows(sources, cutouts)
        return found if (np.diff(rows) >= 0).all() else found[back]

    def span(self, start: int, stop: int) -> Rows:
        """The sources from `start` up to `stop`; cheaper than `take`, and all that bulk embedding needs."""

        def scan(dataset: Any, columns: list[str]) -> pa.Table:
            # readahead beyond a batch would hold gigabytes of cutouts, and callers read ahead themselves
            return dataset.scanner(
                columns=columns, offset=start, limit=stop - start, batch_size=stop - start, batch_readahead=2
            ).to_table()

        cutouts = None if self._cutouts is None else scan(self._cutouts, ["pixels", "mask", "state"])
        return self._rows(scan(self._sources, photometry_columns(self.bands)), cutouts)

    def _rows(self, sources: pa.Table, cutouts: pa.Table | None) -> Rows:
        measured = photometry(sources, self.bands)
        found = Rows(measured.state, measured.flux_ujy, measured.flux_error_ujy, measured.ebv)
        if cutouts is None:
            return found
        n_bands, size = len(self.info.bands), self.info.cutout_px
        pixels = column_values(cutouts.column("pixels"), (n_bands, size, size), chosen=self._chosen)
        mask = band_masks(cutouts.column("mask"), n_bands, size, chosen=self._chosen)
        state = found.state
        if "fluxes" not in self.needs:
            state = column_values(cutouts.column("state"), (n_bands,), chosen=self._chosen)
        return replace(found, pixels=pixels, mask=mask, state=state)

    def batch(self, rows: Rows) -> Batch:
        """What was read, as an encoder takes it; shares its arrays."""
        import torch

        from redshelf.models.encoder import Batch

        bands = [self.info.bands[i] for i in self._chosen]
        return Batch(
            state=torch.from_numpy(rows.state),
            pixels=None if rows.pixels is None else torch.from_numpy(rows.pixels),
            pixel_mask=None if rows.pixels is None else torch.from_numpy(rows.bad()),
            flux_ujy=torch.from_numpy(rows.flux_ujy),
            flux_error_ujy=torch.from_numpy(rows.flux_error_ujy),
            depth_ab=torch.tensor([b.depth_ab for b in bands], dtype=torch.float32),
            psf_fwhm_arcsec=torch.tensor([b.psf_fwhm_arcsec for b in bands], dtype=torch.float32),
            ebv=torch.from_numpy(rows.ebv),
        )


def _sorted(rows: Indices) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The order in which Lance reads fastest, and the way back."""
    order = np.argsort(rows, kind="stable")
    return order, np.argsort(order, kind="stable")


def in_memory(
    reader: Reader, *, rows: Indices | None = None, limit_bytes: float | None = None
) -> Callable[[Indices], Batch]:
    """A function from positions to batches, for training: position i is source i, or `rows[i]` where those are given.

    The sources are held in memory where they take no more than `limit_bytes`, by default `MEMORY_SHARE` of what is
    free, shared between the training processes of this machine; larger ones are read from the shelf each time.
    """
    count = reader.rows if rows is None else len(rows)
    if limit_bytes is None:
        limit_bytes = MEMORY_SHARE * available_bytes() / processes_here()
    if count * reader.row_bytes > limit_bytes or count == 0:
        return lambda indices: _trainable(reader.read(indices if rows is None else rows[indices]))
    held: dict[str, npt.NDArray[Any]] = {}
    for start in range(0, count, LOAD_ROWS):
        stop = min(start + LOAD_ROWS, count)
        piece = reader.span(start, stop) if rows is None else reader.take(rows[start:stop])
        for name, value in piece.arrays().items():
            if start == 0:
                held[name] = np.empty((count, *value.shape[1:]), value.dtype)
            held[name][start:stop] = value
    whole = Rows(**held)
    return lambda indices: _trainable(reader.batch(whole[indices]))


def _trainable(batch: Batch) -> Batch:
    """With float32 pixels: views of the sky are made in it, and bfloat16's autocast does not mix with float16."""
    import torch

    return batch if batch.pixels is None else replace(batch, pixels=converted(batch.pixels, torch.float32))


def converted(values: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in another precision, made by this thread alone.

    Torch would give each thread that reads a pool of its own; with more of them than cores, OpenMP's threads no longer
    spin while they wait for one another, and a training step took a sixth longer on 2 cores.
    """
    import torch

    out = torch.empty(values.shape, dtype=dtype)
    flat, into = values.reshape(-1), out.view(-1)
    for start in range(0, len(flat), SERIAL):
        into[start : start + SERIAL].copy_(flat[start : start + SERIAL])
    return out

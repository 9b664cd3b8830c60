"""A shelf written straight into its tables, whose every value a test knows: no survey, no mosaics, no ingest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import store
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.bands import Band

NAMES = ("g", "r", "i", "z")
BANDS = tuple(
    Band(name, wavelength, depth_ab=26.0 + k, psf_fwhm_arcsec=0.7, noise_ujy=0.1)
    for k, (name, wavelength) in enumerate(zip(NAMES, (475.0, 622.0, 770.0, 890.0), strict=True))
)
BLIND = (3, 17)  # sources without any band: not observed; observed, and every pixel bad
FRAGMENT = 13  # rows of a Lance fragment, fewer than any batch


@dataclass(frozen=True)
class SmallShelf:
    """The shelf and what was written into it; `flux_state` is the catalogue's, `state` that of the pixels."""

    layout: Layout
    info: ShelfInfo
    pixels: npt.NDArray[np.float16]  # (N, 4, px, px), whole numbers from -3 to 3
    bad: npt.NDArray[np.bool_]  # (N, 4, px, px)
    state: npt.NDArray[np.int8]  # (N, 4)
    flux_state: npt.NDArray[np.int8]
    flux: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    ebv: npt.NDArray[np.float32]


def write(root: Path, *, sources: int = 60, cutout_px: int = 8, seed: int = 0) -> SmallShelf:
    """`sources` of 4 bands; a tenth of the bands not observed, a tenth masked all over, the sources `BLIND` in all."""
    import lance

    rng, shape = np.random.default_rng(seed), (sources, len(BANDS))
    pixels = rng.integers(-3, 4, (*shape, cutout_px, cutout_px)).astype(np.float16)
    bad = rng.random(pixels.shape) < 0.1
    bad[rng.random(shape) < 0.1] = True
    bad[:, :, 0, 0] |= rng.random(shape) < 0.3  # bands whose first pixel is bad and others are not
    state = rng.choice(np.array([0, 1, 2, 2, 2, 2, 2, 2, 3, 3], np.int8), shape)
    state[BLIND[0]], state[BLIND[1]], bad[BLIND[1]] = 0, 2, True
    flux_state = np.full(shape, 2, np.int8)
    flux, error = (rng.gamma(2, 3, shape).astype(np.float32) for _ in range(2))
    ebv = rng.random(sources).astype(np.float32)
    row = np.arange(sources)
    columns: dict[str, npt.NDArray[np.generic]] = {"row": row, "ebv": ebv}
    for k, name in enumerate(NAMES):
        columns |= {f"flux_{name}": flux[:, k], f"flux_error_{name}": error[:, k], f"state_{name}": flux_state[:, k]}
    arrays = []
    for field in store.sources_schema(NAMES):
        known = columns.get(field.name)
        arrays.append(pa.nulls(sources, field.type) if known is None else pa.array(known, field.type))
    bits = np.packbits(bad.reshape(sources, -1), axis=1)
    lists = [store.fixed_list(values.reshape(sources, -1)) for values in (pixels, bits, state)]
    layout = Layout(root)
    root.mkdir(parents=True)
    schemas = (store.sources_schema(NAMES), store.cutouts_schema(len(BANDS), cutout_px))
    for path, schema, values in zip(
        (layout.sources, layout.cutouts), schemas, (arrays, [pa.array(row), *lists]), strict=True
    ):
        lance.write_dataset(pa.table(values, schema=schema), str(path), max_rows_per_file=FRAGMENT)
    info = ShelfInfo("small", BANDS, cutout_px=cutout_px, pixel_scale_arcsec=0.2)
    layout.write_info(info)
    return SmallShelf(layout, info, pixels, bad, state, flux_state, flux, error, ebv)

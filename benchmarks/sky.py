"""A simulated sky held as memory-mapped arrays, which every process of a benchmark reads without a copy of its own."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from astropy.table import Table

from redshelf.indexing import store
from redshelf.indexing.batches import Reader, photometry_columns
from redshelf.indexing.files import read_json, write_json
from redshelf.indexing.layout import Layout
from redshelf.indexing.simulate import simulate
from redshelf.models.bands import Band, flux_to_ab
from redshelf.models.encoder import Batch
from redshelf.service.fit import read_labels
from redshelf.service.ingest import ingest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CUTOUT_PX = 32  # 5.4 arcsec
TARGETS = 6000


@dataclass(frozen=True)
class Sky:
    """N sources. `pixels` (N, B, H, W) float16 in noise units, `bad` (N, B, H, W) packed along the last axis, `z_true`
    (N,) with NaN for stars, `i_ab` (N,), `spectra` rows that s1 labels, `targets` a random sample of the galaxies,
    which no scenario labels."""

    bands: tuple[Band, ...]
    cutout_px: int
    pixels: npt.NDArray[np.float16]
    bad: npt.NDArray[np.uint8]
    state: npt.NDArray[np.int8]
    flux: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    ebv: npt.NDArray[np.float32]
    z_true: Floats
    i_ab: Floats
    spectra: Ints
    targets: Ints

    def __len__(self) -> int:
        return len(self.z_true)

    def fetch(self, rows: Ints) -> Batch:
        """The batch of `rows`, as `redshelf embed` would make it."""
        bad = np.unpackbits(self.bad[rows], axis=-1, count=self.cutout_px).astype(bool)
        depth = torch.tensor([b.depth_ab for b in self.bands], dtype=torch.float32)
        fwhm = torch.tensor([b.psf_fwhm_arcsec for b in self.bands], dtype=torch.float32)
        return Batch(
            state=torch.from_numpy(self.state[rows]),
            pixels=torch.from_numpy(self.pixels[rows].astype(np.float32)),
            pixel_mask=torch.from_numpy(bad),
            flux_ujy=torch.from_numpy(self.flux[rows]),
            flux_error_ujy=torch.from_numpy(self.error[rows]),
            depth_ab=depth,
            psf_fwhm_arcsec=fwhm,
            ebv=torch.from_numpy(self.ebv[rows]),
        )

    def _pool(self, scenario: str, seed: int) -> Ints:
        """Rows that may be labelled in the order of one draw: the s1 spectra, or as many at random."""
        pool = self.spectra
        if scenario == "s0":
            free = np.isfinite(self.z_true)
            free[self.targets] = False
            pool = np.random.default_rng(7).choice(np.flatnonzero(free), len(self.spectra), replace=False)
        return np.random.default_rng((seed, 7)).permutation(pool).astype(np.int64)

    def labels(self, scenario: str, seed: int, fraction: float = 1.0) -> tuple[Ints, Floats]:
        """Rows and redshifts of one draw: nine tenths of what may be labelled, times `fraction`."""
        pool = self._pool(scenario, seed)
        rows = np.sort(pool[: round(0.9 * fraction * len(pool))])
        noise = 3e-4 * np.random.default_rng(rows).standard_normal(len(rows))
        return rows, np.maximum(self.z_true[rows] + (1 + self.z_true[rows]) * noise, 1e-4)

    def held(self, scenario: str, seed: int) -> Ints:
        """The last tenth of one draw, which no training sees: approaches are chosen on it."""
        pool = self._pool(scenario, seed)
        return np.sort(pool[round(0.9 * len(pool)) :])


def prepare(folder: Path, *, sources: int, seed: int = 11) -> None:
    """Simulate (s1, 6 bands), ingest and lay the arrays down in `folder`; what is there is kept."""
    done = folder / "done.json"
    if done.exists():
        return
    survey, shelf = folder / "survey", folder / "shelf"
    if not survey.exists():
        simulate(survey, sources=sources, scenario="s1", seed=seed, cutout_px=CUTOUT_PX)
    if not shelf.exists():
        ingest(survey / "survey.toml", shelf)
    layout = Layout(shelf)
    info = layout.read_info()
    reader = Reader(layout, info, bands=info.band_names, needs=frozenset({"pixels", "fluxes"}))
    shape = (reader.rows, len(info.bands), info.cutout_px, info.cutout_px)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.float16, shape=shape)
    packed = (*shape[:3], -(-shape[3] // 8))
    bad = np.lib.format.open_memmap(folder / "bad.npy", mode="w+", dtype=np.uint8, shape=packed)
    rest: dict[str, list[npt.NDArray[np.generic]]] = {"state": [], "flux": [], "error": [], "ebv": []}
    for start in range(0, reader.rows, 2048):
        rows = np.arange(start, min(start + 2048, reader.rows), dtype=np.int64)
        batch = reader.read(rows)
        assert batch.pixels is not None and batch.pixel_mask is not None and batch.flux_ujy is not None
        assert batch.flux_error_ujy is not None and batch.ebv is not None
        pixels[rows] = batch.pixels.to(torch.float16).numpy()
        bad[rows] = np.packbits(batch.pixel_mask.numpy(), axis=-1)
        for name, value in (
            ("state", batch.state),
            ("flux", batch.flux_ujy),
            ("error", batch.flux_error_ujy),
            ("ebv", batch.ebv),
        ):
            rest[name].append(value.numpy())
    pixels.flush()
    bad.flush()
    ids = store.open_table(layout.sources).to_table(columns=["source_id", *photometry_columns(info.band_names)])
    row_of = {name: row for row, name in enumerate(ids["source_id"].to_pylist())}
    truth = Table.read(survey / "truth.fits")
    z_true = np.full(reader.rows, np.nan)
    for name, kind, z in zip(truth["ID"], truth["CLASS"], truth["Z_TRUE"], strict=True):
        if str(kind) != "star" and str(name) in row_of:
            z_true[row_of[str(name)]] = z
    galaxies = np.flatnonzero(np.isfinite(z_true))
    targets = np.random.default_rng(5).choice(galaxies, min(TARGETS, len(galaxies) // 3), replace=False)
    spectra = np.setdiff1d(np.intersect1d(read_labels(layout).rows, galaxies), targets)
    arrays = {name: np.concatenate(parts) for name, parts in rest.items()}
    i_ab = flux_to_ab(arrays["flux"][:, info.band_names.index("i")])
    np.savez(folder / "rest.npz", z_true=z_true, i_ab=i_ab, spectra=spectra, targets=np.sort(targets), **arrays)
    shutil.rmtree(survey / "mosaics", ignore_errors=True)
    shutil.rmtree(survey / "weights", ignore_errors=True)
    bands = [asdict(band) for band in info.bands]
    write_json(done, {"bands": bands, "cutout_px": info.cutout_px, "sources": reader.rows, "spectra": len(spectra)})


def open_sky(folder: Path) -> Sky:
    """The sky that `prepare` left."""
    facts = read_json(folder / "done.json")
    with np.load(folder / "rest.npz") as rest:
        arrays = {name: rest[name] for name in rest.files}
    return Sky(
        bands=tuple(Band(**band) for band in facts["bands"]),
        cutout_px=facts["cutout_px"],
        pixels=np.load(folder / "pixels.npy", mmap_mode="r"),
        bad=np.load(folder / "bad.npy", mmap_mode="r"),
        **arrays,
    )

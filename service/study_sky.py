"""A simulated sky as memory-mapped arrays, which every process of a study reads without a copy of its own.

A random part of the galaxies is asked for and never labelled; of the rest each draw of a scenario labels some, by the
chance of a spectrum that `indexing/spectroscopy` gives them.
"""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import spectroscopy, store
from redshelf.indexing.batches import Reader, photometry_columns
from redshelf.indexing.files import read_json, sha256, write_json
from redshelf.indexing.layout import Layout
from redshelf.indexing.simulate import simulate
from redshelf.models.bands import Band, flux_to_ab
from redshelf.models.encoder import Batch
from redshelf.service.fit import NOT_GALAXIES
from redshelf.service.ingest import ingest
from redshelf.service.study_plan import SCENARIOS
from redshelf.service.study_plan import Sky as Wanted
from redshelf.service.study_scores import blurred

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
CUTOUT_PX = 32  # 5.4 arcsec
SEED = 11
ASKED_FRACTION = 1 / 3
READ = 2048


@dataclass(frozen=True)
class Sky:
    """N sources. `pixels` (N, B, H, W) float16 in noise units, `bad` packed along the last axis, both None without
    images; `z_true` (N,) with NaN for stars; `galaxy` (N,) as catalogued; `magnitude` (N,) of the reference band;
    `chance` (S, N) of a spectrum in each of `SCENARIOS`; `asked` rows that are answered for, `hidden_stars` rows of
    stars that the catalogue takes for galaxies."""

    bands: tuple[Band, ...]
    cutout_px: int
    pixels: npt.NDArray[np.float16] | None
    bad: npt.NDArray[np.uint8] | None
    state: npt.NDArray[np.int8]
    flux: npt.NDArray[np.float32]
    error: npt.NDArray[np.float32]
    ebv: npt.NDArray[np.float32]
    z_true: Floats
    galaxy: npt.NDArray[np.bool_]
    magnitude: Floats
    chance: Floats
    asked: Ints
    digest: str

    def __len__(self) -> int:
        return len(self.z_true)

    @property
    def hidden_stars(self) -> Ints:
        return np.flatnonzero(self.galaxy & np.isnan(self.z_true)).astype(np.int64)

    def fetch(self, rows: Ints) -> Batch:
        """The batch of `rows`, as `redshelf embed` would make it."""
        import torch

        tensors = {
            "state": torch.from_numpy(self.state[rows]),
            "flux_ujy": torch.from_numpy(self.flux[rows]),
            "flux_error_ujy": torch.from_numpy(self.error[rows]),
            "depth_ab": torch.tensor([b.depth_ab for b in self.bands], dtype=torch.float32),
            "psf_fwhm_arcsec": torch.tensor([b.psf_fwhm_arcsec for b in self.bands], dtype=torch.float32),
            "ebv": torch.from_numpy(self.ebv[rows]),
        }
        if self.pixels is not None and self.bad is not None:
            bad = np.unpackbits(self.bad[rows], axis=-1, count=self.cutout_px).astype(bool)
            tensors["pixels"] = torch.from_numpy(self.pixels[rows].astype(np.float32))
            tensors["pixel_mask"] = torch.from_numpy(bad)
        return Batch(**tensors)

    def chance_of(self, scenario: str) -> Floats:
        """(N,) chance of a spectrum."""
        if "@" in scenario:
            of, _, strength = scenario.partition("@")
            t = float(strength)
            return (1 - t) * self.chance_of("s0") + t * self.chance_of(of)
        return np.asarray(self.chance[SCENARIOS.index(scenario.removesuffix("w"))])

    def labels(self, scenario: str, seed: int, *, most: int, fraction: float = 1.0) -> tuple[Ints, Floats]:
        """Rows, ascending, and redshifts of one draw: at most `most` times `fraction`."""
        star = np.isnan(self.z_true)
        truth = np.nan_to_num(self.z_true)
        drawn = spectroscopy.draw(self.chance_of(scenario), z_true=truth, star=star, seed=1000 + seed)
        if scenario.endswith("w"):
            drawn, _ = spectroscopy.confuse(drawn, z_true=truth, seed=1000 + seed)
        free = np.isfinite(drawn.z_spec) & self.galaxy
        free[self.asked] = False
        rng = np.random.default_rng((seed, 7))
        rows = np.sort(rng.permutation(np.flatnonzero(free))[: round(most * fraction)]).astype(np.int64)
        return rows, np.maximum(drawn.z_spec[rows], 1e-4)

    def many_band(self, labelled: Ints, seed: int, *, most: int) -> tuple[Ints, Floats]:
        """Rows without a spectrum, at random, and a stand-in for the many-band photo-z of each (`study_scores`)."""
        free = np.isfinite(self.z_true) & self.galaxy
        free[self.asked], free[labelled] = False, False
        rng = np.random.default_rng((seed, 8))
        rows = np.sort(rng.permutation(np.flatnonzero(free))[:most]).astype(np.int64)
        return rows, blurred(self.z_true[rows], rng)


def prepare(folder: Path, wanted: Wanted, *, targets: int, processes: int) -> None:
    """Simulate, ingest and lay the arrays down in `folder`; what is there is kept."""
    from astropy.table import Table

    done = folder / "done.json"
    if done.exists():
        return
    shutil.rmtree(folder, ignore_errors=True)  # what an ended run has left
    folder.mkdir(parents=True)
    survey, shelf = folder / "survey", folder / "shelf"
    switches = {name: True for name in ("two_depths", "missing_nir") if getattr(wanted, name)}
    simulate(
        survey,
        sources=wanted.sources,
        bands=wanted.bands,
        scenario="s1",
        seed=SEED,
        cutout_px=CUTOUT_PX,
        catalogue_only=not wanted.images,
        processes=processes,
        **switches,
    )
    ingest(survey / "survey.toml", shelf)
    layout = Layout(shelf)
    info = layout.read_info()
    needs = frozenset({"fluxes", "pixels"}) if wanted.images else frozenset({"fluxes"})
    reader = Reader(layout, info, bands=info.band_names, needs=needs)
    arrays = _read(reader, folder, (len(info.bands), CUTOUT_PX, CUTOUT_PX))
    columns = ["source_id", "object_class", *photometry_columns(info.band_names)]
    sources = store.open_table(layout.sources).to_table(columns=columns)
    row_of = {name: row for row, name in enumerate(sources["source_id"].to_pylist())}
    truth = Table.read(survey / "truth.fits")
    rows = np.array([row_of[str(name)] for name in truth["ID"]])
    star = np.zeros(reader.rows, dtype=bool)
    z_true, place = np.full(reader.rows, np.nan), np.argsort(rows)
    star[rows] = np.asarray(truth["CLASS"]).astype(str) == "star"
    z_true[rows] = np.asarray(truth["Z_TRUE"], dtype=np.float64)
    z_true[star] = np.nan
    galaxy = ~np.isin(np.array(sources["object_class"].to_pylist()), NOT_GALAXIES)
    magnitude = flux_to_ab(arrays["flux"])[:, info.band_names.index(info.reference_band)]
    observed = Table.read(survey / "catalogue.fits")  # what a spectroscopist would select on
    flux = {name: np.asarray(observed[f"FLUX_{name}"], dtype=np.float64)[place] for name in info.band_names}
    chance = np.stack(
        [spectroscopy.probability(name, flux, galaxy, z_true=np.nan_to_num(z_true)) for name in SCENARIOS]
    )
    can = np.flatnonzero(np.isfinite(z_true) & galaxy)
    number = min(targets, round(ASKED_FRACTION * len(can)))
    asked = np.sort(np.random.default_rng(5).choice(can, number, replace=False))
    facts = {"z_true": z_true, "galaxy": galaxy, "magnitude": magnitude, "chance": chance, "asked": asked}
    np.savez(folder / "rest.npz", **facts, **arrays)  # type: ignore[arg-type]
    shutil.rmtree(survey)
    shutil.rmtree(shelf)
    bands = [_told(asdict(band)) for band in info.bands]
    digest = sha256(folder / "rest.npz")[:12]
    write_json(done, {"bands": bands, "cutout_px": CUTOUT_PX, "sources": reader.rows, "digest": digest})


def _told(facts: dict[str, Any]) -> dict[str, Any]:
    """Facts of a band as JSON, which has no NaN."""
    return {name: None if isinstance(value, float) and np.isnan(value) else value for name, value in facts.items()}


def _band(told: dict[str, Any]) -> Band:
    known: dict[str, Any] = {name: float("nan") if value is None else value for name, value in told.items()}
    return Band(**known)


def _read(reader: Reader, folder: Path, shape: tuple[int, int, int]) -> dict[str, npt.NDArray[np.generic]]:
    """States and fluxes of a shelf; its pixels go into files beside."""
    import torch

    images = "pixels" in reader.needs
    if images:
        whole = (reader.rows, *shape)
        pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.float16, shape=whole)
        packed = (*whole[:3], -(-whole[3] // 8))
        bad = np.lib.format.open_memmap(folder / "bad.npy", mode="w+", dtype=np.uint8, shape=packed)
    parts: dict[str, list[npt.NDArray[np.generic]]] = {"state": [], "flux": [], "error": [], "ebv": []}
    for start in range(0, reader.rows, READ):
        rows = np.arange(start, min(start + READ, reader.rows), dtype=np.int64)
        batch = reader.read(rows)
        assert batch.flux_ujy is not None and batch.flux_error_ujy is not None and batch.ebv is not None
        if images:
            assert batch.pixels is not None and batch.pixel_mask is not None
            pixels[rows] = batch.pixels.to(torch.float16).numpy()
            bad[rows] = np.packbits(batch.pixel_mask.numpy(), axis=-1)
        values = batch.state, batch.flux_ujy, batch.flux_error_ujy, batch.ebv
        for name, value in zip(parts, values, strict=True):
            parts[name].append(value.numpy())
    if images:
        pixels.flush()
        bad.flush()
    return {name: np.concatenate(values) for name, values in parts.items()}


def open_sky(folder: Path) -> Sky:
    """The sky that `prepare` left."""
    facts = read_json(folder / "done.json")
    with np.load(folder / "rest.npz") as rest:
        arrays = {name: rest[name] for name in rest.files}
    images = (folder / "pixels.npy").exists()
    return Sky(
        bands=tuple(_band(band) for band in facts["bands"]),
        cutout_px=facts["cutout_px"],
        pixels=np.load(folder / "pixels.npy", mmap_mode="r") if images else None,
        bad=np.load(folder / "bad.npy", mmap_mode="r") if images else None,
        digest=facts["digest"],
        **arrays,
    )

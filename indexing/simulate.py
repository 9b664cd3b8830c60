"""`redshelf simulate`: a survey as a telescope would leave it, and the truth beside it.

    folder/survey.toml  catalogue.fits  mosaics/<band>/<tile>.fits  weights/<band>/<tile>.fits  truth.fits

Draws a sky (population), renders and measures it tile by tile (render, forced), takes spectra (spectroscopy) and writes
it all. The same seed gives the same bytes whatever the number of processes. Nothing but a test may read truth.fits.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import files, forced, population, render, spectroscopy
from redshelf.indexing.render import Measured, Scene
from redshelf.indexing.telescope import (
    BANDS,
    MARGIN_PX,
    NEAR_INFRARED,
    PIXEL_ARCSEC,
    Field,
    SimulatedBand,
    bands_named,
    saturation_ujy,
)
from redshelf.models.bands import flux_to_ab
from redshelf.models.errors import BadInput, Conflict

Floats = npt.NDArray[np.float64]

STAR_CLASS_I = 22.5  # to here seeing tells stars from galaxies; fainter stars are catalogued as galaxies
MAX_SOURCES = 5_000_000  # 4 GB of memory a million


def simulate(
    folder: Path,
    *,
    sources: int,
    bands: tuple[str, ...] = ("u", "g", "r", "i", "z", "y"),
    scenario: str = "s1",
    seed: int = 1,
    catalogue_only: bool = False,
    two_depths: bool = False,
    u_star: bool = False,
    missing_nir: bool = False,
    wrong_redshifts: bool = False,
    cutout_px: int = 64,
    processes: int | None = None,
    progress: bool = False,
) -> Path:
    """Write a survey of `sources` sources brighter than i = 25 into `folder` and return the path of its survey.toml.

    The area follows from the density of the sky; galaxies down to i = 26.5 are rendered. Catalogue fluxes are measured
    on the rendered mosaics; with `catalogue_only` there are none, and fluxes are the truth plus Gaussian noise of the
    aperture's error. Tiles overlap by `cutout_px`. The first band does not cover the last 4% of the field. Stars are
    classed as such down to i = 22.5 or if a spectrum was taken; fainter ones hide among the galaxies. `processes`
    (default: one a core) changes no byte of the result.

    `two_depths`: half of the field is shallower by a magnitude; `u_star`: half of it has the band ustar instead of u;
    `missing_nir`: half of it has no Y, J, H and Ks (see `Field`); `wrong_redshifts`: so are 1% of the labels, which
    WRONG_Z in truth.fits tells.

    Raises `BadInput` for unknown bands or scenario and numbers out of range, `Conflict` if `folder` is not empty.
    """
    bands = _check_halves(tuple(bands), u_star=u_star, missing_nir=missing_nir)
    chosen = bands_named(bands)
    spectroscopy.check(scenario, bands)
    if not 10 <= sources <= MAX_SOURCES:
        raise BadInput(f"sources={sources}: expected 10 to {MAX_SOURCES}")
    if not 0 <= seed < 2**63:
        raise BadInput(f"seed={seed}: expected 0 to 2^63 - 1")
    if not 8 <= cutout_px <= 512:
        raise BadInput(f"cutout_px={cutout_px}: expected 8 to 512")
    if processes is not None and processes < 1:
        raise BadInput(f"processes={processes}: expected 1 or more")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict(f"{folder} exists and is not an empty folder: name a new one")
    scene = _scene(sources, bands, seed, cutout_px)
    scene = replace(scene, field=replace(scene.field, two_depths=two_depths, u_star=u_star, missing_nir=missing_nir))
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        measured = _without_images(scene) if catalogue_only else _with_images(scene, work, processes, progress)
        _write_tables(work, scene, measured, scenario, wrong_redshifts=wrong_redshifts)
        document = survey_document(scene, chosen, scenario, cutout_px, images=not catalogue_only)
        files.write_bytes(work / "survey.toml", document.encode())
        work.chmod(0o755)
        work.replace(folder)  # an empty folder of that name is replaced too
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return folder / "survey.toml"


def _check_halves(bands: tuple[str, ...], *, u_star: bool, missing_nir: bool) -> tuple[str, ...]:
    """The bands, with ustar after u if half of the field has it. `BadInput` where a half would be left without any
    band, or has none to lose."""
    named = ", ".join(bands)
    if u_star and "u" not in bands:
        raise BadInput(f"half of the field has u, the other ustar: add the band u to {named}")
    if missing_nir and not set(bands) & set(NEAR_INFRARED):
        raise BadInput(f"no near-infrared band to miss: add one of {', '.join(NEAR_INFRARED)} to {named}")
    partial = (("u", "ustar") if u_star else ()) + (NEAR_INFRARED if missing_nir else ())
    if bands and set(bands) <= set(partial):
        raise BadInput(f"none of {named} covers the whole field: add a band that does")
    if u_star and "ustar" not in bands:
        place = bands.index("u") + 1
        return (*bands[:place], "ustar", *bands[place:])
    return bands


def _scene(count: int, bands: tuple[str, ...], seed: int, cutout_px: int) -> Scene:
    """The true sky, placed at random on a square field of the area that its density asks for."""
    sources, per_arcmin2 = population.draw(count, seed=seed)
    side_arcmin = np.sqrt(count / per_arcmin2)
    field = Field(int(np.ceil(side_arcmin * 60 / PIXEL_ARCSEC)) + 2 * MARGIN_PX, cutout_px)
    rng = np.random.default_rng([seed, 4])
    x, y = rng.uniform(MARGIN_PX, field.side_px - 1 - MARGIN_PX, (2, count))
    return Scene(field, bands, sources, x, y, field.ebv(x, y), np.arange(count), seed)


def _with_background(scene: Scene) -> Scene:
    """The scene with the galaxies that are too faint for the catalogue, on the field and just around it."""
    field = scene.field
    low, high = -render.FAINT_STAMP_PX, field.side_px + render.FAINT_STAMP_PX
    faint = population.background(((high - low) * PIXEL_ARCSEC / 60) ** 2, seed=scene.seed)
    x, y = np.random.default_rng([scene.seed, 8]).uniform(low, high, (2, len(faint)))
    return replace(
        scene,
        sources=population.concatenate([scene.sources, faint]),
        x_px=np.concatenate([scene.x_px, x]),
        y_px=np.concatenate([scene.y_px, y]),
        ebv=np.concatenate([scene.ebv, field.ebv(x, y)]),
        row=np.concatenate([scene.row, np.full(len(faint), -1)]),
    )


def _without_images(scene: Scene) -> Measured:
    """Fluxes as truth plus noise: that of the aperture, growing with the source's size."""
    bands = bands_named(scene.bands)
    index = [list(BANDS).index(name) for name in scene.bands]
    true = scene.sources.total_ujy[:, index] * render.reddening(scene.ebv, bands)
    noise = [b.noise_ujy * forced.aperture(b.name, forced.APERTURE_FWHM_ARCSEC).noise_factor for b in bands]
    growth = np.sqrt(1 + (scene.sources.r50_arcsec / 0.6) ** 2)
    error = (growth * scene.field.noise_factor(scene.y_px))[:, None] * np.array(noise)
    flux = true + error * np.random.default_rng([scene.seed, 5]).standard_normal(true.shape)
    limit = np.array([band.saturation_ab for band in bands])
    full = scene.sources.star[:, None] & (np.nan_to_num(flux_to_ab(flux), nan=99.0) < limit)
    missing = np.stack(
        [~scene.field.observed(scene.x_px, scene.y_px, scene.bands, b) for b in range(len(bands))], axis=1
    )
    flux[missing], error[missing] = np.nan, np.nan
    return Measured(np.arange(len(true)), flux, error, full & ~missing)


def _with_images(scene: Scene, work: Path, processes: int | None, progress: bool) -> Measured:
    """Render and measure every tile; the results do not depend on which process does which."""
    from tqdm import tqdm

    tiles = scene.field.tiles()
    whole = _with_background(scene)
    for kind in ("mosaics", "weights"):
        for band in scene.bands:
            (work / kind / band).mkdir(parents=True)
    workers = min(processes or len(os.sched_getaffinity(0)), len(tiles))

    def results() -> Iterator[Measured]:
        if workers == 1:
            yield from map(render.tile_files, map(whole.near, tiles), tiles, repeat(work))
        else:  # spawned: a fork of a process with running threads may hang
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                yield from pool.map(render.tile_files, map(whole.near, tiles), tiles, repeat(work))

    parts = list(tqdm(results(), total=len(tiles), desc="simulate", unit="tile", disable=not progress))
    rows = np.concatenate([part.row for part in parts])
    order = np.argsort(rows)
    if not np.array_equal(rows[order], np.arange(len(scene.sources))):
        raise RuntimeError("tiles did not measure every source once")
    return Measured(
        rows[order],
        np.concatenate([part.flux_ujy for part in parts])[order],
        np.concatenate([part.error_ujy for part in parts])[order],
        np.concatenate([part.saturated for part in parts])[order],
    )


def _write_tables(work: Path, scene: Scene, measured: Measured, scenario: str, *, wrong_redshifts: bool) -> None:
    """catalogue.fits, what an observer has, and truth.fits, what nobody has."""
    from astropy.table import Table

    sources, bands = scene.sources, scene.bands
    flux = {name: measured.flux_ujy[:, b] for b, name in enumerate(bands)}
    magnitude = flux_to_ab(flux[forced.detection_band(bands)])
    bright_star = sources.star & (np.nan_to_num(magnitude, nan=99.0) < STAR_CLASS_I)
    chance = spectroscopy.probability(scenario, flux, ~bright_star, sources.z)
    labels = spectroscopy.draw(chance, z_true=sources.z, star=sources.star, seed=scene.seed)
    wrong = None
    if wrong_redshifts:
        labels, wrong = spectroscopy.confuse(labels, z_true=sources.z, seed=scene.seed)
    ra, dec = scene.field.wcs().all_pix2world(scene.x_px, scene.y_px, 0)
    names = np.array([f"SIM{n:08d}" for n in range(1, len(sources) + 1)])
    known_star = bright_star | (sources.star & labels.taken)
    catalogue: dict[str, Any] = {"ID": names, "RA": ra, "DEC": dec, "EBV": scene.ebv}
    for b, name in enumerate(bands):
        catalogue[f"FLUX_{name}"] = flux[name]
        catalogue[f"FLUXERR_{name}"] = measured.error_ujy[:, b]
        catalogue[f"SAT_{name}"] = measured.saturated[:, b].astype(np.int16)
    catalogue["CLASS"] = np.where(known_star, "star", "galaxy")
    catalogue["Z_SPEC"], catalogue["Z_Q"] = labels.z_spec, labels.quality
    if scenario == "s2":
        survey = spectroscopy.which_survey(spectroscopy.by_survey(flux, sources.z), scene.seed)
        catalogue["Z_SURVEY"] = np.where(np.isfinite(labels.z_spec), survey, "")
    Table(catalogue).write(work / "catalogue.fits")
    truth: dict[str, Any] = {
        "ID": names,
        "Z_TRUE": sources.z,
        "CLASS": np.where(sources.star, "star", "galaxy"),
        "M_B": sources.magnitude_b,
        "TYPE": sources.kind,
        "EBV_INTERNAL": sources.dust_ebv,
        "R50_ARCSEC": sources.r50_arcsec,
        "BULGE_FRACTION": sources.bulge_fraction,
        "LABELLED": np.isfinite(labels.z_spec),
        "P_LABEL": chance,
        "P_ZERO": chance == 0,
        "NEIGHBOUR_ARCSEC": _nearest_arcsec(scene),
    }
    if wrong is not None:
        truth["WRONG_Z"] = wrong
    for name in bands:
        truth[f"FLUX_{name}"] = sources.total_ujy[:, list(BANDS).index(name)]
    Table(truth).write(work / "truth.fits")


def _nearest_arcsec(scene: Scene) -> Floats:
    from scipy.spatial import KDTree

    points = np.stack([scene.x_px, scene.y_px], axis=1)
    distance, _ = KDTree(points).query(points, k=2)
    return np.asarray(distance[:, 1] * PIXEL_ARCSEC)


def survey_document(
    scene: Scene, bands: tuple[SimulatedBand, ...], scenario: str, cutout_px: int, *, images: bool
) -> str:
    """The survey.toml of a simulated survey (indexing/survey.py reads it)."""
    import tomli_w

    survey: dict[str, Any] = {"name": f"simulated-{scenario}-{scene.seed}", "cutout_px": cutout_px}
    if images:
        survey["pixel_scale_arcsec"] = PIXEL_ARCSEC
    sections = []
    for band in bands:
        section: dict[str, Any] = {
            "name": band.name,
            "wavelength_nm": band.wavelength_nm,
            "flux": f"FLUX_{band.name}",
            "flux_error": f"FLUXERR_{band.name}",
            "unit": "uJy",
            "saturated": f"SAT_{band.name}",
            "extinction": band.extinction,
            "psf_fwhm_arcsec": band.psf_fwhm_arcsec,
        }
        if images:
            section["image"] = "mosaics/{band}/{tile}.fits"
            section["weight"] = "weights/{band}/{tile}.fits"
            section["saturation"] = float(np.float32(saturation_ujy(band)))
        sections.append(section)
    document = {
        "survey": survey,
        "catalogue": {
            "path": "catalogue.fits",
            "format": "fits",
            "id": "ID",
            "ra": "RA",
            "dec": "DEC",
            "ebv": "EBV",
            "object_class": "CLASS",
            "class_values": {"galaxy": "galaxy", "star": "star"},
        },
        "bands": sections,
        "labels": spectroscopy.label_sections(scenario),
    }
    if images:
        document["tiles"] = {"names": [tile.name for tile in scene.field.tiles()]}
    return tomli_w.dumps(document)

"""`redshelf ingest`: a survey file's catalogue, mosaics or stamps, and labels become a shelf.

Everything is read and checked before shelf.toml is written; cutouts follow tile by tile, in parts of which a killed
run repeats at most one; then sources, then labels. Run again on a finished shelf, it rewrites the labels only. A shelf
whose catalogue, images, stamps, weights, masks or survey file have changed since (`fingerprint`) is left alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache, partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import catalogue as catalogues
from redshelf.indexing import cutouts, imaging, labels, store, tiling
from redshelf.indexing import survey as surveys
from redshelf.indexing.catalogue import Catalogue
from redshelf.indexing.files import alone, manifest, sha256
from redshelf.indexing.imaging import ImagesOf, Ints, TilePaths
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.memory import keep_freed_memory
from redshelf.indexing.parts import commit_parts, done_parts, write_part
from redshelf.indexing.survey import Survey
from redshelf.indexing.vectors import ahead
from redshelf.models.bands import DETECTION_SNR, Band, State, flux_to_ab
from redshelf.models.errors import BadInput, Conflict

SOURCES_PER_BATCH = 65_536
BATCHES_AHEAD = 8  # of cutouts, made while others are written
TORCH_PIXELS = 10**9  # beyond, torch saves more time than importing it takes
SAMPLE_BLOCKS, SAMPLE_BLOCK_BYTES = 16, 65_536  # of an image, for the fingerprint: 1 MiB of however many GB


@dataclass(frozen=True)
class IngestReport:
    """What is on the shelf after an ingest."""

    survey: str
    sources: int
    cut: dict[str, dict[str, int]]  # cut of the survey file -> {"removed": rows}; empty if the catalogue was not read
    labelled: int
    states: dict[str, dict[str, int]]  # band -> state of the catalogue photometry -> sources
    tiles: int
    empty_tiles: tuple[str, ...]  # found, and no source lies on them
    sources_on_no_tile: int  # or without a stamp
    stamps_of_no_source: int | None  # None without stamps, or if their ids were not read
    labels: tuple[labels.SectionCounts, ...]
    disagreements: tuple[str, ...]  # ids of sources whose labels contradict each other
    labels_only: bool  # the shelf was finished already
    seconds: float


def sampled_sha256(path: Path) -> str:
    """sha256 over the first block of a file (a FITS header), its last and 14 between them, evenly spread; that is the
    whole of a file of up to 1 MiB. Another calibration changes every pixel, and so every block."""
    last = max(0, path.stat().st_size - SAMPLE_BLOCK_BYTES)
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        for block in range(SAMPLE_BLOCKS):
            handle.seek(last * block // (SAMPLE_BLOCKS - 1))
            digest.update(handle.read(SAMPLE_BLOCK_BYTES))
    return digest.hexdigest()


def fingerprint(survey: Survey, tiles: TilePaths) -> str:
    """sha256 over the catalogue's bytes, the survey file without its labels, and the name, size and `sampled_sha256` of
    every image, weight, mask and archive of stamps: 1 MiB of each is read, so a change of a few pixels in a large one
    may pass unseen (not in an npz, whose end holds the checksums of its arrays)."""
    document = survey.model_dump(mode="json", exclude={"labels"} | (set() if survey.stamps else {"stamps"}))
    facts = cache(lambda file: [file.name, file.stat().st_size, sampled_sha256(file)])  # tiles may share a mask
    images = [[*what, *facts(file)] for what, file in imaging.inputs(survey, tiles)]
    path = survey.resolve(survey.catalogue.path)
    if not path.exists():
        raise BadInput(f"catalogue {path} does not exist")
    content = manifest(path, [path]) if path.is_dir() else sha256(path)
    text = json.dumps([document, images, content], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe(survey: Survey, catalogue: Catalogue, noise_ujy: Sequence[float], *, fingerprint: str) -> ShelfInfo:
    """shelf.toml of a survey: the depth of each band is measured on the catalogue's errors (median 3 sigma), else on
    the noise of its images in an aperture of 2 arcsec; NaN where there is neither."""
    scale = survey.survey.pixel_scale_arcsec or float("nan")
    bands = []
    for b, (section, noise) in enumerate(zip(survey.bands, noise_ujy, strict=True)):
        errors = catalogue.flux_error_ujy[np.isin(catalogue.state[:, b], (State.NOT_DETECTED, State.MEASURED)), b]
        error = float(np.median(errors)) if len(errors) else noise * np.sqrt(np.pi) / scale
        bands.append(
            Band(
                name=section.name,
                wavelength_nm=section.wavelength_nm,
                depth_ab=float(flux_to_ab(DETECTION_SNR * error)),
                psf_fwhm_arcsec=section.psf_fwhm_arcsec or float("nan"),
                noise_ujy=noise,
                extinction=section.extinction,
            )
        )
    return ShelfInfo(
        survey=survey.survey.name,
        bands=tuple(bands),
        cutout_px=survey.survey.cutout_px if survey.has_images else 0,
        pixel_scale_arcsec=scale,
        fingerprint=fingerprint,
    )


def _batches(info: ShelfInfo, parts: Sequence[tiling.Part], images_of: ImagesOf) -> Iterator[pa.RecordBatch]:
    """The cutouts of some parts; the pixels of a strip are read once for all of its parts, and are then let go."""
    strips = [list(some) for _, some in groupby(parts, key=lambda part: (part.tile, part.strip))]
    spans = [(some[0].tile, slice(some[0].first_row, some[-1].first_row + some[-1].rows)) for some in strips]
    found = images_of(info, spans)
    for chosen in strips:
        images, low = next(found), chosen[0].first_row
        for part in chosen:
            rows = slice(part.first_row - low, part.first_row - low + part.rows)
            yield from cutouts.batches(images, rows, cutout_px=info.cutout_px, first_row=part.first_row)
        del images  # before the next are read


def _first(batches: Iterator[pa.RecordBatch | None], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches of the next `rows` rows, and nothing of what follows them."""
    while rows > 0:
        batch = next(batches)
        assert batch is not None  # the plan counts the rows that are cut
        rows -= len(batch)
        yield batch


def _write_cutouts(
    layout: Layout,
    info: ShelfInfo,
    parts: list[tiling.Part],
    images_of: ImagesOf,
    *,
    pixels: int,
    part_rows: int,
    progress: bool,
) -> None:
    from tqdm import tqdm

    schema = store.cutouts_schema(len(info.bands), info.cutout_px)
    receipts = layout.work("ingest") / f"cutouts-{part_rows}"  # parts of another size are other parts
    done, plan = done_parts(receipts), f"ingest-{info.fingerprint}"
    todo = [part for part in parts if part.number not in done]
    total = sum(part.rows for part in parts)
    before = total - sum(part.rows for part in todo)
    if pixels > TORCH_PIXELS:
        import torch  # noqa: F401 (in_noise_units then converts with it)
    keep_freed_memory()
    cutting = _batches(info, todo, images_of)
    with (
        tqdm(total=total, initial=before, unit="sources", desc="cutouts", disable=not progress) as bar,
        closing(ahead((partial(next, cutting, None) for _ in count()), depth=BATCHES_AHEAD)) as found,
    ):
        for part in todo:
            batches, first = _first(found, part.rows), part.first_row
            told: dict[str, Any] = {"part": part.number, "first_row": first, "plan": plan}
            write_part(layout.cutouts, schema, batches, receipts=receipts, **told)
            bar.update(part.rows)
    commit_parts(layout.cutouts, schema, receipts=receipts, parts=len(parts), plan=plan)


def _source_batches(
    info: ShelfInfo, catalogue: Catalogue, tile_names: npt.NDArray[np.str_], schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for start in range(0, len(catalogue), SOURCES_PER_BATCH):
        here = slice(start, min(start + SOURCES_PER_BATCH, len(catalogue)))
        columns = {
            "row": np.arange(here.start, here.stop),
            "source_id": pa.array(catalogue.source_id[here].astype(str)),
            "ra_deg": catalogue.ra_deg[here],
            "dec_deg": catalogue.dec_deg[here],
            "healpix29": catalogue.healpix29[here],
            "tile": pa.array(tile_names[here]),
            "object_class": pa.array(catalogue.object_class[here]),
            "flags": catalogue.flags[here],
            "ebv": catalogue.ebv[here],
            "size_arcsec": catalogue.size_arcsec[here],
            "z_reference": catalogue.z_reference[here],
        }
        further = [field.name for field in schema if field.name.startswith("z_reference_")]
        columns |= {name: catalogue.z_references[here, r] for r, name in enumerate(further)}
        for b, band in enumerate(info.band_names):
            columns[f"flux_{band}"] = catalogue.flux_ujy[here, b]
            columns[f"flux_error_{band}"] = catalogue.flux_error_ujy[here, b]
            columns[f"state_{band}"] = catalogue.state[here, b]
        yield pa.RecordBatch.from_arrays([pa.array(columns[field.name]) for field in schema], schema=schema)


def _write_sources(
    layout: Layout,
    info: ShelfInfo,
    catalogue: Catalogue,
    tiles: Sequence[str],
    tile_of: Ints,
    *,
    references: Sequence[str],
) -> None:
    names = np.array([*tiles, ""])[tile_of]  # -1 takes the last, no name
    schema = store.sources_schema(info.band_names, references)
    receipts, plan = layout.work("ingest") / "sources", f"ingest-{info.fingerprint}"
    batches = _source_batches(info, catalogue, names, schema)
    write_part(layout.sources, schema, batches, receipts=receipts, part=0, first_row=0, plan=plan)
    commit_parts(layout.sources, schema, receipts=receipts, parts=1, plan=plan)


def _fill(
    layout: Layout, survey: Survey, paths: TilePaths, *, mark: str, part_rows: int, progress: bool
) -> tuple[dict[str, int], int | None]:
    """Write shelf.toml, cutouts and sources, as far as an earlier run has not; what each cut removed, and the stamps of
    no source."""
    catalogue, cuts = catalogues.read(survey)
    imaged = imaging.imaged(survey, catalogue, paths, file_rows=len(catalogue) + sum(cuts.values()))
    catalogue = imaged.catalogue
    if layout.info_file.is_file():
        info = layout.read_info()
    else:
        info = describe(survey, catalogue, imaged.noise_ujy(), fingerprint=mark)
        layout.write_info(info)
    if info.has_images and store.count_rows(layout.cutouts) < len(catalogue):
        parts = tiling.plan(imaged.tile_of, imaged.strip_of, part_rows)
        told: dict[str, Any] = {"pixels": imaged.pixels, "part_rows": part_rows, "progress": progress}
        _write_cutouts(layout, info, parts, imaged.images_of, **told)
    references = list(survey.catalogue.z_references)
    _write_sources(layout, info, catalogue, imaged.tiles, imaged.tile_of, references=references)
    shutil.rmtree(layout.work("ingest"), ignore_errors=True)
    return cuts, imaged.stamps_of_no_source


def _write_labels(layout: Layout, survey: Survey) -> tuple[labels.MergedLabels, pa.Table]:
    """Rewrite labels.lance; returns the labels and the sources' columns (without positions and photometry)."""
    states = [f"state_{name}" for name in survey.band_names]
    columns = ["source_id", "ra_deg", "dec_deg", "object_class", "tile", "flags", *states]
    sources = store.open_table(layout.sources).to_table(columns=columns)
    merged = labels.build(
        survey,
        np.asarray(sources["source_id"].to_numpy(), dtype=np.bytes_),
        sources["ra_deg"].to_numpy(),
        sources["dec_deg"].to_numpy(),
        np.asarray(sources["object_class"].to_numpy(), dtype=str),
    )
    store.replace_table(layout.labels, merged.table)
    return merged, sources


def ingest(survey_file: Path, shelf: Path, *, part_rows: int = 4096, progress: bool = False) -> IngestReport:
    """Make the shelf of a survey file, or finish one that was interrupted.

    Raises `BadInput` for whatever is wrong in the survey file and what it names, and `Conflict` for a shelf that was
    made from something else or that another process is writing. Memory is bounded by the catalogue, one tile's mosaics
    or stamps (`cutouts.HELD_BYTES` of them, in strips) and some batches of cutouts.
    """
    started = time.perf_counter()
    if shelf.exists() and not shelf.is_dir():
        raise BadInput(f"{shelf} is a file: expected the folder of a shelf, or none yet")
    survey = surveys.load(survey_file)
    paths = imaging.find(survey)
    mark = fingerprint(survey, paths)
    layout = Layout(shelf)
    if layout.info_file.is_file() and layout.read_info().fingerprint != mark:
        raise Conflict(
            f"{shelf} was made from another catalogue, survey file or set of images than {survey_file}; "
            "adding to a shelf is not possible yet: ingest into a new folder"
        )
    with alone(layout.work("ingest.lock"), f"another process is writing to {layout.root}: wait until it has ended"):
        finished = layout.info_file.is_file() and store.count_rows(layout.sources) > 0
        cuts: dict[str, int] = {}
        unknown: int | None = None
        if not finished:
            cuts, unknown = _fill(layout, survey, paths, mark=mark, part_rows=part_rows, progress=progress)
        merged, sources = _write_labels(layout, survey)
    occupied = set(sources["tile"].unique().to_pylist())
    source_id = sources["source_id"].to_numpy()
    states = {
        name: {state.name.lower(): int((sources[f"state_{name}"].to_numpy() == state).sum()) for state in State}
        for name in survey.band_names
    }
    return IngestReport(
        survey=survey.survey.name,
        sources=len(sources),
        cut={cut: {"removed": rows} for cut, rows in cuts.items()},
        labelled=len(merged.table),
        states=states,
        tiles=len(paths),
        empty_tiles=tuple(name for name in paths if name not in occupied),
        sources_on_no_tile=int((sources["flags"].to_numpy() & store.FLAG_NO_TILE != 0).sum()),
        stamps_of_no_source=unknown,
        labels=merged.sections,
        disagreements=tuple(source_id[merged.disagreeing_rows].tolist()),
        labels_only=finished,
        seconds=time.perf_counter() - started,
    )

"""`redshelf ingest`: a survey file's catalogue, mosaics or stamps, and labels become a shelf.

Everything is read and checked before shelf.toml is written; cutouts follow tile by tile, in parts of which a killed
run repeats at most one; then sources, then labels. Run again on a finished shelf, it rewrites the labels only. Where
the catalogue, images, stamps, weights, masks or survey file have changed since (`indexing/origin`), the shelf is left
alone, or taken to the new state with `update`: the same flow, for the sources that need a row.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from redshelf.indexing import catalogue as catalogues
from redshelf.indexing import cutouts, deletions, imaging, labels, origin, store, tiling
from redshelf.indexing import survey as surveys
from redshelf.indexing.catalogue import Catalogue
from redshelf.indexing.changes import Changes, MakeRows, first
from redshelf.indexing.files import alone
from redshelf.indexing.imaging import Imaged, ImagesOf, Ints, TilePaths
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.memory import keep_freed_memory
from redshelf.indexing.origin import Origin
from redshelf.indexing.parts import commit_parts, done_parts, plan_of, write_part
from redshelf.indexing.survey import Survey
from redshelf.indexing.vectors import ahead
from redshelf.models.bands import DETECTION_SNR, Band, State, flux_to_ab
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.update import changes_of, refuse_others

SOURCES_PER_BATCH = 65_536
BATCHES_AHEAD = 8  # of cutouts, made while others are written
TORCH_PIXELS = 10**9  # beyond, torch saves more time than importing it takes


@dataclass(frozen=True)
class IngestReport:
    """What is on the shelf after an ingest."""

    survey: str
    sources: int
    new: int
    changed: int
    removed: int
    kept_out: int  # of the catalogue, and deleted by hand
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


def _batches(
    info: ShelfInfo, parts: Sequence[tiling.Part], images_of: ImagesOf, chosen: Ints, *, first_row: int
) -> Iterator[pa.RecordBatch]:
    """The cutouts of some parts of the sources `chosen`, whose rows count from `first_row`; the pixels of a strip are
    read once for all of its parts, and are then let go."""
    pieces = (piece for part in parts for piece in part.pieces)
    strips = [list(some) for _, some in groupby(pieces, key=lambda piece: (piece.tile, piece.strip))]
    spans = [(some[0].tile, chosen[some[0].first_row : some[-1].first_row + some[-1].rows]) for some in strips]
    found = images_of(info, spans)
    for together in strips:
        images, low = next(found), together[0].first_row
        for piece in together:
            rows = slice(piece.first_row - low, piece.first_row - low + piece.rows)
            yield from cutouts.batches(images, rows, cutout_px=info.cutout_px, first_row=first_row + piece.first_row)
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
    imaged: Imaged,
    added: Ints,
    *,
    base: int,
    mark: str,
    part_rows: int,
    progress: bool,
) -> None:
    """Append the cutouts of the sources `added` to the first `base` rows, unless an earlier run has."""
    from tqdm import tqdm

    plan = f"ingest-{mark}"
    if store.exists(layout.cutouts):
        dataset = store.open_table(layout.cutouts)
        if dataset.count_rows() == base + len(added) and plan_of(dataset).startswith(plan):
            return
        if dataset.count_rows() != base:  # of an ingest that was killed, of another state of the survey
            dataset = store.restore(layout.cutouts, rows=base)
        plan = f"{plan}-{dataset.version}"
    if not len(added):
        return
    parts = tiling.plan(imaged.tile_of[added], imaged.strip_of[added], part_rows)
    schema = store.cutouts_schema(len(info.bands), info.cutout_px)
    receipts = layout.work("ingest") / f"cutouts-{part_rows}"  # parts of another size are other parts
    done = done_parts(receipts)
    todo = [part for part in parts if part.number not in done]
    before = len(added) - sum(part.rows for part in todo)
    if imaged.pixels > TORCH_PIXELS:
        import torch  # noqa: F401 (in_noise_units then converts with it)
    keep_freed_memory()
    cutting = _batches(info, todo, imaged.images_of, added, first_row=base)
    with (
        tqdm(total=len(added), initial=before, unit="sources", desc="cutouts", disable=not progress) as bar,
        closing(ahead((partial(next, cutting, None) for _ in count()), depth=BATCHES_AHEAD)) as found,
    ):
        for part in todo:
            batches, first = _first(found, part.rows), base + part.first_row
            told: dict[str, Any] = {"part": part.number, "first_row": first, "plan": plan}
            write_part(layout.cutouts, schema, batches, receipts=receipts, **told)
            bar.update(part.rows)
    commit_parts(layout.cutouts, schema, receipts=receipts, parts=len(parts), plan=plan)


def _source_rows(
    info: ShelfInfo, imaged: Imaged, references: Sequence[str]
) -> tuple[pa.Schema, Callable[[Ints, Ints], pa.RecordBatch]]:
    """The schema of sources.lance, and what turns positions in the catalogue and their rows (n,) into its rows."""
    schema = store.sources_schema(info.band_names, references)
    tiles = np.array([*imaged.tiles, ""])  # -1 takes the last, no name

    def make(positions: Ints, rows: Ints) -> pa.RecordBatch:
        some = imaged.catalogue.take(positions)
        columns = {
            "row": rows,
            "source_id": pa.array(some.source_id.astype(str)),
            "ra_deg": some.ra_deg,
            "dec_deg": some.dec_deg,
            "healpix29": some.healpix29,
            "tile": pa.array(tiles[imaged.tile_of[positions]]),
            "object_class": pa.array(some.object_class),
            "flags": some.flags,
            "ebv": some.ebv,
            "size_arcsec": some.size_arcsec,
            "z_reference": some.z_reference,
        }
        further = [field.name for field in schema if field.name.startswith("z_reference_")]
        columns |= {name: some.z_references[:, r] for r, name in enumerate(further)}
        for b, band in enumerate(info.band_names):
            columns[f"flux_{band}"] = some.flux_ujy[:, b]
            columns[f"flux_error_{band}"] = some.flux_error_ujy[:, b]
            columns[f"state_{band}"] = some.state[:, b]
        return pa.RecordBatch.from_arrays([pa.array(columns[field.name]) for field in schema], schema=schema)

    return schema, make


def _write_sources(
    layout: Layout, schema: pa.Schema, make_rows: MakeRows, added: Ints, *, base: int, mark: str
) -> None:
    plan = f"ingest-{mark}"
    if base:
        plan = f"{plan}-{store.open_table(layout.sources).version}"
    rows = np.arange(base, base + len(added))
    pieces = (slice(start, start + SOURCES_PER_BATCH) for start in range(0, len(added), SOURCES_PER_BATCH))
    batches = (make_rows(added[here], rows[here]) for here in pieces)
    receipts = layout.work("ingest") / "sources"
    write_part(layout.sources, schema, batches, receipts=receipts, part=0, first_row=base, plan=plan)
    commit_parts(layout.sources, schema, receipts=receipts, parts=1, plan=plan)


def _fill(
    layout: Layout, survey: Survey, paths: TilePaths, source: Origin, *, part_rows: int, progress: bool
) -> tuple[dict[str, int], int | None, Changes]:
    """Bring cutouts and sources to the state of the survey, as far as an earlier run has not; what each cut removed,
    the stamps of no source, and the changes."""
    catalogue, cuts = catalogues.read(survey)
    imaged = imaging.imaged(survey, catalogue, paths, file_rows=len(catalogue) + sum(cuts.values()))
    if layout.info_file.is_file():
        info = layout.read_info()
    else:
        info = describe(survey, imaged.catalogue, imaged.noise_ujy(), fingerprint=source.fingerprint)
        origin.write(layout, source)
        layout.write_info(info)
    schema, make_rows = _source_rows(info, imaged, list(survey.catalogue.z_references))
    base, changes = 0, first(len(imaged.catalogue))
    if store.exists(layout.sources):
        changes, base = changes_of(layout, info, imaged, source, make_rows), store.count_rows(layout.sources)
    told: dict[str, Any] = {"base": base, "mark": source.fingerprint}
    if info.has_images:
        _write_cutouts(layout, info, imaged, changes.added, part_rows=part_rows, progress=progress, **told)
    if len(changes.added):
        _write_sources(layout, schema, make_rows, changes.added, **told)
    deletions.add(layout, {deletions.CHANGED: changes.changed, deletions.REMOVED: changes.removed})
    return cuts, imaged.stamps_of_no_source, changes


def _write_labels(layout: Layout, survey: Survey) -> tuple[labels.MergedLabels, pa.Table]:
    """Rewrite labels.lance; returns the labels, their rows counted among the sources that are not deleted, and those
    sources' columns (without positions and photometry)."""
    states = [f"state_{name}" for name in survey.band_names]
    columns = ["source_id", "ra_deg", "dec_deg", "object_class", "tile", "flags", *states]
    live = deletions.live(layout)
    rows, sources = np.flatnonzero(live), store.open_table(layout.sources).to_table(columns=columns)
    if not live.all():
        sources = sources.filter(pa.array(live))
    merged = labels.build(
        survey,
        np.asarray(sources["source_id"].to_numpy(), dtype=np.bytes_),
        sources["ra_deg"].to_numpy(),
        sources["dec_deg"].to_numpy(),
        np.asarray(sources["object_class"].to_numpy(), dtype=str),
    )
    at = merged.table.schema.get_field_index("row")
    on_shelf = pa.array(rows[merged.table["row"].to_numpy()], pa.int64())
    store.replace_table(layout.labels, merged.table.set_column(at, store.LABELS_SCHEMA.field("row"), on_shelf))
    return merged, sources


def ingest(
    survey_file: Path, shelf: Path, *, update: bool = False, part_rows: int = 4096, progress: bool = False
) -> IngestReport:
    """Make the shelf of a survey file, or finish one that was interrupted.

    `update` brings a shelf to what its survey has become: sources that are new, or whose values or images have changed,
    get new rows at the end; old rows of those, and of sources that are gone, are listed as deleted.

    Raises `BadInput` for whatever is wrong in the survey file and what it names, and `Conflict` for a shelf that was
    made from something else or that another process is writing. Memory is bounded by the catalogue, one tile's mosaics
    or stamps (`cutouts.HELD_BYTES` of them, in strips) and some batches of cutouts.
    """
    started = time.perf_counter()
    if shelf.exists() and not shelf.is_dir():
        raise BadInput(f"{shelf} is a file: expected the folder of a shelf, or none yet")
    survey = surveys.load(survey_file)
    paths = imaging.find(survey)
    source = origin.of(survey, paths)
    layout = Layout(shelf)
    with alone(layout.work("ingest.lock"), f"another process is writing to {layout.root}: wait until it has ended"):
        info = layout.read_info() if layout.info_file.is_file() else None
        begun = layout.update_file.is_file()
        changed = info is not None and origin.read(layout).fingerprint != source.fingerprint
        if info is not None and (changed or begun):
            if not update:
                raise Conflict(
                    f"an update of {shelf} was interrupted: --update goes on with it"
                    if begun
                    else f"{shelf} was made from another catalogue, survey file or set of images than {survey_file}: "
                    "with --update it takes over what has changed; else ingest into a new folder"
                )
            if not store.exists(layout.sources):
                raise Conflict(
                    f"the first ingest into {shelf} never ended, and the survey has changed: remove that folder"
                )
            refuse_others(layout, info, survey)
        finished = info is not None and not changed and not begun and store.exists(layout.sources)
        cuts: dict[str, int] = {}
        unknown: int | None = None
        changes = first(0)  # none
        if not finished:
            cuts, unknown, changes = _fill(layout, survey, paths, source, part_rows=part_rows, progress=progress)
        merged, sources = _write_labels(layout, survey)
        origin.write(layout, source)
        shutil.rmtree(layout.work("ingest"), ignore_errors=True)
    occupied = set(sources["tile"].unique().to_pylist())
    source_id = sources["source_id"].to_numpy()
    states = {
        name: {state.name.lower(): int((sources[f"state_{name}"].to_numpy() == state).sum()) for state in State}
        for name in survey.band_names
    }
    return IngestReport(
        survey=survey.survey.name,
        sources=len(sources),
        new=changes.new,
        changed=len(changes.changed),
        removed=len(changes.removed),
        kept_out=changes.kept_out,
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

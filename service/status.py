"""What a shelf has and what is missing, from counts and manifests alone; nothing is opened for serving."""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redshelf.indexing import ann, assembly, cutting, generation, outputs, partition, slurm, store
from redshelf.indexing.jobs import Job
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import done_parts, read_receipt
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import fits, maps
from redshelf.service.fit import read_labels
from redshelf.service.fits import StoredFit


@dataclass(frozen=True)
class EncoderStatus:
    """One revision of an encoder: rows embedded, recall of its index (None: not indexed), and the fits that use it and
    were made with the labels as they are and can be read."""

    name: str
    revision: str
    embedded: int
    recall: float | None
    fits: list[str]


@dataclass(frozen=True)
class Progress:
    """How far an open plan is. `rate`: rows a second over all that worked so far, `seconds_left` at that rate; None
    before the first receipt. `jobs` of SLURM, newest submission last. `encoder` and `revision` are empty for the
    cutouts of an ingest, `output` is the file that a plan of neighbours or redshifts is for."""

    encoder: str
    revision: str
    plan: str
    parts: int
    done: int
    rows: int
    rows_done: int
    rate: float | None
    seconds_left: float | None
    jobs: list[str]
    output: str = ""


@dataclass(frozen=True)
class MapStatus:
    """The newest map of an encoder, or of the sky, and the generation that it is of."""

    name: str
    generation: int
    method: str
    sources: int


@dataclass(frozen=True)
class Status:
    survey: str
    bands: list[str]
    has_images: bool
    n_sources: int  # that are not deleted
    n_deleted: int
    n_labels: int
    n_cutouts: int
    encoders: list[EncoderStatus]
    generations: list[int]
    maps: list[MapStatus]
    ingest: Progress | None
    embedding: list[Progress]
    indexing: list[Progress]
    outputs: list[Progress]
    missing: list[str]  # each with the command that makes it


def _fits(usable: list[StoredFit], name: str, revision: str) -> list[str]:
    return sorted({fit.encoder for fit in usable if fit.revisions.get(name) == revision})


def _unreadable(layout: Layout, stored: list[StoredFit]) -> list[str]:
    """A line for each fit, the newest of its encoder, that another version of redshelf has made, and for one that is
    published while a newer one can be read."""
    newest = {fit.encoder: fit for fit in stored}
    lines = [
        f"a fit on {fit.encoder} that can be read: {fits.again(fit.encoder)} and `redshelf publish` ({fit.fault})"
        for fit in newest.values()
        if fit.fault
    ]
    with suppress(NotFound, BadInput):  # nothing is published; or `check` says what is wrong with it
        one = generation.read(layout)
        for folder in (fit.folder for fit in one.redshifts):
            lines += [
                f"a generation whose fit on {fit.encoder} can be read: run `redshelf publish` ({fit.fault})"
                for fit in stored
                if fit.folder.name == folder and fit.fault and not newest[fit.encoder].fault
            ]
    return lines


def _encoders(layout: Layout, stored: list[StoredFit]) -> list[EncoderStatus]:
    found = []
    labels = read_labels(layout).digest if store.count_rows(layout.labels) else None
    usable = [fit for fit in stored if fit.made_with(labels) and not fit.fault]
    for name, revisions in layout.encoders().items():
        for revision in revisions:
            embedded = store.count_rows(layout.embeddings(name, revision))
            index = layout.index(name, revision, embedded)
            recall = ann.read_manifest(index)["recall"]["value"] if (index / ann.MANIFEST).is_file() else None
            found.append(EncoderStatus(name, revision, embedded, recall, _fits(usable, name, revision)))
    return found


def _missing(
    layout: Layout,
    encoders: list[EncoderStatus],
    plans: list[Progress],
    rows: int,
    n_labels: int,
    generations: list[int],
) -> list[str]:
    if not rows:
        return ["the sources: run `redshelf ingest SURVEY.toml`"]
    lines = []
    if layout.update_file.is_file():
        lines.append("the end of an update that was interrupted: run `redshelf ingest SURVEY.toml --update`")
    planned = {(plan.encoder, plan.revision): plan for plan in plans}
    for e in encoders:
        plan = planned.get((e.name, e.revision))
        if plan is not None and plan.done == plan.parts:
            lines.append(f"the commit of the vectors of {e.name}: run `redshelf embed --encoder {e.name} --commit`")
        elif plan is not None:
            lines.append(f"{plan.rows - plan.rows_done} vectors of {e.name}, whose plan is open")
        elif e.embedded < rows:
            lines.append(f"{rows - e.embedded} vectors of {e.name}: run `redshelf embed --encoder {e.name}`")
        elif e.recall is None:
            lines.append(f"the index of {e.name}: run `redshelf index --encoder {e.name}`")
        elif n_labels and e.name not in e.fits:
            lines.append(
                f"a redshift fit on {e.name} and the labels as they are: run `redshelf fit --encoder {e.name}`"
            )
    begun = {path.parent.name.removeprefix("train.") for path in layout.work("").glob("train.*/*.safetensors")}
    lines += [f"the end of training {name}: it goes on, or goes on with the same command" for name in sorted(begun)]
    if not encoders:
        lines.append("an encoder: run `redshelf embed --encoder photometry`, or `redshelf pretrain --name NAME`")
    if not n_labels:
        lines.append("redshift labels: add [[labels]] to the survey file and run `redshelf ingest` again")
    if not generations:
        lines.append("a generation to serve: run `redshelf publish`")
    return lines


def _working_seconds(receipts: list[dict[str, Any]]) -> float:
    """Seconds in which at least one part was in hand: pauses between runs do not count."""
    spans = sorted((r["ended"] - r["write_seconds"] - r.get("encode_seconds", 0.0), r["ended"]) for r in receipts)
    total, until = 0.0, -math.inf
    for began, ended in spans:
        total += max(0.0, ended - max(began, until))
        until = max(until, ended)
    return total


def _progress(job: Job, where: Path, *, encoder: str = "", revision: str = "", output: str = "") -> Progress:
    """An open plan whose receipts are in `where`; a damaged receipt counts as none."""
    receipts = []
    for part in done_parts(where):
        with suppress(BadInput, OSError):
            receipts.append(read_receipt(where, part))
    rows, rows_done = job.split.rows_of(range(job.split.parts)), sum(receipt["rows"] for receipt in receipts)
    rate = rows_done / max(_working_seconds(receipts), 1e-9) if rows_done else None
    submitted = slurm.read_record(job.home).get("submitted", [])
    return Progress(
        encoder=encoder,
        revision=revision,
        plan=job.id,
        parts=job.split.parts,
        done=len(receipts),
        rows=rows,
        rows_done=rows_done,
        rate=rate,
        seconds_left=None if rate is None else (rows - rows_done) / rate,
        jobs=[entry[kind] for entry in submitted for kind in ("array", "commit") if entry[kind]],
        output=output,
    )


def _embedding(layout: Layout, home: Path) -> Progress:
    plan = partition.read(home)
    told = {"encoder": plan.encoder, "revision": plan.revision}
    return _progress(partition.job(layout, plan), partition.receipts(layout, plan), **told)


def _ingest(layout: Layout) -> Progress | None:
    """Of the cutouts, where they are planned and not in their table."""
    try:
        plan = cutting.read(layout)
    except (NotFound, BadInput):
        return None
    if not plan.parts or cutting.is_committed(layout, plan):
        return None
    return _progress(cutting.job(layout, plan), cutting.receipts(layout, plan.facts, "cutouts"))


def _indexing(layout: Layout) -> list[Progress]:
    """Of the open plans of indexes; one that was altered is for `redshelf index` to say."""
    found = []
    with suppress(BadInput):
        for home, plan in assembly.open_plans(layout.work("")).items():
            building = assembly.Building(plan, home, layout.index(plan.encoder, plan.revision, plan.rows))
            found.append(_progress(building.job(), building.work, encoder=plan.encoder, revision=plan.revision))
    return found


def _output(plan: outputs.Plan) -> Progress:
    told = {"encoder": plan.encoder, "revision": plan.revision, "output": plan.path}
    return _progress(outputs.job(plan), outputs.receipts(plan), **told)


def progress(layout: Layout) -> tuple[list[Progress], list[str]]:
    """Every open plan, and a line for each that cannot be read."""
    found, damaged = [], []
    for home in partition.homes(layout):
        try:
            found.append(_embedding(layout, home))
        except FileNotFoundError:
            continue  # committed at this moment
        except (BadInput, KeyError, TypeError) as error:
            damaged.append(f"a plan that can be read in {home}: {error}")
    return found, damaged


def _maps(layout: Layout, generations: list[int]) -> tuple[list[MapStatus], list[str]]:
    """The newest map of each name, and a line for each that is not of the newest generation or cannot be read."""
    found, missing = [], []
    newest = {folder.name.rpartition(".")[0]: folder for folder in maps.stored(layout)}
    for name, folder in sorted(newest.items()):
        try:
            told = maps.read(folder)
        except Conflict as error:
            missing.append(f"a map of {name} that can be read: {error}")
            continue
        found.append(MapStatus(name, told.generation, told.method, told.sources))
        if generations and told.generation != generations[-1]:
            missing.append(f"the map of {name} for generation {generations[-1]}: {maps.again(name)}")
    return found, missing


def status(root: Path) -> Status:
    """The state of a shelf; `NotFound` where there is none."""
    layout = Layout(root)
    info = layout.read_info()
    rows, labels, cutouts, deleted = (
        store.count_rows(path) for path in (layout.sources, layout.labels, layout.cutouts, layout.deleted)
    )
    stored, published = fits.stored(layout), generation.numbers(layout)
    encoders = _encoders(layout, stored)
    plans, damaged = progress(layout)
    known_maps, old_maps = _maps(layout, published)
    return Status(
        survey=info.survey,
        bands=list(info.band_names),
        has_images=info.has_images,
        n_sources=rows - deleted,
        n_deleted=deleted,
        n_labels=labels,
        n_cutouts=cutouts,
        encoders=encoders,
        generations=published,
        maps=known_maps,
        ingest=_ingest(layout),
        embedding=plans,
        indexing=_indexing(layout),
        outputs=[_output(plan) for plan in outputs.open_plans(layout)],
        missing=_missing(layout, encoders, plans, rows, labels, published)
        + _unreadable(layout, stored)
        + old_maps
        + damaged,
    )

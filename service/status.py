"""What a shelf has and what is missing, from counts and manifests alone; nothing is opened for serving."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redshelf.indexing import ann, generation, partition, slurm, store
from redshelf.indexing.files import read_json
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import done_parts, read_receipt
from redshelf.models.errors import BadInput
from redshelf.service.fit import read_labels


@dataclass(frozen=True)
class EncoderStatus:
    """One revision of an encoder: rows embedded, recall of its index (None: not indexed), and the fits that use it and
    were made with the labels as they are."""

    name: str
    revision: str
    embedded: int
    recall: float | None
    fits: list[str]


@dataclass(frozen=True)
class Progress:
    """How far an open plan is. `rate`: rows a second over all that worked so far, `seconds_left` at that rate; None
    before the first receipt. `jobs` of SLURM, newest submission last."""

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


@dataclass(frozen=True)
class Status:
    survey: str
    bands: list[str]
    has_images: bool
    n_sources: int
    n_labels: int
    n_cutouts: int
    encoders: list[EncoderStatus]
    generations: list[int]
    embedding: list[Progress]
    missing: list[str]  # each with the command that makes it


def _fits(configs: list[dict[str, Any]], name: str, revision: str) -> list[str]:
    return sorted({c["encoder"] for c in configs if c["revisions"].get(name) == revision})


def _encoders(layout: Layout) -> list[EncoderStatus]:
    found = []
    labels = read_labels(layout).digest if store.count_rows(layout.labels) else None
    configs = [read_json(path) for path in sorted(layout.redshift.glob("*/config.json"))]
    configs = [config for config in configs if config["labels_sha256"] == labels]
    for name, revisions in layout.encoders().items():
        for revision in revisions:
            indexed = (layout.index(name, revision) / ann.MANIFEST).is_file()
            recall = ann.read_manifest(layout.index(name, revision))["recall"]["value"] if indexed else None
            embedded = store.count_rows(layout.embeddings(name, revision))
            found.append(EncoderStatus(name, revision, embedded, recall, _fits(configs, name, revision)))
    return found


def _missing(encoders: list[EncoderStatus], n_sources: int, n_labels: int, generations: list[int]) -> list[str]:
    if not n_sources:
        return ["the sources: run `redshelf ingest SURVEY.toml`"]
    lines = []
    for e in encoders:
        if e.embedded < n_sources:
            lines.append(f"{n_sources - e.embedded} vectors of {e.name}: run `redshelf embed --encoder {e.name}`")
        elif e.recall is None:
            lines.append(f"the index of {e.name}: run `redshelf index --encoder {e.name}`")
        elif n_labels and e.name not in e.fits:
            lines.append(
                f"a redshift fit on {e.name} and the labels as they are: run `redshelf fit --encoder {e.name}`"
            )
    if not encoders:
        lines.append("an encoder: run `redshelf embed --encoder photometry`, or `redshelf pretrain --name NAME`")
    if not n_labels:
        lines.append("redshift labels: add [[labels]] to the survey file and run `redshelf ingest` again")
    if not generations:
        lines.append("a generation to serve: run `redshelf publish`")
    return lines


def progress(layout: Layout) -> list[Progress]:
    """Every open plan, from its receipts; a damaged receipt counts as none."""
    found = []
    for home, plan in partition.open_plans(layout).items():
        receipts = []
        for part in done_parts(home):
            try:
                receipts.append(read_receipt(home, part))
            except (BadInput, OSError):
                continue
        rows_done = sum(receipt["rows"] for receipt in receipts)
        rate = None
        if receipts:
            began = min(r["ended"] - r["write_seconds"] - r.get("encode_seconds", 0.0) for r in receipts)
            rate = rows_done / max(max(r["ended"] for r in receipts) - began, 1e-9)
        rows = plan.rows - plan.first_row
        jobs = [
            e[kind] for e in slurm.read_record(home).get("submitted", []) for kind in ("array", "commit") if e[kind]
        ]
        found.append(
            Progress(
                encoder=plan.encoder,
                revision=plan.revision,
                plan=plan.id,
                parts=plan.parts,
                done=len(receipts),
                rows=rows,
                rows_done=rows_done,
                rate=rate,
                seconds_left=None if rate is None else (rows - rows_done) / rate,
                jobs=jobs,
            )
        )
    return found


def status(root: Path) -> Status:
    """The state of a shelf; `NotFound` where there is none."""
    layout = Layout(root)
    info = layout.read_info()
    counts = [store.count_rows(path) for path in (layout.sources, layout.labels, layout.cutouts)]
    encoders, published = _encoders(layout), generation.numbers(layout)
    return Status(
        survey=info.survey,
        bands=list(info.band_names),
        has_images=info.has_images,
        n_sources=counts[0],
        n_labels=counts[1],
        n_cutouts=counts[2],
        encoders=encoders,
        generations=published,
        embedding=progress(layout),
        missing=_missing(encoders, counts[0], counts[1], published),
    )

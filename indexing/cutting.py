"""The plan of an ingest, and its cutouts as a job of parts.

The plan says where the pixels of each new row lie, so that whoever cuts a part needs no catalogue. It stays in
work/ingest until the ingest has ended, beside the receipts of its parts and the rows of sources.lance, which are
written with it and committed after the cutouts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import cutouts, imaging, origin, store, tiling
from redshelf.indexing import survey as surveys
from redshelf.indexing.files import read_json, write_json, write_npy
from redshelf.indexing.imaging import TilePaths
from redshelf.indexing.jobs import PLAN_FILE, Do, Job, Parts, Progress, check_least, id_of, read_plan
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.memory import keep_freed_memory
from redshelf.indexing.origin import Origin
from redshelf.indexing.parts import commit_parts, done_parts, write_part
from redshelf.indexing.survey import Survey
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound
from redshelf.models.threads import ahead

PART_ROWS, TASK_PARTS = 4096, 256  # a task of a million rows: minutes of one core
BATCHES_AHEAD = 8  # of cutouts, made while others are written
TORCH_PIXELS = 10**9  # beyond, torch saves more time than importing it takes
ORIGIN_FILE = "origin.json"
ARRAYS = ("tile_of", "strip_of", "where", "changed", "removed")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Facts:
    """plan.json: rows `first_row` to `rows`, of the state `fingerprint` of a survey. `tag` is the name under which
    the two tables know the commit, `cut` says what each cut of the survey file removed."""

    fingerprint: str
    survey_file: str
    tiles: tuple[str, ...]
    references: tuple[str, ...]  # further photo-zs of the sources
    first_row: int
    rows: int
    part_rows: int
    task_parts: int
    pixels: int
    tag: str
    new: int
    kept_out: int
    cut: dict[str, int]
    stamps_of_no_source: int | None

    def __post_init__(self) -> None:
        check_least(self, part_rows=1, task_parts=1)

    @cached_property
    def id(self) -> str:
        """16 hex digits that no other plan has."""
        return id_of(self)


@dataclass(frozen=True, eq=False)
class IngestPlan(Parts):
    """The facts; of each row to cut its tile, the strip of the tile, and where on it (`imaging.Span`); and the rows of
    the shelf that are `changed` or `removed`. Nothing is to cut where the survey has no images."""

    facts: Facts
    tile_of: Ints
    strip_of: Ints
    where: npt.NDArray[Any]
    changed: Ints
    removed: Ints

    @property
    def id(self) -> str:
        return self.facts.id

    @cached_property
    def pieces(self) -> list[tiling.Part]:
        """The parts."""
        return tiling.plan(self.tile_of, self.strip_of, self.facts.part_rows) if len(self.tile_of) else []

    @property
    def parts(self) -> int:
        return len(self.pieces)

    @property
    def task_parts(self) -> int:
        return self.facts.task_parts

    def rows_of(self, parts: Iterable[int]) -> int:
        total = 0
        for part in parts:
            self.check_part(part)
            total += self.pieces[part].rows
        return total


def folder(layout: Layout) -> Path:
    """Where the plan lies until the ingest has ended."""
    return layout.work("ingest")


def receipts(layout: Layout, facts: Facts, table: str) -> Path:
    """Where the receipts of the plan's cutouts or sources lie."""
    return folder(layout) / f"{table}-{facts.id}"


def discard(layout: Layout) -> None:
    """Remove the plan, first, and what its parts have left."""
    home = folder(layout)
    (home / PLAN_FILE).unlink(missing_ok=True)
    for path in home.glob("*/"):
        shutil.rmtree(path)


def write(layout: Layout, plan: IngestPlan, source: Origin) -> None:
    """Leave the plan, last, where whoever cuts finds it, with the state of the survey that it is for."""
    home = folder(layout)
    origin.write(home / ORIGIN_FILE, source)
    for name in ARRAYS:
        write_npy(home / f"{name}.npy", getattr(plan, name))
    write_json(home / PLAN_FILE, {**asdict(plan.facts), "id": plan.id})


def write_sources(layout: Layout, facts: Facts, batches: Iterable[pa.RecordBatch]) -> None:
    """Write the new rows of sources.lance, which `commit` makes part of the table; before the plan."""
    schema = store.sources_schema(layout.read_info().band_names, facts.references)
    told: dict[str, Any] = {"receipts": receipts(layout, facts, "sources"), "plan": facts.tag}
    write_part(layout.sources, schema, batches, part=0, first_row=facts.first_row, **told)


def _facts(*, tiles: Sequence[str], references: Sequence[str], **more: Any) -> Facts:
    """As JSON has them, which knows no tuples."""
    return Facts(tiles=tuple(tiles), references=tuple(references), **more)


def read(layout: Layout) -> IngestPlan:
    """The plan of the ingest that has not ended, its arrays memory-mapped; `NotFound` where there is none, `BadInput`
    where it was altered."""
    home = folder(layout)
    if not (home / PLAN_FILE).is_file():
        raise NotFound(f"no ingest is planned on {layout.root}: plan one with `redshelf ingest SURVEY.toml --plan`")
    facts = read_plan(home / PLAN_FILE, _facts, told=("id",))
    try:
        arrays = {name: np.load(home / f"{name}.npy", mmap_mode="r") for name in ARRAYS}
    except (ValueError, OSError) as error:
        raise BadInput(f"{home / PLAN_FILE} is no plan of this redshelf: {error}") from error
    return IngestPlan(facts, **arrays)


def source_of(layout: Layout) -> Origin:
    """The state of the survey that the open plan is for."""
    return origin.load(folder(layout) / ORIGIN_FILE)


def is_open(layout: Layout, plan: IngestPlan) -> bool:
    """Whether this very plan is there still."""
    try:
        return bool(read_json(folder(layout) / PLAN_FILE)["id"] == plan.id)
    except (BadInput, OSError, KeyError, TypeError):
        return False


def missing(layout: Layout, plan: IngestPlan) -> set[int]:
    """The parts that have no receipt; none where they are committed."""
    if is_committed(layout, plan):
        return set()
    return set(range(plan.parts)) - done_parts(receipts(layout, plan.facts, "cutouts"))


def is_committed(layout: Layout, plan: IngestPlan) -> bool:
    """Whether the cutouts are in their table."""
    return store.count_rows(layout.cutouts) >= plan.facts.rows


def together(plan: IngestPlan, parts: Iterable[int]) -> list[list[int]]:
    """`parts`, ascending, in groups that have no strip of a tile in common: each strip is read once."""
    groups: list[list[int]] = []
    last = None
    for part in parts:
        pieces = plan.pieces[part].pieces
        if (pieces[0].tile, pieces[0].strip) != last:
            groups.append([])
        groups[-1].append(part)
        last = (pieces[-1].tile, pieces[-1].strip)
    return groups


def has_sources(layout: Layout, plan: IngestPlan) -> bool:
    """Whether the rows of the sources, which are written with the plan alone, are there: in their table, or beside."""
    facts = plan.facts
    return store.count_rows(layout.sources) >= facts.rows or 0 in done_parts(receipts(layout, facts, "sources"))


def job(layout: Layout, plan: IngestPlan) -> Job:
    """The plan for a scheduler."""
    words = ("ingest", plan.facts.survey_file)
    return Job("ingest", words, plan.id, folder(layout), plan, partial(missing, layout, plan), False)


def _batches(
    info: ShelfInfo, plan: IngestPlan, parts: Sequence[tiling.Part], survey: Survey, paths: TilePaths
) -> Iterator[pa.RecordBatch]:
    """The cutouts of some parts; the pixels of a strip are read once for all of them, and are then let go."""
    pieces = (piece for part in parts for piece in part.pieces)
    strips = [list(some) for _, some in groupby(pieces, key=lambda piece: (piece.tile, piece.strip))]
    spans = ((some[0].tile, plan.where[some[0].first_row : some[-1].first_row + some[-1].rows]) for some in strips)
    found = imaging.images(survey, info, paths, plan.facts.tiles, spans)
    for together in strips:
        images, low = next(found), together[0].first_row
        for piece in together:
            rows = slice(piece.first_row - low, piece.first_row - low + piece.rows)
            row = plan.facts.first_row + piece.first_row
            yield from cutouts.batches(images, rows, cutout_px=info.cutout_px, first_row=row)
        del images  # before the next are read


def _first(batches: Iterator[pa.RecordBatch | None], rows: int) -> Iterator[pa.RecordBatch]:
    """The batches of the next `rows` rows, and nothing of what follows them."""
    while rows > 0:
        batch = next(batches)
        assert batch is not None  # the plan counts the rows that are cut
        rows -= len(batch)
        yield batch


def cut_parts(
    layout: Layout,
    plan: IngestPlan,
    parts: Sequence[int],
    *,
    survey: Survey,
    paths: TilePaths,
    progress: Progress = lambda rows: None,
    stop: Iterable[str] = (),
) -> None:
    """Cut those of `parts` that have no receipt, and leave theirs; `paths` are what `imaging.find` says of `survey`.

    As soon as `stop` has an element, a name for what said so, the part at hand is finished and `Interrupted` raised.
    """
    facts, info, left = plan.facts, layout.read_info(), missing(layout, plan)
    plan.rows_of(parts)  # each of them is one of the plan's
    todo = [plan.pieces[part] for part in parts if part in left]
    if not todo:
        return
    if facts.pixels > TORCH_PIXELS:
        import torch  # noqa: F401 (in_noise_units then converts with it)
    keep_freed_memory()
    schema = store.cutouts_schema(len(info.bands), info.cutout_px)
    told: dict[str, Any] = {"receipts": receipts(layout, facts, "cutouts"), "plan": facts.tag}
    told["wanted"] = partial(is_open, layout, plan)
    cutting = _batches(info, plan, todo, survey, paths)
    with closing(ahead((partial(next, cutting, None) for _ in count()), depth=BATCHES_AHEAD)) as found:
        for done, part in enumerate(todo):
            if by := list(stop):
                raise Interrupted(f"ingest stopped by {by[0]} before part {part.number}: {len(todo) - done} are left")
            first = facts.first_row + part.first_row
            write_part(layout.cutouts, schema, _first(found, part.rows), part=part.number, first_row=first, **told)
            progress(part.rows)


def open_survey(plan: IngestPlan) -> tuple[Survey, TilePaths]:
    """The survey of a plan, and its images."""
    survey = surveys.load(Path(plan.facts.survey_file))
    return survey, imaging.find(survey)


def refuse_other_images(
    layout: Layout, plan: IngestPlan, parts: Sequence[int], survey: Survey, paths: TilePaths
) -> None:
    """Raise `Conflict` where images that these parts are cut from have changed since the plan was made."""
    pieces = (piece for part in parts for piece in plan.pieces[part].pieces)
    names = sorted({plan.facts.tiles[piece.tile] for piece in pieces if piece.tile >= 0})
    known = source_of(layout).tiles
    found = origin.of_tiles(survey, {name: paths[name] for name in names if name in paths})
    for name in [*names, *(name for name in plan.facts.tiles if name not in paths)]:
        if found.get(name) != known.get(name):
            raise Conflict(f"tile {name}: its images have changed since the ingest was planned: plan it again")


def worker(root: Path, device: str, threads: int) -> Do:
    """What cuts parts of the open plan in a process of its own."""
    del device
    if threads:
        pa.set_cpu_count(threads)
    layout = Layout(root)
    plan = read(layout)
    survey, paths = open_survey(plan)

    def do(parts: Sequence[int]) -> int:
        refuse_other_images(layout, plan, parts, survey, paths)
        cut_parts(layout, plan, parts, survey=survey, paths=paths)
        return plan.rows_of(parts)

    return do


def commit(layout: Layout, plan: IngestPlan) -> None:
    """Commit cutouts, then sources; a second time changes nothing. `Conflict` as `parts.commit_parts`."""
    facts, info = plan.facts, layout.read_info()
    told = {"plan": facts.tag}
    if plan.parts:
        schema = store.cutouts_schema(len(info.bands), info.cutout_px)
        where = receipts(layout, facts, "cutouts")
        commit_parts(layout.cutouts, schema, receipts=where, parts=plan.parts, **told)
    if facts.rows > facts.first_row:
        schema = store.sources_schema(info.band_names, facts.references)
        commit_parts(layout.sources, schema, receipts=receipts(layout, facts, "sources"), parts=1, **told)

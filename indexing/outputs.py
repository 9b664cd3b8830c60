"""A table over the sources of a published generation as one file, made by parts: their neighbours, or their redshifts.

Plan and parts lie beside the file, in .FILE.parts. A part is a Parquet file, whole or not there, and a receipt with its
sha256; any process of any machine may do any of them, in any order and twice. `commit` joins them into the file
(`indexing/joining`) and removes them, so that a run that is killed repeats at most the parts that it had in hand.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from redshelf.indexing import joining
from redshelf.indexing.files import manifest, read_json, write_json, write_with
from redshelf.indexing.jobs import PLAN_FILE, Job, Progress, Spans, discard
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import checked, done_parts, write_receipt
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound

PART_ROWS, TASK_PARTS = 65_536, 8
LINES_AT_ONCE = 16_384  # of a part: what is held in memory while it is made, and while all of them are joined


@dataclass(frozen=True, kw_only=True)
class Plan(Spans):
    """plan.json: lines 0 to `rows` of the file `path`, of one generation, whose file has this sha256.

    `what` is the command that makes it; `k` is of neighbours alone, `estimator` of redshifts. Parts count from 0; a
    file without lines has one, which says what its columns are.
    """

    what: str
    path: str
    format: str
    generation: int
    generation_sha256: str
    encoder: str
    revision: str
    k: int | None
    estimator: str | None

    @property
    def parts(self) -> int:
        return max(1, super().parts)


@dataclass(frozen=True)
class Table:
    """What makes the lines: `lines(first, past)` are those from `first` to `past`, at most `LINES_AT_ONCE`, of the
    columns of `schema`; `facts` are the plan's encoder, revision, k and estimator."""

    schema: pa.Schema
    rows: int
    facts: dict[str, Any]
    lines: Callable[[int, int], pa.RecordBatch]


def folder(path: Path) -> Path:
    """Where plan and parts of the file `path` lie until it is written."""
    return path.with_name(f".{path.name}.parts")


def receipts(plan: Plan) -> Path:
    """Where the parts of this very plan and their receipts lie."""
    return folder(Path(plan.path)) / plan.id


def _note(layout: Layout, plan: Plan) -> Path:
    """Where the shelf says, for `redshelf status`, that a plan is open elsewhere."""
    return layout.work("outputs") / f"{plan.id}.json"


def write(layout: Layout, plan: Plan) -> None:
    """Leave the plan where whoever does its parts finds it, and a note on the shelf, where that can be written to."""
    plan.write(folder(Path(plan.path)) / PLAN_FILE)
    with suppress(OSError):
        write_json(_note(layout, plan), {"path": plan.path})
        for note in layout.work("outputs").glob("*.json"):
            if _noted(note) is None:  # somebody has removed the folder
                note.unlink(missing_ok=True)


def open_plans(layout: Layout) -> list[Plan]:
    """The plans of which the shelf has a note and that can be read."""
    return [plan for note in sorted(layout.work("outputs").glob("*.json")) if (plan := _noted(note)) is not None]


def _noted(note: Path) -> Plan | None:
    """The plan that a note speaks of, None where it is gone."""
    with suppress(OSError, BadInput, KeyError, TypeError):
        plan = read(folder(Path(read_json(note)["path"])))
        return plan if plan.id == note.stem else None
    return None


def read(home: Path) -> Plan:
    """The plan in `home`; `BadInput` where it was altered."""
    return Plan.read(home / PLAN_FILE)


def find(path: Path, what: str) -> Plan | None:
    """The open plan of the file `path`, None for none; `Conflict` where it is of something else, or of another file."""
    home = folder(path)
    try:
        plan = read(home)
    except FileNotFoundError:
        return None
    if plan.what != what:
        raise Conflict(
            f"{home} holds parts of `redshelf {plan.what}`, not of {what}: finish that, or remove the folder"
        )
    if plan.path != str(path):
        raise Conflict(f"the plan in {home} was made for {plan.path}: move it back, or remove that folder")
    return plan


def get(path: Path, what: str) -> Plan:
    """The open plan of the file `path`; `NotFound` where there is none."""
    if (plan := find(path, what)) is None:
        raise NotFound(f"no plan is open for {path}: make one with `redshelf {what} -o {path} --plan`")
    return plan


def is_open(plan: Plan) -> bool:
    """Whether this very plan is there still."""
    return plan.lies_at(folder(Path(plan.path)) / PLAN_FILE)


def close(layout: Layout, plan: Plan) -> None:
    """Remove the plan, its parts, and the shelf's note of it."""
    discard(folder(Path(plan.path)))
    with suppress(OSError):
        _note(layout, plan).unlink(missing_ok=True)


def missing(plan: Plan) -> set[int]:
    """The parts that have no receipt."""
    return set(range(plan.parts)) - done_parts(receipts(plan))


def job(plan: Plan) -> Job:
    """The plan for a scheduler."""
    name = f"{plan.what}-{plan.encoder}.{plan.id[:6]}"
    words = (plan.what, "-o", plan.path)
    return Job(name, words, plan.id, folder(Path(plan.path)), plan, partial(missing, plan), batch_size=False)


def _marks(plan: Plan) -> dict[bytes, str]:
    """What the file says of its plan."""
    told = {"what": plan.what, "plan": plan.id, "sources": str(plan.rows)}
    return {joining.key(name): value for name, value in told.items()}


def _write_part(plan: Plan, table: Table, part: int) -> None:
    """One part and its receipt. Each who does it writes a file of its own, of which the last receipt names one."""
    import pyarrow.parquet as pq

    started, where, (first, past) = time.perf_counter(), receipts(plan), plan.span(part)
    schema = table.schema.with_metadata({**(table.schema.metadata or {}), **_marks(plan)})

    def fill(handle: BinaryIO) -> None:
        with pq.ParquetWriter(handle, schema) as writer:
            for start in range(first, past, LINES_AT_ONCE):
                lines = table.lines(start, min(start + LINES_AT_ONCE, past))
                writer.write_table(pa.Table.from_batches([lines]).cast(schema))

    path = where / f"part-{part:06d}.{uuid.uuid4().hex[:8]}.parquet"
    try:
        write_with(path, fill)
        if is_open(plan):
            facts = {"part": part, "plan": plan.id, "first_row": first, "rows": past - first}
            told = {"files": manifest(where, [path]), "write_seconds": time.perf_counter() - started}
            write_receipt(where, {**facts, **told})
    except FileNotFoundError:
        if is_open(plan):
            raise
    if not is_open(plan):
        shutil.rmtree(where, ignore_errors=True)
        with suppress(OSError):
            folder(Path(plan.path)).rmdir()
        raise Conflict(f"{plan.path} part {part}: plan {plan.id} was committed or removed while it was written")


def do_parts(
    plan: Plan,
    table: Table,
    parts: Sequence[int],
    *,
    progress: Progress = lambda rows: None,
    stop: Iterable[str] = (),
) -> None:
    """Do those of `parts` that have no receipt, and leave theirs. `Conflict` where `table` is not the plan's.

    As soon as `stop` has an element, a name for what said so, the part at hand is finished and `Interrupted` raised.
    """
    for name, found in {**table.facts, "rows": table.rows}.items():
        if getattr(plan, name) != found:
            raise Conflict(f"{plan.path} was planned with {name}={getattr(plan, name)}, and the shelf has {found}")
    plan.rows_of(parts)  # each of them is one of the plan's
    left = missing(plan)
    todo = [part for part in parts if part in left]
    for done, part in enumerate(todo):
        if by := list(stop):
            raise Interrupted(f"{plan.what} stopped by {by[0]} before part {part}: {len(todo) - done} are left to do")
        _write_part(plan, table, part)
        progress(plan.rows_of([part]))


def commit(layout: Layout, plan: Plan) -> None:
    """Join the parts into the file, and remove them; also where a kill came between the two.

    Refuses (`Conflict`, naming them) missing parts, damaged ones, which are set aside, and a file that is there and is
    not this plan's.
    """
    path, where = Path(plan.path), receipts(plan)
    if not path.exists():
        documents = checked(where, where, name=path.name, parts=plan.parts, plan=plan.id)
        joining.write(path, plan.format, [where / name for document in documents for name in document["files"]])
    elif joining.read_facts(path, plan.format).get("plan") != plan.id:
        raise Conflict(f"{path} is there already, and is not of plan {plan.id}: remove it, or the plan")
    close(layout, plan)

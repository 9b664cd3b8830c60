"""The plan of a bulk embedding, apart from the doing: which rows are which part, and what they are made from.

`Plan` is arithmetic on a few numbers, written to plan.json beside the receipts. Whatever runs a part reads it from
there, and refuses it on another shelf, on other inputs, or with other weights.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from filelock import FileLock

from redshelf.indexing import store
from redshelf.indexing.files import sha256
from redshelf.indexing.jobs import PLAN_FILE, Job, Spans, discard
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import done_parts
from redshelf.models.encoder import Encoder
from redshelf.models.errors import Conflict, NotFound

PART_ROWS, PART_ROWS_FLUXES = 16_384, 131_072  # under five minutes on a GPU: a task is told to end six before it must
TASK_PARTS = 8


@dataclass(frozen=True, kw_only=True)
class Plan(Spans):
    """Rows of a shelf through one encoder, by parts.

    `inputs`: sha256 of the manifest of each table read, which names every file of its version. `weights_sha256` is of
    the file; the revision is a hash of weights, config and preprocessing.
    """

    encoder: str
    revision: str
    weights_sha256: str
    dim: int
    fingerprint: str
    inputs: dict[str, str]


def folder(layout: Layout, encoder: str, revision: str) -> Path:
    """Where plan and receipts of an embedding lie until it is committed."""
    return layout.work(f"embed.{encoder}.{revision}")


def _planning(home: Path) -> FileLock:
    """Held by whoever leaves a plan in `home` or removes one."""
    return FileLock(f"{home}.plan.lock")


def _inputs(layout: Layout, needs: frozenset[str]) -> dict[str, str]:
    tables = {"sources": layout.sources} | ({"cutouts": layout.cutouts} if "pixels" in needs else {})
    return {name: sha256(store.version_file(path, store.open_table(path))) for name, path in tables.items()}


def _refuse_other_shelf(layout: Layout, plan: Plan, home: Path) -> None:
    """`Conflict` unless the rows that a plan was made for are on the shelf: tables are only appended to, so that the
    version that the plan names, and any later one, has them."""
    if plan.fingerprint != layout.read_info().fingerprint:
        raise Conflict(f"the plan in {home} was made for another shelf: its fingerprint differs; remove that folder")
    for name, known in plan.inputs.items():
        if all(sha256(file) != known for file in layout.table(name).glob("_versions/*.manifest")):
            raise Conflict(
                f"the plan in {home} was made for another shelf: {name}.lance has no version that it names; remove "
                "that folder to begin anew"
            )


def propose(
    layout: Layout, encoder: Encoder, *, part_rows: int | None = None, task_parts: int | None = None
) -> Plan | None:
    """The plan for the rows that `encoder` has not embedded yet, None where there are none; nothing is written. A plan
    that is open is gone on with, also where the shelf has got more rows since.

    `Conflict` where the open one was made with other sizes, or for another state of the shelf.
    """
    layout.refuse_open_update()
    rows = int(store.open_table(layout.sources).count_rows())
    have = store.count_rows(layout.embeddings(encoder.name, encoder.revision))
    if have == rows:
        return None
    weights = layout.model(encoder.name, encoder.revision) / "weights.safetensors"
    plan = Plan(
        encoder=encoder.name,
        revision=encoder.revision,
        weights_sha256=sha256(weights) if weights.is_file() else "",
        dim=encoder.dim,
        fingerprint=layout.read_info().fingerprint,
        inputs=_inputs(layout, encoder.needs),
        first_row=have,
        rows=rows,
        part_rows=(PART_ROWS if "pixels" in encoder.needs else PART_ROWS_FLUXES) if part_rows is None else part_rows,
        task_parts=TASK_PARTS if task_parts is None else task_parts,
    )
    home = folder(layout, encoder.name, encoder.revision)
    for other, its in open_plans(layout, encoder.name).items():
        if other != home:
            raise Conflict(
                f"a plan of {encoder.name}.{its.revision} is open, and this is {encoder.name}.{encoder.revision}: end "
                f"it first (without --weights it is gone on with), or remove {other}"
            )
    if not (home / PLAN_FILE).is_file():
        return plan
    found = read(home)
    for name, asked in (("part_rows", part_rows), ("task_parts", task_parts)):
        if asked is not None and asked != getattr(found, name):
            raise Conflict(f"an open plan has {name}={getattr(found, name)}, not {asked}: finish it, or remove {home}")
    _same(layout, found, plan, home)
    return found


def make(
    layout: Layout,
    encoder: Encoder,
    *,
    part_rows: int | None = None,
    task_parts: int | None = None,
    agreed: Callable[[Plan], object] = lambda plan: None,
) -> Plan | None:
    """`propose`, and write the plan where whoever does its parts finds it, unless `agreed` raises."""
    with _planning(folder(layout, encoder.name, encoder.revision)):
        plan = propose(layout, encoder, part_rows=part_rows, task_parts=task_parts)
        if plan is not None:
            agreed(plan)
            write(layout, plan)
    return plan


def write(layout: Layout, plan: Plan) -> Path:
    """Write the plan, and return the file; one that is there is left alone."""
    path = folder(layout, plan.encoder, plan.revision) / PLAN_FILE
    if not path.is_file():
        plan.write(path)
    return path


def receipts(layout: Layout, plan: Plan) -> Path:
    """Where the receipts of this very plan lie: one that comes late never counts for the next plan."""
    return folder(layout, plan.encoder, plan.revision) / plan.id


def missing(layout: Layout, plan: Plan) -> set[int]:
    """The parts that have no receipt."""
    return set(range(plan.parts)) - done_parts(receipts(layout, plan))


def job(layout: Layout, plan: Plan) -> Job:
    """The plan for a scheduler."""
    home = folder(layout, plan.encoder, plan.revision)
    words = ("embed", "--encoder", plan.encoder)
    return Job(f"embed-{plan.encoder}", words, plan.id, home, plan, partial(missing, layout, plan), True)


def is_open(layout: Layout, plan: Plan) -> bool:
    """Whether this very plan is there still."""
    return plan.lies_at(folder(layout, plan.encoder, plan.revision) / PLAN_FILE)


def close(layout: Layout, plan: Plan) -> None:
    """Remove the plan, its receipts and what lies beside them, unless another plan has taken its place."""
    home = folder(layout, plan.encoder, plan.revision)
    with _planning(home):
        if is_open(layout, plan):
            discard(home)


def _same(layout: Layout, found: Plan, now: Plan, home: Path) -> None:
    for name in ("encoder", "revision", "weights_sha256", "dim", "first_row"):
        if getattr(found, name) != getattr(now, name):
            raise Conflict(
                f"the plan in {home} was made for another {name} ({getattr(found, name)}, now {getattr(now, name)}): "
                "remove that folder to begin anew"
            )
    _refuse_other_shelf(layout, found, home)


def read(home: Path) -> Plan:
    """The plan in `home`; `BadInput` where it was altered."""
    return Plan.read(home / PLAN_FILE)


def find(layout: Layout, encoder: str) -> tuple[Plan, Path]:
    """The open plan of an encoder, checked against the shelf, and its folder.

    `NotFound` where there is none, `Conflict` where there are several or the shelf has changed since.
    """
    known = open_plans(layout, encoder)
    places = list(known)
    if not places:
        raise NotFound(f"no open plan for encoder {encoder!r} on {layout.root}: make one with `redshelf embed --plan`")
    if len(places) > 1:
        raise Conflict(
            f"{len(places)} plans are open for encoder {encoder!r}: remove all but one of {', '.join(map(str, places))}"
        )
    plan = known[places[0]]
    _refuse_other_shelf(layout, plan, places[0])
    return plan, places[0]


def homes(layout: Layout, encoder: str = "*") -> list[Path]:
    """The folders of the plans that are not committed, of one encoder or all."""
    return [path.parent for path in sorted(layout.work("").glob(f"embed.{encoder}.*/{PLAN_FILE}"))]


def open_plans(layout: Layout, encoder: str = "*") -> dict[Path, Plan]:
    """The plans that are not committed, by folder, of one encoder or all."""
    found = {}
    for home in homes(layout, encoder):
        with suppress(FileNotFoundError):  # committed at this moment
            found[home] = read(home)
    return found

"""How a search index is made, by parts that any process may do.

Whoever comes first copies the vectors and trains the lists. Each part of the rows then gets lists of its own, in a
file, and a receipt; the end joins them list by list, measures what was made, writes the manifest last, and puts the
folder in its place whole. What is killed goes on from there. An embedding that has only grown keeps its lists, and what
is new is added to them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from redshelf.indexing import ann, flat, isolation, ivf, lists
from redshelf.indexing.files import manifest, read_json, verify, write_json, write_npy, write_with
from redshelf.indexing.flat import Flat, Floats, Halves
from redshelf.indexing.jobs import PLAN_FILE, Job, Progress, Spans, discard
from redshelf.indexing.parts import checked, done_parts, write_receipt
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound

PART_ROWS, TASK_PARTS = 2**20, 4  # a part of 128 numbers takes a core some minutes
MEMORY, RECALL = 8 * 2**30, 0.95
PREPARED = "prepared.json"

Batches = Callable[[], Iterable[Halves]]  # all vectors in order of rows, (n, dim) at a time
Brightness = Callable[[], Floats]  # of every row, (rows,); NaN where it is not known


@dataclass(frozen=True, kw_only=True)
class IndexPlan(Spans):
    """All rows of a version of an embedding; `memory` [bytes] is what the lists may take, which processes share, and
    `recall` what is promised of the ten nearest."""

    encoder: str = ""
    revision: str = ""
    embedding_version: int = 0
    dim: int
    memory: int = MEMORY
    recall: float = RECALL
    part_rows: int = PART_ROWS
    task_parts: int = TASK_PARTS

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows == 0:
            raise BadInput("cannot index an embedding without rows")
        if not 0 < self.recall < 1:
            raise BadInput(f"recall={self.recall}: expected more than 0 and less than 1")

    @property
    def provenance(self) -> dict[str, Any]:
        """What the manifest says of how it was made."""
        told = {name: getattr(self, name) for name in ("encoder", "revision", "embedding_version")}
        return {**told, "asked": {"memory": self.memory, "recall": self.recall}}


@dataclass(frozen=True)
class Building:
    """An index that is being made: all that it needs lies in `home` until it takes its place as `folder`. It is trained
    on a sample in which every `brightness` has its share, where that is given."""

    plan: IndexPlan
    home: Path
    folder: Path
    brightness: Brightness | None = None

    @property
    def work(self) -> Path:
        return self.home / self.plan.id

    @property
    def made(self) -> Path:
        """What becomes `folder`."""
        return self.work / "made"

    @property
    def trained(self) -> Path:
        return self.made / ann.INDEX

    @property
    def is_in_place(self) -> bool:
        """Whether it was killed after the index had taken its place."""
        return (self.work / PREPARED).is_file() and not self.made.exists()

    def require_open(self) -> None:
        """`Conflict` where the plan has ended, or another one has taken its place."""
        if not self.is_open:
            raise Conflict(f"the plan {self.plan.id} in {self.home} has ended, or was replaced")

    @property
    def is_open(self) -> bool:
        """Whether it is this very plan that lies there still."""
        return self.plan.lies_at(self.home / PLAN_FILE)

    def missing(self) -> set[int]:
        """The parts that have no receipt."""
        return set(range(self.plan.parts)) - done_parts(self.work)

    def job(self) -> Job:
        """The plan for a scheduler."""
        words = ("index", "--encoder", self.plan.encoder)
        return Job(f"index-{self.plan.encoder}", words, self.plan.id, self.home, self.plan, self.missing, False)


def begin(home: Path, folder: Path, plan: IndexPlan) -> Building:
    """Leave the plan where whoever does its parts finds it; another one that is there goes, with its parts."""
    building = Building(plan, home, folder)
    if not building.is_open or building.is_in_place:
        discard(home)
        plan.write(home / PLAN_FILE)
    return building


def read(home: Path) -> IndexPlan:
    """The plan that is open; `NotFound` where there is none, `BadInput` where it was altered."""
    path = home / PLAN_FILE
    if not path.is_file():
        raise NotFound(f"no index is planned in {home}: plan one with `redshelf index --plan`")
    try:
        return IndexPlan.read(path)
    except BadInput as error:
        raise BadInput(f"{error}; remove {home} to begin anew") from error


def _earlier(folder: Path, known: ann.Bools) -> tuple[Path, int] | None:
    """The index, with lists and whole, of the same embedding when it was shorter, the longest, and its rows; None where
    there is none, or where more than half of the rows are new, for which it was not trained."""
    places = [path.parent for path in folder.parent.glob(f"*/{ann.MANIFEST}") if path.parent.name.isdigit()]
    for path in sorted(places, key=lambda path: -int(path.name)):
        before = int(path.name)
        if len(known) // 2 < before < len(known) and (told := ann.read_manifest(path))["kind"] == "ivf":
            copied = {name: told["files"][name] for name in (ann.KNOWN, ann.INDEX, ann.LISTS)}
            if not verify(path, copied, hashes=True):
                stored = np.load(path / ann.KNOWN, mmap_mode="r")
                if len(stored) == before and (stored == known[:before]).all():
                    return path, before
    return None


def _train(building: Building, vectors: Flat, known: ann.Bools) -> int:
    """Leave the trained lists, without vectors, and return how many rows they were filled with before."""
    import faiss

    plan = building.plan
    if (earlier := _earlier(building.folder, known)) is not None:
        path, before = earlier
        index = faiss.read_index(str(path / ann.INDEX))
        if ivf.Shape(index.nlist, index.pq.M).bytes(len(vectors), vectors.dim) <= plan.memory:
            shutil.copyfile(path / ann.INDEX, building.trained)
            return before
    shape = ivf.choose(int(known.sum()), vectors.dim, memory=plan.memory)
    brightness = None if building.brightness is None else building.brightness()
    index = ivf.train(vectors, known, shape, brightness=brightness)

    def fill(handle: BinaryIO) -> None:
        faiss.write_index(index, faiss.PyCallbackIOWriter(handle.write))

    write_with(building.trained, fill)
    return 0


def prepare(building: Building, batches: Batches) -> dict[str, Any]:
    """Copy the vectors, and train the lists of a large embedding, once for all; others wait for it.

    `BadInput` for values that are not finite and for an embedding without any vector, `Conflict` for a plan that has
    ended.
    """
    plan, made, told = building.plan, building.made, building.work / PREPARED
    building.require_open()
    building.work.mkdir(parents=True, exist_ok=True)
    with FileLock(str(building.work / "prepare.lock")):
        building.require_open()
        if told.is_file():
            return dict(read_json(told))
        shutil.rmtree(made, ignore_errors=True)  # of a killed process
        known = flat.write(made / ann.VECTORS, batches(), rows=plan.rows, dim=plan.dim)
        if not known.any():
            raise BadInput("cannot index an embedding whose every vector is zero: the encoder saw no source")
        write_npy(made / ann.KNOWN, known)
        facts: dict[str, Any] = {"vectors": int(known.sum()), "kind": "flat"}
        if facts["vectors"] * plan.dim > ann.EXACT_VALUES:
            vectors = flat.open_flat(made / ann.VECTORS, rows=plan.rows, dim=plan.dim)
            facts |= {"kind": "ivf", "before": _train(building, vectors, known)}
        write_json(told, facts)
        return facts


def add_parts(
    building: Building,
    batches: Batches,
    parts: Iterable[int],
    *,
    progress: Progress = lambda rows: None,
    stop: Iterable[str] = (),
) -> None:
    """Put the rows of those of `parts` that have no receipt into lists, and leave theirs.

    As soon as `stop` has an element, a name for what said so, the part at hand is finished and `Interrupted` raised.
    """
    import faiss

    plan, left = building.plan, building.missing()
    todo = [part for part in parts if part in left]
    facts = prepare(building, batches)
    vectors = flat.open_flat(building.made / ann.VECTORS, rows=plan.rows, dim=plan.dim)
    known = np.load(building.made / ann.KNOWN, mmap_mode="r")
    graph = ivf.graph_of(faiss.read_index(str(building.trained))) if facts["kind"] == "ivf" and todo else None
    for done, part in enumerate(todo):
        if by := list(stop):
            raise Interrupted(f"index stopped by {by[0]} before part {part}: {len(todo) - done} are left")
        building.require_open()
        started, (first, past) = time.perf_counter(), plan.span(part)
        path = building.work / f"part-{part:06d}.lists"
        if facts["kind"] == "ivf":
            index = faiss.read_index(str(building.trained))
            ivf.add(index, ivf.blocks(vectors, known, start=max(first, facts["before"]), past=past), graph=graph)
            building.require_open()
            lists.write(path, index)
        files = manifest(building.work, [path] if path.is_file() else [])
        told = {"rows": past - first, "write_seconds": time.perf_counter() - started}
        write_receipt(building.work, {"part": part, "plan": plan.id, "files": files, **told})
        if not building.is_open:  # ended while this was written
            shutil.rmtree(building.work, ignore_errors=True)
        building.require_open()
        progress(past - first)


def _join(building: Building, facts: dict[str, Any]) -> dict[str, Any]:
    """Join the lists of all parts, measure them, and return what the manifest says of it."""
    import faiss

    plan, made = building.plan, building.made
    index = faiss.read_index(str(building.trained))
    parts = [building.folder.parent / str(facts["before"]) / ann.LISTS] if facts["before"] else []
    parts += [building.work / f"part-{part:06d}.lists" for part in range(plan.parts)]
    lists.join(made / ann.LISTS, parts, index)
    list_of = lists.list_of(made / ann.LISTS, index, plan.rows)
    write_npy(made / ann.LIST_OF, list_of)
    vectors = flat.open_flat(made / ann.VECTORS, rows=plan.rows, dim=plan.dim)
    known = np.load(made / ann.KNOWN, mmap_mode="r")
    tuning = ivf.tune(lists.mapped(made / ann.LISTS, index), vectors, known, list_of, recall=plan.recall)
    names = ("lists", "candidates", "recall", "ms")
    return {
        "kind": "ivf",
        "exact": False,
        "lists": index.nlist,
        "codes": index.pq.M,
        "added_to": facts["before"],
        "recall": {"k": ann.RECALL_K, "queries": ivf.QUERIES, "value": tuning.recall, "wanted": plan.recall},
        "coverage": tuning.coverage,
        "factors": tuning.factors,
        "table": [dict(zip(names, line, strict=True)) for line in tuning.table],
    }


def _complete(building: Building, facts: dict[str, Any]) -> None:
    """Make what the parts have left an index, its manifest last."""
    plan, made, vectors = building.plan, building.made, facts["vectors"]
    files = [made / ann.VECTORS, made / ann.KNOWN]
    exact = {"k": ann.RECALL_K, "queries": min(ann.RECALL_QUERIES, vectors), "value": 1.0}
    told: dict[str, Any] = {"kind": "flat", "exact": True, "recall": exact}
    if facts["kind"] == "ivf":
        told = _join(building, facts)
        files += [made / name for name in (ann.INDEX, ann.LISTS, ann.LIST_OF)]
    told |= {"rows": plan.rows, "vectors": vectors, "dim": plan.dim}
    files.append(isolation.write(made / isolation.ISOLATED, ann.open_index(made, told)))
    write_json(made / ann.MANIFEST, {**plan.provenance, **told, "files": manifest(made, files)})


def finish(building: Building, batches: Batches, *, allowed: Callable[[], Any] = nullcontext) -> None:
    """Join and measure what the parts have left, and put the index in its place within the context of `allowed`, which
    may refuse by raising; the plan then goes.

    `Conflict` naming the parts that are missing, or damaged, which are set aside so that they can be done again, and
    for a plan that has ended.
    """
    plan, made, folder = building.plan, building.made, building.folder
    facts = prepare(building, batches)
    if not (made / ann.MANIFEST).is_file():
        checked(building.work, building.work, name="index", parts=plan.parts, plan=plan.id)
        _complete(building, facts)
    for path in made.glob(".*"):  # what was being written when a process was killed
        path.unlink()
    with allowed():
        building.require_open()
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(building.work / f"replaced-{time.time_ns()}")
        made.rename(folder)
    discard(building.home)


def build(folder: Path, batches: Sequence[Halves] | Batches, **plan: Any) -> None:
    """All of it in this process: the index in `folder` of what `batches` give; `plan` as `IndexPlan` takes it."""
    give = batches if callable(batches) else partial(iter, batches)
    building = begin(folder.with_name(f"{folder.name}.building"), folder, IndexPlan(**plan))
    add_parts(building, give, range(building.plan.parts))
    finish(building, give)


def open_plans(work: Path) -> dict[Path, IndexPlan]:
    """The plans that have not ended, by folder; one that cannot be read is not among them."""
    found = {}
    for path in sorted(work.glob(f"index.*/{PLAN_FILE}")):
        with suppress(OSError, NotFound, BadInput):  # ended at this moment, or altered
            found[path.parent] = read(path.parent)
    return found

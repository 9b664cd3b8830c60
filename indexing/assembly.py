"""How a search index is made, by parts that any process may do.

Whoever comes first copies the vectors and trains the lists. Each part of the rows then gets lists of its own, in a
file, and a receipt; the end joins them list by list, measures what was made, and writes the manifest last. What is
killed goes on from there. An embedding that has only grown keeps its lists, and what is new is added to them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock

from redshelf.indexing import ann, flat, isolation, ivf, lists
from redshelf.indexing.files import manifest, read_json, write_bytes, write_json, write_npy, write_with
from redshelf.indexing.flat import Flat, Halves
from redshelf.indexing.jobs import Job, Progress, Spans
from redshelf.indexing.parts import checked, done_parts, write_receipt
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound

PART_ROWS, TASK_PARTS = 2**20, 4  # a part of 128 numbers takes a core some minutes
MEMORY, RECALL = 8 * 2**30, 0.95
PLAN_FILE, PREPARED = "plan.json", "prepared.json"

Batches = Callable[[], Iterable[Halves]]  # all vectors in order of rows, (n, dim) at a time


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
    """An index that is being made: in `home` its plan and what its parts leave, in `folder` what will be served."""

    plan: IndexPlan
    home: Path
    folder: Path

    @property
    def work(self) -> Path:
        return self.home / self.plan.id

    @property
    def trained(self) -> Path:
        return self.work / ann.INDEX

    @property
    def is_open(self) -> bool:
        """Whether it is this very plan that lies there still."""
        try:
            return bool(read_json(self.home / PLAN_FILE)["id"] == self.plan.id)
        except (BadInput, OSError, KeyError, TypeError):
            return False

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
    if not building.is_open:
        discard(home)
        plan.write(home / PLAN_FILE)
    return building


def discard(home: Path) -> None:
    """Remove a plan, first, and what its parts have left."""
    (home / PLAN_FILE).unlink(missing_ok=True)
    shutil.rmtree(home, ignore_errors=True)


def read(home: Path) -> IndexPlan:
    """The plan that is open; `NotFound` where there is none, `BadInput` where it was altered."""
    path = home / PLAN_FILE
    if not path.is_file():
        raise NotFound(f"no index is planned in {home}: plan one with `redshelf index --plan`")
    return IndexPlan.read(path)


def _earlier(folder: Path, known: ann.Bools) -> tuple[Path, int] | None:
    """The index, with lists, of the same embedding when it was shorter, the longest, and its rows; None where there is
    none, or where more than half of the rows are new, for which it was not trained."""
    found = sorted((int(path.parent.name) for path in folder.parent.glob(f"*/{ann.MANIFEST}")), reverse=True)
    for before in (number for number in found if len(known) // 2 < number < len(known)):
        path = folder.parent / str(before)
        if ann.read_manifest(path)["kind"] == "ivf":
            stored = np.load(path / ann.KNOWN, mmap_mode="r")
            if len(stored) == before and (stored == known[:before]).all():
                return path, before
    return None


def _train(building: Building, vectors: Flat, known: ann.Bools) -> dict[str, Any]:
    """Leave the trained lists, without vectors, and return how many rows they were filled with before, and where."""
    import faiss

    plan = building.plan
    if (earlier := _earlier(building.folder, known)) is not None:
        path, before = earlier
        index = faiss.read_index(str(path / ann.INDEX))
        if ivf.Shape(index.nlist, index.pq.M).bytes(len(vectors), vectors.dim) <= plan.memory:
            shutil.copyfile(path / ann.INDEX, building.trained)
            return {"before": before, "earlier": str(path / ann.LISTS)}
    index = ivf.train(vectors, known, ivf.choose(int(known.sum()), vectors.dim, memory=plan.memory))

    def fill(handle: BinaryIO) -> None:
        faiss.write_index(index, faiss.PyCallbackIOWriter(handle.write))

    write_with(building.trained, fill)
    return {"before": 0, "earlier": None}


def prepare(building: Building, batches: Batches) -> dict[str, Any]:
    """Copy the vectors, and train the lists of a large embedding, once for all; others wait for it. `BadInput` for
    values that are not finite and for an embedding without any vector."""
    plan, told = building.plan, building.work / PREPARED
    building.work.mkdir(parents=True, exist_ok=True)
    with FileLock(str(building.work / "prepare.lock")):
        if told.is_file():
            return dict(read_json(told))
        folder = building.folder
        for name in (ann.MANIFEST, isolation.ISOLATED):  # of an earlier build: what follows is not what they say
            (folder / name).unlink(missing_ok=True)
        known = flat.write(folder / ann.VECTORS, batches(), rows=plan.rows, dim=plan.dim)
        if not known.any():
            raise BadInput("cannot index an embedding whose every vector is zero: the encoder saw no source")
        write_npy(folder / ann.KNOWN, known)
        facts: dict[str, Any] = {"vectors": int(known.sum()), "kind": "flat"}
        if facts["vectors"] * plan.dim > ann.EXACT_VALUES:
            vectors = flat.open_flat(folder / ann.VECTORS, rows=plan.rows, dim=plan.dim)
            facts |= {"kind": "ivf", **_train(building, vectors, known)}
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
    vectors = flat.open_flat(building.folder / ann.VECTORS, rows=plan.rows, dim=plan.dim)
    known = np.load(building.folder / ann.KNOWN, mmap_mode="r")
    graph = ivf.graph_of(faiss.read_index(str(building.trained))) if facts["kind"] == "ivf" and todo else None
    for done, part in enumerate(todo):
        if by := list(stop):
            raise Interrupted(f"index stopped by {by[0]} before part {part}: {len(todo) - done} are left")
        started, (first, past) = time.perf_counter(), plan.span(part)
        path = building.work / f"part-{part:06d}.lists"
        if facts["kind"] == "ivf":
            index = faiss.read_index(str(building.trained))
            ivf.add(index, ivf.blocks(vectors, known, start=max(first, facts["before"]), past=past), graph=graph)
            if not building.is_open:
                raise Conflict(f"index part {part}: plan {plan.id} was ended or replaced while it was made")
            lists.write(path, index)
        files = manifest(building.work, [path] if path.is_file() else [])
        told = {"rows": past - first, "write_seconds": time.perf_counter() - started}
        write_receipt(building.work, {"part": part, "plan": plan.id, "files": files, **told})
        progress(past - first)


def _join(building: Building, facts: dict[str, Any]) -> dict[str, Any]:
    """Join the lists of all parts, measure them, and return what the manifest says of it."""
    import faiss

    plan, folder = building.plan, building.folder
    index = faiss.read_index(str(building.trained))
    parts = [Path(facts["earlier"])] if facts["earlier"] else []
    parts += [building.work / f"part-{part:06d}.lists" for part in range(plan.parts)]
    lists.join(folder / ann.LISTS, parts, index)
    list_of = lists.list_of(folder / ann.LISTS, index, plan.rows)
    write_npy(folder / ann.LIST_OF, list_of)
    write_bytes(folder / ann.INDEX, building.trained.read_bytes())
    vectors = flat.open_flat(folder / ann.VECTORS, rows=plan.rows, dim=plan.dim)
    known = np.load(folder / ann.KNOWN, mmap_mode="r")
    tuning = ivf.tune(lists.mapped(folder / ann.LISTS, index), vectors, known, list_of, recall=plan.recall)
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


def finish(building: Building, batches: Batches) -> None:
    """Join and measure what the parts have left, and write the manifest, last; the plan then goes.

    `Conflict` naming the parts that are missing, or damaged, which are set aside so that they can be done again.
    """
    plan, folder = building.plan, building.folder
    facts = prepare(building, batches)
    checked(building.work, building.work, name="index", parts=plan.parts, plan=plan.id)
    files, vectors = [folder / ann.VECTORS, folder / ann.KNOWN], facts["vectors"]
    exact = {"k": ann.RECALL_K, "queries": min(ann.RECALL_QUERIES, vectors), "value": 1.0}
    told: dict[str, Any] = {"kind": "flat", "exact": True, "recall": exact}
    if facts["kind"] == "ivf":
        told = _join(building, facts)
        files += [folder / name for name in (ann.INDEX, ann.LISTS, ann.LIST_OF)]
    told |= {"rows": plan.rows, "vectors": vectors, "dim": plan.dim}
    files.append(isolation.write(folder / isolation.ISOLATED, ann.open_index(folder, told)))
    write_json(folder / ann.MANIFEST, {**plan.provenance, **told, "files": manifest(folder, files)})
    discard(building.home)


def build(folder: Path, batches: Sequence[Halves] | Batches, **plan: Any) -> None:
    """All of it in this process: the index in `folder` of what `batches` give; `plan` as `IndexPlan` takes it."""
    give = batches if callable(batches) else partial(iter, batches)
    building = begin(folder / "building", folder, IndexPlan(**plan))
    add_parts(building, give, range(building.plan.parts))
    finish(building, give)


def open_plans(work: Path) -> dict[Path, IndexPlan]:
    """The plans that have not ended, by folder."""
    found = {}
    for path in sorted(work.glob(f"index.*/{PLAN_FILE}")):
        with suppress(FileNotFoundError, NotFound):  # ended at this moment
            found[path.parent] = read(path.parent)
    return found

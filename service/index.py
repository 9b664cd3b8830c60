"""`redshelf index`: the search index of an embedding, in one call or step by step as schedulers call it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock

from redshelf.indexing import ann, assembly, generation, slurm, store
from redshelf.indexing.assembly import Building, IndexPlan
from redshelf.indexing.files import alone, verify
from redshelf.indexing.flat import Floats, Halves
from redshelf.indexing.jobs import PLAN_FILE, Do, Run, discard
from redshelf.indexing.layout import Layout
from redshelf.indexing.runners import on_processes, on_ray
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, Conflict
from redshelf.models.signals import stop_signals
from redshelf.service.bulk import commit_or_send, send

SIZES = ("memory", "recall", "part_rows", "task_parts")

Built = tuple[str, dict[str, Any]]  # the revision, and the manifest of its index


def _home(layout: Layout, encoder: str, revision: str) -> Path:
    return layout.work(f"index.{encoder}.{revision}")


def _alone(layout: Layout, encoder: str, revision: str) -> Any:
    busy = f"another process builds the index of {encoder} on {layout.root}: wait until it has ended"
    return alone(layout.work(f"index.{encoder}.{revision}.lock"), busy)


def _batches(layout: Layout, plan: IndexPlan) -> Iterable[Halves]:
    table = store.open_table(layout.embeddings(plan.encoder, plan.revision), version=plan.embedding_version)
    return (store.list_values(batch.column("vector")) for batch in table.to_batches(columns=["vector"]))


def _brightness(layout: Layout, plan: IndexPlan) -> Floats:
    """Flux [microjansky] of every row in the band nearest to the i band, NaN where it was not observed. (rows,)"""
    name = layout.read_info().reference_band
    table = store.open_table(layout.sources).to_table(columns=[f"flux_{name}", f"state_{name}"], limit=plan.rows)
    flux, state = table[f"flux_{name}"].to_numpy(), table[f"state_{name}"].to_numpy()
    return np.where(state == State.NOT_OBSERVED, np.nan, flux).astype(np.float32)


def _building(layout: Layout, plan: IndexPlan) -> Building:
    folder = layout.index(plan.encoder, plan.revision, plan.rows)
    return Building(plan, _home(layout, plan.encoder, plan.revision), folder, partial(_brightness, layout, plan))


def _asked(layout: Layout, encoder: str, asked: dict[str, Any]) -> IndexPlan:
    """The plan for the newest embedding; sizes that are not asked for (None) are those of the plan that is open for it,
    else the usual ones. `Conflict` where the open one has others."""
    layout.read_info()
    revision = layout.newest(encoder)
    table = store.open_table(layout.embeddings(encoder, revision))
    rows, expected = table.count_rows(), store.count_rows(layout.sources)
    if rows != expected:
        raise Conflict(
            f"embedding {encoder}.{revision} has {rows} rows, the shelf {expected}: run `redshelf embed` again"
        )
    dim = table.schema.field("vector").type.list_size
    told = {name: value for name, value in asked.items() if value is not None}
    plan = IndexPlan(
        encoder=encoder, revision=revision, embedding_version=int(table.version), rows=rows, dim=dim, **told
    )
    home = _home(layout, encoder, revision)
    if not (home / PLAN_FILE).is_file():
        return plan
    found = assembly.read(home)
    same = replace(plan, **{name: getattr(found, name) for name in SIZES})
    if same.id != found.id:  # of the embedding as it was before: nobody can end it
        return plan
    for name, value in told.items():
        if value != getattr(found, name):
            raise Conflict(f"an open plan has {name}={getattr(found, name)}, not {value}: end it, or remove {home}")
    return found


def _is_built(layout: Layout, plan: IndexPlan) -> bool:
    """Whether this very index is there and whole; `Conflict` as `_is_same`."""
    folder = layout.index(plan.encoder, plan.revision, plan.rows)
    if not (folder / ann.MANIFEST).is_file() or not _is_same(layout, plan):
        return False
    return not verify(folder, ann.read_manifest(folder)["files"], hashes=True)


def _is_same(layout: Layout, plan: IndexPlan) -> bool:
    """Whether the index in this one's place was made for what this one is; `Conflict` where a generation serves one
    that was not."""
    folder = layout.index(plan.encoder, plan.revision, plan.rows)
    told = ann.read_manifest(folder)
    if all(told.get(key) == value for key, value in plan.provenance.items()):
        return True
    name = f"{folder.relative_to(layout.root)}/{ann.MANIFEST}"
    for number in generation.numbers(layout):
        if name in generation.read(layout, number).files:
            raise Conflict(
                f"generation {number} serves the index in {folder} as it is, built with {told.get('asked')}: remove "
                f"{generation.path_of(layout, number)} first"
            )
    return False


def worker(root: Path, encoder: str, device: str, threads: int) -> Do:
    """What does parts of the open plan in a process of its own."""
    import faiss

    del device
    if threads:
        faiss.omp_set_num_threads(threads)
    layout = Layout(root)
    building = _open(layout, encoder)

    def do(parts: Sequence[int]) -> int:
        assembly.add_parts(building, partial(_batches, layout, building.plan), parts)
        return building.plan.rows_of(parts)

    return do


def build_index(
    root: Path,
    *,
    encoder: str,
    memory: int | None = None,
    recall: float | None = None,
    part_rows: int | None = None,
    processes: int = 1,
    runner: Literal["local", "ray"] = "local",
    progress: bool = False,
) -> Built:
    """Build and measure the index of the newest embedding of `encoder`; returns its revision and its manifest.

    `memory` [bytes] and `recall` as in `assembly.IndexPlan`; the parts are done here, by `processes` of this machine,
    or by every core of a Ray cluster. `Conflict` where another process builds it.
    """
    from tqdm import tqdm

    if processes < 1:
        raise BadInput(f"processes={processes}: expected 1 or more")
    layout = Layout(root)
    revision = layout.newest(encoder)
    with _alone(layout, encoder, revision):
        plan = _asked(layout, encoder, {"memory": memory, "recall": recall, "part_rows": part_rows})
        building = _building(layout, plan)
        if _is_built(layout, plan):
            _forget(building)
        else:
            begin, batches = partial(worker, layout.root.resolve(), encoder), partial(_batches, layout, plan)
            run: Run | None = on_ray(begin, gpus=False) if runner == "ray" else None
            if run is None and processes > 1:
                run = on_processes(begin, ["cpu"] * processes)
            assembly.begin(building.home, building.folder, plan)
            todo = sorted(building.missing())
            done = plan.rows - plan.rows_of(todo)
            with tqdm(
                total=plan.rows, initial=done, unit=" rows", desc=f"index {encoder}", disable=not progress
            ) as bar:
                if run is None:
                    assembly.add_parts(building, batches, todo, progress=bar.update)
                elif todo:
                    assembly.prepare(building, batches)  # here, where it has every core
                    run([[part] for part in todo], bar.update)
            _finish(layout, building)
    return revision, ann.read_manifest(building.folder)


def _forget(building: Building) -> None:
    """Remove the plan of an index that is in its place: it was killed before it could do so."""
    if building.is_open:
        discard(building.home)


def _finish(layout: Layout, building: Building) -> None:
    """End the plan; the index takes its place while nothing is published, and none that is served is replaced."""

    @contextmanager
    def allowed() -> Iterator[None]:
        with FileLock(str(layout.work("publish.lock"))):
            if (building.folder / ann.MANIFEST).is_file():
                _is_same(layout, building.plan)
            yield

    assembly.finish(building, partial(_batches, layout, building.plan), allowed=allowed)


def make_plan(
    root: Path, *, encoder: str, agreed: Callable[[IndexPlan], object] = lambda plan: None, **sizes: Any
) -> IndexPlan | None:
    """Leave the plan for whoever does its parts; None where the index is there. `sizes`: memory, recall, part_rows,
    task_parts; `agreed` may refuse a plan by raising."""
    layout = Layout(root)
    with _alone(layout, encoder, layout.newest(encoder)):
        plan = _asked(layout, encoder, sizes)
        building = _building(layout, plan)
        if _is_built(layout, plan):
            _forget(building)
            return None
        agreed(plan)
        assembly.begin(building.home, building.folder, plan)
    return plan


def _open(layout: Layout, encoder: str) -> Building:
    """The plan of the newest revision of `encoder` that is open; `NotFound` where there is none."""
    return _building(layout, assembly.read(_home(layout, encoder, layout.newest(encoder))))


def do(root: Path, *, encoder: str, part: int | None = None, task: int | None = None) -> dict[str, int]:
    """Do one part, or the parts of one task, of the open plan; those that have a receipt are left.

    After SIGUSR1 or SIGTERM the part at hand is finished and `Interrupted` raised, unless it was the last.
    """
    layout = Layout(root)
    building = _open(layout, encoder)
    parts = building.plan.asked(part, task)
    missing = building.missing()
    with stop_signals() as told:
        assembly.add_parts(building, partial(_batches, layout, building.plan), parts, stop=told)
    return {
        "parts": len(parts),
        "done_before": len(set(parts) - missing),
        "rows": building.plan.rows_of(parts),
    }


def _end(layout: Layout, building: Building) -> Built:
    _finish(layout, building)
    return building.plan.revision, ann.read_manifest(building.folder)


def _ended(layout: Layout, encoder: str) -> Built | None:
    """The index of the newest embedding, where it is there and no plan is open, or one that was killed at its end."""
    revision = layout.newest(encoder)
    folder = layout.index(encoder, revision, store.count_rows(layout.sources))
    if not (folder / ann.MANIFEST).is_file():
        return None
    if (_home(layout, encoder, revision) / PLAN_FILE).is_file():
        building = _open(layout, encoder)
        if not building.is_in_place:
            return None
        _forget(building)
    return revision, ann.read_manifest(folder)


def commit(root: Path, *, encoder: str) -> Built:
    """End the open plan, whose parts are all done; a second time changes nothing. `Conflict` naming those that are
    missing or damaged."""
    layout = Layout(root)
    with _alone(layout, encoder, layout.newest(encoder)):
        return _ended(layout, encoder) or _end(layout, _open(layout, encoder))


def submit(root: Path, *, encoder: str, settings: Path, **sizes: Any) -> dict[str, Any]:
    """Plan, and submit the tasks, which ask for no GPU, and the commit to SLURM; says what was submitted."""
    layout, known = Layout(root), slurm.load(settings)
    slurm.check_site(known, slurm.CPU)
    agreed = partial(slurm.check_size, known, slurm.CPU)
    plan = make_plan(root, encoder=encoder, agreed=agreed, **sizes)
    if plan is None:
        return {"submitted": None}
    return send(layout, _building(layout, plan).job(), known, kind=slurm.CPU)


def commit_or_resubmit(root: Path, *, encoder: str) -> Built | dict[str, Any]:
    """What the commit job of SLURM does: end the build, or send the tasks that miss parts once more."""
    layout = Layout(root)
    with _alone(layout, encoder, layout.newest(encoder)):
        if (built := _ended(layout, encoder)) is not None:
            return built
        building = _open(layout, encoder)
        return commit_or_send(layout, building.job(), lambda: _end(layout, building))


UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def size_of(text: str) -> int:
    """Bytes of a size like 8GiB, 500 MB or 1000; `BadInput` for anything else."""
    found = re.fullmatch(rf"\s*(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})?\s*", text)
    if not found or not float(found[1]):
        raise BadInput(f"size {text!r}: expected a number of bytes, or one with a unit, as in 8GiB or 500MB")
    return int(float(found[1]) * UNITS.get(found[2] or "", 1))

"""`redshelf neighbours -o FILE` and `redshelf redshift -o FILE`: one call, or the steps of a scheduler.

Both are a table over the sources of a published generation, which the plan names: one that is published meanwhile
changes nothing. `indexing/outputs` has the parts; what is in a line say `service/neighbours` and `service/photoz`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from redshelf.indexing import generation, joining, outputs, slurm
from redshelf.indexing.files import alone, sha256
from redshelf.indexing.jobs import Do, Run, discard
from redshelf.indexing.layout import Layout
from redshelf.indexing.outputs import Plan, Table
from redshelf.indexing.runners import on_processes, on_ray
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.models.signals import stop_signals
from redshelf.service import neighbours, photoz
from redshelf.service.bulk import commit_or_send, send
from redshelf.service.search import check_number
from redshelf.service.shelf import OpenShelf, open_shelf

What = Literal["neighbours", "redshift"]
FORMATS = {"neighbours": neighbours.FORMATS, "redshift": photoz.FORMATS}


@dataclass(frozen=True)
class Asked:
    """What is wanted; None takes what an open plan says, else the default. `k` is of neighbours, `estimator` of
    redshifts, `encoder` of either: for redshifts the name of a fit, such as vit+photometry."""

    what: What
    encoder: str | None = None
    k: int | None = None
    estimator: str | None = None
    generation: int | None = None
    part_rows: int | None = None

    def __post_init__(self) -> None:
        if self.k is not None:
            check_number("k", self.k)


@dataclass(frozen=True)
class OutputReport:
    """The file that was written, its sources, and what it says of itself."""

    path: Path
    sources: int
    facts: dict[str, str]


@contextmanager
def _writing(path: Path, what: What) -> Iterator[None]:
    """Hold the lock of a file whose name and folder are well; `Conflict` where another process does."""
    joining.format_of(path, FORMATS[what])
    if not path.parent.is_dir():
        raise BadInput(f"{path}: there is no folder {path.parent}")
    lock = outputs.folder(path).with_name(f"{outputs.folder(path).name}.lock")
    with alone(lock, f"another process writes {path}"):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _open(root: Path, what: str, encoder: str | None, number: int | None, *, hashes: bool) -> OpenShelf:
    """A generation with the encoders that are needed; with all where the name is unknown, so that the error can say
    which there are."""
    published = generation.read(Layout(root), number)
    name: str | None
    if what == "neighbours":
        name, known = encoder or published.default_encoder, [facts.name for facts in published.encoders]
    else:
        name, known = encoder or published.default_redshift, [fit.encoder for fit in published.redshifts]
    needed = name.split("+") if name and name in known else None
    return open_shelf(root, published.number, encoders=needed, hashes=hashes)


def _table(shelf: OpenShelf, what: str, format: str, *, encoder: str | None, k: int | None, by: str | None) -> Table:
    if what == "neighbours":
        return neighbours.table(shelf, encoder=encoder, k=neighbours.K if k is None else k)
    return photoz.table(shelf, encoder=encoder, estimator=by, format=format)


def _plan(
    layout: Layout,
    path: Path,
    asked: Asked,
    *,
    task_parts: int | None = None,
    agreed: Callable[[Plan], object] = lambda plan: None,
) -> Plan:
    """The plan that is open for the file, or a new one, which is written unless `agreed` raises.

    `Conflict` where the open one is of something else than is asked for, and for a file that is there.
    """
    if (found := outputs.find(path, asked.what)) is not None:
        for name, value in {**asdict(asked), "task_parts": task_parts}.items():
            if value not in (None, getattr(found, name)):
                raise Conflict(
                    f"an open plan has {name}={getattr(found, name)}, not {value}: finish it, or remove "
                    f"{outputs.folder(path)}"
                )
        _check_shelf(layout, found)
        agreed(found)
        return found
    if path.exists():
        raise Conflict(f"{path} is there already: remove it, or give another name")
    format = joining.format_of(path, FORMATS[asked.what])
    shelf = _open(layout.root, asked.what, asked.encoder, asked.generation, hashes=False)
    table = _table(shelf, asked.what, format, encoder=asked.encoder, k=asked.k, by=asked.estimator)
    number = shelf.generation.number
    plan = Plan(
        what=asked.what,
        path=str(path),
        format=format,
        generation=number,
        generation_sha256=sha256(generation.path_of(layout, number)),
        rows=table.rows,
        part_rows=outputs.PART_ROWS if asked.part_rows is None else asked.part_rows,
        task_parts=outputs.TASK_PARTS if task_parts is None else task_parts,
        **table.facts,
    )
    agreed(plan)
    outputs.write(layout, plan)
    return plan


def _check_shelf(layout: Layout, plan: Plan) -> None:
    """Raise `Conflict` unless the shelf has the generation that a plan was made for."""
    path = generation.path_of(layout, plan.generation)
    if not path.is_file() or sha256(path) != plan.generation_sha256:
        raise Conflict(
            f"{outputs.folder(Path(plan.path))} was planned for generation {plan.generation} of another shelf than "
            f"{layout.root}: remove that folder to begin anew"
        )


def _table_of(layout: Layout, plan: Plan, *, hashes: bool) -> Table:
    """What makes the lines of a plan."""
    _check_shelf(layout, plan)
    shelf = _open(layout.root, plan.what, plan.encoder, plan.generation, hashes=hashes)
    return _table(shelf, plan.what, plan.format, encoder=plan.encoder, k=plan.k, by=plan.estimator)


def worker(root: Path, path: Path, what: str, device: str, threads: int) -> Do:
    """What does parts of the open plan of `path` in a process of its own; whoever began it has hashed what is read."""
    del device
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # for LightGBM, which is not loaded yet
        import faiss

        faiss.omp_set_num_threads(threads)
    plan = outputs.get(path, what)
    table = _table_of(Layout(root), plan, hashes=False)

    def do(parts: Sequence[int]) -> int:
        outputs.do_parts(plan, table, parts)
        return plan.rows_of(parts)

    return do


def _end(layout: Layout, plan: Plan) -> OutputReport:
    """Join the parts of a plan into its file."""
    outputs.commit(layout, plan)
    return _report(Path(plan.path), plan.format)


def _report(path: Path, format: str) -> OutputReport:
    facts = joining.read_facts(path, format)
    return OutputReport(path, int(facts.pop("sources")), facts)


def write(
    root: Path,
    path: Path,
    asked: Asked,
    *,
    processes: int = 1,
    runner: Literal["local", "ray"] = "local",
    progress: bool = False,
) -> OutputReport:
    """Write the file, or finish one that was interrupted: in this process, by several, or by the cores of a cluster.

    Raises `BadInput` for k out of range and an unknown ending, `NotFound` for an unknown encoder, fit, estimator or
    generation, `Conflict` for a file that is there, for an open plan of something else, and where another process
    writes the same file.
    """
    from tqdm import tqdm

    if processes < 1:
        raise BadInput(f"processes={processes}: expected 1 or more")
    layout, path = Layout(root.resolve()), path.absolute()
    begin = partial(worker, layout.root, path, asked.what)
    run: Run | None = on_ray(begin, gpus=False) if runner == "ray" else None
    with _writing(path, asked.what):
        plan = _plan(layout, path, asked)
        todo = [] if path.exists() else sorted(outputs.missing(plan))
        if todo:
            table = _table_of(layout, plan, hashes=True)
            started = plan.rows - plan.rows_of(todo)
            if run is None and min(processes, len(todo)) > 1:
                run = on_processes(begin, ["cpu"] * min(processes, len(todo)))
            with tqdm(total=plan.rows, initial=started, unit=" sources", desc=plan.what, disable=not progress) as bar:
                if run is None:
                    outputs.do_parts(plan, table, todo, progress=bar.update)
                else:
                    del table
                    run([[part] for part in todo], bar.update)
        return _end(layout, plan)


def make_plan(root: Path, path: Path, asked: Asked, *, task_parts: int | None = None) -> Plan:
    """Write the plan of the file for whoever does its parts, or return the one that is open."""
    path = path.absolute()
    with _writing(path, asked.what):
        return _plan(Layout(root), path, asked, task_parts=task_parts)


def do(root: Path, path: Path, what: What, *, part: int | None = None, task: int | None = None) -> dict[str, int]:
    """Do one part, or the parts of one task, of the open plan; those that have a receipt are left.

    After SIGUSR1 or SIGTERM the part at hand is finished and `Interrupted` raised, unless it was the last.
    """
    layout, plan = Layout(root), outputs.get(path.absolute(), what)
    parts = plan.asked(part, task)
    rows, todo = plan.rows_of(parts), set(parts) & outputs.missing(plan)
    if todo:
        with stop_signals() as told:
            outputs.do_parts(plan, _table_of(layout, plan, hashes=True), sorted(todo), stop=told)
    return {"parts": len(parts), "done_before": len(parts) - len(todo), "rows": rows}


def _ended(path: Path, what: What) -> OutputReport | None:
    """Of a file that is there and no plan is open for: somebody else has ended it."""
    format = joining.format_of(path, FORMATS[what])
    if outputs.find(path, what) is not None:
        return None
    if joining.read_facts(path, format).get("what") != what:
        raise NotFound(
            f"no plan is open for {path}, and it was not made by `redshelf {what}`: make one with "
            f"`redshelf {what} -o {path.name} --plan`"
        )
    discard(outputs.folder(path))  # what a kill has left
    return _report(path, format)


def commit(root: Path, path: Path, what: What) -> OutputReport:
    """Write the file whose parts are all done; `Conflict` naming those that are not. A second time changes nothing."""
    path = path.absolute()
    if (ended := _ended(path, what)) is not None:
        return ended
    with _writing(path, what):
        return _end(Layout(root), outputs.get(path, what))


def submit(root: Path, path: Path, asked: Asked, *, settings: Path, task_parts: int | None = None) -> dict[str, Any]:
    """Plan here, and submit the tasks, which ask for no GPU, and the commit to SLURM; says what was submitted.

    What SLURM or the limits of the site do not allow is said before anything is written.
    """
    layout, path, known = Layout(root), path.absolute(), slurm.load(settings)
    slurm.check_site(known, slurm.CPU)
    with _writing(path, asked.what):
        agreed = partial(slurm.check_size, known, slurm.CPU)
        plan = _plan(layout, path, asked, task_parts=task_parts, agreed=agreed)
    return send(layout, outputs.job(plan), known, kind=slurm.CPU)


def commit_or_resubmit(root: Path, path: Path, what: What) -> OutputReport | dict[str, Any]:
    """What the commit job of SLURM does: write the file, or send the tasks that miss parts once more."""
    layout, path = Layout(root), path.absolute()
    if (ended := _ended(path, what)) is not None:
        return ended
    with _writing(path, what):
        plan = outputs.get(path, what)
        return commit_or_send(layout, outputs.job(plan), lambda: _end(layout, plan))

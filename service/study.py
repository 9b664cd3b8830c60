"""`redshelf study`: the approaches to a redshift side by side, under labels that do not represent the sky.

    folder/study.json  skies/  models/  spaces/  cells/   study.csv  index.html

Every job leaves one file that says its code's revision, data, seed and weights. What is there is not done again, so a
study that was ended goes on by the same command; `stage` and `part` are what a scheduler calls. A job that fails is
listed with its reason and the others go on; it is tried again the next time.
"""

from __future__ import annotations

import ast
import hashlib
import os
import platform
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from redshelf.indexing.files import read_json, write_json
from redshelf.models.errors import BadInput, Conflict, RedshelfError, nearest
from redshelf.service import study_plan
from redshelf.service.study_plan import BUDGETS, PUBLISHED, Budget, Cell, Job, Plan, Pretraining, Space, Survey
from redshelf.service.study_work import Bench, Published

STAGES = ("skies", "weights", "spaces", "cells", "report")
REAL = "real"  # the sky of surveys that nobody simulated
PACKAGES = ("torch", "lightgbm", "numpy", "scipy", "galsim", "pz-rail-base")
# what results depend on, with what these import: which jobs there are, and how they are shown, is none of it
OURS = ("service/study_cells", "service/study_work", "service/study_real", "service/study_sky", "indexing/simulate")
SHOWN = frozenset({"service/study_plan"})


@dataclass(frozen=True)
class StudyReport:
    """What a run did and what there is: `failed` and `missing` are names of jobs; `page` is None before the report."""

    folder: Path
    done: int
    kept: int
    missing: int
    failed: tuple[str, ...]
    page: Path | None
    unmeasured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Run:
    bench: Bench
    plan: Plan
    data: Path | None
    made: dict[str, Any]


def revision() -> str:
    """The first 12 hex digits of the sha256 of the code that results depend on: `OURS` and all that they import."""
    root, found, todo = Path(__file__).resolve().parents[1], dict[str, bytes](), list(OURS)
    while todo:
        name = todo.pop()
        if name in found or name in SHOWN:
            continue
        found[name] = (root / f"{name}.py").read_bytes()
        for node in ast.walk(ast.parse(found[name])):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("redshelf."):
                module = str(node.module).removeprefix("redshelf.").replace(".", "/")
                inner = [f"{module}/{alias.name}" for alias in node.names]
                todo += [m for m in (module, *inner) if (root / f"{m}.py").is_file()]
    return hashlib.sha256(b"".join(found[name] for name in sorted(found))).hexdigest()[:12]


def published(given: Sequence[str]) -> dict[str, Published]:
    """From `NAME=FOLDER` or `NAME=FOLDER:SHA256` to where the weights lie; `BadInput` naming what was wrong."""
    out: dict[str, Published] = {}
    for text in given:
        name, equals, place = text.partition("=")
        if not equals or not place:
            raise BadInput(f"--weights {text!r}: expected NAME=FOLDER or NAME=FOLDER:SHA256")
        if name not in PUBLISHED:
            raise BadInput(f"--weights {text!r}: {nearest(name, PUBLISHED)}")
        folder, colon, digest = place.rpartition(":")
        if not colon or len(digest) != 64:
            folder, digest = place, ""
        if not Path(folder).is_dir():
            raise BadInput(f"--weights {text!r}: {folder} is no folder")
        out[name] = Published(Path(folder).resolve(), digest or None)
    return out


def share(text: str) -> tuple[int, int]:
    """`I/N` as (I, N): the jobs I, I + N, I + 2 N ... of a stage."""
    first, slash, number = text.partition("/")
    if not slash or not first.isdecimal() or not number.isdecimal() or not int(first) < int(number):
        raise BadInput(f"--part {text!r}: expected I/N with I from 0 to N - 1")
    return int(first), int(number)


def study(
    folder: Path,
    *,
    size: str = "tiny",
    seeds: int | None = None,
    weights: Mapping[str, Published] | None = None,
    data: Path | None = None,
    stages: Sequence[str] = STAGES,
    skies: Sequence[str] = (),
    part: tuple[int, int] = (0, 1),
    processes: int = 2,
    device: str = "cpu",
    any_revision: bool = False,
    budget: Budget | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> StudyReport:
    """Do what is missing of the study in `folder`, and write its report.

    `size`: one of `study_plan.BUDGETS`; `weights`: folders of published encoders; `data`: the folder of real
    catalogues, None leaves them out; `skies`: the jobs of these alone ("real": of the catalogues). Jobs run in
    `processes` processes of one thread.

    Raises `BadInput` for an unknown size or stage, `Conflict` where `folder` holds something else, a study of another
    size, or results of another revision of the code (unless `any_revision`: then every row says which one made it).
    """
    if size not in BUDGETS:
        raise BadInput(f"size {size!r}; {nearest(size, BUDGETS)}")
    for stage in stages:
        if stage not in STAGES:
            raise BadInput(f"stage {stage!r}; {nearest(stage, STAGES)}")
    if processes < 1:
        raise BadInput(f"processes={processes}: expected 1 or more")
    budget = budget or BUDGETS[size]
    if seeds is not None:
        budget = Budget(**{**asdict(budget), "seeds": tuple(range(seeds))})
    given = dict(weights or {})
    run = _open(folder, budget, quick=size == "quick", given=given, data=data, device=device, any_revision=any_revision)
    known = {sky.name for sky in run.plan.skies} | {REAL}
    for name in skies:
        if name not in known:
            raise BadInput(f"sky {name!r}; {nearest(name, known)}")
    done, failed = 0, []
    jobs = _stages(run)
    with _workers(processes) as pool:
        for stage in stages:
            if stage == "skies":
                _prepare(run, skies, processes, progress)
            elif stage != "report":
                mine = [job for job in jobs[stage] if not skies or _sky_of(job) in skies][part[0] :: part[1]]
                ended = _do(run, mine, pool, progress)
                done += sum(ended.values())
                failed += [name for name, good in ended.items() if not good]
    every = [job for stage in jobs.values() for job in stage]
    missing = sum(not _is_done(_result(folder, job)) for job in every)
    page = None
    if "report" in stages:
        from redshelf.service.study_report import write

        page = write(folder, run.plan, budget, made=run.made)
    return StudyReport(folder, done, len(every) - missing - done, missing, tuple(failed), page, run.plan.unmeasured)


def _open(
    folder: Path,
    budget: Budget,
    *,
    quick: bool,
    given: Mapping[str, Published],
    data: Path | None,
    device: str,
    any_revision: bool,
) -> _Run:
    from redshelf.service.study_real import SURVEYS

    surveys = SURVEYS if data is not None and (data / "zcosmost_bright20k.csv").is_file() else ()
    plan = study_plan.make(budget, quick=quick, published=frozenset(given), surveys=tuple(surveys))
    path, now = folder / "study.json", revision()
    if folder.exists() and not path.exists() and any(folder.iterdir()):
        raise Conflict(f"{folder} holds something else: name a new folder, or that of a study")
    if path.exists():
        before = read_json(path)
        if before["budget"] != budget.document():
            raise Conflict(
                f"{folder} holds a study of other sizes or seeds: give it the same ones, or name a new folder"
            )
        if before["revision"] != now and not any_revision:
            raise Conflict(
                f"{folder} was made by revision {before['revision']} of the code, this is {now}: results of both would "
                "stand side by side; name a new folder, or say --any-revision, and every row tells its own"
            )
    made = {
        "revision": now,
        "versions": {name: version(name) for name in PACKAGES},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {device}",
    }
    write_json(path, {"budget": budget.document(), **made})
    return _Run(Bench(folder.resolve(), budget, given, device), plan, data, made)


def _stages(run: _Run) -> dict[str, list[Job]]:
    return {"weights": [*run.plan.weights], "spaces": [*run.plan.spaces], "cells": [*run.plan.cells]}


def _prepare(run: _Run, names: Sequence[str], processes: int, progress: Callable[[str], None]) -> None:
    from redshelf.service.study_sky import prepare

    for sky in (sky for sky in run.plan.skies if not names or sky.name in names):
        began = time.monotonic()
        where = run.bench.folder / "skies" / sky.name
        if not (where / "done.json").exists():
            prepare(where, sky, targets=run.bench.budget.targets, processes=processes)
            progress(f"sky {sky.name}: {sky.sources:,} sources in {time.monotonic() - began:.0f} s")


def _sky_of(job: Job) -> str:
    if isinstance(job, Survey):
        return REAL
    return "images" if isinstance(job, Pretraining) else job.sky if isinstance(job, Space) else job.space.sky


def _result(folder: Path, job: Job) -> Path:
    kind = {Pretraining: "models", Space: "spaces"}.get(type(job), "cells")
    return folder / kind / f"{job.name}.json"


def _is_done(path: Path) -> bool:
    return path.exists() and "found" in read_json(path)


@contextmanager
def _workers(processes: int) -> Iterator[Executor | None]:
    """Processes of one thread, each started once there is a job for it; None where this one does all, so too."""
    os.environ["OMP_NUM_THREADS"] = "1"
    if processes == 1:
        _one_thread()
        yield None
        return
    with ProcessPoolExecutor(processes, get_context("spawn"), initializer=_one_thread) as pool:
        try:
            yield pool
        finally:
            pool.shutdown(cancel_futures=True)


def _do(run: _Run, jobs: Iterable[Job], pool: Executor | None, progress: Callable[[str], None]) -> dict[str, bool]:
    """Do the jobs that have no result; whether each went well."""
    todo = [job for job in jobs if not _is_done(_result(run.bench.folder, job))]
    ended: dict[str, bool] = {}
    if pool is None:
        ends = ((job, _work(job, run.bench, run.data, run.made)) for job in todo)
    else:
        sent = [(job, pool.submit(_work, job, run.bench, run.data, run.made)) for job in todo]
        ends = ((job, waiting.result()) for job, waiting in sent)
    try:
        for job, (fault, seconds) in ends:
            ended[job.name] = not fault
            said = f"failed: {fault}" if fault else f"{seconds:.1f} s"
            progress(f"{len(ended)} of {len(todo)} {job.name}: {said}")
    except BrokenProcessPool as error:
        raise RedshelfError(
            "a process of the study was killed (out of memory?): the same command goes on from what is done"
        ) from error
    return ended


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _work(job: Job, bench: Bench, data: Path | None, made: dict[str, Any]) -> tuple[str, float]:
    """One job in a worker: its result written whole; the reason if it failed, and the seconds it took."""
    from redshelf.service import study_cells, study_real, study_work

    began, used, path = time.monotonic(), time.process_time(), _result(bench.folder, job)
    document: dict[str, Any] = {"job": asdict(job), "made": {**made, "when": time.strftime("%Y-%m-%d")}}
    fault = ""
    try:
        if isinstance(job, Pretraining):
            document["found"] = study_work.pretrain(job, bench)
        elif isinstance(job, Space):
            document["found"] = study_work.space(job, bench)
        elif isinstance(job, Survey):
            assert data is not None
            quick = bench.budget == BUDGETS["quick"]
            document["found"] = study_real.survey(job, data, most=bench.budget.labels, quick=quick)
        else:
            document["found"] = study_cells.cell(job, bench)
            document["made"] |= _origin(job, bench)
    except Exception as error:  # whatever it is, the other cells go on
        fault = f"{type(error).__name__}: {error}"
        document["failed"] = {"reason": fault, "where": traceback.format_exc(limit=-3)}
    seconds = time.monotonic() - began
    path.parent.mkdir(exist_ok=True)
    write_json(path, {**document, "seconds": seconds, "core_seconds": time.process_time() - used})
    return fault, seconds


def _origin(job: Cell, bench: Bench) -> dict[str, Any]:
    """The data and the weights that a cell stands on."""
    made = read_json(_result(bench.folder, job.space))
    return {
        "data": f"{job.space.sky} {read_json(bench.folder / 'skies' / job.space.sky / 'done.json')['digest']}",
        "seed": job.space.seed,
        "weights": made["found"]["weights"],
        "vectors_by": made["made"]["revision"],
    }

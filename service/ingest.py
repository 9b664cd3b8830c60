"""`redshelf ingest`: a survey file's catalogue, mosaics or stamps, and labels become a shelf.

`service/intake` reads and checks everything before shelf.toml is written, and leaves a plan; the cutouts follow tile by
tile, in parts of which a killed run repeats at most one, here or on a cluster; then both tables are committed, then the
labels written. Run again on a finished shelf, it rewrites the labels only. Where the catalogue, images, stamps,
weights, masks or survey file have changed since (`indexing/origin`), the shelf is left alone, or taken to the new state
with `update`: the same flow, for the sources that need a row.
"""

from __future__ import annotations

import shutil
import time
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from redshelf.indexing import cutting, deletions, imaging, labels, origin, slurm, store
from redshelf.indexing import survey as surveys
from redshelf.indexing.cutting import IngestPlan
from redshelf.indexing.files import alone
from redshelf.indexing.imaging import TilePaths
from redshelf.indexing.jobs import PLAN_FILE, Run
from redshelf.indexing.layout import Layout
from redshelf.indexing.origin import Origin
from redshelf.indexing.runners import on_processes, on_ray
from redshelf.indexing.survey import Survey
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.models.signals import stop_signals
from redshelf.service.bulk import commit_or_send, send
from redshelf.service.intake import prepare
from redshelf.service.update import refuse_others


@dataclass(frozen=True)
class IngestReport:
    """What is on the shelf after an ingest."""

    survey: str
    sources: int
    new: int
    changed: int
    removed: int
    kept_out: int  # of the catalogue, and deleted by hand
    cut: dict[str, dict[str, int]]  # cut of the survey file -> {"removed": rows}; empty if the catalogue was not read
    labelled: int
    states: dict[str, dict[str, int]]  # band -> state of the catalogue photometry -> sources
    tiles: int
    empty_tiles: tuple[str, ...]  # found, and no source lies on them
    sources_on_no_tile: int  # or without a stamp
    stamps_of_no_source: int | None  # None without stamps, or if their ids were not read
    labels: tuple[labels.SectionCounts, ...]
    disagreements: tuple[str, ...]  # ids of sources whose labels contradict each other
    labels_only: bool  # the shelf was finished already
    seconds: float


def _write_labels(layout: Layout, survey: Survey) -> tuple[labels.MergedLabels, pa.Table]:
    """Rewrite labels.lance; returns the labels, their rows counted among the sources that are not deleted, and those
    sources' columns (without positions and photometry)."""
    states = [f"state_{name}" for name in survey.band_names]
    columns = ["source_id", "ra_deg", "dec_deg", "object_class", "tile", "flags", *states]
    live = deletions.live(layout)
    rows, sources = np.flatnonzero(live), store.open_table(layout.sources).to_table(columns=columns)
    if not live.all():
        sources = sources.filter(pa.array(live))
    merged = labels.build(
        survey,
        np.asarray(sources["source_id"].to_numpy(), dtype=np.bytes_),
        sources["ra_deg"].to_numpy(),
        sources["dec_deg"].to_numpy(),
        np.asarray(sources["object_class"].to_numpy(), dtype=str),
    )
    at = merged.table.schema.get_field_index("row")
    on_shelf = pa.array(rows[merged.table["row"].to_numpy()], pa.int64())
    store.replace_table(layout.labels, merged.table.set_column(at, store.LABELS_SCHEMA.field("row"), on_shelf))
    return merged, sources


@dataclass(frozen=True)
class _Survey:
    """A survey as it is now."""

    file: Path
    survey: Survey
    paths: TilePaths
    source: Origin


def _survey(file: Path) -> _Survey:
    survey = surveys.load(file)
    paths = imaging.find(survey)
    return _Survey(file, survey, paths, origin.of(survey, paths))


def _layout(shelf: Path) -> Layout:
    if shelf.exists() and not shelf.is_dir():
        raise BadInput(f"{shelf} is a file: expected the folder of a shelf, or none yet")
    return Layout(shelf)


def _writing(layout: Layout) -> AbstractContextManager[None]:
    return alone(layout.work("ingest.lock"), f"another process is writing to {layout.root}: wait until it has ended")


def _plan(
    layout: Layout, its: _Survey, *, update: bool, part_rows: int | None, task_parts: int | None = None
) -> IngestPlan | None:
    """The plan that is open for this state of the survey, or a new one; None where the shelf has this state."""
    info = layout.read_info() if layout.info_file.is_file() else None
    begun = layout.update_file.is_file()
    changed = info is not None and origin.read(layout).fingerprint != its.source.fingerprint
    if info is not None and (changed or begun):
        if not update:
            raise Conflict(
                f"an update of {layout.root} was interrupted: --update goes on with it"
                if begun
                else f"{layout.root} was made from another catalogue, survey file or set of images than {its.file}: "
                "with --update it takes over what has changed; else ingest into a new folder"
            )
        if not store.exists(layout.sources):
            raise Conflict(
                f"the first ingest into {layout.root} never ended, and the survey has changed: remove that folder"
            )
        refuse_others(layout, info, its.survey)
    with suppress(NotFound, BadInput):
        found = cutting.read(layout)
        asked = {"fingerprint": its.source.fingerprint, "part_rows": part_rows, "task_parts": task_parts}
        asked["survey_file"] = str(its.file.resolve())  # which may have been moved
        same = all(value in (None, getattr(found.facts, name)) for name, value in asked.items())
        if same and cutting.has_sources(layout, found):
            return found
    if info is not None and not changed and not begun and store.exists(layout.sources):
        return None
    sizes = {
        "part_rows": cutting.PART_ROWS if part_rows is None else part_rows,
        "task_parts": cutting.TASK_PARTS if task_parts is None else task_parts,
    }
    return prepare(layout, its.file, its.survey, its.paths, its.source, **sizes)


def _finish(layout: Layout, survey: Survey, source: Origin, plan: IngestPlan | None, *, started: float) -> IngestReport:
    """Commit the plan, if there is one, write the labels, and say what is on the shelf."""
    if plan is not None:
        cutting.commit(layout, plan)
        deletions.add(layout, {deletions.CHANGED: plan.changed, deletions.REMOVED: plan.removed})
    merged, sources = _write_labels(layout, survey)
    origin.write(layout.origin_file, source)
    for path in (layout.update_file, cutting.folder(layout) / PLAN_FILE):
        path.unlink(missing_ok=True)  # before what they speak of
    shutil.rmtree(cutting.folder(layout), ignore_errors=True)
    occupied = set(sources["tile"].unique().to_pylist())
    source_id = sources["source_id"].to_numpy()
    states = {
        name: {state.name.lower(): int((sources[f"state_{name}"].to_numpy() == state).sum()) for state in State}
        for name in survey.band_names
    }
    facts = None if plan is None else plan.facts
    return IngestReport(
        survey=survey.survey.name,
        sources=len(sources),
        new=0 if facts is None else facts.new,
        changed=0 if plan is None else len(plan.changed),
        removed=0 if plan is None else len(plan.removed),
        kept_out=0 if facts is None else facts.kept_out,
        cut={} if facts is None else {cut: {"removed": rows} for cut, rows in facts.cut.items()},
        labelled=len(merged.table),
        states=states,
        tiles=len(source.tiles),
        empty_tiles=tuple(name for name in source.tiles if name not in occupied),
        sources_on_no_tile=int((sources["flags"].to_numpy() & store.FLAG_NO_TILE != 0).sum()),
        stamps_of_no_source=None if facts is None else facts.stamps_of_no_source,
        labels=merged.sections,
        disagreements=tuple(source_id[merged.disagreeing_rows].tolist()),
        labels_only=plan is None,
        seconds=time.perf_counter() - started,
    )


def ingest(
    survey_file: Path,
    shelf: Path,
    *,
    update: bool = False,
    part_rows: int | None = None,
    processes: int = 1,
    runner: Literal["local", "ray"] = "local",
    progress: bool = False,
) -> IngestReport:
    """Make the shelf of a survey file, or finish one that was interrupted.

    `update` brings a shelf to what its survey has become: sources that are new, or whose values or images have changed,
    get new rows at the end; old rows of those, and of sources that are gone, are listed as deleted. Cutouts are cut by
    `processes` of this machine, or by every core of a Ray cluster.

    Raises `BadInput` for whatever is wrong in the survey file and what it names, and `Conflict` for a shelf that was
    made from something else or that another process is writing. Memory is bounded by the catalogue, and, a process, one
    tile's mosaics or stamps (`cutouts.HELD_BYTES` of them, in strips) and some batches of cutouts.
    """
    from tqdm import tqdm

    started = time.perf_counter()
    if processes < 1:
        raise BadInput(f"processes={processes}: expected 1 or more")
    layout, its = _layout(shelf), _survey(survey_file)
    with _writing(layout):
        begin = partial(cutting.worker, layout.root.resolve())
        run: Run | None = on_ray(begin, gpus=False) if runner == "ray" else None
        if run is None and processes > 1:
            run = on_processes(begin, ["cpu"] * processes)
        plan = _plan(layout, its, update=update, part_rows=part_rows)
        todo = sorted(cutting.missing(layout, plan)) if plan is not None else []
        if plan is not None and todo:
            total, left = plan.rows_of(range(plan.parts)), plan.rows_of(todo)
            with tqdm(total=total, initial=total - left, unit="sources", desc="cutouts", disable=not progress) as bar:
                if run is None:
                    cutting.cut_parts(layout, plan, todo, survey=its.survey, paths=its.paths, progress=bar.update)
                else:
                    run(cutting.together(plan, todo), bar.update)
        return _finish(layout, its.survey, its.source, plan, started=started)


def make_plan(
    survey_file: Path,
    shelf: Path,
    *,
    update: bool = False,
    part_rows: int | None = None,
    task_parts: int | None = None,
) -> IngestPlan | None:
    """Read the catalogue, and leave the plan for whoever does its parts; None for a shelf that lacks nothing."""
    layout, its = _layout(shelf), _survey(survey_file)
    with _writing(layout):
        return _plan(layout, its, update=update, part_rows=part_rows, task_parts=task_parts)


def _planned(layout: Layout, survey_file: Path) -> IngestPlan:
    plan = cutting.read(layout)
    if plan.facts.survey_file != str(survey_file.resolve()):
        raise Conflict(f"the ingest that is planned on {layout.root} is of {plan.facts.survey_file}, not {survey_file}")
    return plan


def do(survey_file: Path, shelf: Path, *, part: int | None = None, task: int | None = None) -> dict[str, int]:
    """Cut one part, or the parts of one task, of the open plan; those that have a receipt are left.

    After SIGUSR1 or SIGTERM the part at hand is finished and `Interrupted` raised, unless it was the last.
    """
    layout = Layout(shelf)
    plan = _planned(layout, survey_file)
    parts = plan.asked(part, task)
    rows, missing = plan.rows_of(parts), cutting.missing(layout, plan)
    with stop_signals() as told:
        survey, paths = cutting.open_survey(plan)
        cutting.refuse_other_images(layout, plan, parts, survey, paths)
        cutting.cut_parts(layout, plan, parts, survey=survey, paths=paths, stop=told)
    return {"parts": len(parts), "done_before": len(set(parts) - missing), "rows": rows}


def _commit(layout: Layout, survey_file: Path, plan: IngestPlan) -> IngestReport:
    source, started = cutting.source_of(layout), time.perf_counter()
    return _finish(layout, surveys.load(survey_file), source, plan, started=started)


def commit(survey_file: Path, shelf: Path) -> IngestReport:
    """End the ingest whose parts are all cut; `Conflict` naming those that are not."""
    layout = _layout(shelf)
    if _ended(layout):
        return ingest(survey_file, shelf)
    with _writing(layout):
        return _commit(layout, survey_file, _planned(layout, survey_file))


def _ended(layout: Layout) -> bool:
    """Whether there are sources and no plan: somebody else has ended it."""
    return store.exists(layout.sources) and not (cutting.folder(layout) / PLAN_FILE).is_file()


def submit(
    survey_file: Path,
    shelf: Path,
    *,
    settings: Path,
    update: bool = False,
    part_rows: int | None = None,
    task_parts: int | None = None,
) -> dict[str, Any]:
    """Plan here, and submit the tasks, which ask for no GPU, and the commit to SLURM; says what was submitted.

    What SLURM does not allow is said before the catalogue is read.
    """
    known = slurm.load(settings)
    slurm.check_site(known, slurm.CPU)
    plan = make_plan(survey_file, shelf, update=update, part_rows=part_rows, task_parts=task_parts)
    if plan is None:
        return {"submitted": None}
    slurm.check_size(known, slurm.CPU, plan)
    layout = Layout(shelf)
    return send(layout, cutting.job(layout, plan), known, kind=slurm.CPU)


def commit_or_resubmit(survey_file: Path, shelf: Path) -> IngestReport | dict[str, Any]:
    """What the commit job of SLURM does: end the ingest, or send the tasks that miss parts once more."""
    layout = _layout(shelf)
    if _ended(layout):
        return ingest(survey_file, shelf)
    with _writing(layout):
        plan = _planned(layout, survey_file)
        return commit_or_send(layout, cutting.job(layout, plan), lambda: _commit(layout, survey_file, plan))

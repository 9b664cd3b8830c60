"""Bulk embedding step by step, as schedulers call it: plan, parts, commit; and the submission of any job to SLURM.

`service/embedding.embed` does all of it in one call, on this machine or on a Ray cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from redshelf.indexing import partition, slurm, store
from redshelf.indexing.embed import commit as commit_plan
from redshelf.indexing.embed import embed_parts, end_committed, is_committed
from redshelf.indexing.files import alone
from redshelf.indexing.jobs import Job
from redshelf.indexing.layout import Layout
from redshelf.indexing.partition import Plan
from redshelf.indexing.slurm import SlurmSettings
from redshelf.models import checkpoint
from redshelf.models.errors import Conflict
from redshelf.models.signals import stop_signals
from redshelf.service.embedding import AS_THEY_ARE, Pretrained, find_encoder

T = TypeVar("T")


def make_plan(
    root: Path,
    *,
    encoder: str,
    weights: Path | None = None,
    options: Pretrained = AS_THEY_ARE,
    part_rows: int | None = None,
    task_parts: int | None = None,
    agreed: Callable[[Plan], object] = lambda plan: None,
) -> Plan | None:
    """Write plan.json for what `encoder` has not embedded yet and return it; None where nothing is left.

    An open plan is gone on with; `agreed` may refuse a plan by raising. Raises as `find_encoder`, `partition.propose`.
    """
    layout = Layout(root)
    layout.read_info()
    end_committed(layout, encoder)
    found = find_encoder(layout, encoder, weights=weights, options=options)
    return partition.make(layout, found, part_rows=part_rows, task_parts=task_parts, agreed=agreed)


def do(
    root: Path,
    *,
    encoder: str,
    part: int | None = None,
    task: int | None = None,
    batch_size: int | None = None,
    device: str | None = None,
) -> dict[str, int]:
    """Do one part, or the parts of one task, of the open plan of `encoder`; those that have a receipt are left.

    After SIGUSR1 or SIGTERM the part at hand is finished and `Interrupted` raised, unless it was the last.
    """
    layout = Layout(root)
    plan, _ = partition.find(layout, encoder)
    parts = plan.asked(part, task)
    rows = plan.rows_of(parts)
    if is_committed(layout, plan):
        return {"parts": len(parts), "done_before": len(parts), "rows": rows}
    missing = partition.missing(layout, plan)
    loaded = checkpoint.load(layout.model(plan.encoder, plan.revision))
    with stop_signals() as told:
        embed_parts(layout, loaded, plan, parts, batch_size=batch_size, device=device, stop=told)
    return {"parts": len(parts), "done_before": len(set(parts) - missing), "rows": rows}


def _committed(layout: Layout, encoder: str) -> int | None:
    """Rows of an embedding of `encoder` where no plan is open and one is whole, None otherwise."""
    end_committed(layout, encoder)
    known, rows = layout.encoders().get(encoder, []), store.count_rows(layout.sources)
    whole = any(store.count_rows(layout.embeddings(encoder, revision)) == rows for revision in known)
    return rows if whole and not partition.homes(layout, encoder) else None


def commit(root: Path, *, encoder: str) -> int:
    """Commit the open plan of `encoder` and return the rows of its table; a second time changes nothing.

    `Conflict` naming what is missing, `NotFound` where there is neither a plan nor a whole embedding.
    """
    layout = Layout(root)
    if (rows := _committed(layout, encoder)) is not None:
        return rows
    plan, _ = partition.find(layout, encoder)
    return commit_plan(layout, plan)


def submit(
    root: Path,
    *,
    encoder: str,
    settings: Path,
    gpu: str | None = None,
    weights: Path | None = None,
    options: Pretrained = AS_THEY_ARE,
    part_rows: int | None = None,
    task_parts: int | None = None,
) -> dict[str, Any]:
    """Plan, and submit the tasks and the commit to SLURM; says what was submitted.

    What SLURM or the limits of the site do not allow is said before anything is written.
    """
    layout, known = Layout(root), slurm.load(settings)
    layout.read_info()
    slurm.check_site(known, gpu)
    plan = make_plan(
        root,
        encoder=encoder,
        weights=weights,
        options=options,
        part_rows=part_rows,
        task_parts=task_parts,
        agreed=lambda plan: slurm.check_size(known, gpu, plan),
    )
    if plan is None:
        return {"rows": store.count_rows(layout.sources), "submitted": None}
    return send(layout, partition.job(layout, plan), known, kind=gpu)


def commit_or_resubmit(root: Path, *, encoder: str) -> dict[str, Any]:
    """What the commit job of SLURM does: commit, or send the tasks that miss parts once more."""
    layout = Layout(root)
    if (rows := _committed(layout, encoder)) is not None:
        return {"rows": rows}
    plan, _ = partition.find(layout, encoder)
    found = commit_or_send(layout, partition.job(layout, plan), lambda: commit_plan(layout, plan))
    return {"rows": found} if isinstance(found, int) else found


def _submitting(layout: Layout, job: Job) -> AbstractContextManager[None]:
    return alone(layout.work(f"submit.{job.name}.lock"), f"another process submits {job.name} on {layout.root}")


def send(layout: Layout, job: Job, settings: SlurmSettings, *, kind: str | None) -> dict[str, Any]:
    """Submit the tasks of a plan that miss parts, and the commit; says what was submitted."""
    with _submitting(layout, job):
        entry = slurm.submit(layout, job, settings, kind=kind)
    return {"plan": job.id, "parts": job.split.parts, "tasks": job.split.tasks, "submitted": entry}


def commit_or_send(layout: Layout, job: Job, commit: Callable[[], T]) -> T | dict[str, Any]:
    """Commit a plan and return what that returns, or send the tasks that miss parts once more."""
    own_job = os.environ.get("SLURM_JOB_ID", "")
    with _submitting(layout, job):
        entry = slurm.resubmit(layout, job, own_job=own_job)
        if entry is None:
            try:
                return commit()
            except Conflict:
                if not job.missing():
                    raise
                entry = slurm.resubmit(layout, job, own_job=own_job)  # damaged parts were set aside
    return {"resubmitted": entry}

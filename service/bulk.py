"""Bulk embedding step by step, as schedulers call it: plan, parts, commit; and the submission to SLURM.

`service/embedding.embed` does all of it in one call, on this machine or on a Ray cluster.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from redshelf.indexing import partition, slurm, store
from redshelf.indexing.embed import commit as commit_plan
from redshelf.indexing.embed import embed_parts, end_committed, is_committed
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout
from redshelf.indexing.partition import Plan
from redshelf.models import checkpoint
from redshelf.models.errors import BadInput, Conflict
from redshelf.models.resume import stop_signals
from redshelf.service.embedding import AS_THEY_ARE, Pretrained, find_encoder


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


def _submitting(layout: Layout, encoder: str) -> AbstractContextManager[None]:
    return alone(layout.work(f"submit.{encoder}.lock"), f"another process submits {encoder} on {layout.root}")


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
    if (part is None) == (task is None):
        raise BadInput("give a part or a task, not both")
    layout = Layout(root)
    plan, _ = partition.find(layout, encoder)
    parts = [part] if part is not None else list(plan.parts_of(task or 0))
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
    with _submitting(layout, encoder):
        entry = slurm.submit(layout, plan, known, gpu=gpu)
    return {"plan": plan.id, "parts": plan.parts, "tasks": plan.tasks, "submitted": entry}


def commit_or_resubmit(root: Path, *, encoder: str) -> dict[str, Any]:
    """What the commit job of SLURM does: commit, or send the tasks that miss parts once more."""
    layout = Layout(root)
    if (rows := _committed(layout, encoder)) is not None:
        return {"rows": rows}
    plan, _ = partition.find(layout, encoder)
    own_job = os.environ.get("SLURM_JOB_ID", "")
    with _submitting(layout, encoder):
        entry = slurm.resubmit(layout, plan, own_job=own_job)
        if entry is None:
            try:
                return {"rows": commit_plan(layout, plan)}
            except Conflict:
                if not partition.missing(layout, plan):
                    raise
                entry = slurm.resubmit(layout, plan, own_job=own_job)  # damaged parts were set aside
    return {"resubmitted": entry}

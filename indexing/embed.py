"""Bulk embedding by the parts of a plan: encode, write uncommitted fragments and a receipt; one commit at the end.

`embed_parts` does some parts, whatever runs it; `commit` ends a plan; `embed_all` is one machine that does all. A part
is written while the next one is encoded, so that a killed run repeats at most two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from redshelf.indexing import partition, store
from redshelf.indexing.batches import Reader
from redshelf.indexing.files import alone
from redshelf.indexing.jobs import Do, Run
from redshelf.indexing.layout import Layout
from redshelf.indexing.memory import keep_freed_memory
from redshelf.indexing.partition import Plan
from redshelf.indexing.parts import commit_parts, write_part
from redshelf.indexing.vectors import Vectors, placed, vectors
from redshelf.models import checkpoint
from redshelf.models.encoder import Encoder
from redshelf.models.errors import BadInput, Conflict, Interrupted
from redshelf.models.parallel import usable_device

# of a batch: on a CPU what its caches hold, on a GPU enough to fill it, without pixels what makes Python's part small
BATCH_CPU, BATCH_GPU, BATCH_FLUXES = 64, 512, 8192


def embed_parts(
    layout: Layout,
    encoder: Encoder,
    plan: Plan,
    parts: Sequence[int],
    *,
    batch_size: int | None = None,
    device: str | None = None,
    progress: Callable[[int], object] = lambda rows: None,
    stop: Iterable[str] = (),
) -> None:
    """Embed those of `parts` that have no receipt, and leave theirs. `encoder` comes back where it was.

    `progress` is told of the rows of each batch. As soon as `stop` has an element, a name for what said so, the part at
    hand is finished and `Interrupted` raised. What was finished before an error has its receipt. `BadInput` for another
    encoder than the plan's.
    """
    for name in ("revision", "dim"):
        if getattr(encoder, name) != getattr(plan, name):
            raise BadInput(
                f"the plan is for encoder {plan.encoder} of {name} {getattr(plan, name)}, and given is "
                f"{encoder.name} of {name} {getattr(encoder, name)}"
            )
    if batch_size is not None and batch_size < 1:
        raise BadInput(f"batch_size={batch_size}: expected at least 1")
    missing = partition.missing(layout, plan)
    todo = [part for part in parts if part in missing]
    reader = Reader(layout, layout.read_info(), bands=encoder.bands, needs=encoder.needs)
    with placed(encoder, device) as place:
        if batch_size is None:
            on_gpu = place.startswith("cuda")
            batch_size = BATCH_FLUXES if "pixels" not in encoder.needs else BATCH_GPU if on_gpu else BATCH_CPU
        if place == "cpu":
            keep_freed_memory()
        _encode(layout, encoder, reader, plan, todo, batch_size=batch_size, device=place, progress=progress, stop=stop)


def _encode(
    layout: Layout,
    encoder: Encoder,
    reader: Reader,
    plan: Plan,
    todo: Sequence[int],
    *,
    batch_size: int,
    device: str,
    progress: Callable[[int], object],
    stop: Iterable[str],
) -> None:
    import pyarrow as pa

    table, schema = layout.embeddings(plan.encoder, plan.revision), store.embeddings_schema(plan.dim)
    receipts = partition.receipts(layout, plan)

    def wanted() -> bool:
        return partition.is_open(layout, plan)

    def write(part: int, first: int, whole: Vectors, facts: dict[str, Any]) -> None:
        rows = pa.array(np.arange(first, first + len(whole), dtype=np.int64))
        batch = pa.record_batch([rows, store.fixed_list(whole)], schema=schema)
        facts |= {"zero_vectors": int((~whole.any(axis=1)).sum()), "device": device}
        told: dict[str, Any] = {"part": part, "first_row": first, "plan": plan.id, "facts": facts, "wanted": wanted}
        write_part(table, schema, [batch], receipts=receipts, **told)

    encoding = vectors(encoder, reader, [plan.span(part) for part in todo], batch_size=batch_size, device=device)
    with ThreadPoolExecutor(1, "write") as writer, closing(encoding) as found:
        writing: Future[None] | None = None
        for number, part in enumerate(todo):
            if told := list(stop):
                if writing is not None:
                    writing.result()
                left = len(todo) - number
                raise Interrupted(f"embedding stopped by {told[0]} before part {part}: {left} parts are left to do")
            if not wanted():
                raise Conflict(f"plan {plan.id} was committed or removed: parts from {part} on are not wanted any more")
            (first, past), began = plan.span(part), time.perf_counter()
            whole, at = np.empty((past - first, plan.dim), dtype=np.float16), first
            while at < past:
                start, values = next(found)
                whole[start - first : start - first + len(values)] = values
                at = start + len(values)
                progress(len(values))
            if writing is not None:
                writing.result()
            writing = writer.submit(write, part, first, whole, {"encode_seconds": time.perf_counter() - began})
        if writing is not None:
            writing.result()


def commit(layout: Layout, plan: Plan) -> int:
    """Commit a plan whose parts are all done, and return the rows of the table; a second time changes nothing.

    `Conflict` as `parts.commit_parts`.
    """
    table, schema = layout.embeddings(plan.encoder, plan.revision), store.embeddings_schema(plan.dim)
    told = {"receipts": partition.receipts(layout, plan), "parts": plan.parts, "plan": plan.id}
    rows = commit_parts(table, schema, **told)  # type: ignore[arg-type]
    partition.close(layout, plan)
    return rows


def is_committed(layout: Layout, plan: Plan) -> bool:
    """Whether the table has the rows of an open plan: a kill came between the commit and its end."""
    return store.count_rows(layout.embeddings(plan.encoder, plan.revision)) >= plan.rows


def end_committed(layout: Layout, encoder: str) -> None:
    """End the plans of `encoder` that a kill left open after their commit."""
    for plan in partition.open_plans(layout, encoder).values():
        if is_committed(layout, plan):
            commit(layout, plan)


def worker(root: Path, encoder: str, batch_size: int | None, device: str, threads: int) -> Do:
    """What does parts of the open plan of an encoder in a process of its own: the encoder is loaded and moved once."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    layout = Layout(root)
    plan, _ = partition.find(layout, encoder)
    loaded = checkpoint.load(layout.model(plan.encoder, plan.revision))
    if isinstance(loaded, torch.nn.Module):
        loaded.to(usable_device(device))

    def do(parts: Sequence[int]) -> int:
        embed_parts(layout, loaded, plan, parts, device=device, batch_size=batch_size)
        return plan.rows_of(parts)

    return do


def embed_all(
    layout: Layout,
    encoder: Encoder,
    *,
    batch_size: int | None = None,
    part_rows: int | None = None,
    progress: bool = False,
    device: str | None = None,
    run: Run | None = None,
) -> int:
    """Embed every source that is not embedded yet; returns the rows of the finished table. Resumes after a kill.

    `device`: where the encoder computes, a GPU where there is one by default. Sizes that are not given go by device and
    by what the encoder reads. `run` does the parts, by default this process. Two runs of one embedding at once: the
    second raises `Conflict`.
    """
    from tqdm import tqdm

    job = f"embed.{encoder.name}.{encoder.revision}"
    with alone(layout.work(f"{job}.lock"), f"another run is embedding {encoder.name} on {layout.root}"):
        while (plan := partition.make(layout, encoder, part_rows=part_rows)) is not None:
            todo = sorted(partition.missing(layout, plan))
            before = plan.rows - plan.rows_of(todo)
            label = f"embed {encoder.name}"
            with tqdm(total=plan.rows, initial=before, unit=" sources", desc=label, disable=not progress) as bar:
                if run is None:
                    embed_parts(layout, encoder, plan, todo, batch_size=batch_size, device=device, progress=bar.update)
                else:
                    run([[part] for part in todo], bar.update)
            commit(layout, plan)  # an open plan may be of fewer rows than the shelf has now: then another follows
        return store.count_rows(layout.embeddings(encoder.name, encoder.revision))

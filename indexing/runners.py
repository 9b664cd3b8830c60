"""Who does the parts of a plan beside this process: several processes of this machine, or a Ray cluster.

Both give each worker an encoder of its own and hand out parts until none is left; what comes back is a count of rows,
everything else lies in the receipts. SLURM, which outlives this process, is in `indexing/slurm`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from queue import Queue
from typing import Any

from redshelf.indexing import partition
from redshelf.indexing.embed import Run, embed_parts
from redshelf.indexing.layout import Layout
from redshelf.indexing.partition import Plan
from redshelf.models import checkpoint
from redshelf.models.errors import BadInput, RedshelfError
from redshelf.models.parallel import usable_device


class Worker:
    """One encoder on one device, for the open plan of a shelf."""

    def __init__(self, root: Path, encoder: str, *, device: str | None, batch_size: int | None, threads: int) -> None:
        import torch

        if threads:
            torch.set_num_threads(threads)
        self.layout, self.device, self.batch_size = Layout(root), device, batch_size
        self.plan, _ = partition.find(self.layout, encoder)
        self.encoder = checkpoint.load(self.layout.model(self.plan.encoder, self.plan.revision))
        if isinstance(self.encoder, torch.nn.Module):
            self.encoder.to(usable_device(device))  # once, not for every part

    def do(self, parts: Sequence[int]) -> int:
        """Do these parts and return their rows."""
        embed_parts(self.layout, self.encoder, self.plan, parts, device=self.device, batch_size=self.batch_size)
        return self.plan.rows_of(parts)


_worker: Worker | None = None


def _begin(devices: Queue[str], root: Path, encoder: str, batch_size: int | None, threads: int) -> None:
    global _worker
    _worker = Worker(root, encoder, device=devices.get(), batch_size=batch_size, threads=threads)


def _do(part: int) -> int:
    assert _worker is not None
    return _worker.do([part])


def on_processes(layout: Layout, devices: Sequence[str], *, batch_size: int | None = None) -> Run:
    """A process for each of `devices`; several may be "cpu", which share the cores."""
    on_cpu = sum(device == "cpu" for device in devices)
    threads = max(1, len(os.sched_getaffinity(0)) // on_cpu) if on_cpu else 0

    def run(plan: Plan, parts: list[int], progress: Callable[[int], object]) -> None:
        context = get_context("spawn")
        waiting: Any = context.Manager().Queue()
        for device in devices:
            waiting.put(device)
        told = (waiting, layout.root, plan.encoder, batch_size, threads)
        with ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=told) as pool:
            try:
                for done in as_completed([pool.submit(_do, part) for part in parts]):
                    progress(done.result())
            except BrokenProcessPool as error:
                raise RedshelfError(
                    "a process that embedded was killed or could not begin; the same command goes on from what is done"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    return run


def on_ray(layout: Layout, *, batch_size: int | None = None) -> Run:
    """An actor for each GPU of a Ray cluster, or for each core where it has none.

    The cluster is that of $RAY_ADDRESS, else one of this machine, which ends with the run; every node must see the
    shelf under the same path. `BadInput` without the `ray` extra.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise BadInput("the Ray runner needs the `ray` extra: pip install ray") from error

    def run(plan: Plan, parts: list[int], progress: Callable[[int], object]) -> None:
        ours = not ray.is_initialized()
        if ours:
            cores = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": len(os.sched_getaffinity(0))}
            ray.init(**cores, log_to_driver=False, include_dashboard=False)
        try:
            has = ray.cluster_resources()
            gpus = int(has.get("GPU", 0))
            number = min(gpus or int(has.get("CPU", 1)), len(parts))
            share = {"num_gpus": 1, "num_cpus": 1} if gpus else {"num_cpus": 1}
            actor = ray.remote(Worker).options(**share, max_restarts=3, max_task_retries=3)
            told = {"device": "cuda" if gpus else "cpu", "batch_size": batch_size, "threads": 0 if gpus else 1}
            actors = [actor.remote(layout.root.resolve(), plan.encoder, **told) for _ in range(number)]
            for rows in ActorPool(actors).map_unordered(lambda a, part: a.do.remote([part]), parts):
                progress(rows)
        finally:
            if ours:
                ray.shutdown()

    return run

"""Who does the parts of a job beside this process: several processes of this machine, or a Ray cluster.

Both begin a worker in each process and hand out groups of parts until none is left; what comes back is a count of rows,
everything else lies in the receipts. SLURM, which outlives this process, is in `indexing/slurm`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from queue import Queue
from typing import Any

from redshelf.indexing.jobs import Begin, Do, Progress, Run
from redshelf.models.errors import BadInput, RedshelfError


class Worker:
    """One process, with what it needs to do parts."""

    def __init__(self, begin: Begin, device: str, threads: int) -> None:
        self._do = begin(device, threads)

    def do(self, parts: Sequence[int]) -> int:
        """Do parts and return their rows."""
        return self._do(parts)


_do_parts: Do | None = None


def _begin(devices: Queue[str], begin: Begin, threads: int) -> None:
    global _do_parts
    _do_parts = begin(devices.get(), threads)


def _do(parts: Sequence[int]) -> int:
    assert _do_parts is not None
    return _do_parts(parts)


def on_processes(begin: Begin, devices: Sequence[str]) -> Run:
    """A process for each of `devices`; several may be "cpu", which share the cores."""
    on_cpu = sum(device == "cpu" for device in devices)
    threads = max(1, len(os.sched_getaffinity(0)) // on_cpu) if on_cpu else 0

    def run(groups: Sequence[Sequence[int]], progress: Progress) -> None:
        context = get_context("spawn")
        waiting: Any = context.Manager().Queue()
        for device in devices:
            waiting.put(device)
        with ProcessPoolExecutor(len(devices), context, initializer=_begin, initargs=(waiting, begin, threads)) as pool:
            try:
                for done in as_completed([pool.submit(_do, parts) for parts in groups]):
                    progress(done.result())
            except BrokenProcessPool as error:
                raise RedshelfError(
                    "a process that did parts was killed or could not begin; the same command goes on from what is done"
                ) from error
            finally:
                pool.shutdown(cancel_futures=True)

    return run


def on_ray(begin: Begin, *, gpus: bool = True) -> Run:
    """An actor for each GPU of a Ray cluster, or for each core where it has none or `gpus` are not wanted.

    The cluster is that of $RAY_ADDRESS, else one of this machine, which ends with the run; every node must see the
    shelf under the same path. `BadInput` without the `ray` extra.
    """
    try:
        import ray
        from ray.util import ActorPool
    except ImportError as error:
        raise BadInput("the Ray runner needs the `ray` extra: pip install ray") from error

    def run(groups: Sequence[Sequence[int]], progress: Progress) -> None:
        ours = not ray.is_initialized()
        if ours:
            cores = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": len(os.sched_getaffinity(0))}
            ray.init(**cores, log_to_driver=False, include_dashboard=False)
        try:
            has = ray.cluster_resources()
            cards = int(has.get("GPU", 0)) if gpus else 0
            number = min(cards or int(has.get("CPU", 1)), len(groups))
            share = {"num_gpus": 1, "num_cpus": 1} if cards else {"num_cpus": 1}
            actor = ray.remote(Worker).options(**share, max_restarts=3, max_task_retries=3)
            actors = [actor.remote(begin, *(("cuda", 0) if cards else ("cpu", 1))) for _ in range(number)]
            for rows in ActorPool(actors).map_unordered(lambda a, parts: a.do.remote(parts), groups):
                progress(rows)
        finally:
            if ours:
                ray.shutdown()

    return run

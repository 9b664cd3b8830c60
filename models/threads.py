"""How many threads a computation takes where nobody says, and work that is begun before it is asked for."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def cores() -> int:
    """Those that this process may run on: of a SLURM task those it was given."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """OMP_NUM_THREADS where it is a number, else every core that this process may run on."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) > 0 else cores()


def ahead(jobs: Iterable[Callable[[], T]], *, threads: int = 1, depth: int = 2) -> Generator[T, None, None]:
    """What each of `jobs` returns, in order, while `threads` threads work on up to `depth` of those that come next.

    What a job raises is raised here, in its turn. Close the generator to give up the jobs that have not begun.
    """
    with ThreadPoolExecutor(threads, "read") as pool:
        coming: deque[Future[T]] = deque()
        try:
            for job in jobs:
                coming.append(pool.submit(job))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()

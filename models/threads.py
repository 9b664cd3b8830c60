"""How many threads a computation takes where nobody says."""

from __future__ import annotations

import os


def cores() -> int:
    """Those that this process may run on: of a SLURM task those it was given."""
    return len(os.sched_getaffinity(0))


def default_threads() -> int:
    """OMP_NUM_THREADS where it is a number, else every core that this process may run on."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) > 0 else cores()

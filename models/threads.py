"""How many threads a computation takes where nobody says."""

from __future__ import annotations

import os


def default_threads() -> int:
    """OMP_NUM_THREADS where it is a number, else every core."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and int(value) > 0 else (os.cpu_count() or 1)

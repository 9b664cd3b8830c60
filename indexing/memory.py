"""Memory of this process: how much it may still take, and that it keeps what it has for the next batch.

Containers and Slurm jobs are killed at the limit of their control group, of which /proc/meminfo knows nothing.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of malloc.h


def keep_freed_memory() -> bool:
    """Let this process reuse the memory of large tensors instead of giving it back after each; False without glibc.

    By default each tensor over 32 MB comes from the system anew, and smaller ones do when the heap was trimmed: a fault
    for every 4 KiB, which cost a seventh of a small transformer's time on a CPU. The peak stays what it was.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    if not libc.mallopt(M_MMAP_THRESHOLD, 1 << 30):  # older versions take 32 MB at most
        libc.mallopt(M_MMAP_MAX, 0)
    return bool(libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1))


def processes_here(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of this run on this machine, 1 for a process that was started alone."""
    if "LOCAL_WORLD_SIZE" in environment:
        return max(1, int(environment["LOCAL_WORLD_SIZE"]))
    # "4(x2),3": tasks on each node of the step, and how many nodes in a row have as many
    tasks = re.findall(r"(\d+)(?:\(x\d+\))?(?:,|$)", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    return max((int(number) for number in tasks), default=1)


def available_bytes(root: Path = Path("/")) -> int:
    """Bytes that this process may still allocate; `root` is where /proc and /sys are looked for."""
    found = re.search(r"^MemAvailable: +(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    free = int(found[1]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([free, *_left_in_groups(root)]))


def _left_in_groups(root: Path) -> Iterator[int]:
    """What the memory limits of this process's control groups, from its own up to the root, leave."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        first = "memory.limit_in_bytes memory.usage_in_bytes total_" if controllers else "memory.max memory.current "
        limit_file, usage_file, prefix = first.split(" ")
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        folder = top / place.lstrip("/")
        for group in [folder, *folder.parents]:
            limit, used = _text(group / limit_file).strip(), _text(group / usage_file).strip()
            if limit.isdigit() and used.isdigit():
                # files in the page cache count as used, and give way
                cached = re.findall(rf"^{prefix}(?:in)?active_file (\d+)", _text(group / "memory.stat"), re.MULTILINE)
                yield int(limit) - int(used) + sum(map(int, cached))
            if group == top:
                break


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""

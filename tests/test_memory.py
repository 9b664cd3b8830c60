"""indexing/memory.py on file trees that look like those of Linux."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from redshelf.indexing.memory import available_bytes, processes_here

GB = 1 << 30


def machine(root: Path, groups: str, files: dict[str, dict[str, str]]) -> Path:
    """A root with 8 GB available and the control groups given, {folder: {file: content}}."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 99999 kB\nMemAvailable:   {8 * GB // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for folder, contents in files.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, text in contents.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(text)
    return root


def test_without_limits_all_that_the_system_has_free_may_be_taken(tmp_path: Path) -> None:
    unlimited = {"job": {"memory.max": "max\n", "memory.current": "5\n"}}
    assert available_bytes(machine(tmp_path, "0::/job\n", unlimited)) == 8 * GB


def test_the_tightest_group_above_the_process_counts_and_cached_files_do_not(tmp_path: Path) -> None:
    files = {
        "job/step": {"memory.max": "max\n", "memory.current": "1\n"},
        "job": {
            "memory.max": f"{4 * GB}\n",
            "memory.current": f"{3 * GB}\n",
            "memory.stat": f"anon 7\ninactive_file {GB}\nactive_file {GB // 2}\nslab 9\n",
        },
    }
    assert available_bytes(machine(tmp_path, "0::/job/step\n", files)) == 2.5 * GB


def test_groups_of_the_first_version_are_read_too(tmp_path: Path) -> None:
    limits = {
        "memory.limit_in_bytes": f"{3 * GB}\n",
        "memory.usage_in_bytes": f"{2 * GB}\n",
        "memory.stat": "active_file 5\ntotal_active_file 7\n",
    }
    root = machine(tmp_path, "9:cpu,cpuacct:/\n4:memory:/uid_1\n0::/\n", {"memory/uid_1": limits})
    assert available_bytes(root) == GB + 7


def test_a_group_beyond_its_limit_leaves_nothing(tmp_path: Path) -> None:
    files = {"job": {"memory.max": "10\n", "memory.current": "20\n"}}
    assert available_bytes(machine(tmp_path, "0::/job\n", files)) == 0


def test_this_machine_has_some_memory_free() -> None:
    assert 1 << 20 < available_bytes() < 1 << 60
    assert available_bytes(Path("/nowhere")) > 1 << 20


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, 1),
        ({"LOCAL_WORLD_SIZE": "4", "SLURM_STEP_TASKS_PER_NODE": "8"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "4(x2),3"}, 4),
        ({"SLURM_STEP_TASKS_PER_NODE": "2,12(x16)"}, 12),
    ],
)
def test_processes_on_this_machine_are_known_from_torchrun_and_srun(environment: dict[str, str], expected: int) -> None:
    assert processes_here(environment) == expected


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_memory_that_was_freed_is_used_again_without_a_page_fault() -> None:
    # in a process of its own: the setting is of the process
    script = textwrap.dedent(
        """
        import resource
        import numpy as np
        from redshelf.indexing.memory import keep_freed_memory
        def faults():
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for _ in range(5):
                for size in (40, 50):
                    np.ones(size << 20, np.uint8)
            return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
        usual = faults()
        kept = keep_freed_memory()
        faults()
        print(usual, faults() if kept else 0)
        """
    )
    links = str(Path(__file__).parent / "links")
    done = subprocess.run(
        [sys.executable, "-c", script], env={"PYTHONPATH": links}, check=True, capture_output=True, text=True
    )
    usual, kept = map(int, done.stdout.split())
    assert kept < 20 < usual

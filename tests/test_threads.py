"""models/threads.py: how many threads a process takes by itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from redshelf.models.threads import default_threads
from redshelf.service.settings import load


def test_a_process_that_is_bound_to_some_cores_takes_a_thread_for_each_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 80)
    for bound, served in (({3}, 1), (set(range(10)), 4)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, bound=bound: bound)
        assert default_threads() == len(bound)
        assert load(environ={}, shelf=tmp_path / "shelf", state_dir=tmp_path / "state").threads == served


@pytest.mark.parametrize(("value", "expected"), [("3", 3), ("0", 2), ("many", 2)])
def test_omp_num_threads_is_taken_where_it_is_a_number(
    monkeypatch: pytest.MonkeyPatch, value: str, expected: int
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 5})
    assert default_threads() == expected

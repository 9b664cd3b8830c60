"""Micro-batches: what waits is done together, in order, never beyond a limit, and not for those who have left."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import pytest

from redshelf.models.errors import Busy
from redshelf.service import batching
from redshelf.service.batching import Batcher, Size


class Work:
    """Squares numbers when it is let to, and remembers what was asked together."""

    def __init__(self, size: Size) -> None:
        self.go, self.batches = threading.Event(), list[list[int]]()
        self.queue: list[int] = []
        self.begun = threading.Semaphore(0)
        self.batcher = Batcher[str, int, int](self.run, size, queued=self.queue.append)

    def run(self, key: str, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.begun.release()
        assert self.go.wait(10)
        if -1 in items:
            raise ValueError(key)
        return [item**2 for item in items]

    def submit(self, item: int, key: str = "a", seconds: float = 10):
        return self.batcher.submit(key, item, until=time.monotonic() + seconds)


def busy(work: Work) -> None:
    """Keep its thread at a first item."""
    work.submit(0, "first")
    assert work.begun.acquire(timeout=10)


def test_what_came_while_it_was_busy_is_done_together_up_to_the_limit_and_by_key() -> None:
    work = Work(Size(3, 0, 100))
    busy(work)
    told = [work.submit(i, key) for i, key in enumerate("aabaaaab")]
    work.go.set()
    assert [future.result(10) for future in told] == [i**2 for i in range(8)]
    assert work.batches == [[0], [0, 1, 3], [2, 7], [4, 5, 6]]
    assert work.queue[-1] == 0 and max(work.queue) == 8


def test_the_first_waits_for_others_and_no_longer() -> None:
    work = Work(Size(2, 0.5, 100))
    work.go.set()
    began = time.monotonic()
    first, second = work.submit(1), work.submit(2)
    assert (first.result(10), second.result(10)) == (1, 4) and time.monotonic() - began < 0.4
    began = time.monotonic()
    assert work.submit(3).result(10) == 9 and 0.5 <= time.monotonic() - began < 2
    assert work.batches == [[1, 2], [3]]


def test_beyond_the_limit_it_is_busy_and_what_was_given_up_makes_room() -> None:
    work = Work(Size(2, 0, 2))
    busy(work)
    left, kept = work.submit(1), work.submit(2)
    with pytest.raises(Busy, match="2 uploads wait to be encoded, which is as many as may"):
        work.submit(3)
    left.cancel()
    again = work.submit(4)
    work.go.set()
    assert (kept.result(10), again.result(10)) == (4, 16)
    with pytest.raises(CancelledError):
        left.result(10)
    assert work.batches == [[0], [2, 4]]


def test_what_is_too_late_is_not_done() -> None:
    work = Work(Size(2, 0, 10))
    busy(work)
    late, kept = work.submit(1, seconds=0.01), work.submit(2)
    time.sleep(0.02)
    work.go.set()
    with pytest.raises(Busy, match="not encoded in time"):
        late.result(10)
    assert kept.result(10) == 4 and work.batches == [[0], [2]]


def test_an_error_is_that_of_its_batch_and_the_next_is_done() -> None:
    work = Work(Size(2, 0, 10))
    busy(work)
    told = [work.submit(i) for i in (-1, 1, 2)]
    work.go.set()
    for future in told[:2]:
        with pytest.raises(ValueError, match="a"):
            future.result(10)
    assert told[2].result(10) == 4


def test_what_is_closed_ends_what_it_has_begun_and_takes_no_more() -> None:
    work = Work(Size(2, 0, 10))
    work.go.set()
    told = [work.submit(i) for i in range(5)]
    work.batcher.close()
    assert [future.result(0) for future in told] == [i**2 for i in range(5)]
    with pytest.raises(Busy):
        work.submit(1)


def test_the_thread_ends_when_there_is_nothing_to_do_and_another_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "IDLE_S", 0.01)
    work, others = Work(Size(2, 0, 10)), set(threading.enumerate())
    work.go.set()
    for _ in range(3):
        assert work.submit(3).result(10) == 9
        end = time.monotonic() + 10
        while set(threading.enumerate()) - others and time.monotonic() < end:
            time.sleep(0.01)
        assert not set(threading.enumerate()) - others

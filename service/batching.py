"""Micro-batches: what many threads ask for at about the same time is done together, by one thread.

Work waits in a queue of bounded length until the thread is free; the first in it waits `max_wait_seconds` for others
that go with it. What its asker has given up, or is too late for, is dropped before it is done.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from redshelf.models.errors import Busy

IDLE_S = 5.0  # after which the thread ends; the next work starts another
CLOSING_S = 10.0  # a process must not end while a thread of it imports torch

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Done = TypeVar("Done")


@dataclass(frozen=True)
class Size:
    """How much is done together, how long the first waits for more, and how many may wait."""

    max_batch: int
    max_wait_seconds: float
    max_queue: int


@dataclass(eq=False)
class _Waiting(Generic[Key, Item, Done]):
    key: Key
    item: Item
    until: float  # of the monotonic clock
    future: Future[Done] = field(default_factory=Future)


class Batcher(Generic[Key, Item, Done]):
    """Does `run(key, items)`, one result an item, for items of the same key. `queued` is told how many wait whenever
    that changes, `done` the size of each batch and its seconds."""

    def __init__(
        self,
        run: Callable[[Key, list[Item]], Sequence[Done]],
        size: Size,
        *,
        queued: Callable[[int], object] = lambda n: None,
        done: Callable[[int, float], object] = lambda n, seconds: None,
    ) -> None:
        self._run, self.size, self._queued, self._done = run, size, queued, done
        self._queue: deque[_Waiting[Key, Item, Done]] = deque()
        self._changed = threading.Condition()
        self._working: threading.Thread | None = None
        self._closed = False

    def close(self) -> None:
        """Take nothing more, and wait a while for what is being done."""
        with self._changed:
            self._closed, thread = True, self._working
            self._changed.notify_all()
        if thread is not None:
            thread.join(CLOSING_S)

    def submit(self, key: Key, item: Item, *, until: float) -> Future[Done]:
        """The future of an item, which is dropped if it is cancelled, or the monotonic clock passes `until`, before its
        batch begins. `Busy` where the queue is full."""
        waiting: _Waiting[Key, Item, Done] = _Waiting(key, item, until)
        with self._changed:
            if len(self._queue) >= self.size.max_queue:
                self._drop()
            if self._closed or len(self._queue) >= self.size.max_queue:
                raise Busy(f"{self.size.max_queue} uploads wait to be encoded, which is as many as may: ask again")
            self._queue.append(waiting)
            self._queued(len(self._queue))
            self._changed.notify()
            if self._working is None:
                self._working = threading.Thread(target=self._work, name="redshelf-encode", daemon=True)
                self._working.start()
        return waiting.future

    def _drop(self) -> None:
        """Take out of the queue what nobody waits for any more."""
        now = time.monotonic()
        for waiting in [one for one in self._queue if one.until < now or one.future.cancelled()]:
            self._queue.remove(waiting)
            if waiting.future.set_running_or_notify_cancel():
                waiting.future.set_exception(Busy("the upload was not encoded in time: ask again"))
        self._queued(len(self._queue))

    def _next(self) -> list[_Waiting[Key, Item, Done]] | None:
        """The next batch, after a wait for it, which may turn out empty; None where there was none for a while, and the
        thread is to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed, IDLE_S)
            if not self._queue:
                self._working = None
                return None
            first, ends = self._queue[0].key, time.monotonic() + self.size.max_wait_seconds
            while self._alike(first) < self.size.max_batch and (left := ends - time.monotonic()) > 0:
                self._changed.wait(left)
            self._drop()
            batch: list[_Waiting[Key, Item, Done]] = []
            for waiting in [one for one in self._queue if one.key == first][: self.size.max_batch]:
                self._queue.remove(waiting)
                if waiting.future.set_running_or_notify_cancel():
                    batch.append(waiting)
            self._queued(len(self._queue))
            return batch

    def _alike(self, key: Key) -> int:
        return sum(waiting.key == key for waiting in self._queue)

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            if batch:
                self._do(batch)

    def _do(self, batch: list[_Waiting[Key, Item, Done]]) -> None:
        began = time.perf_counter()
        try:
            results = self._run(batch[0].key, [waiting.item for waiting in batch])
            for waiting, result in zip(batch, results, strict=True):
                waiting.future.set_result(result)
        except BaseException as error:
            for waiting in batch:
                if not waiting.future.done():
                    waiting.future.set_exception(error)
        self._done(len(batch), time.perf_counter() - began)

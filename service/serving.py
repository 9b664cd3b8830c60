"""The generation that is served, and how a newer one takes its place while requests are answered.

A newer generation is opened beside the one that is served: every sha256 is compared, every encoder must be on the shelf
as it was published, and vectors must find themselves by every index. Only then is it put in the place of the other,
which stays open for the requests that it was given to, and is closed with the last of them. What is wrong with a
generation that is refused is logged once; it is looked at again when a file of it has changed, and after a minute where
it could not be read, since that may pass.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from redshelf.indexing import generation
from redshelf.indexing.layout import Layout
from redshelf.models import checkpoint
from redshelf.models.errors import Conflict, RedshelfError
from redshelf.service import selfquery
from redshelf.service.shelf import OpenEncoder, OpenShelf, open_shelf

log = logging.getLogger("redshelf")

AGAIN_SECONDS = 60  # after an error that is not a fault of the files: they are read whole once more

Seen = tuple[tuple[str, int, int, int], ...]  # name, inode, size and time of change of each file; 0 for one not there


@dataclass(frozen=True)
class Refusal:
    """Why generation `number` is not served, its files as they were then, and until when not to look at it again."""

    number: int
    reason: str
    files: Seen
    until: float  # of the monotonic clock

    def __str__(self) -> str:
        named = f"generation {self.number} "
        return self.reason if self.reason.startswith(named) else f"{named.rstrip()}: {self.reason}"


def _require_model(encoder: OpenEncoder) -> None:
    """`Conflict` where the encoder is not on the shelf in the revision that was published."""
    facts, folder = encoder.published, encoder.folder
    if not (folder / "config.json").is_file():
        raise Conflict(f"encoder {facts.name}: revision {facts.revision} is not on the shelf: no models/{folder.name}")
    told = checkpoint.read_config(folder)
    for key in ("name", "revision", "kind"):
        if told[key] != getattr(facts, key):
            raise Conflict(f"encoder {facts.name}: its {key} is {told[key]}, {getattr(facts, key)} was published")


def open_checked(root: Path, number: int | None = None) -> OpenShelf:
    """`open_shelf`, and whether its encoders and indexes are what was published; `RedshelfError` for what is not."""
    shelf = open_shelf(root, number)
    for name, encoder in shelf.encoders.items():
        _require_model(encoder)
        selfquery.require(name, encoder.published.revision, encoder.index)
    return shelf


def _files(layout: Layout, number: int) -> Seen:
    """The generation's own file and those that it names, as they are now."""
    own = generation.path_of(layout, number)
    try:
        names = sorted(generation.read(layout, number).files)
    except (RedshelfError, OSError):
        names = []  # of a damaged one that file is all there is to look at
    seen = []
    for path in (own, *(layout.root / name for name in names)):
        try:
            found = path.stat()
            seen.append((str(path), found.st_ino, found.st_size, found.st_mtime_ns))
        except OSError:
            seen.append((str(path), 0, 0, 0))
    return tuple(seen)


class Serving:
    """The open generation of a shelf, the same for all threads; between `start` and `stop` it looks for newer ones.

    Made with the newest generation, whose faults are raised; `fall_back`: with the newest that has none. `looked` is
    called when one is open, and after each look for a newer one. `prepare` is called with a generation that is to be
    served, before it takes the place of another; with the first one in the thread that looks, while it is served.
    """

    def __init__(
        self,
        root: Path,
        *,
        refresh_seconds: float,
        fall_back: bool = False,
        looked: Callable[[Serving], object] = lambda serving: None,
        prepare: Callable[[OpenShelf], object] = lambda shelf: None,
    ) -> None:
        self.layout, self.refresh_seconds = Layout(root), refresh_seconds
        self._refused: dict[int, Refusal] = {}
        self._looking, self._stop = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._unseen = ""  # why the shelf could not be looked at, as it was last logged
        opened = self._newest_after(0) if fall_back else None
        self._current = opened or open_checked(root)
        self._looked, self._prepare = looked, prepare
        looked(self)

    @property
    def current(self) -> OpenShelf:
        """What to answer from. A request takes it once."""
        return self._current

    @property
    def refused(self) -> str | None:
        """The newest generation that is not served, and why; None where the newest is."""
        newer = [one for number, one in self._refused.items() if number > self.current.generation.number]
        return str(max(newer, key=lambda one: one.number)) if newer else None

    def _newest_after(self, served: int) -> OpenShelf | None:
        """The newest generation after `served` that opens, None without any; notes those that do not."""
        known = generation.numbers(self.layout)
        self._refused = {number: one for number, one in self._refused.items() if number in known}
        for number in sorted((n for n in known if n > served), reverse=True):
            before, files = self._refused.get(number), _files(self.layout, number)
            if before is not None and before.files == files and time.monotonic() < before.until:
                continue
            try:
                return open_checked(self.layout.root, number)
            except Exception as error:  # FAISS, Lance and numpy each raise their own on a damaged file
                expected = isinstance(error, (RedshelfError, OSError))
                reason = str(error) if expected else f"{type(error).__name__}: {error}"
                if self.layout.root.is_absolute():  # where it lies is nobody's business who asks `/readyz`
                    reason = reason.replace(str(self.layout.root), self.layout.root.name)
                until = math.inf if isinstance(error, RedshelfError) else time.monotonic() + AGAIN_SECONDS
                found = Refusal(number, reason, files, until)
                if before is None or before.reason != reason:
                    log.error("%s; it is not served", found, exc_info=None if expected else error)
                self._refused = {**self._refused, number: found}
        return None

    def refresh(self) -> bool:
        """Look once for a newer generation; whether one has taken the place of the one that was served."""
        with self._looking:
            opened = self._newest_after(self.current.generation.number)
            if opened is not None:
                self._prepare(opened)
                self._current = opened
                self._refused = {n: one for n, one in self._refused.items() if n > opened.generation.number}
                log.info("generation %d is served", opened.generation.number)
            self._looked(self)
            return opened is not None

    def _look(self) -> None:
        self._prepare(self.current)
        while not self._stop.wait(self.refresh_seconds):
            try:
                self.refresh()
                self._unseen = ""
            except Exception as error:  # a file system that is away for a while must not end the looking
                if str(error) != self._unseen:
                    log.exception("cannot look for a newer generation; the search goes on")
                self._unseen = str(error)

    @property
    def stopping(self) -> bool:
        """Whether nothing more is to be prepared."""
        return self._stop.is_set()

    def start(self) -> None:
        """Look for newer generations every `refresh_seconds`, in a thread."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._look, name="redshelf-refresh", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more. A generation that is being opened now is not waited for."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1)

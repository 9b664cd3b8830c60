"""Uploads are decoded in processes of their own, with a limit on memory and on time: what kills one kills an upload.

A child is started by `exec`, never by a fork of a process with threads, and kept: it imports numpy and astropy once
(0.3 s, 50 MB), never torch. It can write no file. What it answers is JSON and the bytes of an array, never a pickle:
whoever took it over would still have to get past that. One that has died, was too slow or is worn out is replaced, the
next one starting up meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from redshelf.models.errors import BadInput, Busy, RedshelfError
from redshelf.service.planes import Frame, Planes, Said, decode

log = logging.getLogger("redshelf")

CHILDREN = 2  # one is free while the other is busy with what will be refused
WORN_OUT = 1000  # uploads, after which a child is replaced: what leaks in it is given back
PATIENCE_S = 10.0  # wall time in which a child must answer; beyond it the machine is too busy
HEAD = struct.Struct("<II")  # bytes of JSON, bytes of an array or of an upload
MAX_ANSWER = 1 << 20  # of JSON
Ended = Literal["time", "memory", "crash"]  # why a child has ended before it answered
START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from redshelf.service import sandbox; sandbox.serve()"


@dataclass(frozen=True)
class Limits:
    """Of one upload: CPU seconds, and bytes of address space of the process that decodes it."""

    seconds: float
    memory_bytes: int


def _take(stream: socket.socket, count: int, until: float | None = None) -> bytes:
    """So many bytes; fewer where the other end is gone. `TimeoutError` past `until`."""
    parts = bytearray()
    while len(parts) < count:
        if until is not None:
            stream.settimeout(max(0.001, until - time.monotonic()))
        got = stream.recv(min(count - len(parts), 1 << 20))
        if not got:
            break
        parts += got
    return bytes(parts)


def _answer(blob: bytes, asked: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    frame = Frame(**{**asked["frame"], "band_names": tuple(asked["frame"]["band_names"])})
    bands = asked["said"]["bands"]
    said = Said(**{**asked["said"], "bands": None if bands is None else tuple(bands)})
    try:
        found = decode(blob, frame, said)
    except BadInput as error:
        return {"bad": str(error)[:2000]}, b""
    except MemoryError:
        return {"ended": "memory"}, b""
    except Exception as error:  # a fault of ours, which is logged; the upload is refused all the same
        return {"bad": f"the upload cannot be read: {type(error).__name__}", "fault": repr(error)[:2000]}, b""
    return {"names": found.names, "ebv": found.ebv}, found.images.tobytes()


def serve() -> None:
    """What a child does: decode what comes by the socket that is its standard input, until that is closed."""
    import astropy.io.fits  # noqa: F401  # before the limits, and before somebody waits for it

    limits = Limits(**json.loads(sys.argv[2]))
    for kind, value in (
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (value, value))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal, to the whole group: the parent ends us
    with socket.socket(fileno=os.dup(0)) as stream:
        while len(head := _take(stream, HEAD.size)) == HEAD.size:
            told, length = HEAD.unpack(head)
            asked, blob = json.loads(_take(stream, told)), _take(stream, length)
            signal.setitimer(signal.ITIMER_PROF, limits.seconds)  # SIGPROF ends the process
            answer, array = _answer(blob, asked)
            signal.setitimer(signal.ITIMER_PROF, 0)
            words = json.dumps(answer).encode()
            stream.sendall(HEAD.pack(len(words), len(array)) + words + array)


class Child:
    """A process that decodes, and our end of the socket to it."""

    def __init__(self, limits: Limits) -> None:
        ours, theirs = socket.socketpair()
        quiet = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}  # for memory
        kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "HOME", "TMPDIR") if name in os.environ}
        command = [sys.executable, "-c", START, json.dumps(sys.path), json.dumps(asdict(limits))]
        with theirs:
            self.process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, env={**kept, **quiet}
            )
        self.stream, self.uploads = ours, 0

    @property
    def lives(self) -> bool:
        return self.process.poll() is None

    def ask(self, blob: bytes, frame: Frame, said: Said) -> tuple[dict[str, Any], bytes]:
        """The child's answer. `EOFError` where it has died, `TimeoutError` where it is too slow."""
        self.uploads += 1
        until = time.monotonic() + PATIENCE_S
        words = json.dumps({"frame": asdict(frame), "said": asdict(said)}).encode()
        try:
            self.stream.settimeout(PATIENCE_S)
            self.stream.sendall(HEAD.pack(len(words), len(blob)) + words)
            self.stream.sendall(blob)
            told, length = HEAD.unpack(_take(self.stream, HEAD.size, until))
            if told > MAX_ANSWER or length > 4 * len(frame.band_names) * frame.size**2:
                raise EOFError
            answer, array = json.loads(_take(self.stream, told, until)), _take(self.stream, length, until)
        except TimeoutError:
            raise
        except (OSError, struct.error, ValueError) as error:
            raise EOFError from error
        return answer, array

    def end(self) -> int:
        """End it, and say how it did."""
        self.stream.close()
        try:
            return self.process.wait(0.2)  # of one that is ending, or has read that there is no more to do
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def _why(status: int) -> Ended:
    if -status in (signal.SIGPROF, signal.SIGXCPU):
        return "time"
    return "memory" if -status == signal.SIGKILL else "crash"


def _end_all(children: list[Child]) -> None:
    while children:
        children.pop().end()


class Sandbox:
    """Decodes uploads in children; any number of threads may ask. `ended` is told why a child had to be replaced."""

    def __init__(self, limits: Limits, *, ended: Callable[[Ended], object] = lambda why: None) -> None:
        self.limits, self._ended = limits, ended
        self._idle: list[Child] = []
        self._places, self._lock = threading.BoundedSemaphore(CHILDREN), threading.Lock()
        self.close = weakref.finalize(self, _end_all, self._idle)

    @contextmanager
    def _child(self) -> Iterator[Child]:
        """A child of one's own, which is kept afterwards if it is sound."""
        if not self._places.acquire(timeout=PATIENCE_S):
            raise Busy("uploads are decoded one after the other, and too many wait: ask again")
        try:
            with self._lock:
                child = self._idle.pop() if self._idle else Child(self.limits)
            if not child.lives:  # somebody has ended it while nobody needed it
                child.end()
                child = Child(self.limits)
            sound = False
            try:
                yield child
                sound = child.uploads < WORN_OUT
            finally:
                if not sound:
                    child.end()
                    child = Child(self.limits)
                with self._lock:
                    self._idle.append(child)
        finally:
            self._places.release()

    def decode(self, blob: bytes, frame: Frame, said: Said) -> Planes:
        """`planes.decode` in a child. `BadInput` too where it took too much time or memory or crashed, `Busy` where the
        machine is too slow to tell."""
        with self._child() as child:
            try:
                answer, array = child.ask(blob, frame, said)
            except TimeoutError as error:
                raise Busy("the upload could not be decoded in time: ask again") from error
            except EOFError as error:
                status = child.end()
                if status >= 0:
                    raise RedshelfError(f"the process that decodes uploads ended with status {status}") from error
                self._refuse(_why(status), status)
            if answer.get("ended") == "memory":
                self._refuse("memory", 0)
        if "fault" in answer:
            log.error("an upload was refused for what may be our own fault: %s", answer["fault"])
        if "bad" in answer:
            raise BadInput(str(answer["bad"]))
        names = tuple(str(name) for name in answer["names"])
        ebv = None if answer["ebv"] is None else float(answer["ebv"])
        images = np.frombuffer(array, dtype=np.float32).reshape(len(names), frame.size, frame.size)
        return Planes(names, images, ebv)

    def _refuse(self, why: Ended, status: int) -> None:
        self._ended(why)
        told = {
            "time": f"decoding the upload takes more than {self.limits.seconds:g} s",
            "memory": f"decoding the upload takes more than {self.limits.memory_bytes >> 20} MiB of memory",
            "crash": f"decoding the upload ends the process that does it (signal {-status})",
        }
        raise BadInput(f"{told[why]}: it is refused")

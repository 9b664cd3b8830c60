"""The processes that decode uploads: kept, limited, replaced; the same images as in this process."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from redshelf.models.errors import BadInput, Busy
from redshelf.service import planes, sandbox
from redshelf.service.planes import Frame, Said
from redshelf.service.sandbox import Limits, Sandbox

pytestmark = pytest.mark.security
FRAME = Frame("s", ("g", "r", "i"), 32, 0.2)
SAID = Said(bands=("g", "r"))


def npy(n: int) -> bytes:
    stream = BytesIO()
    np.save(stream, np.random.default_rng(0).normal(0, 1, (2, n, n)).astype(np.float32))
    return stream.getvalue()


@pytest.fixture(scope="module")
def ended() -> list[str]:
    return []


@pytest.fixture(scope="module")
def kept(ended: list[str]) -> Iterator[Sandbox]:
    box = Sandbox(Limits(0.8, 1 << 30), ended=ended.append)
    yield box
    box.close()


def pids(box: Sandbox) -> set[int]:
    return {child.process.pid for child in box._idle}


def test_a_child_decodes_as_this_process_does_and_is_kept(kept: Sandbox) -> None:
    found, expected = kept.decode(npy(40), FRAME, SAID), planes.decode(npy(40), FRAME, SAID)
    assert found.names == expected.names and found.ebv is None
    np.testing.assert_array_equal(found.images, expected.images)
    before = pids(kept)
    for _ in range(5):
        with pytest.raises(BadInput, match="a cutout of 20 x 20 pixels: expected at least 32 x 32"):
            kept.decode(npy(20), FRAME, SAID)
    assert pids(kept) == before and len(before) == 1


def test_a_child_does_not_import_torch_and_can_write_no_file(kept: Sandbox) -> None:
    kept.decode(npy(40), FRAME, SAID)
    pid = next(iter(pids(kept)))
    maps = Path(f"/proc/{pid}/maps").read_text()
    assert "torch" not in maps and "lance" not in maps and "numpy" in maps
    limits = {line[:26].strip(): line[26:].split()[0] for line in Path(f"/proc/{pid}/limits").read_text().splitlines()}
    assert (limits["Max file size"], limits["Max core file size"]) == ("0", "0")
    assert limits["Max address space"] == str(1 << 30)
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    assert not any(variable.startswith(b"REDSHELF") for variable in variables)


@pytest.mark.parametrize(
    ("number", "why", "words"),
    [
        (signal.SIGPROF, "time", r"takes more than 0.8 s: it is refused"),
        (signal.SIGKILL, "memory", r"takes more than 1024 MiB of memory: it is refused"),
        (signal.SIGSEGV, "crash", r"ends the process that does it \(signal 11\)"),
    ],
)
def test_what_ends_a_child_is_refused_and_the_next_is_decoded(
    kept: Sandbox, ended: list[str], number: int, why: str, words: str
) -> None:
    kept.decode(npy(40), FRAME, SAID)
    pid = next(iter(pids(kept)))
    os.kill(pid, signal.SIGSTOP)  # so that it dies while it decodes
    killing = threading.Timer(0.1, lambda: (os.kill(pid, number), os.kill(pid, signal.SIGCONT)))
    killing.start()
    with pytest.raises(BadInput, match=words):
        kept.decode(npy(40), FRAME, SAID)
    killing.join()
    assert ended.pop() == why and pid not in pids(kept)
    assert kept.decode(npy(40), FRAME, SAID).names == ("g", "r")


def test_one_that_was_killed_while_idle_costs_nobody_anything(kept: Sandbox, ended: list[str]) -> None:
    kept.decode(npy(40), FRAME, SAID)
    child = kept._idle[-1]
    child.process.kill()
    child.process.wait()
    assert kept.decode(npy(40), FRAME, SAID).names == ("g", "r") and ended == []


def test_a_child_that_does_not_answer_is_replaced_and_asking_again_is_advised(
    kept: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept.decode(npy(40), FRAME, SAID)
    stopped = kept._idle[-1].process
    os.kill(stopped.pid, signal.SIGSTOP)
    monkeypatch.setattr(sandbox, "PATIENCE_S", 0.05)
    with pytest.raises(Busy, match="ask again"):
        kept.decode(npy(40), FRAME, SAID)
    monkeypatch.undo()
    assert stopped.poll() == -signal.SIGKILL
    assert kept.decode(npy(40), FRAME, SAID).names == ("g", "r")


def test_many_threads_share_few_children(kept: Sandbox) -> None:
    found: list[object] = []

    def ask() -> None:
        found.extend(kept.decode(npy(40), FRAME, SAID).names for _ in range(5))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [("g", "r")] * 40 and len(pids(kept)) <= sandbox.CHILDREN


def test_one_that_is_worn_out_is_replaced(kept: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    kept.decode(npy(40), FRAME, SAID)
    monkeypatch.setattr(sandbox, "WORN_OUT", 1)
    before = pids(kept)
    kept.decode(npy(40), FRAME, SAID)
    assert pids(kept) != before


def test_children_end_with_what_has_started_them() -> None:
    box = Sandbox(Limits(0.8, 1 << 30))
    box.decode(npy(40), FRAME, SAID)
    pid = next(iter(pids(box)))
    del box
    end = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()

"""Whole-or-nothing writes and sha256 manifests: of every file of a shelf that is neither inside Lance nor an encoder's
(`models/checkpoint` writes those)."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput, Conflict
from redshelf.models.whole import sha256, write_bytes, write_with

__all__ = ["alone", "manifest", "read_json", "sha256", "verify", "write_bytes", "write_json", "write_npy", "write_with"]


def write_npy(path: Path, values: npt.NDArray[Any]) -> None:
    """Write an array to `path` as .npy, whole or not at all."""

    def fill(handle: BinaryIO) -> None:
        np.save(handle, values, allow_pickle=False)

    write_with(path, fill)


def write_json(path: Path, document: Any, *, mode: int | None = None, make_folder: bool = True) -> None:
    """Write `document` as JSON, whole or not at all; NaN is refused, as JSON has none."""
    data = (json.dumps(document, indent=1, allow_nan=False) + "\n").encode()
    write_bytes(path, data, mode=mode, make_folder=make_folder)


def read_json(path: Path) -> Any:
    """The JSON document at `path`; `BadInput` naming the file when it is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not valid JSON ({error}): the file is damaged") from error


@contextmanager
def alone(lock: Path, busy: str) -> Iterator[None]:
    """Hold the lock file, or raise `Conflict` saying `busy` where another process holds it."""
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(str(lock), timeout=0)
    try:
        held.acquire()
    except Timeout as error:
        raise Conflict(busy) from error
    try:
        yield
    finally:
        held.release()


def manifest(root: Path, paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """{path relative to `root`: {"sha256", "size"}} of every file in `paths`, folders taken whole."""
    files = sorted(f for p in paths for f in (p.rglob("*") if p.is_dir() else [p]) if f.is_file())
    return {f.relative_to(root).as_posix(): {"sha256": sha256(f), "size": f.stat().st_size} for f in files}


def verify(
    root: Path,
    expected: Mapping[str, Mapping[str, Any]],
    *,
    hashes: bool,
    progress: Callable[[int], object] = lambda size: None,
) -> list[str]:
    """One line for each file of a manifest that is missing, unreadable or differs; sizes only unless `hashes`.

    Each line begins with the file's name and a colon. `progress` is told of the bytes that were hashed.
    """
    faults = []
    for name, facts in expected.items():
        path = root / name
        try:
            if not path.is_file():
                faults.append(f"{name}: missing")
            elif path.stat().st_size != facts["size"]:
                faults.append(f"{name}: {path.stat().st_size} bytes, expected {facts['size']}")
            elif hashes and sha256(path, progress=progress) != facts["sha256"]:
                faults.append(f"{name}: sha256 differs from the manifest")
        except OSError as error:
            faults.append(f"{name}: cannot be read: {error.strerror}")
    return faults

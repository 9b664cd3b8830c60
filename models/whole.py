"""Files that appear whole or not at all, and the sha256 of files: checkpoints here, all of a shelf in `indexing`."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 22  # bytes read at once of a file that is hashed


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_with(
    path: Path, writer: Callable[[BinaryIO], None], *, mode: int | None = None, make_folder: bool = True
) -> None:
    """Let `writer` fill a temporary file beside `path`, then sync and rename: readers see the old or the new whole.

    `mode`: who may read it, by default as the umask says. Without `make_folder` a folder that is not there, or that
    goes meanwhile, is a `FileNotFoundError`.
    """
    if make_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    # the system takes the umask off; to read it is to set it, for all threads at once, so nobody asks for it here
    handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if mode is None else mode)
    try:
        with os.fdopen(handle, "w+b") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            writer(file)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def write_bytes(path: Path, data: bytes, *, mode: int | None = None, make_folder: bool = True) -> None:
    """Write `data` to `path`, whole or not at all."""

    def fill(handle: BinaryIO) -> None:
        handle.write(data)

    write_with(path, fill, mode=mode, make_folder=make_folder)


def sha256(*paths: Path, progress: Callable[[int], object] = lambda size: None) -> str:
    """Hex sha256 of a file, streamed, or of the bytes of several one after the other; `progress` is told of the bytes
    of each block."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
                progress(len(block))
    return digest.hexdigest()

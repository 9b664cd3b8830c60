"""Every vector of an embedding, in row order, as one file that FAISS searches exactly where it lies.

The file is FAISS's own: an `IndexScalarQuantizer` of float16, whose codes are the vectors themselves. It is mapped, so
that processes share its pages; numpy reads the same bytes. A vector is found by direct differences in float32.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from redshelf.indexing.files import write_with
from redshelf.models.errors import BadInput, Conflict

Halves = npt.NDArray[np.float16]
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]

NTOTAL_AT = 8  # in FAISS's file, after its name and the dimension; the codes and their length come last


def empty(dim: int) -> Any:
    """A FAISS index of float16 vectors without any."""
    import faiss

    return faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_L2)


def header(rows: int, dim: int) -> bytes:
    """What stands before the codes of `rows` vectors."""
    import faiss

    blank = bytearray(faiss.serialize_index(empty(dim)).tobytes())
    blank[NTOTAL_AT : NTOTAL_AT + 8] = np.int64(rows).tobytes()
    blank[-8:] = np.int64(rows * dim * 2).tobytes()
    return bytes(blank)


def of(codes: Bytes) -> Any:
    """A FAISS index of these codes (n, 2 dim), which it copies."""
    import faiss

    index = empty(codes.shape[1] // 2)
    faiss.copy_array_to_vector(np.ascontiguousarray(codes).reshape(-1), index.codes)
    index.ntotal = len(codes)
    return index


def selector_of(mask: npt.NDArray[np.bool_]) -> Any:
    """The rows (N,) of `mask`, as FAISS restricts a search to them."""
    import faiss

    return faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))  # which it keeps


@dataclass(frozen=True)
class Flat:
    """The vectors of an embedding: as FAISS searches them, and as bytes (N, 2 dim), both mapped."""

    index: Any
    codes: Bytes

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def dim(self) -> int:
        return int(self.codes.shape[1]) // 2

    def take(self, rows: Ints | slice) -> Halves:
        """The vectors of some rows, (n, dim)."""
        return np.ascontiguousarray(np.asarray(self.codes)[rows]).view(np.float16)  # numpy makes memmaps slowly

    def search(self, queries: Floats, k: int, *, selector: Any | None = None) -> tuple[Floats, Ints]:
        """Squared distances and rows (Q, at most `k`) of the nearest of all rows, padded with -1."""
        import faiss

        parameters = None if selector is None else faiss.SearchParameters(sel=selector)
        squared, rows = self.index.search(queries, min(k, len(self)), params=parameters)
        return squared, rows


def write(path: Path, batches: Iterable[Halves], *, rows: int, dim: int) -> npt.NDArray[np.bool_]:
    """Write the file whole, from row-ordered batches (n, dim); returns which rows are not zero, (N,). `BadInput` for a
    value that is not finite, and unless there are `rows` rows."""
    known = np.zeros(rows, dtype=bool)

    def fill(handle: BinaryIO) -> None:
        handle.write(header(rows, dim))
        written = 0
        for batch in batches:
            if not np.isfinite(batch).all():
                raise BadInput(f"embedding holds NaN or infinity near row {written}: embed again")
            handle.write(np.ascontiguousarray(batch, dtype=np.float16).tobytes())
            known[written : written + len(batch)] = np.asarray(batch.any(axis=1))[: max(0, rows - written)]
            written += len(batch)
        if written != rows:
            raise BadInput(f"embedding has {written} rows, expected {rows}")

    write_with(path, fill)
    return known


def open_flat(path: Path, *, rows: int, dim: int) -> Flat:
    """Map the file; `Conflict` where it does not hold `rows` vectors of `dim` numbers."""
    import faiss

    first = header(rows, dim)
    size, expected = path.stat().st_size, len(first) + rows * dim * 2
    if size != expected:
        raise Conflict(f"{path}: {size} bytes, expected {expected}")
    with path.open("rb") as handle:
        if handle.read(len(first)) != first:
            raise Conflict(f"{path} holds something else than {rows} vectors of {dim} numbers")
    codes = np.memmap(path, dtype=np.uint8, mode="r", offset=len(first), shape=(rows, dim * 2))
    return Flat(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC), codes)

"""The inverted lists of an index as one file, mapped where it lies: every process that searches shares its pages.

FAISS reads the lists of a fast-scan index into the memory of each process. Its search only asks for where the codes and
ids of a list are, though, so that a file in which they lie as in memory, in blocks of 32 codes, serves it as well: the
sizes of the lists, then of each list its blocks and its ids, both to a multiple of 32.

Files of the same lists are joined list by list. (`merge_from` of FAISS 1.15 writes past the end of a list whose length
is a multiple of the bytes of a block.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from redshelf.indexing.files import write_with
from redshelf.models.errors import Conflict

BLOCK = 32  # codes that FAISS keeps together

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]
List = tuple[Bytes, Ints]  # blocks (whole ones), and the ids (n,) of the vectors in them


def _capacities(sizes: Ints) -> Ints:
    return np.asarray(-(-sizes // BLOCK) * BLOCK)


def _offsets(sizes: Ints, code_size: int) -> Ints:
    """Where each list begins in the file, and after them where it ends, (n + 1,)."""
    first = -(-8 * len(sizes) // 64) * 64  # FAISS wants the blocks at multiples of 32 bytes
    return first + np.concatenate([[0], np.cumsum(_capacities(sizes) * (code_size + 8))]).astype(np.int64)


@dataclass(frozen=True)
class _File:
    """A file of lists, mapped; codes take `code_size` bytes each."""

    data: Bytes
    sizes: Ints
    offsets: Ints
    code_size: int

    def read(self, number: int) -> List:
        size, at = int(self.sizes[number]), int(self.offsets[number])
        ids = at + -(-size // BLOCK) * BLOCK * self.code_size
        return self.data[at:ids], np.asarray(self.data[ids : ids + 8 * size].view(np.int64))


def _open(path: Path, index: Any) -> _File:
    """`Conflict` where the file does not hold as many lists, of such codes, as `index` has."""
    with path.open("rb") as handle:
        sizes = np.fromfile(handle, dtype=np.int64, count=index.nlist)
    offsets, size = _offsets(sizes, index.code_size), path.stat().st_size
    if len(sizes) != index.nlist or (sizes < 0).any() or size != offsets[-1]:
        raise Conflict(f"{path}: {size} bytes, which are not {index.nlist} lists of codes of {index.code_size} bytes")
    return _File(np.memmap(path, dtype=np.uint8, mode="r"), sizes, offsets, index.code_size)


def _write(path: Path, sizes: Ints, found: Iterator[List], code_size: int) -> None:
    first = int(_offsets(sizes, code_size)[0])

    def fill(handle: BinaryIO) -> None:
        handle.write(sizes.tobytes().ljust(first, b"\0"))
        for blocks, ids in found:
            handle.write(blocks.tobytes())
            handle.write(np.pad(ids, (0, -len(ids) % BLOCK), constant_values=-1).tobytes())

    write_with(path, fill)


def write(path: Path, index: Any) -> None:
    """Write the lists that a fast-scan index holds in memory, whole."""
    import faiss

    lists = index.invlists
    sizes = np.array([lists.list_size(number) for number in range(lists.nlist)], dtype=np.int64)

    def found() -> Iterator[List]:
        for number, size in enumerate(sizes.tolist()):
            if size:
                codes = faiss.rev_swig_ptr(lists.get_codes(number), -(-size // BLOCK) * BLOCK * index.code_size)
                yield codes, faiss.rev_swig_ptr(lists.get_ids(number), size)

    _write(path, sizes, found(), index.code_size)


def _nibbles(index: Any) -> Ints:
    """Where in a block each number of each code is, (BLOCK, codes), counted in half bytes, the low ones first."""
    packer, numbers = index.get_CodePacker(), 2 * index.code_size
    places = np.empty((BLOCK, numbers), dtype=np.int64)
    code, block = np.zeros(index.code_size, dtype=np.uint8), np.zeros((1, packer.block_size), dtype=np.uint8)
    for place in range(BLOCK):
        for number in range(numbers):
            code[number // 2] = 15 << 4 * (number % 2)
            block[:] = 0
            packer.pack_1(code, place, block)
            at = int(block[0].argmax())
            places[place, number] = 2 * at + (block[0, at] == 15 << 4)
            code[number // 2] = 0
    return places


def join(path: Path, parts: Sequence[Path], index: Any) -> None:
    """Write the lists of all `parts`, each a file of lists of the trained `index`, as one: in the memory of a list."""
    files, places = [_open(part, index) for part in parts], _nibbles(index)
    order = np.argsort(places.ravel())
    sizes = np.stack([file.sizes for file in files]).sum(axis=0)

    def numbers(blocks: Bytes, size: int) -> Bytes:  # (size, codes)
        halves = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(-1, places.size)
        return halves[:, places.ravel()].reshape(-1, places.shape[1])[:size]

    def found() -> Iterator[List]:
        for number in range(index.nlist):
            some = [file.read(number) for file in files if file.sizes[number]]
            if len(some) == 1:
                yield some[0]
            elif some:
                codes = np.concatenate([numbers(blocks, len(ids)) for blocks, ids in some])
                codes = np.pad(codes, ((0, -len(codes) % BLOCK), (0, 0))).reshape(-1, places.size)[:, order]
                yield codes[:, ::2] | codes[:, 1::2] << 4, np.concatenate([ids for _, ids in some])

    _write(path, sizes, found(), index.code_size)


def mapped(path: Path, index: Any) -> Any:
    """Give a trained index without vectors the lists in the file; returns it. `Conflict` where they are not of it."""
    import faiss

    file, places = _open(path, index), faiss.OnDiskOneListVector()
    for place in zip(file.sizes.tolist(), _capacities(file.sizes).tolist(), file.offsets.tolist(), strict=False):
        one = faiss.OnDiskOneList()
        one.size, one.capacity, one.offset = place
        places.push_back(one)
    lists = faiss.OnDiskInvertedLists()
    lists.nlist, lists.code_size, lists.lists = index.nlist, index.code_size, places
    lists.filename, lists.totsize, lists.read_only, lists.prefetch_nthread = str(path), len(file.data), True, 0
    lists.do_mmap()
    index.replace_invlists(lists, True)
    lists.this.disown()
    index.ntotal = int(file.sizes.sum())
    return index


def list_of(path: Path, index: Any, rows: int) -> npt.NDArray[np.int32]:
    """The list that each of `rows` rows is in, -1 for none, (rows,)."""
    file, found = _open(path, index), np.full(rows, -1, dtype=np.int32)
    for number in range(index.nlist):
        found[file.read(number)[1]] = number
    return found

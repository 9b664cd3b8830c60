"""Large arrays in npz, HDF5 and FITS files, read a few rows of their first axis at a time, from the first to the last.

Names, types and sizes are checked in the headers before anything is unpacked; nothing is unpickled.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.images import naming, open_image
from redshelf.indexing.tables import read_columns
from redshelf.models.errors import BadInput, nearest

Values = npt.NDArray[Any]
Name = str | int | None

FORMATS = {"npz": (".npz",), "hdf5": (".h5", ".hdf5", ".hdf"), "fits": (".fits", ".fit", ".fits.fz")}
DEFAULT_NAME = "images"
RATIO = 100  # an array that takes less than a hundredth of its size on disk is no image with noise
FREE_BYTES = 2**24  # not worth a look at their ratio
ROW_BYTES = 2**28  # of one row of an array, and of one HDF5 chunk, at most
TEXT_BYTES = 1024  # of one id, at most
SKIPPED = 2**20  # bytes read at a time of what is passed over


@dataclass(frozen=True)
class Array:
    """An array of a file; `read(first, past)` gives rows of its first axis and is to be asked in ascending order."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Callable[[int, int], Values]


@dataclass(frozen=True)
class ArrayFile:
    """An open file: `array(name, dimensions, dense)`, numbers of so many dimensions, `dense` where an image with noise
    is expected; and `column(name)`, one-dimensional, texts or numbers, whole."""

    path: Path
    array: Callable[[Name, Sequence[int], bool], Array]
    column: Callable[[str], Values]


def format_of(path: Path) -> str:
    """The format by the file's ending; `BadInput` for any other."""
    for name, endings in FORMATS.items():
        if path.name.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise BadInput(f"{path}: its ending names no format: expected one of {known}, or stamps.format")


def stem(path: Path) -> str:
    """A file's name without the ending of its format."""
    endings = (ending for known in FORMATS.values() for ending in known if path.name.lower().endswith(ending))
    return path.name[: -max(map(len, endings), default=len(path.suffix)) or None]


def _checked(array: Array, path: Path, dimensions: Sequence[int]) -> Array:
    label = f"{path}: {array.name}"
    if array.dtype.hasobject:
        raise BadInput(f"{label} holds Python objects: expected numbers, which need no unpickling")
    if array.dtype.kind not in "fiub":
        raise BadInput(f"{label} is of type {array.dtype}: expected real numbers")
    if len(array.shape) not in dimensions:
        wanted = " or ".join(map(str, dimensions))
        raise BadInput(f"{label} has {len(array.shape)} axes, its shape is {array.shape}: expected {wanted}")
    row = math.prod(array.shape[1:]) * array.dtype.itemsize
    if row > ROW_BYTES:
        raise BadInput(f"{label}: one of shape {array.shape[1:]} takes {row} bytes: expected at most {ROW_BYTES}")
    return array


def _refuse_sparse(path: Path, name: str, size: int, stored: int) -> None:
    if size > max(FREE_BYTES, RATIO * stored):
        raise BadInput(
            f"{path}: {name} unpacks from {stored} to {size} bytes: expected images with noise, which pack by less "
            f"than a factor of {RATIO}"
        )


def _read_column(path: Path, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.kind not in "iufSU" or len(shape) != 1 or dtype.itemsize > TEXT_BYTES:
        raise BadInput(f"{path}: {name} is of type {dtype} and shape {shape}: expected one id a stamp, integer or text")


def _exactly(handle: IO[bytes], size: int) -> bytes:
    data = handle.read(size)
    if len(data) != size:
        raise EOFError(f"{len(data)} of {size} bytes are there: truncated")
    return data


@contextmanager
def _npz(path: Path) -> Iterator[ArrayFile]:
    from numpy.lib import format as npy

    with ExitStack() as stack:
        with naming(path, "an npz file"):
            archive = stack.enter_context(zipfile.ZipFile(path))
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}

        def member(name: str, *, dense: bool) -> Array:
            if name not in members:
                raise BadInput(f"{path} has no array {name!r}; {nearest(name, members)}")
            found = members[name]
            if found.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or found.flag_bits & 1:
                raise BadInput(f"{path}: {name} is packed as numpy does not pack: expected stored or deflated")
            with naming(path, "an npz file"):
                handle = stack.enter_context(archive.open(found))
                version = npy.read_magic(handle)
                if version not in ((1, 0), (2, 0)):
                    raise ValueError(f"{name} has .npy version {version}: expected 1.0 or 2.0")
                header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                shape, by_column, dtype = header(handle)
                size, there = math.prod(shape) * dtype.itemsize, found.file_size - handle.tell()
                if not dtype.hasobject and size != there:
                    raise ValueError(f"{name} of shape {shape} takes {size} bytes, {there} are there")
            if by_column and len(shape) > 1:
                raise BadInput(f"{path}: {name} is in Fortran order, sources last: save it with np.ascontiguousarray")
            if dense:
                _refuse_sparse(path, name, found.file_size, found.compress_size)
            return Array(name, tuple(shape), dtype, _reader(path, handle, tuple(shape[1:]), dtype))

        def array(name: Name, dimensions: Sequence[int], dense: bool) -> Array:
            return _checked(member(DEFAULT_NAME if name is None else str(name), dense=dense), path, dimensions)

        def column(name: str) -> Values:
            found = member(name, dense=False)
            _read_column(path, name, found.shape, found.dtype)
            return found.read(0, found.shape[0])

        yield ArrayFile(path, array, column)


def _reader(
    path: Path, handle: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any]
) -> Callable[[int, int], Values]:
    """Rows of a C-ordered array whose first row begins where `handle` stands; those passed over are read and dropped,
    so that the checksum of the member is checked with its last row."""
    row, at = math.prod(shape) * dtype.itemsize, 0

    def read(first: int, past: int) -> Values:
        nonlocal at
        with naming(path, "an npz file"):
            if first < at:
                raise ValueError(f"row {first} is asked for after row {at}")
            gap = (first - at) * row
            while gap:
                gap -= len(_exactly(handle, min(gap, SKIPPED)))
            at = past
            return np.frombuffer(_exactly(handle, (past - first) * row), dtype=dtype).reshape(past - first, *shape)

    return read


@contextmanager
def _hdf5(path: Path) -> Iterator[ArrayFile]:
    import h5py

    with ExitStack() as stack:
        with naming(path, "an HDF5 file"):
            file = stack.enter_context(h5py.File(path, "r"))

        def dataset(name: str) -> Any:
            with naming(path, "an HDF5 file"):
                found = file.get(name)
            if not isinstance(found, h5py.Dataset):
                raise BadInput(f"{path} has no dataset {name!r}; {nearest(name, list(file))}")
            # what lies elsewhere is in no fingerprint
            if found.is_virtual or found.external or found.file.filename != file.filename:
                raise BadInput(f"{path}: {name} keeps its values in other files: expected them in this one")
            chunk = math.prod(found.chunks or (0,)) * found.dtype.itemsize
            if chunk > ROW_BYTES:
                raise BadInput(f"{path}: {name} has chunks of {chunk} bytes: expected at most {ROW_BYTES}")
            return found

        def array(name: Name, dimensions: Sequence[int], dense: bool) -> Array:
            label = DEFAULT_NAME if name is None else str(name)
            found = dataset(label)
            if dense:
                _refuse_sparse(path, label, int(found.nbytes), int(found.id.get_storage_size()))

            def read(first: int, past: int) -> Values:
                with naming(path, "an HDF5 file"):
                    return np.asarray(found[first:past])

            return _checked(Array(label, tuple(found.shape or ()), found.dtype, read), path, dimensions)

        def column(name: str) -> Values:
            found = dataset(name)
            text = h5py.check_string_dtype(found.dtype)
            shape = tuple(found.shape or ())
            _read_column(path, name, shape, np.dtype("U1") if text is not None else found.dtype)
            with naming(path, "an HDF5 file"):
                return np.asarray(found[:]) if text is None else np.asarray(found.asstr()[:], dtype=str)

        yield ArrayFile(path, array, column)


@contextmanager
def _fits(path: Path) -> Iterator[ArrayFile]:
    with ExitStack() as stack:

        def array(name: Name, dimensions: Sequence[int], dense: bool) -> Array:
            unit, number, _ = stack.enter_context(open_image(path, name, dimensions))
            label = f"HDU {number if name is None else name}"

            def read(first: int, past: int) -> Values:
                with naming(path):
                    return np.asarray(unit.section[first:past])

            dtype = np.dtype(np.float64 if unit.header["BITPIX"] < 0 else np.int64)  # at most
            return _checked(Array(label, tuple(unit.shape), dtype, read), path, dimensions)

        def column(name: str) -> Values:
            return read_columns(path, [name], format="fits", text=[name])[name]

        yield ArrayFile(path, array, column)


@contextmanager
def open_file(path: Path, format: str | None = None) -> Iterator[ArrayFile]:
    """A file of arrays, by its format or its ending; `BadInput` naming it for whatever is wrong in it."""
    if not path.is_file():
        raise BadInput(f"{path} does not exist")
    if path.suffix == ".gz":
        raise BadInput(f"{path} is gzip-compressed, and would be unpacked anew for each piece: gunzip or fpack it")
    opened = {"npz": _npz, "hdf5": _hdf5, "fits": _fits}[format or format_of(path)]
    with opened(path) as file:
        yield file

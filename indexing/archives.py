"""Archives of stamps, cutouts that somebody has cut already: npz, HDF5 or FITS files, checked by their headers.

`find` lists the files, `open_archive` reads headers and ids, `opened` gives the arrays, to be read a few stamps at a
time. Nothing is resampled: a stamp is cropped or padded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.arrays import Array, open_file, stem
from redshelf.indexing.catalogue import ids
from redshelf.indexing.mosaic import TILE_NAME, Images, matcher
from redshelf.indexing.survey import Stamps, Survey
from redshelf.models.errors import BadInput

PIECE_BYTES = 2**24  # of stamps read at a time; one stamp at least


@dataclass(frozen=True)
class Archive:
    """One file of stamps, as its headers and ids describe it; no pixel has been read."""

    name: str  # the tile
    path: Path
    count: int  # stamps
    source_id: npt.NDArray[np.bytes_] | None  # (count,); None: in the catalogue's order of rows


@dataclass(frozen=True)
class Piece:
    """M consecutive stamps of one band, each (M, H, W), in the file's own unit."""

    image: Images
    weight: Images | None
    mask: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class OpenArchive:
    """An archive's arrays, of which `weight` has the shape of `image`, `mask` that or none of its bands."""

    section: Stamps
    image: Array
    weight: Array | None
    mask: Array | None

    def step(self, size: int = 0) -> int:
        """Stamps to `read` at a time, as they are or of `size` pixels."""
        stored = math.prod(self.image.shape[1:]) * self.image.dtype.itemsize
        return max(1, PIECE_BYTES // max(stored, 4 * len(self.section.bands) * size**2))

    def _stack(self, array: Array, first: int, past: int) -> npt.NDArray[Any]:
        """(M, bands or 1, H, W) of the stamps [first, past)."""
        values = array.read(first, past)
        if values.ndim == 3:
            return values[:, None]
        return np.moveaxis(values, 3, 1) if self.section.axes == "nhwc" else values

    def read(self, first: int, past: int, size: int | None = None) -> list[Piece]:
        """The bands of the stamps [first, past), cropped or padded with NaN to `size` pixels, where that is given."""
        stacks = [None if a is None else self._stack(a, first, past) for a in (self.image, self.weight, self.mask)]
        pieces = []
        for band in range(len(self.section.bands)):
            image, weight, mask = (None if s is None else s[:, min(band, s.shape[1] - 1)] for s in stacks)
            assert image is not None
            pieces.append(
                Piece(
                    image=_as_float(image, size),
                    weight=None if weight is None else _as_float(weight, size),
                    mask=None if mask is None else np.nan_to_num(_as_float(mask, size), nan=1.0) != 0,
                )
            )
        return pieces


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """What to take of an axis of `length` pixels and where to put it in one of `size`: n // 2 goes to size // 2."""
    offset = size // 2 - length // 2
    first, past = max(0, offset), min(size, offset + length)
    return slice(first - offset, past - offset), slice(first, past)


def _as_float(values: npt.NDArray[Any], size: int | None) -> Images:
    """(M, H, W) as float32, of `size` pixels a side where that is given; NaN where the stamps do not reach."""
    with np.errstate(over="ignore", invalid="ignore"):
        if size is None or values.shape[1:] == (size, size):
            return np.ascontiguousarray(values, dtype=np.float32)
        (from_y, to_y), (from_x, to_x) = (_overlap(length, size) for length in values.shape[1:])
        out = np.full((len(values), size, size), np.nan, dtype=np.float32)
        out[:, to_y, to_x] = values[:, from_y, from_x]
        return out


def section_of(survey: Survey) -> Stamps:
    """The section [stamps] of a survey that has one."""
    assert survey.stamps is not None
    return survey.stamps


def find(survey: Survey) -> dict[str, Path]:
    """{tile: file} of all that stamps.path finds, or of `tiles.names`; sorted by tile.

    `BadInput` where there is none, for two files of one name, and for a named tile without a file."""
    section = section_of(survey)
    whole, folder = survey.resolve(section.path), survey.resolve(".")
    matches = None
    if "{tile}" in section.path:
        pieces = str(whole).split("{tile}")
        matches = matcher(pieces)
        whole = Path("*".join(escape(piece) for piece in pieces))  # as `matches` takes them
    if whole.is_relative_to(folder):  # so that brackets in the folder's name stand for themselves
        names = [str(folder / name) for name in glob(str(whole.relative_to(folder)), root_dir=folder)]  # noqa: PTH207
    else:
        names = glob(str(whole))  # noqa: PTH207
    found: dict[str, Path] = {}
    for name in sorted(names):
        match = None if matches is None else matches.fullmatch(name)
        if matches is not None and match is None:
            continue
        tile = stem(Path(name)) if match is None else match[1]
        if not TILE_NAME.fullmatch(tile):
            raise BadInput(f"stamps: tile name {tile!r} of {name}: expected {TILE_NAME.pattern}")
        if tile in found:
            raise BadInput(f"stamps: {found[tile]} and {name} are both called {tile!r}: expected one file a tile")
        if survey.tiles.names is None or tile in survey.tiles.names:
            found[tile] = Path(name)
    if not found:
        among = "" if survey.tiles.names is None else f" among the tiles {', '.join(survey.tiles.names)}"
        raise BadInput(f"stamps: no file matches {section.path!r} (that is {survey.resolve(section.path)}){among}")
    absent = sorted(set(survey.tiles.names or ()) - found.keys())
    if absent:
        raise BadInput(f"tiles.names: no file of stamps is called {absent[0]!r}")
    return dict(sorted(found.items()))


@contextmanager
def opened(section: Stamps, path: Path) -> Iterator[OpenArchive]:
    """The arrays of a file; `BadInput` naming the file and the array for wrong axes, bands, types and shapes."""
    axes, bands = section.axes, len(section.bands)
    with open_file(path, section.format) as file:
        image = file.array(section.array, [len(axes)], True)
        if "c" in axes and image.shape[axes.index("c")] != bands:
            raise BadInput(
                f"{path}: {image.name} has shape {image.shape}, that is {image.shape[axes.index('c')]} bands along "
                f"the axis c of {axes!r}: expected {bands}, {', '.join(section.bands)}"
            )
        if 0 in image.shape:
            raise BadInput(f"{path}: {image.name} has shape {image.shape}: it holds no stamps")
        if image.dtype.kind == "b":
            raise BadInput(f"{path}: {image.name} is of type bool: expected fluxes")
        beside: dict[str, Array | None] = {"weight": None, "mask": None}
        without = tuple(n for n, axis in zip(image.shape, axes, strict=True) if axis != "c")
        for what, name in (("weight", section.weight), ("mask", section.mask)):
            if name is not None:
                shapes = [image.shape] if what == "weight" else [image.shape, without]
                found = file.array(name, [len(shape) for shape in shapes], False)
                if found.shape not in shapes:
                    raise BadInput(f"{path}: the {what} {found.name} has shape {found.shape}, the stamps {image.shape}")
                beside[what] = found
        yield OpenArchive(section, image, **beside)


def open_archive(survey: Survey, name: str, path: Path) -> Archive:
    """A file's headers and ids. `BadInput` naming the file for whatever does not fit the survey file."""
    section = section_of(survey)
    with opened(section, path) as arrays:
        count = arrays.image.shape[0]
    if section.ids is None:
        return Archive(name, path, count, None)
    with open_file(path, section.format) as file:
        values = file.column(section.ids)
    if len(values) != count:
        raise BadInput(f"{path}: {len(values)} ids in {section.ids} for {count} stamps")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "U":
        values = np.char.strip(values)
    try:
        return Archive(name, path, count, ids(values, column=section.ids))
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error

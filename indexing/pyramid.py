"""What stands in the pixels of a map, so that a tile costs the same however many sources it holds.

Sources are sorted by their place (`morton`), so that those of a tile lie together. Where there are more than `LIGHT` of
them, counts and values of every pixel are worked out beforehand; where there are fewer, when the tile is asked for. At
each zoom the tiles that are heavy hold fewer sources together than there are, and so few pixels are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from redshelf.indexing import morton
from redshelf.indexing.files import write_npy
from redshelf.indexing.morton import MAX_ZOOM, Ints, Keys

LIGHT = 50_000  # sources of a tile that are looked at one by one
PEAK = 0.999  # of the pixels with a source: what the scale of a zoom ends with

How = Literal["median", "share"]
Values = npt.NDArray[np.float32]
ValuesOf = Callable[[str, slice], Values]  # of a colouring, of sources from one place to another
CELLS, COUNTS = "cells", "counts"


@dataclass(frozen=True, eq=False)
class Pixels:
    """Pixels with a source: `at` (n,) as `morton.pixels_of`, `counts` (n,) of their sources, `values` (n,) of the
    colouring, NaN where no source has one."""

    at: Ints
    counts: Ints
    values: Values | None


@dataclass(frozen=True, eq=False)
class Level:
    """The pixels of the heavy tiles of one zoom, in the order of `morton`; `values` by the colouring."""

    cells: Keys
    counts: npt.NDArray[np.uint32]
    values: Mapping[str, Values]


@dataclass(frozen=True, eq=False)
class Pyramid:
    """The sources of a map: `keys` (n,) ascending, `rows` (n,) of each, and what was worked out beforehand."""

    keys: Keys
    rows: npt.NDArray[np.integer]
    levels: Mapping[int, Level]

    def range_of(self, zoom: int, x: int, y: int) -> tuple[int, int]:
        """First and past the last of the sources in a tile."""
        return morton.range_of(self.keys, zoom, x, y)

    def tile(self, zoom: int, x: int, y: int, values_of: ValuesOf, *, colour: str | None, how: How) -> Pixels:
        """The pixels of a tile, with the values of a colouring unless it is None."""
        first, past = self.range_of(zoom, x, y)
        if past - first <= LIGHT:
            values = None if colour is None else values_of(colour, slice(first, past))
            return pixels(morton.cells_of(self.keys[first:past], zoom), values, how=how)
        level = self.levels[zoom]
        begin, end = morton.within(level.cells, 2 * morton.TILE_BITS, x, y)
        chosen = None if colour is None else np.asarray(level.values[colour][begin:end])
        counts = level.counts[begin:end].astype(np.int64)
        return Pixels(morton.pixels_of(level.cells[begin:end]), counts, chosen)


def runs(values: npt.NDArray[Any]) -> tuple[Ints, Ints]:
    """Where each run of equal values begins, and how long it is."""
    if not len(values):
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    begins = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))
    return begins, np.diff(begins, append=len(values))


def pixels(cells: Keys, values: Values | None, *, how: How) -> Pixels:
    """Count ascending `cells` (n,), and sum up their `values` (n,) in each."""
    begins, counts = runs(cells)
    summed = None if values is None else summarise(np.repeat(np.arange(len(begins)), counts), len(begins), values, how)
    return Pixels(morton.pixels_of(cells[begins]), counts, summed)


def summarise(group: Ints, n: int, values: Values, how: How) -> Values:
    """The median of the values (N,) of each of `n` groups, or their mean, NaN where none is finite. `group` (N,)
    ascends."""
    finite = np.isfinite(values)
    group, values = group[finite], values[finite]
    counts = np.bincount(group, minlength=n)
    found = np.full(n, np.nan, dtype=np.float32)
    some = counts > 0
    if how == "share":
        found[some] = np.bincount(group, weights=values, minlength=n)[some] / counts[some]
        return found
    # as whole numbers in the order of floats, behind those of the group: one plain sort does both
    bits = (values + np.float32(0)).view(np.uint32)  # -0 would sort before 0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    together = np.sort((group.astype(np.uint64) << np.uint64(32)) | ordered.astype(np.uint64))
    ordered = (together & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    values = np.where(ordered >> 31, ordered & np.uint32((1 << 31) - 1), ~ordered).view(np.float32)
    begins = (np.cumsum(counts) - counts)[some]
    low, high = begins + (counts[some] - 1) // 2, begins + counts[some] // 2
    found[some] = (values[low] + values[high]) / 2
    return found


def peaks(keys: Keys) -> list[int]:
    """Of each zoom, how many sources its fuller pixels hold: 1 in 1,000 of those with a source hold more."""
    found = []
    for zoom in range(MAX_ZOOM + 1):
        counts = runs(morton.cells_of(keys, zoom))[1]
        found.append(int(np.quantile(counts, PEAK)) if len(counts) else 1)
    return found


def build(
    keys: Keys,
    colours: Mapping[str, How],
    values_of: ValuesOf,
    *,
    progress: Callable[[int], object] = lambda sources: None,
) -> dict[int, Level]:
    """The levels of ascending `keys`; zooms without a heavy tile have none. `progress` is told of the sources that
    were put into pixels."""
    levels: dict[int, Level] = {}
    for zoom in range(MAX_ZOOM + 1):
        begins, counts = runs(keys >> np.uint64(2 * (morton.BITS - zoom)))
        heavy = counts > LIGHT
        if not heavy.any():
            break
        parts: dict[str, list[Any]] = {name: [] for name in (CELLS, COUNTS, *colours)}
        for first, n in zip(begins[heavy], counts[heavy], strict=True):
            inside = slice(int(first), int(first + n))
            cells = morton.cells_of(keys[inside], zoom)
            starts, sizes = runs(cells)
            parts[CELLS].append(cells[starts])
            parts[COUNTS].append(sizes.astype(np.uint32))
            group = np.repeat(np.arange(len(starts)), sizes)
            for name, how in colours.items():
                parts[name].append(summarise(group, len(starts), values_of(name, inside), how))
            progress(int(n))
        whole = {name: np.concatenate(pieces) for name, pieces in parts.items()}
        levels[zoom] = Level(whole[CELLS], whole[COUNTS], {name: whole[name] for name in colours})
    return levels


def write(folder: Path, levels: Mapping[int, Level]) -> None:
    """Write the levels as .npy files, which `read` maps."""
    for zoom, level in levels.items():
        write_npy(folder / f"z{zoom}.{CELLS}.npy", level.cells)
        write_npy(folder / f"z{zoom}.{COUNTS}.npy", level.counts)
        for name, values in level.values.items():
            write_npy(folder / f"z{zoom}.{name}.npy", values)


def read(folder: Path, zooms: int, colours: Mapping[str, How]) -> dict[int, Level]:
    """The first `zooms` levels, memory-mapped."""

    def mapped(name: str) -> npt.NDArray[Any]:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    return {
        zoom: Level(
            mapped(f"z{zoom}.{CELLS}"),
            mapped(f"z{zoom}.{COUNTS}"),
            {name: mapped(f"z{zoom}.{name}") for name in colours},
        )
        for zoom in range(zooms)
    }

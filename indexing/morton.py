"""Positions on a map as one number each, by whose order everything in a square lies together (Morton 1966).

The map is the unit square, x to the right and y downwards. A tile of zoom z is one of 2^z x 2^z squares and has 256 x
256 pixels, so that pixels, tiles and positions are the same number, cut off sooner or later.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

BITS = 24  # of a coordinate
TILE_BITS = 8
TILE_PX = 1 << TILE_BITS
MAX_ZOOM = BITS - TILE_BITS  # where a pixel is as small as positions are exact

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

_STEPS = (
    (16, 0x0000FFFF0000FFFF),
    (8, 0x00FF00FF00FF00FF),
    (4, 0x0F0F0F0F0F0F0F0F),
    (2, 0x3333333333333333),
    (1, 0x5555555555555555),
)


def _spread(values: npt.NDArray[np.unsignedinteger]) -> Keys:
    """The bits of numbers below 2^32 with a zero before each."""
    found = values.astype(np.uint64)
    for shift, mask in _STEPS:
        found = (found | (found << np.uint64(shift))) & np.uint64(mask)
    return found


def _gather(keys: Keys) -> Ints:
    """Every second bit, the lowest first: what `_spread` was given."""
    found = keys & np.uint64(_STEPS[-1][1])
    for (shift, _), (_, mask) in zip(_STEPS[::-1], [*_STEPS[-2::-1], (0, 0xFFFFFFFF)], strict=True):
        found = (found | (found >> np.uint64(shift))) & np.uint64(mask)
    return found.astype(np.int64)


def join(x: Ints, y: Ints) -> Keys:
    """The numbers (n,) of squares with these places along x and y (n,), counted from the upper left."""
    return _spread(x.astype(np.uint64)) | (_spread(y.astype(np.uint64)) << np.uint64(1))


def split(keys: Keys) -> tuple[Ints, Ints]:
    """The places (n,) along x and y of squares by their numbers (n,)."""
    return _gather(keys), _gather(keys >> np.uint64(1))


def keys_of(positions: Floats) -> Keys:
    """The numbers (n,) of positions (n, 2) in the unit square, to 2^-24; 1 counts as just below it."""
    steps = np.clip(np.floor(positions * (1 << BITS)), 0, (1 << BITS) - 1).astype(np.int64)
    return join(steps[:, 0], steps[:, 1])


def positions_of(keys: Keys) -> Floats:
    """The positions (n, 2) that numbers stand for: the middle of the square of 2^-24."""
    return (np.column_stack(split(keys)) + 0.5) / (1 << BITS)


def check_tile(zoom: int, x: int, y: int) -> None:
    """`BadInput` unless there is such a tile."""
    if not 0 <= zoom <= MAX_ZOOM:
        raise BadInput(f"z={zoom}: expected 0 <= z <= {MAX_ZOOM}")
    for name, value in (("x", x), ("y", y)):
        if not 0 <= value < 1 << zoom:
            raise BadInput(f"{name}={value}: expected 0 <= {name} < {1 << zoom}, the tiles of zoom {zoom}")


def within(numbers: Keys, bits: int, x: int, y: int) -> tuple[int, int]:
    """First and past the last of ascending `numbers` in the square (x, y), which are `bits` longer than its own."""
    square = int(join(np.array([x]), np.array([y]))[0])
    ends = np.array([square << bits, (square + 1) << bits], dtype=np.uint64)
    first, past = np.searchsorted(numbers, ends)
    return int(first), int(past)


def range_of(keys: Keys, zoom: int, x: int, y: int) -> tuple[int, int]:
    """First and past the last of ascending `keys` that lie in a square of the 2^zoom x 2^zoom, zoom <= 24."""
    return within(keys, 2 * (BITS - zoom), x, y)


def cells_of(keys: Keys, zoom: int) -> Keys:
    """The pixel (n,) at a zoom that each position lies in."""
    return keys >> np.uint64(2 * (MAX_ZOOM - zoom))


def pixels_of(cells: Keys) -> Ints:
    """Where in its tile each pixel (n,) is: row * 256 + column, rows from the top."""
    column, row = split(cells & np.uint64(TILE_PX * TILE_PX - 1))
    return row * TILE_PX + column

"""Which sources of a map lie in a polygon or a box, without looking at those that lie well inside or outside.

The map is halved along both sides again and again: a square that the border does not touch is taken or left as a
whole, and the sources of the small ones that it does touch are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.indexing import morton
from redshelf.indexing.morton import Floats, Ints, Keys
from redshelf.indexing.pyramid import runs
from redshelf.models.errors import BadInput

MAX_VERTICES = 500
FEW = 512  # sources of a square on the border that are looked at one by one
SMALLEST = morton.BITS  # no square is halved further


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some of the sources of a map, as places in its order: from each of `first` (n,) to before each of `past`."""

    first: Ints
    past: Ints

    @property
    def total(self) -> int:
        return int((self.past - self.first).sum())

    def spread(self, n: int) -> Ints:
        """The places of at most `n` of them, each standing for as many: all, where there are no more."""
        sizes = self.past - self.first
        total = int(sizes.sum())
        wanted = np.arange(total) if total <= n else (2 * np.arange(n, dtype=np.int64) + 1) * total // (2 * n)
        ends = np.cumsum(sizes)
        run = np.searchsorted(ends, wanted, side="right")
        return np.asarray(self.first[run] + wanted - (ends - sizes)[run])


def _turn(a: Floats, b: Floats, c: Floats) -> Floats:
    """Twice the area of triangles: positive where c is to the left of the way from a to b, with y upwards."""
    return np.asarray(
        (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])
    )


def _crosses_itself(corners: Floats) -> bool:
    a, b = corners, np.roll(corners, -1, axis=0)
    n = len(a)
    i, j = np.triu_indices(n, k=1)
    apart = (j - i > 1) & ~((i == 0) & (j == n - 1))
    i, j = i[apart], j[apart]
    low, high = np.minimum(a, b), np.maximum(a, b)
    near = ((low[i] <= high[j]) & (low[j] <= high[i])).all(axis=1)
    i, j = i[near], j[near]
    one = np.sign(_turn(a[i], b[i], a[j])) * np.sign(_turn(a[i], b[i], b[j]))
    other = np.sign(_turn(a[j], b[j], a[i])) * np.sign(_turn(a[j], b[j], b[i]))
    # of two sides that meet, one may lie on the other
    following = np.roll(b, -1, axis=0)
    back = (_turn(a, b, following) == 0) & (((b - a) * (following - b)).sum(axis=1) < 0)
    return bool(((one <= 0) & (other <= 0)).any() or back.any())


@dataclass(frozen=True, eq=False)
class Polygon:
    """A polygon whose sides meet at its `corners` (n, 2) alone, in the unit square."""

    corners: Floats

    def contains(self, points: Floats) -> npt.NDArray[np.bool_]:
        """Which of `points` (N, 2) lie inside, by the number of sides to the right of each. Quick where they lie close
        together: sides above, below and to the left of all of them are not looked at."""
        inside = np.zeros(len(points), dtype=bool)
        if not len(points):
            return inside
        x, y = points[:, 0], points[:, 1]
        a, b = self.corners, np.roll(self.corners, -1, axis=0)
        low, high = np.minimum(a, b), np.maximum(a, b)
        counts = (low[:, 1] <= y.max()) & (high[:, 1] >= y.min()) & (high[:, 0] >= x.min()) & (a[:, 1] != b[:, 1])
        for (x0, y0), (x1, y1) in zip(a[counts], b[counts], strict=True):
            inside ^= ((y0 > y) != (y1 > y)) & (x < (x1 - x0) * (y - y0) / (y1 - y0) + x0)
        return inside

    def touches(self, low: Floats, high: Floats) -> bool:
        """Whether a side enters the box between two corners (2,)."""
        a, b = self.corners, np.roll(self.corners, -1, axis=0)
        beside = (np.maximum(a, b) < low).any(axis=1) | (np.minimum(a, b) > high).any(axis=1)
        box = np.array([[low[0], low[1]], [high[0], low[1]], [low[0], high[1]], [high[0], high[1]]])
        turns = _turn(a[:, None], b[:, None], box[None])  # (n, 4)
        return bool((~beside & ~((turns > 0).all(axis=1) | (turns < 0).all(axis=1))).any())


def polygon(corners: Sequence[tuple[float, float]]) -> Polygon:
    """The polygon with these corners, of which the last may repeat the first.

    `BadInput` for fewer than 3 different corners, more than `MAX_VERTICES`, one that is not on the map, and sides that
    cross or lie on one another.
    """
    if len(corners) > MAX_VERTICES:
        raise BadInput(f"polygon has {len(corners)} corners: expected at most {MAX_VERTICES}")
    points = np.array(corners, dtype=np.float64).reshape(-1, 2)
    outside = ~((points >= 0) & (points <= 1)).all(axis=1)  # which NaN is, too
    if outside.any():
        x, y = points[outside][0]
        raise BadInput(f"polygon has a corner at ({x:g}, {y:g}): expected 0 <= x <= 1 and 0 <= y <= 1")
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    if len(points) < 3:
        raise BadInput(f"polygon has {len(points)} different corners: expected 3 or more")
    if _crosses_itself(points):
        raise BadInput("polygon crosses itself, or touches itself away from its corners: expected a simple one")
    return Polygon(points)


def box(x_min: float, y_min: float, x_max: float, y_max: float) -> Polygon:
    """An upright rectangle; `BadInput` unless its sides are in order. What lies beyond the map is cut off."""
    for low, high, names in ((x_min, x_max, "x_min, x_max"), (y_min, y_max, "y_min, y_max")):
        if not low < high:
            raise BadInput(f"{names}={low:g}, {high:g}: expected the first to be below the second")
        if not (high > 0 and low < 1):
            raise BadInput(f"{names}={low:g}, {high:g}: the map lies between 0 and 1")
    (x0, x1), (y0, y1) = np.clip([[x_min, x_max], [y_min, y_max]], 0, 1)
    return Polygon(np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], dtype=np.float64))


def choose(keys: Keys, area: Polygon) -> Chosen:
    """The sources of ascending `keys` whose positions lie in an area."""
    whole: list[tuple[int, int]] = []
    border: list[tuple[int, int]] = []
    todo = [(0, 0, 0)]
    while todo:
        zoom, x, y = todo.pop()
        first, past = morton.range_of(keys, zoom, x, y)
        if first == past:
            continue
        low = np.array([x, y]) / (1 << zoom)
        high = np.array([x + 1, y + 1]) / (1 << zoom)
        if not area.touches(low, high):
            if area.contains((low + high)[None] / 2)[0]:
                whole.append((first, past))
        elif past - first <= FEW or zoom == SMALLEST:
            border.append((first, past))
        else:
            todo += [(zoom + 1, 2 * x + right, 2 * y + below) for right in (0, 1) for below in (0, 1)]
    looked = [first + np.flatnonzero(area.contains(morton.positions_of(keys[first:past]))) for first, past in border]
    inside = np.sort(np.concatenate(looked or [np.empty(0, dtype=np.int64)]))
    begins, sizes = runs(inside - np.arange(len(inside)))  # of places that follow one another
    first_of, past_of = inside[begins], inside[begins] + sizes
    if whole:
        first_of = np.concatenate([first_of, np.array([ends[0] for ends in whole])])
        past_of = np.concatenate([past_of, np.array([ends[1] for ends in whole])])
    order = np.argsort(first_of, kind="stable")
    return Chosen(first_of[order], past_of[order])

"""Weighted samples: arrays checked at the door, and quantiles of the weighted step function.

A quantile here is the inverse of the weighted cumulative distribution, and the middle of two values where a step ends
exactly at q (type 2 of Hyndman & Fan 1996). So equal weights give the plain median, whole-number weights the quantile
of repeated rows, and the scale of the weights is of no matter. One sort serves any number of weights of the same
values: a bootstrap of a million values costs a few passes over them a draw, and no sort.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
EXACT = 1e-10  # how near to q, in units of the total weight, a step ends "exactly" there: above the rounding of the sum


def finite(name: str, values: npt.ArrayLike, n: int | None = None) -> Floats:
    """`values` as (N,) float64; `BadInput` naming the first NaN or infinity, or a length other than `n`."""
    out = np.asarray(values, dtype=np.float64)
    if out.ndim != 1 or (n is not None and len(out) != n):
        raise BadInput(f"{name} has shape {out.shape}: expected ({'N' if n is None else n},)")
    bad = ~np.isfinite(out)
    if bad.any():
        row = int(bad.argmax())
        raise BadInput(f"{name}: {out[row]} in row {row}: expected finite values")
    return out


def checked_weights(weights: npt.ArrayLike | None, n: int) -> Floats:
    """`weights` as (n,) float64, ones for None; `BadInput` where one is negative or not finite, or all are zero."""
    if weights is None:
        return np.ones(n)
    out = np.asarray(weights, dtype=np.float64)
    if out.shape != (n,):
        raise BadInput(f"weights of shape {out.shape}: expected ({n},)")
    bad = ~(np.isfinite(out) & (out >= 0))
    if bad.any():
        row = int(bad.argmax())
        raise BadInput(f"weights: {out[row]} in row {row}: expected finite values >= 0")
    if not out.any():
        raise BadInput(f"weights of shape {out.shape} are all zero: expected at least one above 0")
    return out


def rising(name: str, edges: npt.ArrayLike) -> Floats:
    """`edges` as (B+1,) float64; `BadInput` naming the first edge that is not above the one before."""
    out = np.asarray(edges, dtype=np.float64)
    if out.ndim != 1 or len(out) < 2:
        raise BadInput(f"{name} of shape {out.shape}: expected at least 2 edges")
    bad = ~(np.diff(out) > 0)  # true beside NaN as well
    if bad.any():
        row = int(bad.argmax())
        raise BadInput(f"{name}: {out[row + 1]} after {out[row]}: expected strictly increasing edges")
    return out


@dataclass(frozen=True)
class Sample:
    """N values in rising order, (N,), and the rows (N,) that they stood in."""

    values: Floats
    rows: Ints

    @classmethod
    def of(cls, values: Floats) -> Sample:
        """Sort `values` (N,), N > 0."""
        if len(values) == 0:
            raise BadInput("0 values: expected at least 1")
        rows = np.argsort(values)
        return cls(values[rows], rows)

    def weigh(self, weights: Floats) -> Weighed:
        """With `weights` (N,) in the order of the rows given to `of`."""
        sorted_ = weights[self.rows]
        steps = np.empty(len(sorted_) + 1)
        steps[0] = 0
        np.cumsum(sorted_, out=steps[1:])
        total = steps[-1]
        steps /= total
        return Weighed(self.values, sorted_ / total, steps)


@dataclass(frozen=True)
class Weighed:
    """Rising `values` (N,), their `shares` (N,) of the whole weight, and the `steps` (N+1,) of the CDF from 0 to 1."""

    values: Floats
    shares: Floats
    steps: Floats

    def mean(self, power: int = 1) -> float:
        """Weighted mean of values^power."""
        return float(self.shares @ (self.values if power == 1 else self.values**power))

    def quantile(self, q: float) -> float:
        """The value at which the CDF reaches q, 0 < q < 1; the middle of two where it rests at q between them."""
        last = len(self.values) - 1
        low = min(int(np.searchsorted(self.steps[1:], q - EXACT, side="left")), last)
        high = min(int(np.searchsorted(self.steps[1:], q + EXACT, side="right")), last)
        return float(0.5 * (self.values[low] + self.values[high]))

    def beyond(self, threshold: float) -> float:
        """Share of the weight with |value| > threshold."""
        below = int(np.searchsorted(self.values, -threshold, side="left"))
        above = int(np.searchsorted(self.values, threshold, side="right"))
        return float(self.steps[below] + (1 - self.steps[above]))

    def median_deviation(self, centre: float) -> float:
        """Weighted median of |value - centre|, by bisection in the sorted values instead of a second sort."""
        split = int(np.searchsorted(self.values, centre))
        above, below = self.values[split:] - centre, centre - self.values[:split][::-1]

        def share(deviation: float) -> float:
            high = split + above.searchsorted(deviation, "right")  # asked often: np.searchsorted is twice as slow
            low = split - below.searchsorted(deviation, "right")
            return float(self.steps[high] - self.steps[low])

        at, after = (_first((above, below), share, level) for level in (0.5 - EXACT, 0.5 + EXACT))
        return 0.5 * (at + after)


def _first(sides: tuple[Floats, Floats], share: Callable[[float], float], level: float) -> float:
    """The least of the deviations in two rising arrays whose share of the weight is at least `level`."""
    found = []
    for side in sides:
        row = bisect_left(range(len(side)), level, key=lambda i, side=side: share(side[i]))  # type: ignore[misc]
        if row < len(side):
            found.append(float(side[row]))
    return min(found)

"""Errors of scores from resampling: objects, or whole sky tiles, drawn with replacement.

Sources of one field share its depth, its seeing and its cosmic variance, so errors over objects are too small where
these matter; the block bootstrap over tiles (Kunsch 1989) keeps such sources together. A draw is a count of each
object, and a score is taken with weights times counts, so whatever a score sorts or bins is done once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.weighted import Floats, Ints

Scorer = Callable[[Floats], Mapping[str, float]]  # weights (N,) -> named scores; NaN where a score is not defined
FINEST_ORDER = 29


def healpix_tiles(healpix29: npt.ArrayLike, *, order: int = 8) -> Ints:
    """Sky tiles (N,) of `order` (nested HEALPix; 8 is 0.23 degrees wide) from pixels of order 29 in a catalogue."""
    pixels = np.asarray(healpix29)
    if pixels.ndim != 1 or not np.issubdtype(pixels.dtype, np.integer):
        raise BadInput(f"healpix29 of shape {pixels.shape} and type {pixels.dtype}: expected (N,) whole numbers")
    if not 0 <= order <= FINEST_ORDER:
        raise BadInput(f"order={order}: expected 0 to {FINEST_ORDER}")
    bad = (pixels < 0) | (pixels >= 12 * 4**FINEST_ORDER)
    if bad.any():
        raise BadInput(f"healpix29: {pixels[bad.argmax()]} in row {bad.argmax()}: expected 0 to 12 x 4^29 - 1")
    return np.asarray(pixels.astype(np.int64) >> 2 * (FINEST_ORDER - order))


@dataclass(frozen=True)
class Resampling:
    """`draws` resamplings of `n` objects, each on its own (`tiles` None) or by the tile, numbered (n,) from 0."""

    n: int
    draws: int
    seed: int = 0
    tiles: Ints | None = None

    def __post_init__(self) -> None:
        if self.draws < 2:
            raise BadInput(f"bootstrap={self.draws}: expected at least 2 draws")
        if self.tiles is not None and (len(self.tiles) == 0 or self.tiles.max() == 0):
            raise BadInput("tiles: expected at least 2 different ones to draw from")

    @classmethod
    def of(cls, n: int, *, draws: int, seed: int = 0, tiles: npt.ArrayLike | None = None) -> Resampling:
        """With `tiles` (n,) of any labels: numbers or names."""
        if tiles is None:
            return cls(n, draws, seed)
        labels = np.asarray(tiles)
        if labels.shape != (n,):
            raise BadInput(f"tiles of shape {labels.shape}: expected ({n},)")
        if labels.dtype.kind == "f" and np.isnan(labels).any():
            raise BadInput(f"tiles: nan in row {np.isnan(labels).argmax()}: expected a label of every object")
        return cls(n, draws, seed, np.unique(labels, return_inverse=True)[1].astype(np.int64))

    def counts(self) -> Iterator[Floats]:
        """How often each object is drawn, (n,), for every draw in turn."""
        rng = np.random.default_rng(self.seed)
        units = self.n if self.tiles is None else int(self.tiles.max()) + 1
        for _ in range(self.draws):
            counts = np.bincount(rng.integers(0, units, units), minlength=units).astype(np.float64)
            yield counts if self.tiles is None else counts[self.tiles]

    def units(self, rows: npt.NDArray[np.generic]) -> int:
        """How many objects, or different tiles, the `rows` (an index of objects) hold."""
        return len(rows) if self.tiles is None else len(np.unique(self.tiles[rows]))


def errors(
    parts: Sequence[tuple[Ints, Scorer]], weights: Floats, resampling: Resampling
) -> list[dict[str, float | None]]:
    """68% error of each score of each part: half the central 68% of its draws, times sqrt(units / (units - 1)).

    A part is the rows (n,) of its objects and a scorer that takes their weights. The factor is the one that frees the
    error of a mean from bias, and is felt where there are few tiles. None where a part's weight lies in fewer than two
    units: one tile says nothing of how tiles differ. Draws without weight are left out.
    """
    drawn: list[dict[str, list[float]]] = [{} for _ in parts]
    held = [weights[rows] for rows, _ in parts]
    for counts in resampling.counts():
        for (rows, score), base, found in zip(parts, held, drawn, strict=True):
            w = base * counts[rows]
            if w.any():
                for name, value in score(w).items():
                    found.setdefault(name, []).append(value)
    out: list[dict[str, float | None]] = []
    for (rows, _), base, found in zip(parts, held, drawn, strict=True):
        units = resampling.units(rows[base > 0])
        out.append({name: _half_range(values, units) for name, values in found.items()})
    return out


def _half_range(draws: list[float], units: int) -> float | None:
    values = np.asarray(draws)
    values = values[np.isfinite(values)]
    if units < 2 or len(values) < 2:
        return None
    low, high = np.quantile(values, [0.16, 0.84])
    return float(0.5 * (high - low) * np.sqrt(units / (units - 1)))

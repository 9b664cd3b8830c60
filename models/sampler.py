"""Which sources make up step n of a training run, by seed and step alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput

Indices = npt.NDArray[np.int64]
Fetch = Callable[[Indices], Batch]

BLOCK = 1 << 20
BIN_MAG = 0.5  # in which a draw is made flat


@dataclass(frozen=True)
class Sampler:
    """Which sources make up step n: shuffled epochs, or draws in proportion to `weights` (n_sources,)."""

    n_sources: int
    batch_size: int
    seed: int
    weights: npt.NDArray[np.float64] | None = None
    _epochs: dict[int, Indices] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_sources < 1 or self.batch_size < 1:
            raise BadInput(
                f"training on {self.n_sources} sources in batches of {self.batch_size}: expected 1 or more of both"
            )
        w = self.weights
        if w is not None and (
            w.shape != (self.n_sources,) or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0
        ):
            raise BadInput(f"sampling weights: expected {self.n_sources} finite values of 0 or more, not all 0")

    @property
    def size(self) -> int:
        """Sources in a batch: `batch_size`, or all where there are fewer."""
        return min(self.batch_size, self.n_sources)

    def batch(self, step: int) -> Indices:
        """Indices of step `step`, (size,); an epoch's rest is dropped. Weighted draws come by blocks of a million."""
        drawn = self.n_sources if self.weights is None else min(self.n_sources, max(self.size, BLOCK))
        epoch, position = divmod(step, drawn // self.size)
        if epoch not in self._epochs:
            rng = np.random.default_rng((self.seed, epoch))
            if len(self._epochs) > 1:  # two: one is asked for this step and, ahead, for the next
                self._epochs.pop(min(self._epochs))
            if self.weights is None:
                self._epochs[epoch] = rng.permutation(self.n_sources)
            else:
                self._epochs[epoch] = rng.choice(self.n_sources, drawn, p=self.weights / self.weights.sum())
        return self._epochs[epoch][position * self.size : (position + 1) * self.size]

    def describe(self) -> dict[str, Any]:
        """What must be equal for a resumed run to see the same batches."""
        digest = None if self.weights is None else hashlib.sha256(self.weights.tobytes()).hexdigest()
        return {"n_sources": self.n_sources, "batch_size": self.batch_size, "seed": self.seed, "weights": digest}


def flat_weights(magnitude: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Sampling weights that make the draw flat in magnitude, (N,), instead of following the faint-heavy counts.

    A bin's sources are weighted by at most 20 times the commonest ones, so that a lone bright star is not every batch.
    Sources without a magnitude (NaN) are drawn as often as the average source.
    """
    value = np.asarray(magnitude, dtype=np.float64)
    known = np.isfinite(value)
    if not known.any():
        return np.ones(len(value))
    bins = np.floor(value[known] / BIN_MAG).astype(np.int64)
    _, inverse, counts = np.unique(bins, return_inverse=True, return_counts=True)
    weights = np.ones(len(value))
    drawn = np.minimum(1 / counts[inverse], 20 / counts.max())
    weights[known] = drawn / drawn.mean()
    return weights

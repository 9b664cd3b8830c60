"""Importance weights of labelled sources under covariate shift: the neighbour density ratio of Lima et al. 2008.

w_i = (N_i / n_target) / (K / n_labelled), with N_i the number of targets nearer to label i than its K-th labelled
neighbour (itself left out). Exact; targets are streamed in blocks, so memory stays flat.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.knn import exact_neighbours
from redshelf.models.metrics import effective_sample_size

Floats = npt.NDArray[np.float64]
LOW_ESS = 1000.0
LOW_MEAN_WEIGHT = 0.8
NULL_FRACTION = 0.9


@dataclass(frozen=True)
class ShiftWeights:
    """Weights (N,) of N labelled sources. A `mean_weight` far below 1: targets lie where no label is near."""

    method: str
    weights: Floats
    effective_sample_size: float
    mean_weight: float

    @property
    def is_null(self) -> bool:
        """Whether labels and target differ so little that weights could only add noise."""
        return self.effective_sample_size > NULL_FRACTION * len(self.weights) and self.mean_weight > NULL_FRACTION

    def warnings(self) -> list[str]:
        """What a reader of weighted numbers must know, in words; empty when all is well."""
        out = []
        if self.effective_sample_size < min(LOW_ESS, 0.5 * len(self.weights)):
            out.append(f"effective sample size {self.effective_sample_size:.0f} of {len(self.weights)} labels: noisy")
        if self.mean_weight < LOW_MEAN_WEIGHT:
            out.append(
                f"mean weight {self.mean_weight:.2f} instead of 1: targets lie outside every label's neighbourhood"
            )
        return out


def neighbour_weights(
    labelled: npt.ArrayLike, target: npt.ArrayLike, *, k: int = 30, block_pairs: int = 20_000_000
) -> ShiftWeights:
    """Lima 2008 weights of `labelled` (N, D) towards `target` (M, D), both in one standardised space of few dimensions.

    `k` is lowered to N - 1 where there are fewer labels. `BadInput` for under 2 labels, no target, unequal D or NaN.
    """
    bank, points = np.asarray(labelled, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if bank.ndim != 2 or points.ndim != 2 or bank.shape[1] != points.shape[1] or len(bank) < 2 or len(points) < 1:
        raise BadInput(f"labelled {bank.shape}, target {points.shape}: expected (N >= 2, D) and (M >= 1, D)")
    if not (np.isfinite(bank).all() and np.isfinite(points).all()):
        raise BadInput("labelled or target features hold NaN or infinity: expected finite values")
    if k < 1:
        raise BadInput(f"k={k}: expected at least 1")
    k = min(k, len(bank) - 1)
    centre = bank.mean(axis=0)  # small norms keep the expanded square below exact
    bank, points = bank - centre, points - centre
    distance, _ = exact_neighbours(bank, bank, k, exclude=np.arange(len(bank)))
    # Equal distances (a label that is also a target) must count on both sides of rounding.
    square = distance[:, -1] ** 2 * (1 + 1e-9) + 1e-24
    bank_norm = (bank**2).sum(axis=1)
    counts = np.zeros(len(bank))
    step = max(1, min(len(points), block_pairs // len(bank)))
    for start in range(0, len(points), step):
        block = points[start : start + step]
        limit = (0.5 * (bank_norm - square))[:, None] + 0.5 * (block**2).sum(axis=1)
        counts += (bank @ block.T >= limit).sum(axis=1)  # d^2 <= r^2, rearranged: one comparison a pair
    weights = (counts / len(points)) / (k / len(bank))
    return ShiftWeights("neighbour-ratio", weights, effective_sample_size(weights), float(weights.mean()))

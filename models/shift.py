"""Importance weights of labelled sources under covariate shift: what every method returns, and the neighbour ratio.

A weight estimates w(x) = p_target(x) / p_labels(x). A method is a function of labels and targets (`ShiftMethod`);
others are in `ratio_kernels`, `ratio_matching`, `ratio_classifier` and `ratio_strata`, the choice in `ratio_choice`.
Here: Lima et al. 2008, w_i = (N_i / n_target) / (K / n_labelled), with N_i the number of targets nearer to label i than
its K-th labelled neighbour (itself left out), and Cunha et al. 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from redshelf.models.bank import exact_neighbours
from redshelf.models.errors import BadInput
from redshelf.models.metrics import effective_sample_size
from redshelf.models.ratio_space import BLOCK_PAIRS, Floats, Ints, Space, counts_within, fit_space, sampled

LOW_ESS = 1000.0
LOW_MEAN_WEIGHT = 0.8
NULL_FRACTION = 0.9
SEPARABLE_AUC = 0.95
MANY_LOST = 0.1
REFERENCE = 4000  # of the labels, and as many of the targets
NEAREST = 5
AT_ROWS = 65_536


class ShiftMethod(Protocol):
    """Labels (L, P) and targets (M, P), in one standardised space, to weights; the same seed gives the same ones."""

    def __call__(self, labelled: npt.ArrayLike, target: npt.ArrayLike, *, seed: int = 0) -> ShiftWeights: ...


def _none(*shape: int) -> npt.NDArray[Any]:
    return np.zeros(shape, dtype=np.float32)


@dataclass(frozen=True)
class ShiftWeights:
    """Weights (N,) of N labelled sources. A `mean_weight` far below 1: targets lie where no label is near.

    No label's own weight was estimated with its help. `reference` (R, Q) are labels and targets with the ratio of each
    (R,), from which `at` tells the ratio anywhere; `centre` (P,) and `components` (P, Q) lead there, (P, 0) by plain
    subtraction. `strata` (N,): the stratum of each label, from 0, for the method that has them. `details`: what the
    method chose and saw, as JSON.
    """

    method: str
    weights: Floats
    effective_sample_size: float
    mean_weight: float
    reference: npt.NDArray[np.float32] = field(default_factory=lambda: _none(0, 0))
    reference_weights: Floats = field(default_factory=lambda: np.zeros(0))
    centre: Floats = field(default_factory=lambda: np.zeros(0))
    components: Floats = field(default_factory=lambda: np.zeros((0, 0)))
    strata: Ints = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_null(self) -> bool:
        """Whether labels and target differ so little that weights could only add noise."""
        return self.effective_sample_size > NULL_FRACTION * len(self.weights) and self.mean_weight > NULL_FRACTION

    def at(self, points: npt.ArrayLike) -> Floats:
        """The density ratio at `points` (N, P), in the columns of the fit: the mean over the nearest reference points.

        A label asked for here meets itself: its own, unseen weight is in `weights`. `BadInput` for another width, NaN.
        """
        import faiss

        if not len(self.reference):
            raise BadInput(f"weights by {self.method!r} hold no reference points: expected those of a fitted method")
        x = np.asarray(points)
        space, out = Space(self.centre, self.components), np.empty(len(x))
        for start in range(0, max(len(x), 1), AT_ROWS):  # once for no points, to check their width
            block = np.ascontiguousarray(space(x[start : start + AT_ROWS]), dtype=np.float32)
            if len(block):
                _, near = faiss.knn(block, self.reference, min(NEAREST, len(self.reference)))
                out[start : start + AT_ROWS] = self.reference_weights[near].mean(axis=1)
        return out

    def warnings(self) -> list[str]:
        """What a reader of weighted numbers must know, in words; empty when all is well."""
        out = []
        if self.effective_sample_size < min(LOW_ESS, 0.5 * len(self.weights)):
            out.append(f"effective sample size {self.effective_sample_size:.0f} of {len(self.weights)} labels: noisy")
        lost, auc = self.details.get("targets_lost", 0.0), self.details.get("auc", 0.5)
        # a relative ratio is below the ratio wherever that exceeds 1: its mean says nothing of lost targets
        if self.mean_weight < LOW_MEAN_WEIGHT and not self.details.get("alpha"):
            out.append(
                f"mean weight {self.mean_weight:.2f} instead of 1: targets lie outside every label's neighbourhood"
            )
        elif lost > MANY_LOST:
            out.append(f"{lost:.0%} of the targets lie outside every label's neighbourhood")
        if auc > SEPARABLE_AUC:
            out.append(f"labels and targets are nearly separable (AUC {auc:.3f}): few labels carry the weight")
        return out


def weighed(
    method: str, weights: Floats, space: Space, reference: Floats, reference_weights: Floats, **more: Any
) -> ShiftWeights:
    """`ShiftWeights` of `weights` (N,) with its reference points (R, Q) of `space` and the ratio there (R,)."""
    return ShiftWeights(
        method,
        np.asarray(weights, dtype=np.float64),
        effective_sample_size(weights),
        float(weights.mean()),
        np.ascontiguousarray(reference, dtype=np.float32),
        np.asarray(reference_weights, dtype=np.float64),
        space.centre,
        space.components,
        **more,
    )


def uniform_weights(labelled: npt.ArrayLike, target: npt.ArrayLike, *, seed: int = 0) -> ShiftWeights:
    """1 everywhere: the candidate that every other one must beat where there is no shift."""
    space, bank, _ = fit_space(labelled, target, seed=seed)
    return weighed("none", np.ones(len(bank)), space, bank[:1], np.ones(1))


def neighbour_weights(
    labelled: npt.ArrayLike, target: npt.ArrayLike, *, k: int = 30, block_pairs: int = BLOCK_PAIRS, seed: int = 0
) -> ShiftWeights:
    """Lima 2008 weights of `labelled` (N, D) towards `target` (M, D), both in one standardised space of few dimensions.

    Exact; for the cost see `ratio_space.counts_within`. The ratio at a target is (n / (M - 1)) / (K / (N + 1)), with n
    the other targets nearer than its K-th label. `k` is lowered to N - 1 where there are fewer labels; of more than 16
    dimensions the 16 leading components are used. `BadInput` for under 2 labels, no target, unequal D or NaN.
    """
    space, bank, wanted = fit_space(labelled, target, seed=seed)
    if k < 1:
        raise BadInput(f"k={k}: expected at least 1")
    k = min(k, len(bank) - 1)
    distance, _ = exact_neighbours(bank, bank, k, exclude=np.arange(len(bank)))
    others = space(wanted[sampled(len(wanted), REFERENCE, seed)], "target features")
    reach, _ = exact_neighbours(bank, others, k)
    radius = np.concatenate([distance[:, -1], reach[:, -1]])
    counts, reached = counts_within(
        np.concatenate([bank, others]), radius**2, len(bank), space, wanted, max(1, block_pairs)
    )
    weights = (counts[: len(bank)] / len(wanted)) / (k / len(bank))
    at_targets = ((counts[len(bank) :] - 1) / max(len(wanted) - 1, 1)) / (k / (len(bank) + 1))
    rows = sampled(len(bank), REFERENCE, seed)
    details = {"k": k, "targets_lost": 1 - reached / len(wanted)}
    return weighed(
        "neighbour-ratio",
        weights,
        space,
        np.concatenate([bank[rows], others]),
        np.concatenate([weights[rows], np.maximum(at_targets, 0)]),
        details=details,
    )


def cunha_weights(
    labelled: npt.ArrayLike, target: npt.ArrayLike, *, k: int = 30, block_pairs: int = BLOCK_PAIRS, seed: int = 0
) -> ShiftWeights:
    """Cunha et al. 2009: the neighbour ratio towards those targets alone that are connected to a label.

    A target is connected when it lies within the K-th neighbour's distance of any label; `targets_lost` of the details
    is the fraction that is not. As lost targets are in nobody's count, dropping them divides every weight by the
    connected fraction. The per-object half of the paper, p(z) = sum w_j delta(z - z_j) / sum w_j over the labels
    nearest to a target, is what `knn.KnnRedshift` does with these weights: `knn.kernel_weights` multiplies those of a
    query's own neighbours with its distance kernel and lets each row sum to 1. At a lost target `at` gives the ratio
    there as it is, not 0: a source without labels must not look well supported.
    """
    found = neighbour_weights(labelled, target, k=k, block_pairs=block_pairs, seed=seed)
    connected = 1 - float(found.details["targets_lost"])
    return replace(_scaled(found, 1 / connected if connected else 1.0), method="cunha")


def _scaled(shift: ShiftWeights, factor: float) -> ShiftWeights:
    weights = shift.weights * factor
    return replace(
        shift,
        weights=weights,
        effective_sample_size=effective_sample_size(weights),
        mean_weight=float(weights.mean()),
        reference_weights=shift.reference_weights * factor,
    )


def clipped(shift: ShiftWeights, *, value: float | None = None, quantile: float | None = None) -> ShiftWeights:
    """Weights of at most `value`, or of at most their `quantile`; so is the ratio that `at` gives.

    The mean falls by what was cut, and stays so: what is below the limit is still a density ratio, and the mean still
    tells how much of the target is spoken for.
    """
    if (value is None) == (quantile is None):
        raise BadInput(f"value={value}, quantile={quantile}: expected one of the two")
    if value is None:
        assert quantile is not None
        if not 0 < quantile <= 1:
            raise BadInput(f"quantile={quantile}: expected above 0, at most 1")
        value = float(np.quantile(shift.weights, quantile))
        if value == 0 and shift.weights.any():
            raise BadInput(f"quantile={quantile} of the weights is 0: clipped there, none would be left")
    elif not value > 0:
        raise BadInput(f"value={value}: expected above 0")
    kept = replace(
        shift,
        weights=np.minimum(shift.weights, value),
        reference_weights=np.minimum(shift.reference_weights, value),
        method=f"{shift.method}, clipped at {value:.3g}",
    )
    return _scaled(kept, 1.0)


def powered(shift: ShiftWeights, gamma: float) -> ShiftWeights:
    """Weights to the power `gamma`, 0 (none) to 1 (as they are), scaled so that their mean stays what it was.

    The scale of a power means nothing by itself; with the mean kept, weights and `at` compare with those of the ratio.
    """
    if not 0 <= gamma <= 1:
        raise BadInput(f"gamma={gamma}: expected 0 to 1")
    kept = replace(
        shift,
        weights=shift.weights**gamma,
        reference_weights=shift.reference_weights**gamma,
        method=f"{shift.method}^{gamma:g}",
    )
    return _scaled(kept, shift.mean_weight / float(kept.weights.mean())) if shift.weights.any() else shift

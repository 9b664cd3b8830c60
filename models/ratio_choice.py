"""Which shift weights to use, by importance-weighted validation on labels and targets that no candidate has seen.

The risk is that of Izbicki, Lee & Freeman (2017), R = 1/2 mean_labels r^2 - mean_targets r: up to a constant the mean
squared error of the ratio r over the labels. Lower is better; r = 1 everywhere has -1/2. It has no bound where targets
have no labels: any large r there lowers it (zCOSMOS with all labels brighter than all targets: a classifier whose
labels have a mean weight of 0.03 came first). So it decides only where labels reach most of the targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.metrics import weighted_mean, weighted_mean_error
from redshelf.models.ratio_classifier import classifier_weights
from redshelf.models.ratio_kernels import rulsif_weights, ulsif_weights
from redshelf.models.ratio_matching import kmm_weights
from redshelf.models.ratio_space import Floats, sampled
from redshelf.models.ratio_strata import strata_weights
from redshelf.models.shift import ShiftMethod, ShiftWeights, cunha_weights, neighbour_weights, uniform_weights

DEFAULT = "neighbour-ratio"
METHODS: Mapping[str, ShiftMethod] = MappingProxyType(
    {
        "none": uniform_weights,
        DEFAULT: neighbour_weights,
        "cunha": cunha_weights,
        "classifier": classifier_weights,
        "ulsif": ulsif_weights,
        "rulsif": rulsif_weights,
        "kmm": kmm_weights,
        "strata": strata_weights,
    }
)
FOLDS = 3
LEAST_REACH = 0.5  # of the first candidate's mean weight, and of another's beside it
LABELS, TARGETS = 20_000, 40_000  # of the validation


def density_ratio_risk(at_labels: npt.ArrayLike, at_targets: npt.ArrayLike) -> tuple[float, float]:
    """R = 1/2 mean r^2 over labels (L,) - mean r over targets (M,), and its standard error."""
    near, far = np.asarray(at_labels, dtype=np.float64), np.asarray(at_targets, dtype=np.float64)
    return _risk(0.5 * near**2, far)


def _risk(label_terms: Floats, target_terms: Floats) -> tuple[float, float]:
    if not len(label_terms) or not len(target_terms):
        raise BadInput(f"{len(label_terms)} labels, {len(target_terms)} targets: expected some of both")
    error = label_terms.var() / len(label_terms) + target_terms.var() / len(target_terms)
    return float(label_terms.mean() - target_terms.mean()), float(np.sqrt(error))


def _unseen(
    method: ShiftMethod, labelled: Floats, target: Floats, folds: tuple[npt.NDArray[np.int64], ...], seed: int
) -> tuple[Floats, Floats]:
    """The ratio `at` labels and targets of each fold, fitted on the others."""
    out = np.empty(len(labelled)), np.empty(len(target))
    for number in range(FOLDS):
        seen = [fold != number for fold in folds]
        fit = method(labelled[seen[0]], target[seen[1]], seed=seed)
        for values, points, used in zip(out, (labelled, target), seen, strict=True):
            values[~used] = fit.at(points[~used])
    return out


def choose_weights(
    candidates: Mapping[str, ShiftMethod],
    labelled: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    redshifts: npt.ArrayLike | None = None,
    seed: int = 0,
) -> tuple[ShiftWeights, dict[str, Any]]:
    """The weights of the chosen method for all of `labelled` (L, P) and `target` (M, P), and a report as JSON.

    Each candidate is fitted on two thirds of the labels and targets and judged by `at` on the last third, three times
    round (on at most 20,000 labels and 40,000 targets). The first candidate (`neighbour-ratio` where it is among them)
    stays, unless the one of least risk among the others beats it by more than the standard error of the difference,
    paired on the same sources, and has at least half of its mean weight. Where the first one's mean weight is below 0.5
    the risk says nothing, and it stays. With `redshifts` (L,) the report holds the weighted mean redshift and error.

    A candidate that refuses these sets is reported as refused, with its words; `BadInput` when the first one does, or
    there is none, or there are under 3 labels or targets.
    """
    if not candidates:
        raise BadInput("no candidates: expected at least one method of shift weights")
    x, wanted = np.asarray(labelled, dtype=np.float64), np.asarray(target)
    first = DEFAULT if DEFAULT in candidates else next(iter(candidates))
    if x.ndim != 2 or wanted.ndim != 2 or len(x) < FOLDS or len(wanted) < FOLDS:
        raise BadInput(f"labelled {x.shape}, target {wanted.shape}: expected at least {FOLDS} rows of each")
    z = None if redshifts is None else np.asarray(redshifts, dtype=np.float64)
    if z is not None and (z.shape != (len(x),) or not np.isfinite(z).all()):
        raise BadInput(f"redshifts of shape {z.shape}: expected {len(x)} finite values")
    near, far = x[sampled(len(x), LABELS, seed)], np.asarray(wanted[sampled(len(wanted), TARGETS, seed)], np.float64)
    rng = np.random.default_rng(seed)
    folds = tuple(rng.permutation(len(part)) % FOLDS for part in (near, far))
    fits: dict[str, ShiftWeights] = {}
    ratios: dict[str, tuple[Floats, Floats]] = {}
    report: dict[str, Any] = {}
    for name in (first, *(name for name in candidates if name != first)):
        try:
            ratios[name] = _unseen(candidates[name], near, far, folds, seed)
            fits[name] = candidates[name](x, wanted, seed=seed)
        except BadInput as error:
            if name == first:
                raise
            ratios.pop(name, None)
            report[name] = {"refused": str(error)}
            continue
        report[name] = _scores(fits[name], ratios, name, first, z)
    reach = fits[first].mean_weight
    better = [
        name
        for name in fits
        if report[name]["gain"] > report[name]["gain_error"] and fits[name].mean_weight >= LEAST_REACH * reach
    ]
    decided = reach >= LEAST_REACH
    chosen = min(better, key=lambda name: float(report[name]["risk"])) if better and decided else first
    return fits[chosen], {"chosen": chosen, "first": first, "by_risk": decided, "candidates": report}


def _scores(
    fit: ShiftWeights, ratios: Mapping[str, tuple[Floats, Floats]], name: str, first: str, z: Floats | None
) -> dict[str, Any]:
    risk, error = density_ratio_risk(*ratios[name])
    (own_near, own_far), (near, far) = ratios[name], ratios[first]
    gain, gain_error = _risk(0.5 * (near**2 - own_near**2), far - own_far)
    out: dict[str, Any] = {
        "effective_sample_size": fit.effective_sample_size,
        "mean_weight": fit.mean_weight,
        "risk": risk,
        "risk_error": error,
        "gain": gain,
        "gain_error": gain_error,
        "warnings": fit.warnings(),
        "details": dict(fit.details),
    }
    if "auc" in fit.details:
        out["auc"] = fit.details["auc"]
    if z is not None and fit.weights.any():
        out["weighted_mean_z"] = weighted_mean(z, fit.weights)
        out["weighted_mean_z_error"] = weighted_mean_error(z, fit.weights)
    return out

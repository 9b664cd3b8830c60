"""The density ratio from a classifier of targets against labels, out-of-fold and calibrated.

w = P / (1 - P) * n_labels / n_targets, with P the probability of being a target (LightGBM, five folds). Raw scores of a
fold come from trees that saw the other four, and are turned into probabilities by what the other four folds show.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from redshelf.models import curves
from redshelf.models.errors import BadInput
from redshelf.models.ratio_space import Floats, fit_space, sampled
from redshelf.models.shift import REFERENCE, ShiftWeights, weighed
from redshelf.models.threads import default_threads

FOLDS = 5
ROUNDS = 100
LEAST_LEAF, MOST_LEAF = 5, 100
TARGETS_PER_LABEL, LEAST_TARGETS, MOST_TARGETS = 4, 10_000, 200_000
LIMITS = (0.02, 20.0)
PARAMETERS: dict[str, Any] = {
    "objective": "binary",
    "learning_rate": 0.03,
    "num_leaves": 8,  # with 31 leaves and 0.05 the ratio's squared error was 2 to 4 times as large on Gaussian shifts
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
NEWTON_STEPS = 50


def logistic(x: Floats, y: Floats, *, ridge: float) -> Floats:
    """Coefficients (D + 1,), the constant last, of P(y = 1 | x), x (N, D), y (N,) of 0 and 1, by Newton's steps.

    `ridge` is added to the curvature of the mean loss for each coefficient but the constant: it decides where columns
    are collinear or the classes separable.
    """
    design = np.column_stack([x, np.ones(len(x))])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0
    share = np.clip(y.mean(), 1e-6, 1 - 1e-6)
    out = np.zeros(design.shape[1])
    out[-1] = np.log(share / (1 - share))

    def loss(beta: Floats) -> float:
        score = design @ beta
        return float((np.logaddexp(0, score) - y * score).mean() + 0.5 * (penalty * beta**2).sum())

    now = loss(out)
    for _ in range(NEWTON_STEPS):
        p = sigmoid(design @ out)
        gradient = design.T @ (p - y) / len(y) + penalty * out
        curvature = (design * (p * (1 - p))[:, None]).T @ design / len(y) + np.diag(penalty + 1e-12)
        step = np.linalg.solve(curvature, gradient)
        size = 1.0
        while (trial := loss(out - size * step)) > now and size > 1e-6:
            size /= 2
        out, before, now = out - size * step, now, min(trial, now)
        if before - now < 1e-12:
            break
    return out


def sigmoid(score: Floats) -> Floats:
    """1 / (1 + exp(-score)), without overflow."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * score)))


def auc(score: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Probability that a random row with y = 1 has the greater score than one with y = 0, ties by half; 0.5 of
    one class alone."""
    s, positive = np.asarray(score, dtype=np.float64), np.asarray(y, dtype=bool)
    return curves.auc(s[~positive], s[positive]) if positive.any() and not positive.all() else 0.5


def calibrated(score: Floats, y: Floats, at: Floats, *, method: Literal["isotonic", "platt"]) -> Floats:
    """P(y = 1) at scores `at` (K,), from scores (N,) and classes (N,).

    *isotonic*: the increasing steps of least squares, linear between them (Zadrozny & Elkan 2002). *platt*: a logistic
    curve (Platt 1999), for few rows.
    """
    if method == "platt":
        spread = float(score.std()) or 1.0
        slope, constant = logistic(((score - score.mean()) / spread)[:, None], y, ridge=1e-6)
        return sigmoid(slope * (at - score.mean()) / spread + constant)
    from scipy.optimize import isotonic_regression

    order = np.argsort(score, kind="stable")
    values, first, counts = np.unique(score[order], return_index=True, return_counts=True)
    means = np.add.reduceat(y[order], first) / counts
    steps = np.asarray(isotonic_regression(means, weights=counts).x)
    return np.asarray(np.interp(at, values, steps))


def classifier_weights(
    labelled: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    calibration: Literal["isotonic", "platt"] = "platt",
    limits: tuple[float, float] = LIMITS,
    seed: int = 0,
) -> ShiftWeights:
    """Weights of `labelled` (L, P) towards `target` (M, P), clipped to `limits`; `details` hold the out-of-fold AUC.

    Of the targets at most 4 a label are drawn (10,000 to 200,000). Isotonic steps reach probabilities of 0 and 1 at
    both ends, where the limits decide; on Gaussian shifts their squared error was 2 to 5 times that of Platt's curve.
    An AUC of 0.5 is no shift; above 0.95 labels and targets are nearly separable, and few labels carry the weight.
    `BadInput` as `fit_space`, and for under 5 labels or targets.
    """
    import lightgbm

    if calibration not in ("isotonic", "platt") or not 0 <= limits[0] < limits[1]:
        raise BadInput(
            f"calibration={calibration!r}, limits={limits}: expected 'isotonic' or 'platt', 0 <= lower < upper"
        )
    space, bank, wanted = fit_space(labelled, target, least=FOLDS, seed=seed)
    if len(bank) < FOLDS:
        raise BadInput(f"{len(bank)} labels: expected at least {FOLDS}, one a fold")
    most = int(np.clip(TARGETS_PER_LABEL * len(bank), LEAST_TARGETS, MOST_TARGETS))
    some = space(wanted[sampled(len(wanted), most, seed)], "target features")
    x = np.concatenate([bank, some])
    y = np.repeat([0.0, 1.0], [len(bank), len(some)])
    rng = np.random.default_rng(seed)
    fold = np.concatenate([rng.permutation(n) % FOLDS for n in (len(bank), len(some))])
    leaf = int(np.clip(len(x) // 20, LEAST_LEAF, MOST_LEAF))
    score = np.empty(len(x))
    for number in range(FOLDS):
        seen = fold != number
        data = lightgbm.Dataset(x[seen], y[seen], params={"verbosity": -1})
        options = {**PARAMETERS, "min_data_in_leaf": leaf, "seed": seed + number, "num_threads": default_threads()}
        score[~seen] = lightgbm.train(options, data, ROUNDS).predict(x[~seen], raw_score=True)
    ratio = np.empty(len(x))
    for number in range(FOLDS):
        seen = fold != number
        p = calibrated(score[seen], y[seen], score[~seen], method=calibration)
        odds = p / np.maximum(1 - p, 1e-12)
        ratio[~seen] = odds * (y[seen] == 0).sum() / (y[seen] == 1).sum()
    ratio = np.clip(ratio, *limits)
    rows, others = sampled(len(bank), REFERENCE, seed), len(bank) + sampled(len(some), REFERENCE, seed)
    kept = np.concatenate([rows, others])
    details = {"auc": auc(score, y), "calibration": calibration, "limits": list(limits)}
    return weighed("classifier", ratio[: len(bank)], space, x[kept], ratio[kept], details=details)

"""StratLearn (Autenrieth et al. 2023): strata of like propensity to be labelled, inside which labels stand for targets.

The propensity e(x) = P(label | x) is a logistic regression on all observables, out-of-fold; labels and targets together
are cut into strata of equal size, the first with the highest propensity. Balance inside each is reported, and strata
with few labels are merged with the one before them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.ratio_classifier import FOLDS, auc, logistic
from redshelf.models.ratio_space import Floats, Ints, Space, fit_space, sampled
from redshelf.models.shift import REFERENCE, ShiftWeights, weighed

STRATA = 5
FEW_LABELS = 500
FEW_SHARE = 0.1  # of all labels: the lower of the two is the least of a stratum
RIDGE = 1e-4
TARGETS_PER_LABEL, LEAST_TARGETS = 4, 10_000


@dataclass(frozen=True)
class Strata:
    """Strata of labels (L,) and of the targets that were drawn (T, Q), and how to find that of any point.

    `score` (Q + 1,): the propensity's coefficients, on columns divided by `scale` (Q,); `cuts`: falling scores between
    strata. `balance`: for each stratum its labels and targets and how far they differ.
    """

    space: Space
    scale: Floats
    score: Floats
    cuts: Floats
    labels: Ints
    targets: Ints
    label_points: Floats
    target_points: Floats
    auc: float
    balance: list[dict[str, float]]

    def of(self, points: npt.ArrayLike) -> Ints:
        """The stratum of points (N, P), from 0, that of the highest propensity, (N,)."""
        x = self.space(points) / self.scale
        return _stratum(x @ self.score[:-1] + self.score[-1], self.cuts)

    def ratio(self) -> Floats:
        """The density ratio in each stratum, (S,)."""
        n = len(self.cuts) + 1
        labels, targets = (np.bincount(rows, minlength=n) for rows in (self.labels, self.targets))
        return np.asarray(targets / len(self.targets) / (np.maximum(labels, 1) / len(self.labels)))


def _stratum(score: Floats, cuts: Floats) -> Ints:
    return np.searchsorted(-cuts, -score, side="left").astype(np.int64)


def _merged(score: Floats, n_labels: int, strata: int) -> Floats:
    """Cuts between strata of equal size, but for those taken away because one side had few labels."""
    cuts = list(np.unique(np.quantile(score, 1 - np.arange(1, strata) / strata))[::-1])
    least = min(FEW_LABELS, FEW_SHARE * n_labels)
    while cuts:
        counts = np.bincount(_stratum(score[:n_labels], np.array(cuts)), minlength=len(cuts) + 1)
        poor = [row for row in range(len(counts)) if counts[row] < least]
        if not poor:
            break
        cuts.pop(max(poor[-1] - 1, 0))  # into the stratum before it, whose labels are the nearest in propensity
    return np.array(cuts, dtype=np.float64)


def _balance(labels: Floats, targets: Floats) -> dict[str, float]:
    """Counts, and the largest standardised mean difference and Kolmogorov-Smirnov distance over the columns."""
    out = {"labels": float(len(labels)), "targets": float(len(targets))}
    if len(labels) and len(targets):
        spread = np.sqrt(0.5 * (labels.var(axis=0) + targets.var(axis=0)))
        gap = np.abs(labels.mean(axis=0) - targets.mean(axis=0)) / np.where(spread > 0, spread, 1)
        both = np.sort(np.concatenate([labels, targets]), axis=0)
        steps = [
            np.searchsorted(np.sort(a), points, "right") / len(a)
            - np.searchsorted(np.sort(b), points, "right") / len(b)
            for a, b, points in zip(labels.T, targets.T, both.T, strict=True)
        ]
        out |= {"smd": float(gap.max()), "ks": float(np.abs(steps).max())}
    return out


def fit_strata(labelled: npt.ArrayLike, target: npt.ArrayLike, *, strata: int = STRATA, seed: int = 0) -> Strata:
    """At most `strata` strata of `labelled` (L, P) and `target` (M, P), of which at most 4 a label are looked at.

    A stratum has at least 500 labels, or a tenth of them where that is less. `BadInput` as `fit_space`, and for
    under 5 labels or targets.
    """
    if strata < 1:
        raise BadInput(f"strata={strata}: expected at least 1")
    space, bank, wanted = fit_space(labelled, target, least=FOLDS, seed=seed)
    if len(bank) < FOLDS:
        raise BadInput(f"{len(bank)} labels: expected at least {FOLDS}, one a fold")
    most = max(TARGETS_PER_LABEL * len(bank), LEAST_TARGETS)
    some = space(wanted[sampled(len(wanted), most, seed)], "target features")
    x = np.concatenate([bank, some])
    scale = x.std(axis=0)
    scale = np.where(scale > 1e-9 * (1 + np.abs(x).max(axis=0)), scale, 1.0)
    x, y = x / scale, np.repeat([1.0, 0.0], [len(bank), len(some)])
    rng = np.random.default_rng(seed)
    fold = np.concatenate([rng.permutation(n) % FOLDS for n in (len(bank), len(some))])
    score = np.empty(len(x))
    for number in range(FOLDS):
        beta = logistic(x[fold != number], y[fold != number], ridge=RIDGE)
        score[fold == number] = x[fold == number] @ beta[:-1] + beta[-1]
    cuts = _merged(score, len(bank), strata)
    rows = _stratum(score, cuts)
    labels, targets = rows[: len(bank)], rows[len(bank) :]
    balance = [_balance(x[: len(bank)][labels == s], x[len(bank) :][targets == s]) for s in range(len(cuts) + 1)]
    return Strata(space, scale, logistic(x, y, ridge=RIDGE), cuts, labels, targets, bank, some, auc(score, y), balance)


def strata_weights(
    labelled: npt.ArrayLike, target: npt.ArrayLike, *, strata: int = STRATA, seed: int = 0
) -> ShiftWeights:
    """Each label's weight is its stratum's ratio of targets to labels; `strata` of the answer serve fits by stratum.

    AUC and balance of every stratum (labels, targets, largest `smd` and `ks` over the columns) are in `details`: a
    standardised difference above 0.1 or so says that the stratum's labels do not stand for its targets.
    """
    found = fit_strata(labelled, target, strata=strata, seed=seed)
    ratio = found.ratio()
    weights, at_targets = ratio[found.labels], ratio[found.targets]
    rows, others = (sampled(len(part), REFERENCE, seed) for part in (weights, at_targets))
    details: dict[str, Any] = {"auc": found.auc, "balance": found.balance}
    return weighed(
        "strata",
        weights,
        found.space,
        np.concatenate([found.label_points[rows], found.target_points[others]]),
        np.concatenate([weights[rows], at_targets[others]]),
        strata=found.labels,
        details=details,
    )

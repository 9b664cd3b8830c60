"""Densities and intervals that cover on the target what they say: weighted recalibration and weighted conformal sets.

Both rest on PIT values of labels that the estimator had not seen, weighted to the target. Recalibration passes each
CDF through the smoothed weighted distribution of those values (Bordoloi et al. 2010). Conformal intervals (Tibshirani
et al. 2019) take the score 2 |PIT - 1/2| (Chernozhukov et al. 2021) and give a query a mass at infinity for its own
weight: an interval is infinite where the labels cannot promise its level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.metrics import clearly_better, effective_sample_size
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
LOWER = (0.0, 2e-4, 2e-3, 0.01, 0.03, 0.08, 0.16, 0.25, 0.375)
KNOTS = np.array([*LOWER, 0.5, *(1 - p for p in reversed(LOWER))])  # of the map, dense where the tails are
PRIOR_SIZES = (10.0, 50.0)  # labels that the prior, an already calibrated density, counts for
FOLDS = 5


@dataclass(frozen=True)
class Calibration:
    """`images` (K,) of `KNOTS`, the recalibrated probabilities; ascending `scores` (n,) of labels and their `weights`.

    The scores are those of recalibrated densities.
    """

    images: Floats
    scores: Floats
    weights: Floats

    @property
    def is_recalibrated(self) -> bool:
        """Whether the map is another than the identity."""
        return not np.array_equal(self.images, KNOTS)

    def recalibrated(self, pdf: Pdf) -> Pdf:
        """Each CDF F passed through the map, R(F(z))."""
        if not self.is_recalibrated:
            return pdf
        return Pdf.from_mass(pdf.edges, np.maximum(np.diff(_mapped(self.images, pdf.cdf()), axis=1), 0))

    def mass_at_infinity(self, ratio: npt.ArrayLike) -> Floats:
        """The share of the conformal distribution that no label stands for, of queries with density `ratio` (N,)."""
        own = np.asarray(ratio, dtype=np.float64)
        return np.asarray(own / (self.weights.sum() + own))

    def interval(self, pdf: Pdf, ratio: npt.ArrayLike, level: float) -> tuple[Floats, Floats]:
        """Ends (N,) of conformal intervals of recalibrated densities; -inf and inf where the level cannot be held."""
        threshold = conformal_threshold(self.scores, self.weights, ratio, level)
        tail = np.clip(0.5 - 0.5 * np.where(np.isfinite(threshold), threshold, 0), 1e-9, 0.5)
        low, high = pdf.quantiles([tail, 1 - tail])
        endless = ~np.isfinite(threshold)
        return np.where(endless, -np.inf, low), np.where(endless, np.inf, high)


def conformal_threshold(scores: npt.ArrayLike, weights: npt.ArrayLike, ratio: npt.ArrayLike, level: float) -> Floats:
    """The `level` quantile of sum p_i delta(s_i) + p_inf delta(inf), p_i = w_i / (sum w + w(x)), for queries (N,).

    `scores` (n,) of held-out labels of `weights` (n,), `ratio` (N,) the density ratio w(x). With equal weights and
    ratios it is the ceil((n + 1) level)-th smallest score of split conformal prediction. Infinite where p_inf exceeds
    1 - level.
    """
    if not 0 < level < 1:
        raise BadInput(f"level={level}: expected 0 < level < 1")
    s, w, own = (np.asarray(value, dtype=np.float64) for value in (scores, weights, ratio))
    if s.shape != w.shape or s.ndim != 1 or not len(s) or not (w >= 0).all() or not (own >= 0).all():
        raise BadInput(f"conformal scores {s.shape}, weights {w.shape}: expected equal (n >= 1,), weights >= 0")
    order = np.argsort(s, kind="stable")
    reached = np.cumsum(w[order])
    wanted = level * (reached[-1] + own)
    at = np.searchsorted(reached * (1 + 1e-12), wanted)
    return np.asarray(np.append(s[order], np.inf)[at])


def fit_calibration(pdf: Pdf, z: npt.ArrayLike, weights: npt.ArrayLike, *, seed: int = 0) -> Calibration:
    """From densities of N labels that their estimator had not seen, their redshifts and weights (N,) to the target.

    The map is the distribution of the PIT, drawn to the identity as by 50 labels that were calibrated already; then the
    weighted distribution, drawn to that map as by 10 or 50 labels. Cross-validated log scores choose: a map stays
    unless the next one is clearly better, so that a dozen effective labels change nothing.
    """
    w = np.asarray(weights, dtype=np.float64)
    if w.shape != (len(pdf),) or not (np.isfinite(w) & (w >= 0)).all():
        raise BadInput(f"calibration weights of shape {w.shape}: expected ({len(pdf)},) finite ones of 0 or more")
    pit = pdf.pit(z)
    identity, one = np.diff(KNOTS), np.ones(len(pit))
    fold = np.random.default_rng((seed, len(pit))).permutation(len(pit)) % FOLDS
    bin_ = np.clip(np.searchsorted(KNOTS, pit, side="right") - 1, 0, len(KNOTS) - 2)

    def tried(weight: Floats, start: Callable[[npt.NDArray[np.bool_]], Floats], size: float) -> Floats:
        loss = np.empty(len(pit))
        for number in range(FOLDS):
            seen = fold != number
            share = _shares(bin_[seen], weight[seen], start(seen), size)
            loss[~seen] = -np.log(share / identity)[bin_[~seen]]
        return loss

    best, lowest = identity, np.zeros(len(pit))  # the identity's density is 1 everywhere
    plainly = tried(one, lambda _: identity, max(PRIOR_SIZES))
    if is_plain := clearly_better(lowest, plainly, one):
        best, lowest = _shares(bin_, one, identity, max(PRIOR_SIZES)), plainly
    plain = best

    def start(seen: npt.NDArray[np.bool_]) -> Floats:
        return _shares(bin_[seen], one[seen], identity, max(PRIOR_SIZES)) if is_plain else identity

    for size in PRIOR_SIZES:
        loss = tried(w, start, size)
        if clearly_better(lowest, loss, w):
            best, lowest = _shares(bin_, w, plain, size), loss
    images = KNOTS if best is identity else np.append(np.minimum(np.cumsum(np.append(0.0, best))[:-1], 1.0), 1.0)
    # of the recalibrated density itself: between edges it is not quite the map of the density's own PIT
    score = 2 * np.abs(Calibration(images, np.zeros(0), np.zeros(0)).recalibrated(pdf).pit(z) - 0.5)
    order = np.argsort(score, kind="stable")
    return Calibration(images, score[order], (w if w.any() else one)[order])


def _shares(bin_: npt.NDArray[np.int64], weights: Floats, prior: Floats, prior_size: float) -> Floats:
    """Share of the PIT values in each bin between `KNOTS`, with `prior_size` labels' worth of `prior`."""
    size = effective_sample_size(weights)
    if not size:
        return prior
    found = np.bincount(bin_, weights, minlength=len(prior)) / weights.sum()
    return np.asarray((size * found + prior_size * prior) / (size + prior_size))


def _mapped(images: Floats, probability: Floats) -> Floats:
    """Monotone smooth map through (`KNOTS`, `images`)."""
    from scipy.interpolate import PchipInterpolator

    return np.asarray(np.clip(PchipInterpolator(KNOTS, images)(probability), 0, 1))

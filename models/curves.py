"""Curves that a decision is read off: quality cuts, the cost of labels, and the size of a shift.

Where to cut on a flag (completeness against purity), whether more labels would help (score against their number), and
how far labelled and target sources differ (the AUC of a classifier between them, on which a score can be plotted).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.metrics import OUTLIER
from redshelf.models.weighted import Ints, checked_weights, finite


def threshold_curve(
    score: npt.ArrayLike,
    dz: npt.ArrayLike,
    thresholds: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    outlier: float = OUTLIER,
    minimum: int = 100,
) -> list[dict[str, float | None]]:
    """What a cut at score <= threshold (low is good) keeps of N objects: one row a threshold.

    threshold, n, kept (share of the weight), outliers (share of the kept with |dz| > `outlier`), purity (1 - outliers),
    completeness (share of all good objects that is kept), outliers_rest; None where fewer than `minimum` objects would
    be counted. `metrics.rejection_curve` asks the same at given kept fractions.
    """
    d = finite("dz", dz)
    s = np.asarray(score, dtype=np.float64)
    if s.shape != d.shape or len(d) == 0 or np.isnan(s).any():  # an infinite score is a fair "nowhere near"
        raise BadInput(f"score has shape {s.shape}, dz {d.shape}: expected two equal (N,), N > 0, no NaN")
    w = checked_weights(weights, len(d))
    order = np.argsort(s, kind="stable")
    zero = np.zeros(1)
    total = np.concatenate([zero, np.cumsum(w[order])])
    bad = np.concatenate([zero, np.cumsum((w * (np.abs(d) > outlier))[order])])
    rows: list[dict[str, float | None]] = []
    for threshold in np.asarray(thresholds, dtype=np.float64):
        if np.isnan(threshold):
            raise BadInput(f"thresholds hold {threshold}: expected numbers")
        n = int(np.searchsorted(s[order], threshold, side="right"))
        rate = _share(bad[n], total[n], n, minimum)
        rows.append(
            {
                "threshold": float(threshold),
                "n": float(n),
                "kept": float(total[n] / total[-1]),
                "outliers": rate,
                "purity": None if rate is None else 1 - rate,
                "completeness": _share(total[n] - bad[n], total[-1] - bad[-1], len(d), minimum),
                "outliers_rest": _share(bad[-1] - bad[n], total[-1] - total[n], len(d) - n, minimum),
            }
        )
    return rows


def auc(
    low: npt.ArrayLike,
    high: npt.ArrayLike,
    weights_low: npt.ArrayLike | None = None,
    weights_high: npt.ArrayLike | None = None,
) -> float:
    """Probability that a value of `high` (M,) exceeds one of `low` (N,), ties half: Mann-Whitney, weighted.

    Of a classifier's scores of labelled and target sources, held out, it is the size of the shift: 0.5 is none, and
    above 0.95 they hardly overlap.
    """
    a, b = finite("low", low), finite("high", high)
    if len(a) == 0 or len(b) == 0:
        raise BadInput(f"low has {len(a)} values, high {len(b)}: expected at least 1 of each")
    w, v = checked_weights(weights_low, len(a)), checked_weights(weights_high, len(b))
    order = np.argsort(a)
    steps = np.concatenate([[0.0], np.cumsum(w[order])]) / w.sum()
    under, upto = (steps[np.searchsorted(a[order], b, side=side)] for side in ("left", "right"))
    return float(np.average(0.5 * (under + upto), weights=v))


def label_curve(
    score: Callable[[Ints], float], n: int, sizes: Sequence[int], *, draws: int = 5, seed: int = 0
) -> list[dict[str, float | None]]:
    """`score` (any measure of a fit on some rows) against the number of labels, of which there are `n`.

    `score` takes row numbers (size,), drawn without replacement; within one draw the smaller sets are part of the
    larger, so that sizes are compared paired. One row a size: size, mean, spread (standard deviation over `draws`)
    and error (of the mean); the last two None for a single draw.
    """
    if draws < 1:
        raise BadInput(f"draws={draws}: expected at least 1")
    for size in sizes:
        if not 0 < size <= n:
            raise BadInput(f"sizes hold {size}: expected 1 to {n}, the labels there are")
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(n) for _ in range(draws)]
    rows: list[dict[str, float | None]] = []
    for size in sizes:
        values = np.array([score(np.sort(order[:size])) for order in orders])
        spread = float(values.std(ddof=1)) if draws > 1 else None
        error = None if spread is None else float(spread / np.sqrt(draws))
        rows.append({"size": float(size), "mean": float(values.mean()), "spread": spread, "error": error})
    return rows


def _share(part: float, whole: float, n: int, minimum: int) -> float | None:
    return float(np.clip(part / whole, 0, 1)) if n >= max(minimum, 1) and whole > 0 else None

"""Rankings: from examples to a query or to a score, and how alike two of them are.

*Rocchio* (Rocchio 1971; the weights are those of Manning, Raghavan & Schütze 2008, section 9.1.1): the mean of the
positive examples, moved away from the mean of the negative ones. *Discriminant*: ridge regression of positive against
negative examples and a background without labels, which tells the direction in which the positive ones differ. That
positive ones among the background do not change the order is shown by Elkan & Noto (2008); that a covariance of the
background makes a few examples enough, by Hariharan, Malik & Ramanan (2012). *Rank-biased overlap*: Webber, Moffat &
Zobel (2010).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

BETA, GAMMA = 0.75, 0.15  # of the positive and the negative mean
RIDGE = 0.3  # in units of the mean variance of a standardised number: examples are few
SHARES = (0.5, 0.1)  # of the weight: the positive examples, the negative ones; both as tried on simulated classes
PERSISTENCE = 0.9  # p of the overlap: the first ten ranks have 86% of the weight

Floats = npt.NDArray[np.float32]


def rocchio(positive: Floats, negative: Floats) -> Floats:
    """The query (D,) of positive (P, D) and negative (Q, D) examples; the mean of the former where Q is 0.

    The weights are divided by their sum, so that no point of the space is special: distances are Euclidean, where the
    papers compare directions.
    """
    centre = positive.mean(axis=0, dtype=np.float64)
    if len(negative):
        centre += GAMMA / (BETA - GAMMA) * (centre - negative.mean(axis=0, dtype=np.float64))
    return np.asarray(centre, dtype=np.float32)


@dataclass(frozen=True)
class Discriminant:
    """A linear score: `weights` (D,) and a constant."""

    weights: Floats
    constant: float

    def score(self, vectors: Floats) -> Floats:
        """Of vectors (N, D), (N,): about 1 where they are like the positive examples, -1 where they are not."""
        return np.asarray(vectors @ self.weights + np.float32(self.constant))


def discriminant(positive: Floats, negative: Floats, background: Floats) -> Discriminant:
    """Fit on positive (P, D) and negative (Q, D) examples and a background (B, D), whose spread is the unit of each
    number. However many they are, positive examples have half of the weight, and negative ones a tenth."""
    if not len(positive) or not len(background):
        raise BadInput(f"{len(positive)} positive examples before a background of {len(background)}: expected some")
    mean, spread = background.mean(axis=0, dtype=np.float64), background.std(axis=0, dtype=np.float64)
    scale = np.where(spread > 0, spread, 1.0)
    liked, unliked = SHARES[0], SHARES[1] if len(negative) else 0.0
    groups = [(positive, 1.0, liked), (background, -1.0, 1 - liked - unliked)]
    groups += [(negative, -1.0, unliked)] if len(negative) else []
    x = (np.concatenate([group for group, _, _ in groups]) - mean) / scale  # (N, D)
    y = np.concatenate([np.full(len(group), target) for group, target, _ in groups])
    share = np.concatenate([np.full(len(group), part / len(group)) for group, _, part in groups])
    middle, offset = share @ x, share @ y
    root = np.sqrt(share)[:, None]
    x, y = root * (x - middle), root[:, 0] * (y - offset)
    n, dim = x.shape
    ridge = RIDGE * max(float((x * x).sum()) / dim, 1e-12)
    if dim <= n:
        weights = np.linalg.solve(x.T @ x + ridge * np.eye(dim), x.T @ y) / scale
    else:  # the same, by the smaller matrix
        weights = x.T @ np.linalg.solve(x @ x.T + ridge * np.eye(n), y) / scale
    return Discriminant(weights.astype(np.float32), float(offset - weights @ (mean + middle * scale)))


def jaccard(a: Sequence[str], b: Sequence[str]) -> float | None:
    """Names in both over names in either, None where there is none."""
    return len({*a} & {*b}) / len({*a} | {*b}) if a or b else None


def rank_biased_overlap(a: Sequence[str], b: Sequence[str], *, p: float = PERSISTENCE) -> float | None:
    """RBO_ext of two rankings without ties, their equation 23, down to the end of the shorter one; None where one is
    empty. The share of names in common at each depth d, weighted by p^d, as if the last share went on for ever."""
    depth = min(len(a), len(b))
    if not depth:
        return None
    first = {name: rank for rank, name in enumerate(a[:depth])}
    both = [max(rank, first[name]) for rank, name in enumerate(b[:depth]) if name in first]  # where each is in both
    d = np.arange(1, depth + 1)
    share = np.bincount(both, minlength=depth).cumsum() / d
    return float(share[-1] * p**depth + (1 - p) / p * (share * p**d).sum())

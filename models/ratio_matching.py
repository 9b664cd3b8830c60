"""Kernel mean matching (Huang et al. 2007) for small sets: weights under which the labels' mean kernel is the target's.

min |mean_L b phi - mean_U phi|^2 + |b|^2 / L^2 with 0 <= b <= B, phi random Fourier features (Rahimi & Recht 2007) of a
Gaussian kernel and a constant that holds the mean of b near 1. The second term is the variance that weights add to the
first mean, so that nothing is matched beyond the noise.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.bank import exact_neighbours
from redshelf.models.errors import BadInput
from redshelf.models.ratio_space import Floats, fit_space, sampled
from redshelf.models.shift import NEAREST, REFERENCE, ShiftWeights, weighed

MOST_LABELS = 20_000
TARGETS = 20_000
FREQUENCIES = 200
LARGEST = 50.0
CONSTANT = 3.0  # the third feature's size: how hard the mean of b is held at 1
WIDTH = 0.5  # of the median distance between a label and a target
STEPS = 300


def fourier_features(points: Floats, frequencies: Floats) -> Floats:
    """cos, sin and a constant of points (N, Q) on frequencies (F, Q), (N, 2F + 1); squares of the first 2F sum to 1."""
    phase = points @ frequencies.T
    scale = np.sqrt(len(frequencies))
    return np.concatenate([np.cos(phase) / scale, np.sin(phase) / scale, np.full((len(points), 1), CONSTANT)], axis=1)


def kmm_weights(
    labelled: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    sigma: float | None = None,
    largest: float = LARGEST,
    frequencies: int = FREQUENCIES,
    seed: int = 0,
) -> ShiftWeights:
    """KMM weights of at most 20,000 `labelled` (L, P) towards `target` (M, P), of which at most 20,000 are looked at.

    `sigma` of the kernel is by default half the median distance between a label and a target. What is solved for
    is a number at each label, often 0, and no function: a label's weight is the mean over the nearest other labels, as
    `at` takes it over the nearest of all; both stay at most `largest`, however far a point is. `BadInput` as
    `fit_space`, and for more labels.
    """
    from scipy.optimize import minimize

    if np.ndim(labelled) == 2 and len(np.asarray(labelled)) > MOST_LABELS:
        raise BadInput(f"kernel mean matching of {len(np.asarray(labelled))} labels: expected at most {MOST_LABELS}")
    if largest < 1 or frequencies < 1 or (sigma is not None and not sigma > 0):
        raise BadInput(f"largest={largest}, frequencies={frequencies}, sigma={sigma}: expected >= 1, >= 1 and above 0")
    space, bank, wanted = fit_space(labelled, target, seed=seed)
    some, n = space(wanted[sampled(len(wanted), TARGETS, seed)], "target features"), len(bank)
    rng = np.random.default_rng(seed)
    if sigma is None:
        near, far = (points[sampled(len(points), 500, seed)] for points in (bank, some))
        square = float(np.median(((near[:, None] - far) ** 2).sum(axis=2)))
        sigma = WIDTH * (float(np.sqrt(square)) if square > 0 else 1.0)
    waves = rng.normal(size=(frequencies, bank.shape[1])) / sigma
    phi = fourier_features(bank, waves)  # (L, 2F + 1)
    wish = fourier_features(some, waves).mean(axis=0)

    def loss(b: Floats) -> tuple[float, Floats]:  # in units of 1 / L, so that steps are of order 1
        gap = b @ phi / n - wish
        return float(n * gap @ gap + b @ b / n), 2 * (phi @ gap) + 2 * b / n

    found = minimize(
        loss, np.ones(n), jac=True, method="L-BFGS-B", bounds=[(0.0, largest)] * n, options={"maxiter": STEPS}
    )
    solved = np.clip(found.x, 0, largest)
    _, beside = exact_neighbours(bank, bank, min(NEAREST, n - 1), exclude=np.arange(n))
    weights, rows = solved[beside].mean(axis=1), sampled(n, 2 * REFERENCE, seed)
    details = {"sigma": sigma, "largest": largest, "frequencies": frequencies, "mean_solved": float(solved.mean())}
    return weighed("kmm", weights, space, bank[rows], solved[rows], details=details)

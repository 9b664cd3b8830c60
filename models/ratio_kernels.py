"""Density ratios as sums of Gaussian kernels: uLSIF (Kanamori et al. 2009) and RuLSIF (Yamada et al. 2013).

r(x) = sum_c theta_c exp(-|x - c|^2 / 2 sigma^2), centres c among the targets, theta by least squares against the ratio,
negative ones set to 0; width and ridge by the analytic leave-one-out loss. RuLSIF estimates the ratio of p_target to
alpha p_target + (1 - alpha) p_labels, which stays below 1 / alpha: steady, but not unbiased for n(z).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.ratio_space import Floats, fit_space, sampled
from redshelf.models.shift import REFERENCE, ShiftWeights, weighed

CENTRES = 200
TARGETS = 20_000
SCORED = 1500  # labels and as many targets, each left out once for every width and ridge
WIDTHS = (0.15, 0.3, 0.6, 1.0, 1.6)  # of the median distance to a centre
RIDGES = (0.001, 0.01, 0.1, 1.0)
ALPHA = 0.1
BLOCK = 8192


def gaussian_kernel(points: Floats, centres: Floats, sigma: float) -> Floats:
    """exp(-|x - c|^2 / 2 sigma^2) of points (N, Q) and centres (C, Q), (N, C)."""
    square = (points**2).sum(axis=1)[:, None] - 2 * points @ centres.T + (centres**2).sum(axis=1)
    return np.asarray(np.exp(-0.5 * np.maximum(square, 0) / sigma**2))


@dataclass(frozen=True)
class Moments:
    """Of kernels at L labels and M targets: mean outer products (C, C) of each, mean (C,) at the targets."""

    labels: Floats
    targets: Floats
    mean: Floats
    n_labels: int
    n_targets: int


@dataclass(frozen=True)
class KernelRatio:
    """A fitted ratio: `centres` (C, Q), `theta` (C,) >= 0, what was chosen, and what leaving one out needs."""

    centres: Floats
    theta: Floats
    sigma: float
    ridge: float
    alpha: float
    moments: Moments

    def __call__(self, points: Floats) -> Floats:
        """The ratio at points (N, Q), (N,)."""
        parts = [points[i : i + BLOCK] for i in range(0, len(points), BLOCK)]
        return np.concatenate([gaussian_kernel(part, self.centres, self.sigma) @ self.theta for part in parts])

    def unseen_label(self, points: Floats) -> Floats:
        """The ratio at labels of the fit (N, Q), each by the fit without it."""
        parts = [points[i : i + BLOCK] for i in range(0, len(points), BLOCK)]
        kernels = (gaussian_kernel(part, self.centres, self.sigma) for part in parts)
        return np.concatenate([_unseen_label(phi, self.moments, self.alpha, self.ridge) for phi in kernels])

    def unseen_target(self, points: Floats) -> Floats:
        """The ratio at targets of the fit (N, Q), each by the fit without it; the centres stay."""
        parts = [points[i : i + BLOCK] for i in range(0, len(points), BLOCK)]
        kernels = (gaussian_kernel(part, self.centres, self.sigma) for part in parts)
        return np.concatenate([_unseen_target(phi, self.moments, self.alpha, self.ridge) for phi in kernels])


def _unseen_label(phi: Floats, m: Moments, alpha: float, ridge: float) -> Floats:
    rest = alpha * m.targets + (1 - alpha) * m.n_labels / (m.n_labels - 1) * m.labels
    return _without(phi, rest, (1 - alpha) / (m.n_labels - 1), m.mean, 0.0, ridge)


def _unseen_target(phi: Floats, m: Moments, alpha: float, ridge: float) -> Floats:
    grown = m.n_targets / (m.n_targets - 1)
    rest = alpha * grown * m.targets + (1 - alpha) * m.labels
    return _without(phi, rest, alpha / (m.n_targets - 1), grown * m.mean, 1 / (m.n_targets - 1), ridge)


def _without(phi: Floats, rest: Floats, outer: float, mean: Floats, own: float, ridge: float) -> Floats:
    """phi' max(theta, 0) of each row phi (N, C), where (rest + ridge - outer phi phi') theta = mean - own phi: by
    Sherman and Morrison, one inverse for all rows."""
    inverse = np.linalg.inv(rest + ridge * np.eye(len(mean)))
    turned = phi @ inverse  # (N, C)
    theta = inverse @ mean - own * turned
    across = (phi * theta).sum(axis=1)
    theta += (outer * across / (1 - outer * (phi * turned).sum(axis=1)))[:, None] * turned
    return np.asarray((phi * np.maximum(theta, 0)).sum(axis=1))


def _moments(labels: Floats, targets: Floats, centres: Floats, sigma: float) -> Moments:
    def products(points: Floats) -> tuple[Floats, Floats]:
        outer, total = np.zeros((len(centres), len(centres))), np.zeros(len(centres))
        for start in range(0, len(points), BLOCK):
            phi = gaussian_kernel(points[start : start + BLOCK], centres, sigma)
            outer, total = outer + phi.T @ phi, total + phi.sum(axis=0)
        return outer / len(points), total / len(points)

    of_targets, mean = products(targets)
    return Moments(products(labels)[0], of_targets, mean, len(labels), len(targets))


def fit_ratio(
    labels: Floats,
    targets: Floats,
    centres: Floats,
    *,
    alpha: float,
    sigmas: tuple[float, ...],
    ridges: tuple[float, ...] = RIDGES,
    scored: tuple[Floats, Floats] | None = None,
) -> KernelRatio:
    """The ratio of labels (L, Q) to targets (M, Q) with centres (C, Q), of `sigmas` and `ridges` those with least loss.

    The loss is alpha / 2 mean r^2 over targets + (1 - alpha) / 2 mean r^2 over labels - mean r over targets, each point
    left out of the fit that gives its r; over the labels and targets of `scored`, by default all.
    """
    near, far = (labels, targets) if scored is None else scored
    best: tuple[float, Moments, float, float] | None = None
    for sigma in sigmas:
        m = _moments(labels, targets, centres, sigma)
        label_phi, target_phi = (gaussian_kernel(points, centres, sigma) for points in (near, far))
        for ridge in ridges if len(sigmas) * len(ridges) > 1 else ():
            at_label, at_target = (
                _unseen_label(label_phi, m, alpha, ridge),
                _unseen_target(target_phi, m, alpha, ridge),
            )
            squares = alpha * (at_target**2).mean() + (1 - alpha) * (at_label**2).mean()
            loss = float(0.5 * squares - at_target.mean())
            if best is None or loss < best[0]:
                best = loss, m, sigma, ridge
        if best is None:
            best = np.inf, m, sigma, ridges[0]
    assert best is not None
    _, m, sigma, ridge = best
    quadratic = alpha * m.targets + (1 - alpha) * m.labels + ridge * np.eye(len(centres))
    return KernelRatio(centres, np.maximum(np.linalg.solve(quadratic, m.mean), 0), sigma, ridge, alpha, m)


def ulsif_weights(
    labelled: npt.ArrayLike,
    target: npt.ArrayLike,
    *,
    alpha: float = 0.0,
    centres: int = CENTRES,
    sigmas: tuple[float, ...] | None = None,
    ridges: tuple[float, ...] = RIDGES,
    seed: int = 0,
) -> ShiftWeights:
    """uLSIF weights of `labelled` (L, P) towards `target` (M, P), each label's by the fit without it.

    At most 20,000 targets are looked at, drawn by `seed`, and `centres` of them are centres. `sigmas` by default 0.15
    to 1.6 times the median distance of labels and targets to the centres. `BadInput` as `fit_space`, for under 2
    targets.
    """
    if not 0 <= alpha < 1 or centres < 1:
        raise BadInput(f"alpha={alpha}, centres={centres}: expected 0 <= alpha < 1 and at least 1 centre")
    space, bank, wanted = fit_space(labelled, target, least=2, seed=seed)
    some = space(wanted[sampled(len(wanted), TARGETS, seed)], "target features")
    chosen = sampled(len(some), centres, seed)
    # a target that is a centre is never wholly left out: it is neither scored nor a reference, unless all are centres
    others = np.delete(some, chosen, axis=0) if len(chosen) < len(some) - 1 else some
    middle = some[chosen]
    scored = bank[sampled(len(bank), SCORED, seed)], others[sampled(len(others), SCORED, seed)]
    if sigmas is None:
        probe = np.concatenate([points[:500] for points in scored])
        unit = float(np.sqrt(np.median(((probe[:, None] - middle) ** 2).sum(axis=2))))
        sigmas = tuple(share * (unit if unit > 0 else 1.0) for share in WIDTHS)
    fit = fit_ratio(bank, some, middle, alpha=alpha, sigmas=sigmas, ridges=ridges, scored=scored)
    weights, rows = fit.unseen_label(bank), sampled(len(bank), REFERENCE, seed)
    others = others[sampled(len(others), REFERENCE, seed)]
    return weighed(
        "rulsif" if alpha else "ulsif",
        weights,
        space,
        np.concatenate([bank[rows], others]),
        np.concatenate([weights[rows], fit.unseen_target(others)]),
        details={"alpha": alpha, "sigma": fit.sigma, "ridge": fit.ridge, "centres": len(middle)},
    )


def rulsif_weights(
    labelled: npt.ArrayLike, target: npt.ArrayLike, *, alpha: float = ALPHA, seed: int = 0
) -> ShiftWeights:
    """RuLSIF weights: the ratio to a mixture with a share `alpha` of the target, at most 1 / alpha; as `ulsif_weights`.

    For training losses. Their mean is below 1 under a shift, and the weighted <z> falls short of the target's.
    """
    if not 0 < alpha < 1:
        raise BadInput(f"alpha={alpha}: expected between 0 and 1")
    return ulsif_weights(labelled, target, alpha=alpha, seed=seed)

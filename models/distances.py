"""Distances between redshift distributions: samples, histograms, and densities on a grid.

Total variation and 1-Wasserstein between p(z_phot) and p(z_spec) are what Lin et al. 2022 judge a correction of
mode collapse by; Kullback-Leibler and Jensen-Shannon divergences are in nats.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.weighted import Floats, checked_weights, finite, rising

FLOOR = float(np.finfo(np.float64).eps)


def histogram(
    z: npt.ArrayLike, edges: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, name: str = "z"
) -> Floats:
    """Weighted share of `z` (N,) under the first edge, in each bin, and from the last edge up, (B+2,); sums to 1.

    Bins hold their lower edge; the last bin holds its upper edge too. What lies off the edges is kept: a distance
    that leaves it out is a lie.
    """
    values, at = finite(name, z), rising("edges", edges)
    if len(values) == 0:
        raise BadInput(f"{name}: 0 values: expected at least 1")
    w = checked_weights(weights, len(values))
    code = np.searchsorted(at, values, side="right")
    code[values == at[-1]] = len(at) - 1
    mass = np.bincount(code, weights=w, minlength=len(at) + 1)
    return np.asarray(mass / mass.sum())


def total_variation(p: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """Half of sum |p - q| over the last axis of two masses (..., G), from 0 to 1."""
    a, b = _masses(p, q)
    return np.asarray(0.5 * np.abs(a - b).sum(axis=-1))


def kl_divergence(p: npt.ArrayLike, q: npt.ArrayLike, *, floor: float = FLOOR) -> Floats:
    """sum p ln(p / q) over the last axis of two masses (..., G): what is lost when q stands for p.

    Masses under `floor` count as `floor` in the logarithm: an empty bin of q gives a large number, not infinity.
    """
    a, b = _masses(p, q)
    return np.asarray((a * (np.log(np.maximum(a, floor)) - np.log(np.maximum(b, floor)))).sum(axis=-1))


def js_divergence(p: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """Jensen-Shannon: the mean of the KL divergences of p and q to (p + q) / 2, from 0 to ln 2; (..., G) masses."""
    a, b = _masses(p, q)
    middle = 0.5 * (a + b)
    safe = np.where(middle > 0, middle, 1)

    def to_middle(mass: Floats) -> Floats:  # no floor is needed: the middle is at least half of the mass
        ratio = np.where(mass > 0, mass / safe, 1)
        return np.asarray((mass * np.log(ratio)).sum(axis=-1))

    return 0.5 * (to_middle(a) + to_middle(b))


def wasserstein(
    a: npt.ArrayLike,
    b: npt.ArrayLike,
    weights_a: npt.ArrayLike | None = None,
    weights_b: npt.ArrayLike | None = None,
) -> float:
    """1-Wasserstein distance int |F_a(z) - F_b(z)| dz of two weighted samples (N,) and (M,), exact, in units of z."""
    one, two = finite("a", a), finite("b", b)
    if len(one) == 0 or len(two) == 0:
        raise BadInput(f"a has {len(one)} values, b {len(two)}: expected at least 1 of each")
    shares = [checked_weights(w, len(v)) for w, v in ((weights_a, one), (weights_b, two))]
    values = np.concatenate([one, two])
    jumps = np.concatenate([shares[0] / shares[0].sum(), -shares[1] / shares[1].sum()])
    order = np.argsort(values)
    gap = np.cumsum(jumps[order])[:-1]
    return float(np.abs(gap) @ np.diff(values[order]))


def grid_wasserstein(edges: npt.ArrayLike, p: npt.ArrayLike, q: npt.ArrayLike) -> Floats:
    """1-Wasserstein distance of piecewise-constant densities given by masses (..., G) between `edges` (G+1,), exact."""
    at = rising("edges", edges)
    a, b = _masses(p, q)
    if a.shape[-1] != len(at) - 1:
        raise BadInput(f"masses of shape {a.shape}: expected (..., {len(at) - 1}) between {len(at)} edges")
    gap = np.cumsum(a - b, axis=-1)
    before = np.concatenate([np.zeros((*gap.shape[:-1], 1)), gap[..., :-1]], axis=-1)
    return np.asarray(_area(np.diff(at), before, gap).sum(axis=-1))


def wasserstein_to_sample(
    edges: npt.ArrayLike, mass: npt.ArrayLike, z: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """1-Wasserstein distance of a density, masses (G,) between `edges` (G+1,), to a weighted sample (N,), exact."""
    at, values = rising("edges", edges), finite("z", z)
    share = np.asarray(mass, dtype=np.float64)
    if share.shape != (len(at) - 1,) or not (share >= 0).all() or not share.sum() > 0 or len(values) == 0:
        raise BadInput(
            f"mass of shape {share.shape}, {len(values)} values: expected ({len(at) - 1},) >= 0 and 1 or more"
        )
    w = checked_weights(weights, len(values))
    order = np.argsort(values)
    sorted_ = values[order]
    steps = np.concatenate([[0.0], np.cumsum(w[order])]) / w.sum()
    nodes = np.union1d(at, sorted_)  # between nodes one CDF is linear and the other constant
    linear = np.interp(nodes, at, np.concatenate([[0.0], np.cumsum(share)]) / share.sum())
    constant = steps[np.searchsorted(sorted_, nodes[:-1], side="right")]
    return float(_area(np.diff(nodes), linear[:-1] - constant, linear[1:] - constant).sum())


def distribution_distances(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    edges: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
) -> dict[str, float]:
    """Lin 2022's total variation and Wasserstein distance of p(z_phot) to p(z_spec), with KL(z_spec || z_phot) and JS.

    Of the same N objects with the same weights; all but Wasserstein on the bins between `edges` (B+1,) and off them.
    """
    phot = finite("z_phot", z_phot)
    spec = finite("z_spec", z_spec, len(phot))
    p = histogram(phot, edges, weights, name="z_phot")
    q = histogram(spec, edges, weights, name="z_spec")
    return {
        "total_variation": float(total_variation(p, q)),
        "wasserstein": wasserstein(phot, spec, weights, weights),
        "kl": float(kl_divergence(q, p)),
        "js": float(js_divergence(p, q)),
    }


def _masses(p: npt.ArrayLike, q: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Both normalised over the last axis; `BadInput` for unequal bins, negative or missing mass."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if a.ndim == 0 or b.ndim == 0 or a.shape[-1] != b.shape[-1]:
        raise BadInput(f"masses of shape {a.shape} and {b.shape}: expected equal last axes")
    for mass in (a, b):
        if not np.isfinite(mass).all() or (mass < 0).any() or not (mass.sum(axis=-1) > 0).all():
            raise BadInput(f"masses of shape {mass.shape}: expected finite values >= 0, none without mass")
    return a / a.sum(axis=-1, keepdims=True), b / b.sum(axis=-1, keepdims=True)


def _area(width: Floats, start: Floats, end: Floats) -> Floats:
    """int |line| over a width from `start` to `end`, also where it crosses 0."""
    crosses = start * end < 0
    size = np.abs(start) + np.abs(end)
    split = (start**2 + end**2) / np.where(size > 0, size, 1)
    return np.asarray(0.5 * width * np.where(crosses, split, size))

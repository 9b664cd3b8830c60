"""Scores of photometric redshifts: points, densities, and both weighted to a target population.

dz = (z_phot - z_spec) / (1 + z_spec) throughout. Every weighted score is self-normalised, `sum w f / sum w`, and
belongs beside the effective sample size of its weights. Plain functions on arrays; formulas of Schmidt et al. 2020.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
OUTLIER = 0.15


def _weights(weights: npt.ArrayLike | None, n: int) -> Floats:
    if weights is None:
        return np.ones(n)
    out = np.asarray(weights, dtype=np.float64)
    if out.shape != (n,) or not np.isfinite(out).all() or (out < 0).any() or out.sum() <= 0:
        raise BadInput(f"weights of shape {out.shape}: expected {n} finite values >= 0, not all zero")
    return out


def delta_z(z_phot: npt.ArrayLike, z_spec: npt.ArrayLike) -> Floats:
    """(z_phot - z_spec) / (1 + z_spec), (N,)."""
    phot, spec = np.asarray(z_phot, dtype=np.float64), np.asarray(z_spec, dtype=np.float64)
    if phot.shape != spec.shape or phot.ndim != 1:
        raise BadInput(f"delta_z: z_phot has shape {phot.shape}, z_spec {spec.shape}: expected two equal (N,)")
    return np.asarray((phot - spec) / (1 + spec))


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """Kish's (sum w)^2 / sum w^2; 0 when every weight is zero."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum()) if (w > 0).any() else 0.0


def weighted_mean(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """sum w v / sum w."""
    v = np.asarray(values, dtype=np.float64)
    return float(np.average(v, weights=_weights(weights, len(v))))


def weighted_mean_error(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Standard error of the self-normalised weighted mean, sqrt(sum w^2 (v - mean)^2) / sum w."""
    v = np.asarray(values, dtype=np.float64)
    w = _weights(weights, len(v))
    return float(np.sqrt((w**2 * (v - np.average(v, weights=w)) ** 2).sum()) / w.sum())


def weighted_quantile(values: npt.ArrayLike, q: float, weights: npt.ArrayLike | None = None) -> float:
    """Quantile of a weighted sample, linear between the centres of the steps; the plain median for equal weights."""
    v = np.asarray(values, dtype=np.float64)
    w = _weights(weights, len(v))
    keep = w > 0
    order = np.argsort(v[keep], kind="stable")
    v, w = v[keep][order], w[keep][order]
    return float(np.interp(q, (np.cumsum(w) - 0.5 * w) / w.sum(), v))


def bias(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """<dz>."""
    return weighted_mean(dz, weights)


def sigma_mad(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """1.4826 median |dz - median dz|: the median *is* subtracted (Ilbert's NMAD does not)."""
    d = np.asarray(dz, dtype=np.float64)
    return 1.4826 * weighted_quantile(np.abs(d - weighted_quantile(d, 0.5, weights)), 0.5, weights)


def outlier_fraction(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, threshold: float = OUTLIER) -> float:
    """Fraction with |dz| > `threshold`."""
    return weighted_mean(np.abs(np.asarray(dz, dtype=np.float64)) > threshold, weights)


def bootstrap_error(
    score: Callable[..., float], dz: Floats, weights: Floats | None = None, *, draws: int = 200, seed: int = 0
) -> float:
    """Standard deviation of `score(dz, weights)` over resamplings of the objects; draws without weight are left out."""
    rng = np.random.default_rng(seed)
    scores = []
    for rows in (rng.integers(0, len(dz), len(dz)) for _ in range(draws)):
        if weights is None or weights[rows].any():
            scores.append(score(dz[rows], None if weights is None else weights[rows]))
    return float(np.std(scores))


def summary(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
) -> dict[str, float] | None:
    """n, ess, bias, sigma_mad, outliers (|dz| > 0.15), `*_error` with `bootstrap` > 0; None under `minimum` objects."""
    dz = delta_z(z_phot, z_spec)
    if len(dz) < max(minimum, 1):
        return None
    w = None if weights is None else _weights(weights, len(dz))
    scores: dict[str, Callable[..., float]] = {"bias": bias, "sigma_mad": sigma_mad, "outliers": outlier_fraction}
    out = {"n": float(len(dz)), "ess": float(len(dz)) if w is None else effective_sample_size(w)}
    out |= {name: score(dz, w) for name, score in scores.items()}
    if bootstrap:
        out |= {f"{k}_error": bootstrap_error(f, dz, w, draws=bootstrap, seed=seed) for k, f in scores.items()}
    return out


def clearly_better(loss_old: Floats, loss_new: Floats, weights: Floats) -> bool:
    """Whether the new losses (N,) beat the old ones, paired and weighted, by more than the standard error of the gain.

    With importance weights this decides on the target's behalf; with few effective labels nothing is clearly better.
    """
    gain = loss_old - loss_new
    return bool((weights > 0).any()) and weighted_mean(gain, weights) > weighted_mean_error(gain, weights)


def pit_ks(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Kolmogorov-Smirnov distance sup |F(u) - u| of (weighted) PIT values from uniform."""
    u = np.asarray(pit, dtype=np.float64)
    w = _weights(weights, len(u))
    order = np.argsort(u)
    after = np.cumsum(w[order]) / w.sum()
    before = np.concatenate([[0.0], after[:-1]])
    return float(np.maximum(np.abs(after - u[order]), np.abs(u[order] - before)).max())


def crps(pdf: Pdf, z_spec: npt.ArrayLike) -> Floats:
    """Continuous ranked probability score of each source, integral of (F(z) - [z >= z_spec])^2 dz, exact, (N,)."""
    z = np.asarray(z_spec, dtype=np.float64)
    at = pdf.pit(z)
    inside = np.clip(z, pdf.edges[0], pdf.edges[-1])
    cdf = pdf.cdf()

    def squares(a: Floats, b: Floats, width: Floats) -> Floats:  # of a line from a to b
        return np.asarray(width * (a * a + a * b + b * b) / 3)

    low, high = cdf[:, :-1], cdf[:, 1:]
    left, right = pdf.edges[:-1] >= inside[:, None], pdf.edges[1:] <= inside[:, None]  # whole bins above / below z_spec
    whole = np.where(right, squares(low, high, pdf.widths), 0) + np.where(
        left & ~right, squares(1 - low, 1 - high, pdf.widths), 0
    )
    split = ~left & ~right
    rows = np.arange(len(z))
    bin_ = split.argmax(axis=1)
    parts = squares(low[rows, bin_], at, inside - pdf.edges[bin_])
    parts = parts + squares(1 - at, 1 - high[rows, bin_], pdf.edges[bin_ + 1] - inside)
    return np.asarray(whole.sum(axis=1) + np.where(split.any(axis=1), parts, 0) + np.abs(z - inside))


def cde_losses(pdf: Pdf, z_spec: npt.ArrayLike) -> Floats:
    """Conditional density loss of each source, integral p^2 dz - 2 p(z_spec) (Izbicki & Lee 2017); lower is better."""
    z = np.asarray(z_spec, dtype=np.float64)
    inside = (z >= pdf.edges[0]) & (z <= pdf.edges[-1])
    return np.asarray((pdf.density**2 * pdf.widths).sum(axis=1) - 2 * np.where(inside, _density_at(pdf, z), 0))


def cde_loss(pdf: Pdf, z_spec: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Mean of `cde_losses`."""
    return weighted_mean(cde_losses(pdf, z_spec), weights)


def _density_at(pdf: Pdf, z: Floats) -> Floats:
    bin_ = np.clip(np.searchsorted(pdf.edges, z, side="right") - 1, 0, len(pdf.edges) - 2)
    return np.asarray(pdf.density[np.arange(len(z)), bin_])


def coverage(pdf: Pdf, z_spec: npt.ArrayLike, level: float, weights: npt.ArrayLike | None = None) -> float:
    """Fraction of z_spec inside the central interval that holds `level` of each density."""
    return weighted_mean(np.abs(pdf.pit(z_spec) - 0.5) <= level / 2, weights)


def hpd_coverage(pdf: Pdf, z_spec: npt.ArrayLike, level: float, weights: npt.ArrayLike | None = None) -> float:
    """Fraction of z_spec inside the highest-density region that holds `level` of each density."""
    z = np.asarray(z_spec, dtype=np.float64)
    denser = (pdf.density * pdf.widths * (pdf.density > _density_at(pdf, z)[:, None])).sum(axis=1)
    return weighted_mean((denser <= level) & (z >= pdf.edges[0]) & (z <= pdf.edges[-1]), weights)


def rejection_curve(
    score: npt.ArrayLike, dz: npt.ArrayLike, *, kept: npt.ArrayLike = (0.2, 0.4, 0.6, 0.8, 1.0), minimum: int = 100
) -> list[dict[str, float | None]]:
    """Outlier fraction of the `kept` fractions with the lowest `score` (a support score: high is bad), and of the rest.

    One row a fraction: kept, score (the cut), n, outliers, outliers_rest; None where fewer than `minimum` remain.
    """
    s, d = np.asarray(score, dtype=np.float64), np.asarray(dz, dtype=np.float64)
    if s.shape != d.shape or len(s) == 0:
        raise BadInput(f"rejection_curve: score has shape {s.shape}, dz {d.shape}: expected two equal (N,), N > 0")
    order = np.argsort(s, kind="stable")
    bad = np.abs(d[order]) > OUTLIER
    rows: list[dict[str, float | None]] = []
    for fraction in np.asarray(kept, dtype=np.float64):
        n = round(float(fraction) * len(s))
        inside, rest = bad[:n], bad[n:]
        rows.append(
            {
                "kept": float(fraction),
                "score": float(s[order[n - 1]]) if n else None,
                "n": float(n),
                "outliers": float(inside.mean()) if n >= max(minimum, 1) else None,
                "outliers_rest": float(rest.mean()) if len(rest) >= max(minimum, 1) else None,
            }
        )
    return rows

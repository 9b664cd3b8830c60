"""Scores of redshift densities: the PIT and its distances from uniform, highest-density levels, proper scores, widths.

`density_scores` scores each source once, in blocks, so that a million densities need no second copy; the rest takes
those (N,) arrays, weighted or not. Definitions of Schmidt et al. 2020 (DC1), Izbicki & Lee 2017 (CDE loss) and Gneiting
& Raftery 2007 (proper scores); densities are piecewise constant, so the integrals are exact.

The Cramer-von Mises and Anderson-Darling statistics are n times a squared distance between the weighted empirical CDF
and the uniform one; with weights n is the effective sample size, so their null distribution stays about the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from redshelf.models.bootstrap import Resampling, Scorer, errors
from redshelf.models.errors import BadInput
from redshelf.models.metrics import cde_losses, crps, effective_sample_size
from redshelf.models.pdf import Pdf
from redshelf.models.weighted import Floats, Sample, Weighed, checked_weights, finite

PIT_EDGE = 1e-4
LOG_FLOOR = 1e-12
AD_FLOOR = 1e-9


def log_scores(pdf: Pdf, z_spec: npt.ArrayLike, *, floor: float = LOG_FLOOR) -> Floats:
    """ln p(z_spec) of each source, (N,), higher is better; never under ln `floor`, which z_spec off the grid gets."""
    z = finite("z_spec", z_spec, len(pdf))
    return np.asarray(np.log(np.maximum(pdf.at(z), floor)))


def brier_scores(pdf: Pdf, z_spec: npt.ArrayLike) -> Floats:
    """Sum over bins of (mass - [z_spec in bin])^2 (Brier 1950), (N,), 0 to 2; off the grid is a bin without mass."""
    z = finite("z_spec", z_spec, len(pdf))
    hit = pdf.at(z) * pdf.widths[pdf.bin_of(z)]
    return np.asarray(pdf.density**2 @ pdf.widths**2 - 2 * hit + 1)


def hpd_levels(pdf: Pdf, z_spec: npt.ArrayLike) -> Floats:
    """Mass of each density that is denser than at z_spec, (N,): the least highest-density region that holds it.

    Of calibrated densities it is uniform on [0, 1], but for the bins' width; 1 off the grid (Izbicki & Lee 2017).
    """
    z = finite("z_spec", z_spec, len(pdf))
    denser = pdf.density > pdf.at(z)[:, None]
    inside = (z >= pdf.edges[0]) & (z <= pdf.edges[-1])
    return np.asarray(np.where(inside, (pdf.density * denser) @ pdf.widths, 1.0))


def sharpness(pdf: Pdf) -> Floats:
    """(q84 - q16) / 2 of each density, (N,): what it claims, whatever the truth."""
    low, high = pdf.quantiles([0.16, 0.84])
    return 0.5 * (high - low)


def crps_of_samples(samples: npt.ArrayLike, z_spec: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Floats:
    """CRPS of N weighted samples (N, K), E|Z - z| - E|Z - Z'| / 2 (Gneiting & Raftery 2007, eq. 21), (N,).

    The exact integral for the step function of the samples, as kNN neighbours and ensembles give. `weights` (N, K).
    """
    values = np.asarray(samples, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise BadInput(f"samples of shape {values.shape}: expected (N, K) finite values")
    z = finite("z_spec", z_spec, len(values))
    w = np.ones(values.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape != values.shape or not np.isfinite(w).all() or (w < 0).any() or (w.sum(axis=1) <= 0).any():
        raise BadInput(f"weights of shape {w.shape}: expected {values.shape}, >= 0, no row all zero")
    w = w / w.sum(axis=1, keepdims=True)
    order = np.argsort(values, axis=1)
    sorted_, share = np.take_along_axis(values, order, axis=1), np.take_along_axis(w, order, axis=1)
    below = np.cumsum(share, axis=1)[:, :-1]
    spread = 2 * (below * (1 - below) * np.diff(sorted_, axis=1)).sum(axis=1)  # E|Z - Z'|
    return np.asarray((np.abs(values - z[:, None]) * w).sum(axis=1) - 0.5 * spread)


@dataclass(frozen=True)
class DensityScores:
    """Scores of N densities, each (N,): see the function of that name, and `metrics.crps`, `metrics.cde_losses`."""

    pit: Floats
    hpd: Floats
    crps: Floats
    cde_loss: Floats
    log_score: Floats
    brier: Floats
    sigma_68: Floats

    def __len__(self) -> int:
        return len(self.pit)

    def take(self, rows: npt.NDArray[np.generic]) -> DensityScores:
        """Those of some rows: an index or a mask."""
        return DensityScores(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class _Cumulated(Pdf):
    """A Pdf with its CDF at hand, which PIT, CRPS and quantiles all ask for: it is most of their cost."""

    cumulated: Floats

    def cdf(self) -> Floats:
        return self.cumulated


def density_scores(pdf: Pdf, z_spec: npt.ArrayLike, *, block: int = 1000) -> DensityScores:
    """Score each density (N,) against its z_spec (N,), `block` rows at a time."""
    z = finite("z_spec", z_spec, len(pdf))
    kinds: tuple[Callable[[Pdf, Floats], Floats], ...] = (
        Pdf.pit,
        hpd_levels,
        crps,
        cde_losses,
        log_scores,
        brier_scores,
        lambda part, _: sharpness(part),
    )
    out = np.empty((len(kinds), len(z)))
    for start in range(0, len(z), block):
        rows = slice(start, start + block)
        part = Pdf(pdf.edges, pdf.density[rows])
        part = _Cumulated(part.edges, part.density, part.cdf())
        for row, kind in zip(out, kinds, strict=True):
            row[rows] = kind(part, z[rows])
    return DensityScores(*out)


def pit_cvm(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Cramer-von Mises n int (F(u) - u)^2 du; 1/(12n) + sum ((2i-1)/(2n) - u_i)^2 for equal weights."""
    u, n = _pit(pit, weights)
    return n * _squared(u)


def pit_ad(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Anderson-Darling n int (F(u) - u)^2 / (u (1 - u)) du; -n - sum (2i-1)/n (ln u_i + ln(1 - u_(n+1-i))) unweighted.

    A PIT of exactly 0 or 1 would make it infinite: PITs are held 1e-9 away from either.
    """
    u, n = _pit(pit, weights)
    return n * _squared_in_tails(u)


def pit_w1(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """1-Wasserstein distance of PITs from uniform, int |F(u) - u| du (CLAP, Lin et al. 2024); 0.5 at worst."""
    return _absolute(_pit(pit, weights)[0])


def pit_outlier_rate(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, edge: float = PIT_EDGE) -> float:
    """Fraction of PITs under `edge` or over 1 - `edge` (Schmidt et al. 2020); 2 `edge` for calibrated densities."""
    return _ends(_pit(pit, weights)[0], edge)


def pit_histogram(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, bins: int = 20) -> Floats:
    """Weighted share of PITs in each of `bins` equal bins, times `bins`, (bins,): 1 everywhere when calibrated."""
    u = finite("pit", pit)
    if bins < 1:
        raise BadInput(f"bins={bins}: expected at least 1")
    counts, _ = np.histogram(np.clip(u, 0, 1), bins=bins, range=(0, 1), weights=checked_weights(weights, len(u)))
    return np.asarray(counts * bins / counts.sum())


def pit_scorer(pit: Floats) -> Scorer:
    """Every score of PITs (N,) as a function of the weights (N,); the values are sorted once."""
    sample = Sample.of(pit)

    def scores(weights: Floats) -> dict[str, float]:
        u, n = sample.weigh(weights), effective_sample_size(weights)
        return {
            "pit_mean": u.mean(),
            "pit_ks": float(max(np.abs(u.steps[1:] - u.values).max(), np.abs(u.values - u.steps[:-1]).max())),
            "pit_cvm": n * _squared(u),
            "pit_ad": n * _squared_in_tails(u),
            "pit_w1": _absolute(u),
            "pit_outliers": _ends(u, PIT_EDGE),
        } | {f"coverage_{level}": _between(u, 0.5 - level / 200, 0.5 + level / 200) for level in (68, 95)}

    return scores


def density_scorer(scores: DensityScores) -> Scorer:
    """Means of the scores of each source, and all of `pit_scorer`, as a function of the weights (N,)."""
    of_pit = pit_scorer(scores.pit)
    means_of = {name: getattr(scores, name) for name in ("crps", "cde_loss", "log_score", "brier", "sigma_68")}
    means_of |= {"hpd_68": scores.hpd <= 0.68, "hpd_95": scores.hpd <= 0.95}
    columns = np.stack(list(means_of.values()))

    def found(weights: Floats) -> dict[str, float]:
        means = columns @ weights / weights.sum()
        return dict(zip(means_of, means.tolist(), strict=True)) | dict(of_pit(weights))

    return found


def density_summary(
    scores: DensityScores,
    weights: npt.ArrayLike | None = None,
    *,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> dict[str, float] | None:
    """n, ess and all of `density_scorer`, with errors as in `metrics.summary`; None under `minimum` objects."""
    w = checked_weights(weights, len(scores))
    n = int((w > 0).sum())
    if n < max(minimum, 1):
        return None
    score = density_scorer(scores)
    out = {"n": float(n), "ess": effective_sample_size(w)} | dict(score(w))
    if bootstrap:
        resampling = Resampling.of(len(w), draws=bootstrap, seed=seed, tiles=tiles)
        found = errors([(np.arange(len(w)), score)], w, resampling)[0]
        out |= {f"{name}_error": error for name, error in found.items() if error is not None}
    return out


def _pit(pit: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Weighed, float]:
    """PITs sorted and weighed, and their effective number."""
    u = finite("pit", pit)
    outside = (u < 0) | (u > 1)
    if outside.any():
        raise BadInput(f"pit: {u[outside.argmax()]} in row {outside.argmax()}: expected 0 to 1")
    w = checked_weights(weights, len(u))
    return Sample.of(u).weigh(w), effective_sample_size(w)


def _squared(u: Weighed) -> float:
    """int_0^1 (F(u) - u)^2 du of the step function F: cubes between its steps."""
    ends = np.concatenate([[0.0], u.values, [1.0]])
    return float((((ends[1:] - u.steps) ** 3 - (ends[:-1] - u.steps) ** 3) / 3).sum())


def _squared_in_tails(u: Weighed) -> float:
    """int_0^1 (F(u) - u)^2 / (u (1 - u)) du, from (C - u)^2 / (u (1 - u)) = C^2 / u + (1 - C)^2 / (1 - u) - 1."""
    at = np.clip(u.values, AD_FLOOR, 1 - AD_FLOOR)
    rise, fall = np.diff(u.steps**2), np.diff((1 - u.steps) ** 2)
    return float(-1 - rise @ np.log(at) + fall @ np.log1p(-at))


def _absolute(u: Weighed) -> float:
    """int_0^1 |F(u) - u| du: of u - C between two steps, the signed halves of squares."""
    ends = np.concatenate([[0.0], u.values, [1.0]])
    low, high = ends[:-1] - u.steps, ends[1:] - u.steps
    return float(0.5 * (high * np.abs(high) - low * np.abs(low)).sum())


def _between(u: Weighed, low: float, high: float) -> float:
    rows = np.searchsorted(u.values, low, side="left"), np.searchsorted(u.values, high, side="right")
    return float(u.steps[rows[1]] - u.steps[rows[0]])


def _ends(u: Weighed, edge: float) -> float:
    return 1 - _between(u, edge, 1 - edge)

"""Scores of photometric redshifts: points, densities, and both weighted to a target population.

dz = (z_phot - z_spec) / (1 + z_spec) throughout. Every weighted score is self-normalised, `sum w f / sum w`, and
belongs beside the effective sample size of its weights. Plain functions on arrays; formulas of Schmidt et al. 2020.
More scores of densities are in `density_scores`, tables by bin in `binned`, slopes in `slopes`, n(z) in `tomography`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.bootstrap import Resampling, Scorer, errors
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf
from redshelf.models.weighted import Floats, Sample, Weighed, checked_weights, finite

OUTLIER = 0.15
SDSS_OUTLIER = 0.05
SCIENCE_BOOK_FLOOR = 0.06


def delta_z(z_phot: npt.ArrayLike, z_spec: npt.ArrayLike) -> Floats:
    """(z_phot - z_spec) / (1 + z_spec), (N,); `BadInput` for NaN, unequal lengths or z_spec <= -1."""
    phot = finite("z_phot", z_phot)
    spec = finite("z_spec", z_spec, len(phot))
    if (spec <= -1).any():
        raise BadInput(f"z_spec: {spec.min()}: expected redshifts above -1")
    return np.asarray((phot - spec) / (1 + spec))


def effective_sample_size(weights: npt.ArrayLike) -> float:
    """Kish's (sum w)^2 / sum w^2; 0 when every weight is zero."""
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum()) if (w > 0).any() else 0.0


def weighted_mean(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """sum w v / sum w."""
    v = np.asarray(values, dtype=np.float64)
    return float(np.average(v, weights=checked_weights(weights, len(v))))


def weighted_mean_error(values: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Standard error of the self-normalised weighted mean, sqrt(sum w^2 (v - mean)^2) / sum w."""
    v = np.asarray(values, dtype=np.float64)
    w = checked_weights(weights, len(v))
    return float(np.sqrt((w**2 * (v - np.average(v, weights=w)) ** 2).sum()) / w.sum())


def weighted_quantile(values: npt.ArrayLike, q: float, weights: npt.ArrayLike | None = None) -> float:
    """Quantile of a weighted sample, linear between the centres of the steps; the plain median for equal weights."""
    v = np.asarray(values, dtype=np.float64)
    w = checked_weights(weights, len(v))
    keep = w > 0
    order = np.argsort(v[keep], kind="stable")
    v, w = v[keep][order], w[keep][order]
    return float(np.interp(q, (np.cumsum(w) - 0.5 * w) / w.sum(), v))


def bias(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """<dz>."""
    return weighted_mean(dz, weights)


def _weighed(dz: npt.ArrayLike, weights: npt.ArrayLike | None) -> Weighed:
    d = finite("dz", dz)
    return Sample.of(d).weigh(checked_weights(weights, len(d)))


def median(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Weighted median of dz."""
    return _weighed(dz, weights).quantile(0.5)


def sigma_mad(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """1.4826 median |dz - median dz|: the median *is* subtracted (`nmad` does not)."""
    d = _weighed(dz, weights)
    return 1.4826 * d.median_deviation(d.quantile(0.5))


def nmad(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """1.48 median |dz| (Ilbert et al. 2006): the median is *not* subtracted, so a bias counts as scatter."""
    return 1.48 * _weighed(dz, weights).median_deviation(0.0)


def sigma_68(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """(q84 - q16) / 2, half of the central 68%."""
    return _half_width(_weighed(dz, weights))


def sigma_iqr(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """(q75 - q25) / 1.349, the standard deviation of a Gaussian of that interquartile range (LSST Science Book)."""
    return _interquartile(_weighed(dz, weights))


def rmse(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """sqrt <dz^2>."""
    return float(np.sqrt(_weighed(dz, weights).mean(power=2)))


def outlier_fraction(dz: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, threshold: float = OUTLIER) -> float:
    """Fraction with |dz| > `threshold`."""
    return weighted_mean(np.abs(np.asarray(dz, dtype=np.float64)) > threshold, weights)


def outliers_3sigma(
    dz: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, floor: float = SCIENCE_BOOK_FLOOR
) -> float:
    """Fraction with |dz| > max(`floor`, 3 sigma_IQR), the catastrophic rate of the LSST Science Book; no centring."""
    d = _weighed(dz, weights)
    return d.beyond(max(floor, 3 * _interquartile(d)))


def _half_width(d: Weighed) -> float:
    return 0.5 * (d.quantile(0.84) - d.quantile(0.16))


def _interquartile(d: Weighed) -> float:
    return (d.quantile(0.75) - d.quantile(0.25)) / 1.349


def point_scorer(dz: Floats) -> Scorer:
    """All point scores of `dz` (N,) as a function of the weights (N,); the values are sorted once."""
    sample = Sample.of(dz)

    def scores(weights: Floats) -> dict[str, float]:
        d = sample.weigh(weights)
        centre = d.quantile(0.5)
        return {
            "bias": d.mean(),
            "median": centre,
            "sigma_mad": 1.4826 * d.median_deviation(centre),
            "nmad": 1.48 * d.median_deviation(0.0),
            "sigma_68": _half_width(d),
            "rmse": float(np.sqrt(d.mean(power=2))),
            "outliers": d.beyond(OUTLIER),
            "outliers_05": d.beyond(SDSS_OUTLIER),
            "outliers_3sigma": d.beyond(max(SCIENCE_BOOK_FLOOR, 3 * _interquartile(d))),
        }

    return scores


def summary(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> dict[str, float] | None:
    """n and ess of the objects with weight, and every score of `point_scorer`; None under `minimum` objects.

    With `bootstrap` draws also `*_error` of each score, over objects or over whole sky `tiles` (N,) of any labels.
    """
    dz = delta_z(z_phot, z_spec)
    if len(dz) < max(minimum, 1):
        return None
    w = checked_weights(weights, len(dz))
    n = int((w > 0).sum())
    if n < minimum:
        return None
    score = point_scorer(dz)
    out = {"n": float(n), "ess": effective_sample_size(w)} | dict(score(w))
    if bootstrap:
        resampling = Resampling.of(len(dz), draws=bootstrap, seed=seed, tiles=tiles)
        found = errors([(np.arange(len(dz)), score)], w, resampling)[0]
        out |= {f"{name}_error": error for name, error in found.items() if error is not None}
    return out


def clearly_better(loss_old: Floats, loss_new: Floats, weights: Floats) -> bool:
    """Whether the new losses (N,) beat the old ones, paired and weighted, by more than the standard error of the gain.

    With importance weights this decides on the target's behalf; with few effective labels nothing is clearly better.
    """
    gain = loss_old - loss_new
    return bool((weights > 0).any()) and weighted_mean(gain, weights) > weighted_mean_error(gain, weights)


def pit_ks(pit: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Kolmogorov-Smirnov distance sup |F(u) - u| of (weighted) PIT values from uniform."""
    u = finite("pit", pit)
    w = checked_weights(weights, len(u))
    order = np.argsort(u)
    after = np.cumsum(w[order]) / w.sum()
    before = np.concatenate([[0.0], after[:-1]])
    return float(np.maximum(np.abs(after - u[order]), np.abs(u[order] - before)).max())


def crps(pdf: Pdf, z_spec: npt.ArrayLike) -> Floats:
    """Continuous ranked probability score of each source, integral of (F(z) - [z >= z_spec])^2 dz, exact, (N,).

    As int F^2 dz + int_{z_spec} (1 - 2 F) dz over the grid, and the distance of z_spec from it where it lies off.
    """
    z = finite("z_spec", z_spec, len(pdf))
    inside = np.clip(z, pdf.edges[0], pdf.edges[-1])
    cdf = pdf.cdf()
    low, high = cdf[:, :-1], cdf[:, 1:]
    squares = (low * low + low * high + high * high) @ pdf.widths / 3  # (N,), of a line from low to high
    upto = np.cumsum((low + high) * (0.5 * pdf.widths), axis=1)  # (N, G), int F dz up to each upper edge
    bin_ = pdf.bin_of(inside)
    rows = np.arange(len(z))
    rest = pdf.edges[bin_ + 1] - inside
    at = high[rows, bin_] - (high[rows, bin_] - low[rows, bin_]) * rest / pdf.widths[bin_]  # F(z_spec)
    above = upto[:, -1] - upto[rows, bin_] + 0.5 * rest * (at + high[rows, bin_])  # int_{z_spec} F dz
    return np.asarray(squares + (pdf.edges[-1] - inside) - 2 * above + np.abs(z - inside))


def cde_losses(pdf: Pdf, z_spec: npt.ArrayLike) -> Floats:
    """Conditional density loss of each source, integral p^2 dz - 2 p(z_spec) (Izbicki & Lee 2017); lower is better."""
    z = np.asarray(z_spec, dtype=np.float64)
    return np.asarray(pdf.density**2 @ pdf.widths - 2 * pdf.at(z))


def cde_loss(pdf: Pdf, z_spec: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Mean of `cde_losses`."""
    return weighted_mean(cde_losses(pdf, z_spec), weights)


def coverage(pdf: Pdf, z_spec: npt.ArrayLike, level: float, weights: npt.ArrayLike | None = None) -> float:
    """Fraction of z_spec inside the central interval that holds `level` of each density."""
    return weighted_mean(np.abs(pdf.pit(z_spec) - 0.5) <= level / 2, weights)


def hpd_coverage(pdf: Pdf, z_spec: npt.ArrayLike, level: float, weights: npt.ArrayLike | None = None) -> float:
    """Fraction of z_spec inside the highest-density region that holds `level` of each density."""
    z = np.asarray(z_spec, dtype=np.float64)
    denser = (pdf.density * pdf.widths * (pdf.density > pdf.at(z)[:, None])).sum(axis=1)
    return weighted_mean((denser <= level) & (z >= pdf.edges[0]) & (z <= pdf.edges[-1]), weights)


def rejection_curve(
    score: npt.ArrayLike,
    dz: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    kept: npt.ArrayLike = (0.2, 0.4, 0.6, 0.8, 1.0),
    minimum: int = 100,
) -> list[dict[str, float | None]]:
    """Outlier fraction of the `kept` fractions with the lowest `score` (a support score: high is bad), and of the rest.

    One row a fraction (of the weight): kept, score (the cut), n, outliers, outliers_rest; None where fewer than
    `minimum` remain. `curves.threshold_curve` asks the same at given cuts.
    """
    d = finite("dz", dz)
    s = np.asarray(score, dtype=np.float64)
    if s.shape != d.shape or len(s) == 0 or np.isnan(s).any():  # an infinite score is a fair "nowhere near"
        raise BadInput(
            f"rejection_curve: score has shape {s.shape}, dz {d.shape}: expected two equal (N,), N > 0, no NaN"
        )
    order = np.argsort(s, kind="stable")
    w = checked_weights(weights, len(s))[order]
    bad = np.cumsum(w * (np.abs(d[order]) > OUTLIER))
    upto = np.cumsum(w)
    rows: list[dict[str, float | None]] = []
    for fraction in finite("kept", kept):
        n = int(np.searchsorted(upto - 0.5 * w, fraction * upto[-1]))  # the nearest whole number of objects
        inside, rest = (bad[n - 1], upto[n - 1]) if n else (0.0, 0.0), len(s) - n
        outside = (bad[-1] - inside[0], upto[-1] - inside[1])
        rows.append(
            {
                "kept": float(fraction),
                "score": float(s[order[n - 1]]) if n else None,
                "n": float(n),
                "outliers": float(inside[0] / inside[1]) if n >= max(minimum, 1) and inside[1] > 0 else None,
                "outliers_rest": float(outside[0] / outside[1]) if rest >= max(minimum, 1) and outside[1] > 0 else None,
            }
        )
    return rows

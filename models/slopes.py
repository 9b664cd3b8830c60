"""Residual slopes of Lin et al. 2022: how z_phot - z_spec runs with z_spec, and how it runs with z_phot.

The two cannot both be zero where z_phot carries an error. Of a posterior mean the slope against z_phot is 0, and the
slope against z_spec is -(1 - R^2) <= 0, the regression to the mean, R^2 being the share of the variance of z_spec
that z_phot explains. Of z_spec plus unrelated noise it is the other way: 0 against z_spec, above 0 against z_phot.
So a slope against z_spec is a diagnosis, and a user, who has only z_phot, is served by a zero slope against that.

The line is the weighted least-squares line through the objects: how the paper itself fits its slopes was not read.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.bootstrap import Resampling, Scorer, errors
from redshelf.models.metrics import delta_z, effective_sample_size
from redshelf.models.weighted import Floats, checked_weights


def weighted_slope(x: Floats, y: Floats, weights: Floats) -> float:
    """Slope of the weighted least-squares line of y on x, sum w (x - <x>) y / sum w (x - <x>)^2; NaN for constant x."""
    off = x - (weights @ x) / weights.sum()
    spread = float(weights @ off**2)
    # what rounding leaves of a constant is no spread
    return float((weights * off) @ y) / spread if spread > 1e-20 * float(weights @ x**2) else float("nan")


def slope_scorer(z_phot: npt.ArrayLike, z_spec: npt.ArrayLike, *, scaled: bool = False) -> Scorer:
    """`slope_z_spec`, `slope_z_phot` and `delta_mean_scaled` of N objects as a function of the weights (N,).

    The residual is z_phot - z_spec, or with `scaled` dz = (z_phot - z_spec) / (1 + z_spec). `delta_mean_scaled` is
    (<z_phot> - <z_spec>) / (1 + <z_spec>), the mean residual of a bin in CLAP (Lin et al. 2024, table 2).
    """
    dz = delta_z(z_phot, z_spec)
    phot, spec = np.asarray(z_phot, dtype=np.float64), np.asarray(z_spec, dtype=np.float64)
    residual = dz if scaled else phot - spec

    def scores(weights: Floats) -> dict[str, float]:
        share = weights / weights.sum()
        mean = float(share @ spec)
        return {
            "delta_mean_scaled": (float(share @ phot) - mean) / (1 + mean),
            "slope_z_spec": weighted_slope(spec, residual, weights),
            "slope_z_phot": weighted_slope(phot, residual, weights),
        }

    return scores


def residual_slopes(
    z_phot: npt.ArrayLike,
    z_spec: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    scaled: bool = False,
    limit: float | None = None,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> dict[str, float | None] | None:
    """n, ess, all of `slope_scorer` and with `bootstrap` draws their errors; None under `minimum` objects.

    `limit` leaves out |dz| above it, whose few far outliers can turn a line on their own. A slope is None where all
    redshifts are the same. Errors over objects, or over sky `tiles` (N,).
    """
    dz = delta_z(z_phot, z_spec)
    w = checked_weights(weights, len(dz))
    rows = np.flatnonzero((w > 0) & (np.abs(dz) <= (np.inf if limit is None else limit)))
    if len(rows) < max(minimum, 1):
        return None
    score = slope_scorer(np.asarray(z_phot)[rows], np.asarray(z_spec)[rows], scaled=scaled)
    out: dict[str, float | None] = {"n": float(len(rows)), "ess": effective_sample_size(w[rows])}
    out |= {name: value if np.isfinite(value) else None for name, value in score(w[rows]).items()}
    if bootstrap:
        found = errors([(rows, score)], w, Resampling.of(len(dz), draws=bootstrap, seed=seed, tiles=tiles))[0]
        out |= {f"{name}_error": error for name, error in found.items()}
    return out

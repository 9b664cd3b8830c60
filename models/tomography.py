"""Recovery of n(z): the stacked p(z) of a tomographic bin against true redshifts, or against weighted labelled ones.

A stack is the weighted sum of densities, which later parts of a survey add to: 40 million sources are stacked as they
are written. What cosmology asks of it is its mean: Euclid requires |delta <z>| <= 0.002 (1 + z) in each bin.
Stacking is itself an approximation (Malz & Hogg 2022: a stack is not the marginal posterior of n(z)), good where
densities are narrow beside the bin; it is scored here as what surveys publish.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from redshelf.models.binned import Bins, Row, edged
from redshelf.models.bootstrap import Resampling, Scorer, errors
from redshelf.models.distances import histogram, js_divergence, kl_divergence, total_variation, wasserstein_to_sample
from redshelf.models.errors import BadInput
from redshelf.models.metrics import effective_sample_size
from redshelf.models.pdf import Pdf
from redshelf.models.weighted import Floats, checked_weights, finite, rising

EUCLID_MEAN = 0.002
COARSE = 0.05  # width in ln(1+z) of the bins in which KL, JS and total variation are taken: finer ones count noise


def stack(pdf: Pdf, bins: Bins, weights: npt.ArrayLike | None = None) -> Floats:
    """Sum of weight times p(z) of each tomographic bin, in mass per bin of `pdf.edges`, (B, G).

    `bins` come from `binned.edged` of a point estimate. Stacks of parts add up to the stack of the whole.
    """
    if len(bins.codes) != len(pdf):
        raise BadInput(f"bins of {len(bins.codes)} objects: expected {len(pdf)}, as many as there are densities")
    w = np.ones(len(pdf)) if weights is None else finite("weights", weights, len(pdf))  # a part may weigh nothing
    if (w < 0).any():
        raise BadInput(f"weights: {w.min()}: expected values >= 0")
    out = np.zeros((len(bins.names), len(pdf.edges) - 1))
    for code in range(len(bins.names)):
        out[code] = np.where(bins.codes == code, w, 0.0) @ pdf.density
    return np.asarray(out * pdf.widths)


def coarse_edges(edges: Floats, *, step: float = COARSE) -> Floats:
    """Those of `edges` (G+1,) that are at least `step` apart in ln(1+z), with the first and the last."""
    marks = np.floor((np.log1p(edges) - np.log1p(edges[0])) / step + 1e-9)
    first = np.flatnonzero(np.diff(marks, prepend=-1.0) > 0)
    return np.asarray(np.union1d(edges[first], edges[-1:]))


def recovery(
    edges: npt.ArrayLike,
    stacked: npt.ArrayLike,
    z: npt.ArrayLike,
    bins: Bins,
    weights: npt.ArrayLike | None = None,
    *,
    histogram_edges: Sequence[float] | None = None,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> list[Row]:
    """How the stacks (B, G) on z `edges` (G+1,) agree with the redshifts `z` (M,) that `bins` sort into the same bins.

    One row a bin: low, high, n and ess of the redshifts, mean_stack, mean_z, delta_mean (stack - z), delta_mean_scaled
    (over 1 + mean_z: hold it against `EUCLID_MEAN`), sigma_stack, sigma_z, delta_sigma, wasserstein, and in bins
    between `histogram_edges` (default: `coarse_edges`) kl (z to stack), js, total_variation. None under `minimum`
    redshifts or without a stack. `weights` carry labelled redshifts over to the target (Lima et al. 2008). Errors are
    those of the redshifts, with the stack held: of stacks of the same objects, use `truth_recovery`.
    """
    at, mass = rising("edges", edges), np.asarray(stacked, dtype=np.float64)
    if mass.shape != (len(bins.names), len(at) - 1) or not np.isfinite(mass).all() or (mass < 0).any():
        raise BadInput(f"stacked of shape {mass.shape}: expected ({len(bins.names)}, {len(at) - 1}), finite and >= 0")
    values = finite("z", z, len(bins.codes))
    w = checked_weights(weights, len(values))
    resampling = Resampling.of(len(w), draws=bootstrap, seed=seed, tiles=tiles) if bootstrap else None
    coarse = coarse_edges(at) if histogram_edges is None else rising("histogram_edges", histogram_edges)
    out = []
    for code, name in enumerate(bins.names):
        rows = np.flatnonzero((bins.codes == code) & (w > 0))
        row: Row = {**name, "n": float(len(rows)), "ess": effective_sample_size(w[rows])}
        if len(rows) >= max(minimum, 1) and mass[code].any():
            row |= _compared(at, mass[code], values[rows], w[rows], coarse)
            if resampling is not None:
                mean, second = _moments(at, mass[code][None] / mass[code].sum())
                score = _delta_scorer(np.full(len(rows), mean), np.full(len(rows), second), values[rows])
                row |= _named(errors([(rows, score)], w, resampling)[0])
        out.append(row)
    return _filled(out)


def truth_recovery(
    pdf: Pdf,
    z_phot: npt.ArrayLike,
    z_true: npt.ArrayLike,
    z_edges: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    histogram_edges: Sequence[float] | None = None,
    minimum: int = 100,
    bootstrap: int = 0,
    seed: int = 0,
    tiles: npt.ArrayLike | None = None,
) -> list[Row]:
    """`recovery` of the true redshifts (N,) of the stacked objects, in bins of z_phot between `z_edges` (B+1,).

    Errors of delta_mean and delta_sigma are paired: stack and truth are drawn together.
    """
    bins = edged(finite("z_phot", z_phot, len(pdf)), z_edges, name="z_phot")
    truth, w = finite("z_true", z_true, len(pdf)), checked_weights(weights, len(pdf))
    stacked = stack(pdf, bins, w)
    out = recovery(pdf.edges, stacked, truth, bins, w, histogram_edges=histogram_edges, minimum=minimum)
    if bootstrap:
        mean, second = _moments(pdf.edges, pdf.density * pdf.widths)
        resampling = Resampling.of(len(w), draws=bootstrap, seed=seed, tiles=tiles)
        full = [code for code, row in enumerate(out) if row.get("delta_mean") is not None]
        members = [np.flatnonzero((bins.codes == code) & (w > 0)) for code in full]
        parts = [(rows, _delta_scorer(mean[rows], second[rows], truth[rows])) for rows in members]
        for code, found in zip(full, errors(parts, w, resampling), strict=True):
            out[code] |= _named(found)
    return _filled(out)


def _moments(edges: Floats, mass: Floats) -> tuple[Floats, Floats]:
    """<z> and <z^2> of piecewise-constant densities by masses (N, G), each (N,)."""
    low, high = edges[:-1], edges[1:]
    return mass @ (0.5 * (low + high)), mass @ ((low * low + low * high + high * high) / 3)


def _delta_scorer(mean: Floats, second: Floats, z: Floats) -> Scorer:
    def scores(weights: Floats) -> dict[str, float]:
        share = weights / weights.sum()
        stacked, true = float(share @ mean), float(share @ z)
        sigma = np.sqrt(max(float(share @ second) - stacked**2, 0)), np.sqrt(max(float(share @ z**2) - true**2, 0))
        return {"delta_mean": stacked - true, "delta_sigma": float(sigma[0] - sigma[1])}

    return scores


def _compared(edges: Floats, mass: Floats, z: Floats, weights: Floats, coarse: Floats) -> Row:
    share = mass / mass.sum()
    found_mean, found_second = (float(moment[0]) for moment in _moments(edges, share[None]))
    found_sigma = float(np.sqrt(max(found_second - found_mean**2, 0)))
    mean = float(np.average(z, weights=weights))
    sigma = float(np.sqrt(np.average((z - mean) ** 2, weights=weights)))
    cdf = np.interp(coarse, edges, np.concatenate([[0.0], np.cumsum(share)]))
    cdf = np.concatenate([[0.0], cdf, [1.0]])
    p, q = np.maximum(np.diff(cdf), 0), histogram(z, coarse, weights)
    return {
        "mean_stack": found_mean,
        "mean_z": mean,
        "delta_mean": found_mean - mean,
        "delta_mean_scaled": (found_mean - mean) / (1 + mean),
        "sigma_stack": found_sigma,
        "sigma_z": sigma,
        "delta_sigma": found_sigma - sigma,
        "wasserstein": wasserstein_to_sample(edges, share, z, weights),
        "kl": float(kl_divergence(q, p)),
        "js": float(js_divergence(q, p)),
        "total_variation": float(total_variation(q, p)),
    }


def _named(found: dict[str, float | None]) -> Row:
    return {f"{name}_error": error for name, error in found.items()}


def _filled(rows: list[Row]) -> list[Row]:
    """Every row with the columns of the fullest one, None where it has no number."""
    names = max(rows, key=len).keys()
    return [row | {name: row.get(name) for name in names} for row in rows]

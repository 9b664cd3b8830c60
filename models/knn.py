"""Redshift densities from exact nearest neighbours, with a local-linear correction and shift weights.

The k nearest labels are weighted by distance (Epanechnikov) and by shift weight; a ridge plane fitted to them in
ln(1+z) moves each neighbour's redshift to the query's position (the local fit of DEmP, Hsieh & Yee 2014), clipped to
the neighbours' range; a small kernel smooths the result onto z edges. Everything is vectorised in blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.bank import Bank, fit_bank, no_centres
from redshelf.models.errors import BadInput
from redshelf.models.metrics import cde_losses, clearly_better, weighted_mean, weighted_quantile
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MAX_DIM = 64
NEIGHBOURS = (10, 20, 40, 60, 100)
RIDGE = 0.1  # of the mean eigenvalue of the local scatter matrix
SMOOTHING = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)
VALIDATION_ROWS = 4000
BLOCK = 1024  # densities that stay near the cores
COMPANION_ARCSEC = 2.0
MAX_COMPANIONS = 64


def companions(ra_deg: npt.ArrayLike, dec_deg: npt.ArrayLike, *, radius_arcsec: float = COMPANION_ARCSEC) -> Ints:
    """For each of N positions the rows within `radius_arcsec`, itself first, -1 where there are fewer, (N, m)."""
    from scipy.spatial import cKDTree

    ra, dec = np.radians(np.asarray(ra_deg, dtype=np.float64)), np.radians(np.asarray(dec_deg, dtype=np.float64))
    unit = np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])
    pairs = cKDTree(unit).query_pairs(2 * np.sin(np.radians(radius_arcsec / 3600) / 2), output_type="ndarray")
    both = np.concatenate([pairs, pairs[:, ::-1]]).astype(np.int64)
    both = both[np.lexsort((both[:, 1], both[:, 0]))]
    count = np.bincount(both[:, 0], minlength=len(unit))
    if len(count) and count.max() > MAX_COMPANIONS:
        raise BadInput(
            f"{count.max() + 1} labelled sources within {radius_arcsec} arcsec: expected at most {MAX_COMPANIONS + 1}"
        )
    out = np.full((len(unit), 1 + int(count.max(initial=0))), -1, dtype=np.int64)
    out[:, 0] = np.arange(len(unit))
    order = np.arange(len(both)) - np.repeat(np.cumsum(count) - count, count)
    out[both[:, 0], 1 + order] = both[:, 1]
    return out


def kernel_weights(distance: Floats, weights: Floats) -> Floats:
    """Epanechnikov weights of distances (N, k), reaching 10% past the last, times `weights` (N, k); rows sum to 1."""
    reach = 1.1 * distance[:, -1:]
    kernel = 1 - (distance / np.where(reach > 0, reach, 1)) ** 2
    out = kernel * (weights + 1e-6)  # all-zero weights fall back to the kernel
    return np.asarray(out / out.sum(axis=1, keepdims=True))


def local_slopes(values: Floats, offsets: npt.NDArray[np.floating], weights: Floats) -> npt.NDArray[np.float32]:
    """Slopes (N, D) of a weighted ridge plane through values (N, k) at `offsets` (N, k, D) from the query."""
    offsets, share = offsets.astype(np.float32, copy=False), weights.astype(np.float32)
    root = np.sqrt(share)
    scaled = offsets - share[:, None] @ offsets
    scaled *= root[:, :, None]
    centred = (values - (weights * values).sum(axis=1, keepdims=True)).astype(np.float32)
    turned, right = scaled.transpose(0, 2, 1), (root * centred)[:, :, None]
    k, dim = scaled.shape[1:]
    # (S'S + r)^-1 S' = S' (SS' + r)^-1: the smaller of the two systems
    matrix = (scaled @ turned if k < dim else turned @ scaled).astype(np.float64)
    diagonal = np.arange(min(k, dim))
    trace = matrix[:, diagonal, diagonal].sum(axis=1)
    matrix[:, diagonal, diagonal] += (RIDGE * trace / dim + 1e-12)[:, None]
    if k < dim:
        slope = turned @ np.linalg.solve(matrix, right).astype(np.float32)
    else:
        slope = np.linalg.solve(matrix, turned @ right).astype(np.float32)  # (N, D, 1)
    return np.asarray(slope[:, :, 0])


def local_samples(values: Floats, offsets: npt.NDArray[np.floating], weights: Floats) -> Floats:
    """Neighbour values (N, k) moved to the query by a weighted ridge plane, each clipped to its row's range.

    `offsets` (N, k, D): neighbour minus query. The row's weighted mean is then the local-linear fit at the query.
    """
    offsets = offsets.astype(np.float32, copy=False)
    moved = values - (offsets @ local_slopes(values, offsets, weights)[:, :, None])[:, :, 0]
    return np.clip(moved, values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True))


def row_quantile(values: Floats, weights: Floats, q: float) -> Floats:
    """Weighted quantile of each row (N, k), linear between the centres of the steps, (N,)."""
    order = np.argsort(values, axis=1)
    v, w = np.take_along_axis(values, order, axis=1), np.take_along_axis(weights, order, axis=1)
    position = np.cumsum(w, axis=1) - 0.5 * w
    right = np.clip((position < q).sum(axis=1), 1, v.shape[1] - 1)
    rows = np.arange(len(v))
    low, high = position[rows, right - 1], position[rows, right]
    fraction = np.clip((q - low) / np.where(high > low, high - low, 1), 0, 1)
    return np.asarray(v[rows, right - 1] + fraction * (v[rows, right] - v[rows, right - 1]))


def log_step(edges: Floats) -> float:
    """The constant step of `edges` in ln(1+z); `BadInput` when it is not constant."""
    steps = np.diff(np.log1p(edges))
    if not np.allclose(steps, steps[0], rtol=1e-6):
        raise BadInput("edges: expected a uniform step in ln(1+z), as models.pdf.default_edges gives")
    return float(steps[0])


def smoothed_pdf(edges: Floats, samples: Floats, weights: Floats, width: Floats) -> Pdf:
    """Density of weighted samples of ln(1+z) (N, k), smoothed by a Gaussian of `width` (N,) in ln(1+z).

    Widths are rounded to classes 15% apart, so that a class is one convolution; mass reflects at both ends of the grid.
    """
    from scipy.ndimage import gaussian_filter1d

    step, bins, n = log_step(edges), len(edges) - 1, len(samples)
    classes = np.round(np.log(np.maximum(width / step, 0.3)) / np.log(1.15)).astype(np.int64)
    order = np.argsort(classes, kind="stable")  # rows of a class lie together
    position = np.clip((samples[order] - np.log1p(edges[0])) / step - 0.5, 0, bins - 1)
    left = np.minimum(position.astype(np.int64), bins - 2)
    upper = (position - left) * weights[order]
    flat = (np.arange(n)[:, None] * bins + left).ravel()
    both = np.concatenate([(weights[order] - upper).ravel(), upper.ravel()])
    mass = np.bincount(np.concatenate([flat, flat + 1]), both, minlength=n * bins).reshape(n, bins)
    out = np.empty_like(mass)
    values, starts = np.unique(classes[order], return_index=True)
    for value, rows in zip(values, map(slice, starts, [*starts[1:], n]), strict=True):
        out[order[rows]] = gaussian_filter1d(mass[rows], 1.15**value, axis=1, mode="reflect")
    return Pdf.from_mass(edges, np.maximum(out, 0, out=out))


@dataclass(frozen=True)
class KnnPrediction:
    """Densities of N queries with their neighbours: rows of the bank and distances (N, k), weights that sum to 1."""

    pdf: Pdf
    neighbours: Ints
    distances: Floats
    neighbour_weights: Floats


@dataclass(frozen=True)
class KnnRedshift:
    """The labelled `bank` (L, D <= 64), its ln(1+z) and weights (L,), and what validation chose."""

    bank: npt.NDArray[np.float32]
    log1pz: Floats
    weights: Floats
    edges: Floats
    k: int
    local_linear: bool
    smoothing: float
    floor: float
    centres: npt.NDArray[np.float32] = field(default_factory=no_centres)  # of lists of the bank, as in `Bank`
    probe: int = 0

    @cached_property
    def _search(self) -> Bank:
        return Bank(self.bank, self.centres, self.probe)

    def _samples(self, queries: npt.ArrayLike, exclude: npt.ArrayLike | None) -> tuple[Floats, Floats, Ints, Floats]:
        points = np.asarray(queries, dtype=np.float32)
        distance, rows = self._search.nearest(points, self.k, exclude=exclude)
        weights = kernel_weights(distance, self.weights[rows])
        samples = self.log1pz[rows]
        if self.local_linear:
            samples = local_samples(samples, self.bank[rows] - points[:, None], weights)
        return samples, weights, rows, distance

    def predict(self, queries: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None) -> KnnPrediction:
        """Densities of `queries` (N, D); `exclude` as in `Bank.nearest`: a labelled source names itself there."""
        points = np.asarray(queries, dtype=np.float32)
        if points.ndim != 2 or points.shape[1] != self.bank.shape[1] or not np.isfinite(points).all():
            raise BadInput(f"queries of shape {points.shape}: expected finite values (N, {self.bank.shape[1]})")
        banned = None if exclude is None else np.asarray(exclude, dtype=np.int64).reshape(len(points), -1)
        density = np.empty((len(points), len(self.edges) - 1))
        neighbours = np.empty((len(points), self.k), dtype=np.int64)
        weights, distances = np.empty((2, len(points), self.k))
        for start in range(0, len(points), BLOCK):
            part = slice(start, start + BLOCK)
            hidden = None if banned is None else banned[part]
            samples, weights[part], neighbours[part], distances[part] = self._samples(points[part], hidden)
            width = self.smoothing * bandwidth(samples, weights[part], self.floor)
            density[part] = smoothed_pdf(self.edges, samples, weights[part], width).density
        return KnnPrediction(Pdf(self.edges, density), neighbours, distances, weights)


def bandwidth(samples: Floats, weights: Floats, floor: float) -> Floats:
    """Silverman's width of each row of weighted samples, its spread (q84 - q16) / 2 and not under `floor`, (N,)."""
    spread = 0.5 * (row_quantile(samples, weights, 0.84) - row_quantile(samples, weights, 0.16))
    return np.asarray(0.9 * np.maximum(spread, floor) * (weights**2).sum(axis=1) ** 0.2)


def fit_knn(
    features: npt.ArrayLike,
    z: npt.ArrayLike,
    *,
    edges: Floats,
    importance: Floats,
    exclude: Ints,
    shift_weights: bool | None = None,
    seed: int = 0,
) -> tuple[KnnRedshift, dict[str, Any]]:
    """Fit on labelled `features` (L, D) and redshifts `z` (L,); leave-one-out weighted by `importance` (L,) chooses.

    k, the local-linear correction, whether shift weights enter, then the smoothing are chosen in that order: the first
    three by the mean |error of the median| in ln(1+z), the last by the CDE loss. `shift_weights` forbids or demands the
    weights instead. `exclude` (L, m) lists for each label itself and its close companions.
    """
    bank = np.ascontiguousarray(features, dtype=np.float32)
    log1pz = np.log1p(np.asarray(z, dtype=np.float64))
    if bank.ndim != 2 or bank.shape[1] > MAX_DIM or len(bank) != len(log1pz):
        raise BadInput(f"features of shape {bank.shape}, {len(log1pz)} redshifts: expected (L, D <= {MAX_DIM}) and L")
    largest = (len(bank) - exclude.shape[1]) // 2
    sizes = [k for k in NEIGHBOURS if k <= largest]
    if not sizes:
        raise BadInput(f"{len(bank)} labelled sources: expected at least {2 * NEIGHBOURS[0] + exclude.shape[1]}")
    rows = np.sort(np.random.default_rng(seed).permutation(len(bank))[:VALIDATION_ROWS])
    weigh = importance[rows] if importance[rows].any() else np.ones(len(rows))
    search = fit_bank(bank, seed=seed)
    distance, near = search.nearest(bank[rows], max(sizes), exclude=exclude[rows])
    one = np.ones(len(bank))

    def losses(k: int, linear: bool, weights: Floats) -> Floats:
        out = np.empty(len(rows))
        for start in range(0, len(rows), BLOCK):
            part = slice(start, start + BLOCK)
            hits = near[part, :k]
            share = kernel_weights(distance[part, :k], weights[hits])
            samples = log1pz[hits]
            if linear:
                samples = local_samples(samples, bank[hits] - bank[rows[part]][:, None], share)
            out[part] = np.abs(row_quantile(samples, share, 0.5) - log1pz[rows[part]])
        return out

    tried = {(k, linear): losses(k, linear, one) for k in sizes for linear in (False, True)}
    # a dozen effective labels cannot tell k = 10 from k = 40: leave the plain choice only for a clearly better one
    first = min(tried, key=lambda choice: float(tried[choice].mean()))
    best = min(tried, key=lambda choice: weighted_mean(tried[choice], weigh))
    k, linear = best if clearly_better(tried[first], tried[best], weigh) else first
    plain, shifted = tried[k, linear], losses(k, linear, importance)
    weighted = clearly_better(plain, shifted, weigh) if shift_weights is None else shift_weights
    floor = 0.25 * 1.4826 * weighted_quantile(shifted if weighted else plain, 0.5, weigh) + 1e-4
    weights = importance if weighted else one
    model = KnnRedshift(bank, log1pz, weights, edges, k, linear, 1.0, floor, search.centres, search.probe)
    scores = dict.fromkeys(SMOOTHING, 0.0)
    for start in range(0, len(rows), BLOCK):
        part = slice(start, start + BLOCK)
        samples, share, *_ = model._samples(bank[rows[part]], exclude[rows[part]])
        width, truth = bandwidth(samples, share, floor), np.expm1(log1pz[rows[part]])
        for smoothing in SMOOTHING:
            pdf = smoothed_pdf(edges, samples, share, smoothing * width)
            scores[smoothing] += (weigh[part] * cde_losses(pdf, truth)).sum() / weigh.sum()
    model = replace(model, smoothing=min(scores, key=scores.__getitem__))
    report = {
        "k": k,
        "local_linear": linear,
        "shift_weights": weighted,
        "smoothing": model.smoothing,
        "loss": {f"{n}{' linear' if flag else ''}": weighted_mean(v, weigh) for (n, flag), v in tried.items()},
        "loss_weighted": weighted_mean(shifted, weigh),
        "cde_loss": {str(s): v for s, v in scores.items()},
    }
    return model, report

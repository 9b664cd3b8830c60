"""CLAP's local calibration (Lin et al. 2024, A&A 691, A331), from its description: which k, and what to correct.

PIT(k) of a label: where its redshift stands among those of its k nearest labels. Where the PITs of the labels around a
source are uniform, the k nearest describe its redshift; where they are not, a parabola fitted to them corrects p(z).
Under a shift the labels around a source do not stand for it alike: every histogram here takes importance weights.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bins = npt.NDArray[np.uint8]
PIT_BINS = 100
NOT_UNIFORM = 0.05  # 1-Wasserstein distance above which no k is said to fit
ALL_SIZES = np.concatenate(
    [np.arange(5, 201, 5), np.arange(210, 601, 10), np.arange(620, 1001, 20), np.arange(1050, 2001, 50)]
)
SHARE = 0.05  # of the labels that one density may take; at k = L every PIT histogram is uniform, and says nothing
LEAST_LARGEST = 20
LEAST_FACTOR = 0.02  # a fitted parabola may fall below 0: densities stay positive


def size_grid(n_labels: int, *, hidden: int = 1, share: float = SHARE) -> Ints:
    """The paper's 120 values of k, 5 to 2000, as far as `share` of the labels, 20 at least where half of them allow it.

    `hidden`: labels that one label may not see, itself among them. `BadInput` for under 10 labels beyond those.
    """
    half = (n_labels - hidden) // 2
    if half < ALL_SIZES[0]:
        raise BadInput(f"{n_labels} labelled sources: expected at least {2 * ALL_SIZES[0] + hidden}")
    largest = min(half, max(LEAST_LARGEST, int(share * n_labels)))
    return np.asarray([k for k in ALL_SIZES if k <= largest], dtype=np.int64)


def pit_by_size(
    truth: Floats,
    values: Floats,
    sizes: Ints,
    *,
    moved: Floats | None = None,
    square: Floats | None = None,
    weights: Floats | None = None,
    self_match: bool = False,
) -> Floats:
    """PIT(k) of N `truth`s among the first k of `values` (N, w), neighbours by distance, for each k of `sizes`, (N, G).

    The middle of the step at the truth in the distribution of the k values *and the truth itself*,
    (k c + 1/2) / (k + 1) with c = (#below + #equal / 2) / k: uniform whatever k where truth and neighbours are alike.
    The reference leaves each label among its own neighbours (`self_match`: c as it is), which is the same number at
    one k more, but cannot hide a second observation of the same galaxy; so here a label is left out beforehand.

    `weights` (N, w) of the neighbours; `square` (N, w): squared distances, for the taper of `knn.kernel_weights`;
    `moved` (N, w): values brought to the query by a plane, taken inside the range of the k values.
    """
    starts, last, at = np.concatenate([[0], sizes[:-1]]), sizes - 1, truth[:, None]
    values = values[:, : sizes[-1]]
    samples = values if moved is None else moved[:, : sizes[-1]]
    share = np.ones(values.shape) if weights is None else weights[:, : sizes[-1]] + 1e-6
    reach = None if square is None else 1.21 * square[:, last]

    def sums(what: npt.NDArray[np.bool_] | None) -> Floats:
        counted = share if what is None else share * what
        total = np.cumsum(np.add.reduceat(counted, starts, axis=1), axis=1)
        if square is not None and reach is not None:
            far = np.cumsum(np.add.reduceat(counted * square[:, : sizes[-1]], starts, axis=1), axis=1)
            total -= far / np.where(reach > 0, reach, 1)
        return np.asarray(total)

    whole, below, equal = sums(None), sums(samples < at), sums(samples == at)
    if moved is not None:
        low = np.minimum.accumulate(np.minimum.reduceat(values, starts, axis=1), axis=1)
        high = np.maximum.accumulate(np.maximum.reduceat(values, starts, axis=1), axis=1)
        # what lies beyond the range of the k values is brought to its end
        case = [at < low, at > high, (at == low) & (at == high), at == low, at == high]
        none = np.zeros_like(whole)
        equal, below = (
            np.select(case, [none, none, whole, below + equal, whole - below], equal),
            np.select(case, [none, whole, none, none, below], below),
        )
    step = (below + 0.5 * equal) / whole
    return np.asarray(np.clip(step if self_match else (sizes * step + 0.5) / (sizes + 1), 0, 1))


def pit_bins(pit: Floats) -> Bins:
    """The bin of 100 that each PIT falls into."""
    return np.minimum(pit * PIT_BINS, PIT_BINS - 1).astype(np.uint8)


def uniformity(bins: Bins, near: Ints, sizes: Ints, weights: Floats | None = None) -> Floats:
    """1-Wasserstein distance from uniform of the PITs of each query's k nearest labels, for each k, (N, G).

    `bins` (G, L): the labels' PIT(k); `near` (N, w): rows of the labels by distance; `weights` (L,): importance.
    About 0.31 / sqrt(effective k) is noise: a few neighbours never look uniform. Costs the sum of `sizes` a query,
    67,000 steps for the whole grid.
    """
    out = np.empty((len(near), len(sizes)))
    row = (np.arange(len(near)) * PIT_BINS)[:, None]
    uniform = np.arange(1, PIT_BINS + 1) / PIT_BINS
    for column, k in enumerate(sizes):
        rows = near[:, :k]
        share = None if weights is None else (weights[rows] + 1e-6).ravel()
        histogram = np.bincount((bins[column][rows] + row).ravel(), share, minlength=len(near) * PIT_BINS)
        cumulative = np.cumsum(histogram.reshape(len(near), PIT_BINS), axis=1)
        out[:, column] = np.abs(cumulative / cumulative[:, -1:] - uniform).mean(axis=1)
    return out


def parabola(pit: Floats, near: Ints, counts: Ints, weights: Floats | None = None) -> Floats:
    """Second-order polynomial fitted to the PIT histogram (100 bins) of each query's labels, (N, 3), constant first.

    `pit` (L,): one PIT a label; `near` (N, w); the first `counts` (N,) of a row enter, by their importance `weights`
    (L,). Least squares on a histogram needs no histogram: its solution is linear in the mean of 1, u and u^2.
    """
    centre = (np.arange(PIT_BINS) + 0.5) / PIT_BINS
    design = np.stack([np.ones(PIT_BINS), centre, centre**2], axis=1)
    solve = PIT_BINS * np.linalg.inv(design.T @ design)
    u = centre[pit_bins(pit)]
    share = (np.arange(near.shape[1]) < counts[:, None]) * (1.0 if weights is None else weights[near] + 1e-6)
    share /= share.sum(axis=1, keepdims=True)
    first, second = (share * u[near]).sum(axis=1), (share * u[near] ** 2).sum(axis=1)
    return np.asarray(np.stack([np.ones(len(near)), first, second], axis=1) @ solve.T)


def recalibrated(pdf: Pdf, coefficients: Floats) -> Pdf:
    """p(z) q(F(z)) of N densities, normalised, with q the parabola of `coefficients` (N, 3), held above 0.02.

    A row that has no mass left, or no finite one, stays as it was.
    """
    cdf = pdf.cdf()
    low, high = cdf[:, :-1], cdf[:, 1:]

    def factor(u: Floats) -> Floats:
        q = coefficients[:, :1] + coefficients[:, 1:2] * u + coefficients[:, 2:] * u**2
        return np.asarray(np.maximum(q, LEAST_FACTOR))

    # Simpson's rule: the exact integral of a parabola over the bin
    mass = (high - low) * (factor(low) + 4 * factor(0.5 * (low + high)) + factor(high)) / 6
    total = mass.sum(axis=1)
    good = np.isfinite(total) & (total > 0)
    return Pdf.from_mass(pdf.edges, np.where(good[:, None], mass, pdf.density * pdf.widths))

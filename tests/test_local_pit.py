"""PITs against loops, their histograms against the paper's description, parabolas against numpy's and known truths."""

import numpy as np
import pytest
from scipy.stats import norm

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.local_pit import (
    ALL_SIZES,
    parabola,
    pit_bins,
    pit_by_size,
    recalibrated,
    size_grid,
    uniformity,
)
from redshelf.models.pdf import Pdf, default_edges

SIZES = np.array([5, 10, 15, 40])


def neighbours(n=30, w=40, seed=0, *, ties=True):
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 12, size=(n, w)) / 10 if ties else rng.random((n, w))
    truth = rng.integers(-1, 13, size=n) / 10 if ties else rng.random(n)
    return truth, values, np.sort(rng.random((n, w)), axis=1), rng.random((n, w))


def test_the_grid_is_the_papers_cut_to_the_labels():
    assert len(ALL_SIZES) == 120 and ALL_SIZES[0] == 5 and ALL_SIZES[-1] == 2000 and (np.diff(ALL_SIZES) > 0).all()
    assert size_grid(400_000).tolist() == ALL_SIZES.tolist()
    assert size_grid(2400)[-1] == 120
    assert size_grid(50).tolist() == [5, 10, 15, 20]
    assert size_grid(30, hidden=3).tolist() == [5, 10]
    with pytest.raises(BadInput, match="10 labelled sources: expected at least 11"):
        size_grid(10)


def test_pit_of_every_k_equals_a_plain_loop():
    truth, values, _, _ = neighbours()
    for self_match in (False, True):
        expected = np.empty((len(truth), len(SIZES)))
        for i, at in enumerate(truth):
            for j, k in enumerate(SIZES):
                below = sum(1 for v in values[i, :k] if v < at)
                equal = sum(1 for v in values[i, :k] if v == at)
                step = (below + 0.5 * equal) / k
                expected[i, j] = step if self_match else (k * step + 0.5) / (k + 1)
        np.testing.assert_allclose(pit_by_size(truth, values, SIZES, self_match=self_match), expected, rtol=1e-5)


def test_leaving_the_label_out_is_the_reference_at_one_neighbour_more():
    truth, values, _, _ = neighbours()
    with_self = np.concatenate([truth[:, None], values], axis=1)
    reference = pit_by_size(truth, with_self, SIZES + 1, self_match=True)
    np.testing.assert_allclose(pit_by_size(truth, values, SIZES), reference, rtol=1e-5)


def test_tapered_weighted_and_moved_pits_equal_a_plain_loop():
    truth, values, distance, weights = neighbours()
    moved = np.round(values + np.random.default_rng(3).normal(0, 0.5, values.shape), 1)
    found = pit_by_size(truth, values, SIZES, moved=moved, square=distance**2, weights=weights, self_match=True)
    for i, at in enumerate(truth):
        for j, k in enumerate(SIZES):
            taper = 1 - (distance[i, :k] / (1.1 * distance[i, k - 1])) ** 2
            share = taper * (weights[i, :k] + 1e-6)
            inside = np.clip(moved[i, :k], values[i, :k].min(), values[i, :k].max())
            expected = (share * ((inside < at) + 0.5 * (inside == at))).sum() / share.sum()
            assert found[i, j] == pytest.approx(expected, abs=1e-9), (i, k)


def test_pits_of_alike_labels_are_uniform_whatever_k():
    truth, values, _, _ = neighbours(20_000, ties=False)
    pit = pit_by_size(truth, values, SIZES)
    np.testing.assert_allclose(pit.mean(axis=0), 0.5, atol=0.01)
    # a step of 1 / (k + 1) takes (k + 1)^-2 / 12 of the variance of a uniform distribution
    np.testing.assert_allclose(pit.var(axis=0), (1 - 1 / (SIZES + 1) ** 2) / 12, rtol=0.02)


@pytest.mark.parametrize("weighted", [False, True])
def test_distance_from_uniform_equals_the_papers_loop(weighted):
    rng = np.random.default_rng(4)
    pit, near = rng.random((4, 60)) ** 1.5, np.stack([rng.permutation(60)[:40] for _ in range(20)])
    weights = rng.random(60) if weighted else None
    found = uniformity(pit_bins(pit), near, SIZES, weights)
    for i in range(20):
        for j, k in enumerate(SIZES):
            share = None if weights is None else weights[near[i, :k]]
            histogram, _ = np.histogram(pit[j, near[i, :k]], bins=100, range=(0, 1), weights=share)
            expected = np.mean(np.abs(np.cumsum(histogram / histogram.sum()) - np.cumsum(np.full(100, 0.01))))
            assert found[i, j] == pytest.approx(expected, rel=1e-4)


def test_labels_without_any_weight_count_alike():
    rng = np.random.default_rng(5)
    bins, near = pit_bins(rng.random((4, 60))), np.stack([rng.permutation(60)[:40] for _ in range(5)])
    np.testing.assert_allclose(uniformity(bins, near, SIZES, np.zeros(60)), uniformity(bins, near, SIZES))


def test_the_parabola_is_the_least_squares_fit_to_the_histogram():
    rng = np.random.default_rng(6)
    pit, near, counts = rng.random(300) ** 2, rng.integers(0, 300, (3, 250)), np.array([20, 100, 250])
    found = parabola(pit, near, counts)
    for i, k in enumerate(counts):
        histogram, edges = np.histogram(pit[near[i, :k]], bins=100, range=(0, 1), density=True)
        expected = np.polyfit(0.5 * (edges[1:] + edges[:-1]), histogram, 2)[::-1]
        np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-9)


def gaussians(centre, width):
    """Densities of N(centre, width) in z, (N,) each."""
    edges = default_edges(2.0)
    return Pdf.from_mass(edges, np.diff(norm.cdf(edges, np.asarray(centre)[:, None], np.asarray(width)[:, None])))


@pytest.mark.parametrize(("width", "shift"), [(0.041, 0.0), (0.065, 0.0), (0.05, 0.02)])
def test_recalibrated_pits_are_uniform_where_the_raw_are_narrow_wide_or_shifted(width, shift):
    rng = np.random.default_rng(7)
    centre = rng.uniform(0.5, 1.0, 6000)
    z = rng.normal(centre, 0.05)
    raw = gaussians(centre + shift, np.full(6000, width))
    pit = raw.pit(z)
    labels, target = slice(0, 3000), slice(3000, 6000)
    near = np.tile(np.arange(3000), (3000, 1))
    coefficients = parabola(pit[labels], near[:1], np.array([3000])).repeat(3000, axis=0)
    out = recalibrated(Pdf(raw.edges, raw.density[target]), coefficients)
    before, after = metrics.pit_ks(pit[target]), metrics.pit_ks(out.pit(z[target]))
    assert before > 0.05 and after < 0.03  # a parabola cannot follow the cusps of a density far too narrow
    np.testing.assert_allclose((out.density * out.widths).sum(axis=1), 1)


def test_weights_make_pits_uniform_on_a_shifted_target():
    rng = np.random.default_rng(8)

    def tilted(slope, n=8000):  # x in 0..1 with a density that goes as exp(slope x)
        return np.log1p(rng.random(n) * np.expm1(slope)) / slope

    x_labels, x_target = tilted(-1.5), tilted(1.5)
    # too wide where most labels lie, too narrow where the target does
    z_labels, z_target = (rng.normal(1.0, 0.02 + 0.05 * x) for x in (x_labels, x_target))
    raw = gaussians(np.ones(8000), np.full(8000, 0.042))
    pit, weights = raw.pit(z_labels), np.exp(3 * x_labels)
    ks = {}
    for name, share in (("plain", None), ("weighted", weights)):
        coefficients = parabola(pit, np.arange(8000)[None], np.array([8000]), share).repeat(8000, axis=0)
        ks[name] = metrics.pit_ks(recalibrated(raw, coefficients).pit(z_target))
    before = metrics.pit_ks(raw.pit(z_target))
    assert ks["weighted"] < 0.035 < 0.04 < before < ks["plain"]


def test_a_correction_never_leaves_a_density_negative_or_without_mass():
    raw = gaussians(np.array([0.5, 0.6, 0.7]), np.array([0.05, 0.05, 0.05]))
    coefficients = np.array([[-5.0, 0.0, 0.0], [np.nan, 0, 0], [1.0, -8.0, 8.0]])
    out = recalibrated(raw, coefficients)
    assert (out.density >= 0).all()
    np.testing.assert_allclose((out.density * out.widths).sum(axis=1), 1)
    np.testing.assert_allclose(out.density[:2], raw.density[:2], rtol=1e-9)

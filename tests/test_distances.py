"""Distances against scipy, closed forms and each other."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from scipy.spatial.distance import jensenshannon

from redshelf.models import distances
from redshelf.models.errors import BadInput

MASSES = arrays.arrays(np.float64, (2, 6), elements=st.integers(0, 5).map(float)).filter(
    lambda m: bool((m.sum(axis=1) > 0).all())
)


def test_two_shifted_uniforms_are_apart_by_the_shift():
    even = (np.arange(10_000) + 0.5) / 10_000
    assert distances.wasserstein(even, even + 0.3) == pytest.approx(0.3)
    edges = np.arange(0, 2.01, 0.1)
    one, other = np.repeat([1.0, 0.0], 10), np.roll(np.repeat([1.0, 0.0], 10), 3)
    assert distances.grid_wasserstein(edges, one, other) == pytest.approx(0.3)
    assert distances.total_variation(one, other) == pytest.approx(0.3)
    assert distances.wasserstein_to_sample(edges, one, even + 0.3) == pytest.approx(0.3, abs=1e-6)


def test_wasserstein_equals_scipy_with_and_without_weights():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), rng.gamma(2, size=90)
    w, v = rng.random(60), rng.random(90)
    assert distances.wasserstein(a, b) == pytest.approx(stats.wasserstein_distance(a, b))
    assert distances.wasserstein(a, b, w, v) == pytest.approx(stats.wasserstein_distance(a, b, w, v))


def test_wasserstein_takes_whole_number_weights_for_repeated_rows():
    rng = np.random.default_rng(1)
    a, b, counts = rng.normal(size=40), rng.normal(size=30), rng.integers(0, 4, 40)
    assert distances.wasserstein(a, b, counts) == pytest.approx(distances.wasserstein(np.repeat(a, counts), b))


@settings(deadline=None)
@given(MASSES)
def test_a_density_is_as_far_from_another_as_from_a_dense_sample_of_it(masses):
    edges = np.array([0, 0.1, 0.3, 0.6, 1.0, 1.5, 2.1])
    shares = masses[1] / masses[1].sum()
    even = edges[:-1, None] + np.diff(edges)[:, None] * (np.arange(400) + 0.5) / 400
    found = distances.wasserstein_to_sample(edges, masses[0], even.ravel(), np.repeat(shares, 400))
    assert distances.grid_wasserstein(edges, *masses) == pytest.approx(found, abs=2e-3)


@settings(deadline=None)
@given(MASSES)
def test_divergences_are_those_of_scipy_and_within_their_bounds(masses):
    p, q = masses
    assert distances.js_divergence(p, q) == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-9)
    assert distances.kl_divergence(p, (p + q) / 2) >= -1e-12
    assert 0 <= distances.total_variation(p, q) <= 1 + 1e-12
    assert distances.js_divergence(p, q) <= np.log(2) + 1e-12
    if (q > 0).all():
        assert distances.kl_divergence(p, q) == pytest.approx(stats.entropy(p, q), abs=1e-9)


def test_an_empty_bin_makes_kl_large_and_finite():
    assert distances.kl_divergence([1, 1], [1, 0]) == pytest.approx(np.log(0.5) - 0.5 * np.log(np.finfo(float).eps))


def test_a_sample_off_the_grid_is_as_far_as_it_lies():
    assert distances.wasserstein_to_sample([0, 1], [1.0], [3.0]) == pytest.approx(2.5)
    assert distances.wasserstein_to_sample([0, 1], [1.0], [-1.0, 2.0]) == pytest.approx(0.5 * 1.25 + 0.5 * 1.25)


def test_a_histogram_keeps_what_lies_off_the_edges():
    found = distances.histogram([-1, 0, 0.5, 1, 2, 2.5], [0, 1, 2], [1, 1, 1, 1, 1, 5])
    assert found.tolist() == pytest.approx([0.1, 0.2, 0.2, 0.5])


def test_distances_of_a_shrunken_estimate_to_the_truth():
    spec = (np.arange(10_000) + 0.5) / 10_000
    out = distances.distribution_distances(0.5 + 0.5 * (spec - 0.5), spec, np.linspace(0, 1, 5))
    assert out["total_variation"] == pytest.approx(0.5)
    assert out["wasserstein"] == pytest.approx(0.125)
    assert out["js"] < np.log(2) < out["kl"]
    same = distances.distribution_distances(spec, spec, [0.2, 0.5])
    assert same == pytest.approx(dict.fromkeys(same, 0.0), abs=1e-12)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: distances.wasserstein([], [1]), "a has 0 values"),
        (lambda: distances.wasserstein([np.nan], [1]), "a: nan in row 0"),
        (lambda: distances.wasserstein([1], [1], [0.0]), "all zero"),
        (lambda: distances.histogram([1], [1, 0]), r"edges: 0\.0 after 1\.0"),
        (lambda: distances.total_variation([1, 2], [1]), r"\(2,\) and \(1,\)"),
        (lambda: distances.js_divergence([0, 0], [1, 1]), "none without mass"),
        (lambda: distances.kl_divergence([-1, 2], [1, 1]), ">= 0"),
        (lambda: distances.grid_wasserstein([0, 1], [1, 1], [1, 1]), r"\(\.\.\., 1\)"),
        (lambda: distances.wasserstein_to_sample([0, 1], [0.0], [1]), r"mass of shape \(1,\)"),
        (lambda: distances.distribution_distances([0.1], [0.1, 0.2], [0, 1]), r"z_spec has shape \(2,\)"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call()

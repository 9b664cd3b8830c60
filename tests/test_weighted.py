"""Weighted samples against numpy, repeated rows and brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.weighted import Sample, checked_weights, finite, rising

# few different values, so that many are equal
VALUES = arrays.arrays(np.float64, st.integers(1, 40), elements=st.integers(-8, 8).map(lambda i: i / 8))


def weighed(values, weights=None):
    return Sample.of(values).weigh(np.ones(len(values)) if weights is None else weights)


@settings(deadline=None)
@given(VALUES)
def test_the_median_and_its_deviation_are_numpys(values):
    sample = weighed(values)
    assert sample.quantile(0.5) == np.median(values)
    for centre in (np.median(values), 0.0, 0.3, -9.0):
        assert sample.median_deviation(centre) == pytest.approx(np.median(np.abs(values - centre)), abs=1e-15)


@settings(deadline=None)
@given(VALUES, st.data())
def test_whole_number_weights_are_repeated_rows(values, data):
    counts = data.draw(arrays.arrays(np.int64, len(values), elements=st.integers(0, 4)))
    counts[0] += 1
    repeated = np.repeat(values, counts)
    one, other = weighed(values, counts.astype(float)), weighed(repeated)
    for q in (0.16, 0.25, 0.5, 0.75, 0.84):
        assert one.quantile(q) == other.quantile(q)
    assert one.median_deviation(0.1) == other.median_deviation(0.1)
    assert one.beyond(0.5) == pytest.approx((np.abs(repeated) > 0.5).mean(), abs=1e-12)
    assert one.mean() == pytest.approx(repeated.mean(), abs=1e-12)


@settings(deadline=None)
@given(VALUES, st.floats(1e-6, 1e6))
def test_the_scale_of_weights_is_of_no_matter(values, scale):
    weights = 1.0 + np.arange(len(values)) % 3
    one, other = weighed(values, weights), weighed(values, scale * weights)
    assert [one.quantile(q) for q in (0.16, 0.5, 0.84)] == [other.quantile(q) for q in (0.16, 0.5, 0.84)]
    assert one.median_deviation(0.0) == other.median_deviation(0.0)


def test_quantiles_are_numpys_inverted_cdf_with_the_middle_of_a_step_that_ends_there():
    values = np.random.default_rng(0).normal(size=1000)
    for q in (0.16, 0.25, 0.5, 0.333, 0.84):
        assert weighed(values).quantile(q) == np.quantile(values, q, method="averaged_inverted_cdf")


def test_every_point_score_takes_whole_number_weights_for_repeated_rows():
    rng = np.random.default_rng(1)
    dz, counts = rng.standard_t(2, 500) * 0.03, rng.integers(0, 4, 500)
    one = metrics.point_scorer(dz)(counts.astype(float))
    repeated = np.repeat(dz, counts)
    assert one == pytest.approx(metrics.point_scorer(repeated)(np.ones(len(repeated))), abs=1e-12)


def test_what_is_wrong_is_named_with_its_value():
    with pytest.raises(BadInput, match="z_spec: nan in row 2"):
        finite("z_spec", [0, 1, np.nan])
    with pytest.raises(BadInput, match=r"z_spec has shape \(3,\): expected \(2,\)"):
        finite("z_spec", [0, 1, 2], 2)
    with pytest.raises(BadInput, match=r"weights: -1\.0 in row 1"):
        checked_weights([1, -1], 2)
    with pytest.raises(BadInput, match="all zero"):
        checked_weights([0, 0], 2)
    with pytest.raises(BadInput, match=r"edges: 0.5 after 0.7"):
        rising("edges", [0, 0.7, 0.5, 1])
    with pytest.raises(BadInput, match=r"edges: nan after 0\.0"):
        rising("edges", [0, np.nan, 1])
    with pytest.raises(BadInput, match="0 values"):
        Sample.of(np.empty(0))

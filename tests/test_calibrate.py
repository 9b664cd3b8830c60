"""Weighted recalibration and conformal intervals against closed forms, mapie, and targets whose truth is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from redshelf.models import metrics
from redshelf.models.calibrate import KNOTS, conformal_threshold, fit_calibration
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges

EDGES = default_edges(2)


def gaussians(centre, width):
    cdf = norm.cdf((EDGES - np.asarray(centre)[:, None]) / np.broadcast_to(width, len(centre))[:, None])
    return Pdf.from_mass(EDGES, np.diff(cdf, axis=1))


def sample(n, seed, *, claimed=0.02, scatter=0.02, shift=0.0):
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.4, 1.4, n)
    return gaussians(centre, claimed), centre + shift + scatter * rng.normal(size=n)


@pytest.mark.parametrize(("claimed", "shift"), [(0.01, 0.0), (0.04, 0.0), (0.02, 0.015)])
def test_densities_too_narrow_too_wide_or_shifted_become_uniform_in_pit_on_unseen_sources(claimed, shift):
    pdf, z = sample(6000, 0, claimed=claimed, shift=shift)
    fresh, truth = sample(6000, 1, claimed=claimed, shift=shift)
    calibration = fit_calibration(pdf, z, np.ones(len(z)))
    assert calibration.is_recalibrated
    before, after = metrics.pit_ks(fresh.pit(truth)), metrics.pit_ks(calibration.recalibrated(fresh).pit(truth))
    assert before > 0.1 and after < 0.035
    for level in (0.68, 0.95):
        assert metrics.coverage(calibration.recalibrated(fresh), truth, level) == pytest.approx(level, abs=0.025)


def test_calibrated_densities_are_left_as_they_are():
    pdf, z = sample(3000, 2)
    calibration = fit_calibration(pdf, z, np.ones(len(z)))
    assert not calibration.is_recalibrated
    assert calibration.recalibrated(pdf) is pdf


def test_weights_calibrate_to_the_target_and_not_to_the_labels():
    rng = np.random.default_rng(3)
    faint = rng.random(8000) < 0.2  # among the labels; four fifths of the target
    z = rng.uniform(0.4, 1.4, 8000)
    centre = z + np.where(faint, 0.05, 0.02) * rng.normal(size=8000)
    weights = np.where(faint, 4.0, 0.25)
    calibration = fit_calibration(gaussians(centre, 0.02), z, weights)
    plain = fit_calibration(gaussians(centre, 0.02), z, np.ones(8000))
    truth = rng.uniform(0.4, 1.4, 8000)
    target = gaussians(truth + np.where(rng.random(8000) < 0.8, 0.05, 0.02) * rng.normal(size=8000), 0.02)
    assert metrics.coverage(calibration.recalibrated(target), truth, 0.68) == pytest.approx(0.68, abs=0.03)
    assert metrics.coverage(plain.recalibrated(target), truth, 0.68) < 0.6


def test_a_dozen_effective_labels_change_nothing_that_all_labels_say():
    pdf, z = sample(2000, 4)
    weights = np.zeros(2000)
    weights[:12] = 1
    assert not fit_calibration(pdf, z, weights).is_recalibrated


def test_recalibrated_densities_integrate_to_one_and_keep_their_quantiles_in_order():
    pdf, z = sample(3000, 5, claimed=0.008)
    changed = fit_calibration(pdf, z, np.ones(3000)).recalibrated(pdf)
    np.testing.assert_allclose((changed.density * changed.widths).sum(axis=1), 1)
    assert (changed.density >= 0).all()
    assert (changed.quantile(0.16) <= changed.median()).all() and (changed.median() <= changed.quantile(0.84)).all()


def test_equal_weights_give_the_quantile_of_split_conformal_prediction():
    scores = np.random.default_rng(6).random(99)
    threshold = conformal_threshold(scores, np.ones(99), np.ones(3), 0.9)
    np.testing.assert_array_equal(threshold, np.sort(scores)[int(np.ceil(100 * 0.9)) - 1])


def test_intervals_equal_those_of_mapie_where_the_methods_coincide():
    from mapie.regression import SplitConformalRegressor
    from sklearn.linear_model import LinearRegression

    rng = np.random.default_rng(7)
    x = rng.normal(size=(400, 2))
    y = x @ [1.0, -2.0] + rng.normal(size=400)
    model = LinearRegression().fit(x[:200], y[:200])
    peer = SplitConformalRegressor(model, confidence_level=[0.68, 0.95], prefit=True)
    peer.conformalize(x[200:300], y[200:300])
    _, sets = peer.predict_interval(x[300:])
    scores = np.abs(y[200:300] - model.predict(x[200:300]))
    for number, level in enumerate((0.68, 0.95)):
        half = conformal_threshold(scores, np.ones(100), np.ones(100), level)
        np.testing.assert_allclose(model.predict(x[300:]) - half, sets[:, 0, number])
        np.testing.assert_allclose(model.predict(x[300:]) + half, sets[:, 1, number])


def test_an_interval_is_infinite_where_no_label_can_promise_it():
    pdf, z = sample(200, 8)
    calibration = fit_calibration(pdf, z, np.ones(200))
    ratio = np.array([0.0, 1.0, 9.0, 11.0, 1e6])
    queries = gaussians(np.full(5, 0.7), 0.02)
    low, high = calibration.interval(queries, ratio, 0.95)
    np.testing.assert_allclose(calibration.mass_at_infinity(ratio), ratio / (200 + ratio))
    assert np.isfinite(low[:3]).all() and np.isinf(low[3:]).all() and (high[3:] == np.inf).all()
    assert np.isfinite(calibration.interval(queries, ratio, 0.68)[0]).tolist() == [True, True, True, True, False]
    assert (np.diff(high[:3]) >= 0).all()  # a rarer kind of source gets no shorter an interval


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.5, 0.99))
def test_weighted_intervals_cover_a_shifted_target_at_least_as_often_as_they_say(seed, level):
    rng = np.random.default_rng(seed)
    x = rng.random(3000)
    scores = np.abs((0.5 + 2 * x) * rng.normal(size=3000))
    weights = 2 * x  # the target has the density 2x
    fresh = np.sqrt(rng.random(3000))
    truth = np.abs((0.5 + 2 * fresh) * rng.normal(size=3000))
    covered = truth <= conformal_threshold(scores, weights, 2 * fresh, level)
    assert covered.mean() > level - 0.05


def test_bad_weights_and_levels_are_refused():
    pdf, z = sample(100, 9)
    with pytest.raises(BadInput, match="calibration weights"):
        fit_calibration(pdf, z, np.full(100, np.nan))
    with pytest.raises(BadInput, match="level=1"):
        conformal_threshold(np.ones(3), np.ones(3), np.ones(1), 1.0)
    with pytest.raises(BadInput, match="conformal scores"):
        conformal_threshold(np.ones(3), -np.ones(3), np.ones(1), 0.5)


def test_labels_without_weight_count_alike():
    pdf, z = sample(300, 10)
    calibration = fit_calibration(pdf, z, np.zeros(300))
    assert calibration.weights.tolist() == [1.0] * 300 and KNOTS[0] == 0 and KNOTS[-1] == 1

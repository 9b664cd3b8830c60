"""Residual slopes of estimators whose slopes are known: Lin 2022's two incompatible ones."""

import numpy as np
import pytest

from redshelf.models import slopes
from redshelf.models.errors import BadInput

N = 40_000


def truth_and_measurement(seed=0):
    """z of mean 1 and spread 0.2, and a measurement of it with error 0.2: the posterior mean shrinks by a half."""
    rng = np.random.default_rng(seed)
    z = rng.normal(1.0, 0.2, N)
    return z, z + rng.normal(0, 0.2, N)


def test_a_posterior_mean_has_no_slope_in_z_phot_and_regresses_to_the_mean_in_z_spec():
    z, measured = truth_and_measurement()
    out = slopes.residual_slopes(1 + 0.5 * (measured - 1), z, bootstrap=100)
    assert out is not None
    assert abs(out["slope_z_phot"]) < 4 * out["slope_z_phot_error"]
    assert out["slope_z_spec"] == pytest.approx(-0.5, abs=4 * out["slope_z_spec_error"])
    assert 0 < out["slope_z_spec_error"] < 0.01


def test_truth_with_unrelated_noise_is_the_other_way_round():
    z, measured = truth_and_measurement(1)
    out = slopes.residual_slopes(measured, z)
    assert out is not None
    assert (out["slope_z_spec"], out["slope_z_phot"]) == pytest.approx((0, 0.5), abs=0.02)


def test_a_stretched_estimate_without_noise_has_the_slopes_of_its_stretch():
    z = np.linspace(0.1, 2, 200)
    out = slopes.residual_slopes(0.3 + 0.8 * z, z)
    assert out is not None
    assert (out["slope_z_spec"], out["slope_z_phot"]) == pytest.approx((-0.2, -0.25))
    assert out["delta_mean_scaled"] == pytest.approx((0.3 - 0.2 * 1.05) / 2.05)


def test_slopes_are_those_of_numpys_least_squares():
    z, measured = truth_and_measurement(2)
    z, measured = z[:500], measured[:500]
    weights = np.random.default_rng(3).random(500)
    for scaled in (False, True):
        residual = (measured - z) / (1 + z if scaled else 1)
        out = slopes.residual_slopes(measured, z, weights, scaled=scaled)
        assert out is not None
        assert out["slope_z_spec"] == pytest.approx(np.polyfit(z, residual, 1, w=np.sqrt(weights))[0])
        assert out["slope_z_phot"] == pytest.approx(np.polyfit(measured, residual, 1, w=np.sqrt(weights))[0])


def test_whole_number_weights_are_repeated_rows():
    z, measured = truth_and_measurement(4)
    counts = np.random.default_rng(5).integers(0, 4, N)
    one = slopes.residual_slopes(measured, z, counts)
    other = slopes.residual_slopes(np.repeat(measured, counts), np.repeat(z, counts))
    assert one is not None and other is not None
    assert [one[k] for k in ("slope_z_spec", "slope_z_phot")] == pytest.approx(
        [other[k] for k in ("slope_z_spec", "slope_z_phot")]
    )


def test_a_limit_leaves_out_what_turns_the_line():
    z = np.linspace(0.5, 1.5, 300)
    measured = z.copy()
    measured[-3:] = 0.1
    free, held = slopes.residual_slopes(measured, z), slopes.residual_slopes(measured, z, limit=0.15)
    assert free is not None and held is not None
    assert free["slope_z_spec"] < -0.01 and held["slope_z_spec"] == pytest.approx(0) and held["n"] == 297


def test_one_redshift_for_all_has_no_slope_and_few_objects_no_number():
    z = np.linspace(0.5, 1.5, 300)
    out = slopes.residual_slopes(np.full(300, 0.7), z, bootstrap=20)
    assert out is not None
    assert out["slope_z_phot"] is None and out["slope_z_phot_error"] is None
    assert out["slope_z_spec"] == pytest.approx(-1)
    assert slopes.residual_slopes(z[:99], z[:99]) is None


def test_bad_input_is_named():
    with pytest.raises(BadInput, match="z_phot: nan in row 0"):
        slopes.residual_slopes([np.nan], [1.0])
    with pytest.raises(BadInput, match="all zero"):
        slopes.residual_slopes([1.0], [1.0], [0.0])

"""Scores against closed forms, numpy and scipy."""

import subprocess
import sys

import numpy as np
import pytest
from qp.metrics.point_estimate_metric_classes import PointBias, PointOutlierRate, PointSigmaIQR, PointSigmaMAD
from scipy import integrate, stats

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges


def gaussian(centre, sigma, edges):
    """Exact bin masses of Gaussians, truncated to the grid."""
    return Pdf.from_mass(edges, np.diff(stats.norm.cdf((edges[None] - centre[:, None]) / sigma), axis=1))


def test_point_scores_equal_their_formulas():
    rng = np.random.default_rng(1)
    spec = rng.uniform(0, 2, 501)
    phot = spec + (1 + spec) * rng.normal(0.01, 0.05, 501)
    dz = (phot - spec) / (1 + spec)
    out = metrics.summary(phot, spec)
    assert out is not None
    assert out["bias"] == pytest.approx(dz.mean())
    assert out["sigma_mad"] == pytest.approx(1.4826 * np.median(np.abs(dz - np.median(dz))))
    assert out["outliers"] == pytest.approx((np.abs(dz) > 0.15).mean())
    assert out["ess"] == 501


def test_integer_weights_equal_repeated_objects():
    rng = np.random.default_rng(2)
    dz, counts = rng.normal(size=300), rng.integers(0, 4, 300)
    repeated = np.repeat(dz, counts)
    assert metrics.bias(dz, counts) == pytest.approx(repeated.mean())
    assert metrics.outlier_fraction(dz, counts) == pytest.approx((np.abs(repeated) > 0.15).mean())
    for score in (metrics.median, metrics.sigma_mad, metrics.nmad, metrics.sigma_68, metrics.sigma_iqr, metrics.rmse):
        assert score(dz, counts) == pytest.approx(score(repeated), abs=1e-12)
    assert metrics.outliers_3sigma(0.1 * dz, counts) == pytest.approx(metrics.outliers_3sigma(0.1 * repeated))


def test_weights_of_one_change_nothing():
    dz = np.random.default_rng(3).normal(size=200)
    assert metrics.sigma_mad(dz, np.ones(200)) == metrics.sigma_mad(dz)


def test_effective_sample_size_counts_equal_weights_and_only_them():
    assert metrics.effective_sample_size([2, 2, 2, 0]) == 3
    assert metrics.effective_sample_size([0, 0]) == 0


def test_the_summary_holds_every_point_score_by_its_own_function():
    rng = np.random.default_rng(11)
    spec = rng.uniform(0, 2, 700)
    phot, weights = spec + 0.05 * rng.standard_t(2, 700), rng.lognormal(0, 1, 700)
    dz = metrics.delta_z(phot, spec)
    out = metrics.summary(phot, spec, weights)
    alone = {
        "bias": metrics.bias(dz, weights),
        "median": metrics.median(dz, weights),
        "sigma_mad": metrics.sigma_mad(dz, weights),
        "nmad": metrics.nmad(dz, weights),
        "sigma_68": metrics.sigma_68(dz, weights),
        "rmse": metrics.rmse(dz, weights),
        "outliers": metrics.outlier_fraction(dz, weights),
        "outliers_05": metrics.outlier_fraction(dz, weights, threshold=0.05),
        "outliers_3sigma": metrics.outliers_3sigma(dz, weights),
    }
    assert out == pytest.approx(alone | {"n": 700, "ess": metrics.effective_sample_size(weights)})


def test_widths_of_a_gaussian_are_its_standard_deviation():
    dz = 0.02 + 0.05 * stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    assert metrics.sigma_mad(dz) == pytest.approx(0.05, rel=1e-3)
    assert metrics.sigma_iqr(dz) == pytest.approx(0.05, rel=1e-3)
    assert metrics.sigma_68(dz) == pytest.approx(0.05 * stats.norm.ppf(0.84), rel=1e-3)
    assert metrics.rmse(dz) == pytest.approx(np.hypot(0.02, 0.05), rel=1e-3)
    assert metrics.nmad(dz) > metrics.sigma_mad(dz)  # the bias counts


def test_point_scores_equal_qps():
    """At 401 objects numpy's quartiles, which qp takes, are objects, and no interpolation parts the two."""
    rng = np.random.default_rng(12)
    spec = rng.uniform(0, 2, 401)
    phot = spec + (1 + spec) * rng.standard_t(2, 401) * 0.03
    dz = metrics.delta_z(phot, spec)
    assert metrics.median(dz) == pytest.approx(PointBias().evaluate(phot, spec), abs=1e-12)
    assert metrics.sigma_iqr(dz) == pytest.approx(PointSigmaIQR().evaluate(phot, spec), abs=1e-12)
    assert metrics.sigma_mad(dz) == pytest.approx(PointSigmaMAD().evaluate(phot, spec), abs=1e-12)
    assert metrics.outliers_3sigma(dz) == pytest.approx(PointOutlierRate().evaluate(phot, spec), abs=1e-12)


def test_three_sigma_outliers_have_a_floor():
    dz = np.concatenate([np.linspace(-0.005, 0.005, 997), [0.05, 0.07, -0.07]])
    assert metrics.outliers_3sigma(dz) == pytest.approx(0.002)
    assert metrics.outliers_3sigma(dz, floor=0.0) == pytest.approx(0.003)


def test_objects_without_weight_are_not_counted():
    z, weights = np.linspace(0, 1, 150), np.arange(150) < 99
    assert metrics.summary(z, z, weights) is None
    out = metrics.summary(z, z, weights, minimum=99)
    assert out is not None and out["n"] == 99


def test_fewer_than_the_minimum_gives_no_number():
    z = np.linspace(0, 1, 99)
    assert metrics.summary(z, z) is None
    assert metrics.summary(z, z, minimum=50) is not None


def test_bootstrap_error_of_the_bias_is_its_standard_error():
    rng = np.random.default_rng(4)
    spec = np.zeros(2000)
    out = metrics.summary(rng.normal(0, 0.1, 2000), spec, bootstrap=400)
    assert out is not None
    assert out["bias_error"] == pytest.approx(0.1 / np.sqrt(2000), rel=0.15)


def test_weighted_mean_error_is_the_usual_one_for_equal_weights():
    values = np.random.default_rng(5).normal(size=400)
    assert metrics.weighted_mean_error(values) == pytest.approx(values.std() / 20)


def test_pit_ks_equals_scipy():
    u = np.random.default_rng(6).beta(2, 1, 300)
    assert metrics.pit_ks(u) == pytest.approx(stats.kstest(u, "uniform").statistic)


def test_pit_of_a_known_gaussian_is_uniform_and_its_coverage_nominal():
    rng = np.random.default_rng(7)
    edges = default_edges(3)
    centre = rng.uniform(1, 1.5, 5000)
    pdf = gaussian(centre, 0.05, edges)
    z = centre + rng.normal(0, 0.05, 5000)
    assert metrics.pit_ks(pdf.pit(z)) < 1.63 / np.sqrt(5000)
    assert metrics.coverage(pdf, z, 0.68) == pytest.approx(0.68, abs=0.02)
    assert metrics.hpd_coverage(pdf, z, 0.95) == pytest.approx(0.95, abs=0.02)


def test_crps_equals_numerical_integration_inside_and_outside_the_grid():
    rng = np.random.default_rng(8)
    edges = np.array([0.0, 0.3, 0.5, 1.0, 1.4])
    pdf = Pdf.from_mass(edges, rng.random((6, 4)))
    z = np.array([0.1, 0.3, 0.77, 1.4, 1.9, 0.0])
    cdf = pdf.cdf()
    for row, truth in enumerate(z):
        exact, _ = integrate.quad(
            lambda t, row=row, truth=truth: (np.interp(t, edges, cdf[row]) - (t >= truth)) ** 2,
            0,
            2,
            points=[*edges, truth],
            limit=200,
        )
        assert metrics.crps(pdf, z)[row] == pytest.approx(exact, abs=1e-6)


def test_crps_of_a_gaussian_equals_its_closed_form():
    pdf = gaussian(np.array([1.0]), 0.1, default_edges(3, step=0.001))
    x = 0.7
    closed = 0.1 * (x * (2 * stats.norm.cdf(x) - 1) + 2 * stats.norm.pdf(x) - 1 / np.sqrt(np.pi))
    assert metrics.crps(pdf, np.array([1.07]))[0] == pytest.approx(closed, rel=1e-3)


def test_cde_loss_of_a_uniform_density_is_closed_form():
    pdf = Pdf.from_mass(np.linspace(0, 2, 11), np.ones((3, 10)))
    assert metrics.cde_loss(pdf, np.array([0.1, 1.0, 1.9])) == pytest.approx(0.5 - 2 * 0.5)
    assert metrics.cde_loss(pdf, np.array([0.1, 1.0, 5.0]), np.array([0, 0, 1])) == pytest.approx(0.5)


def test_a_gain_within_its_error_is_not_clearly_better():
    rng = np.random.default_rng(9)
    old = rng.random(1000)
    assert metrics.clearly_better(old, old - 0.01, np.ones(1000))
    assert not metrics.clearly_better(old, old, np.ones(1000))
    few = np.zeros(1000)
    few[:3] = 1
    noise = old + np.where(np.arange(1000) % 2, 0.1, -0.11)
    assert not metrics.clearly_better(old, noise, few)
    assert not metrics.clearly_better(old, old - 1, np.zeros(1000))


def test_rejection_curve_separates_the_bad_and_leaves_out_small_parts():
    score = np.arange(1000.0)
    dz = np.where(score >= 900, 0.5, 0.0)
    rows = metrics.rejection_curve(score, dz, kept=(0.05, 0.9, 1.0))
    assert rows[0]["outliers"] is None
    assert (rows[1]["outliers"], rows[1]["outliers_rest"]) == (0.0, 1.0)
    assert (rows[2]["outliers"], rows[2]["outliers_rest"]) == (0.1, None)


def test_rejection_curve_counts_weights_as_repeated_objects():
    rng = np.random.default_rng(10)
    score, dz, counts = rng.random(400), rng.normal(0, 0.1, 400), rng.integers(1, 4, 400)
    kept = np.cumsum(counts[np.argsort(score)])[[99, 249, 399]] / counts.sum()  # cuts between objects
    weighted = metrics.rejection_curve(score, dz, counts, kept=kept, minimum=1)
    repeated = metrics.rejection_curve(np.repeat(score, counts), np.repeat(dz, counts), kept=kept, minimum=1)
    assert [row["n"] for row in weighted] == [100, 250, 400]
    for one, other in zip(weighted, repeated, strict=True):
        assert (one["outliers"], one["score"]) == pytest.approx((other["outliers"], other["score"]))


def test_redshifts_that_are_no_numbers_are_refused_by_name():
    with pytest.raises(BadInput, match="z_phot: nan in row 1"):
        metrics.summary([0.1, np.nan], [0.1, 0.2], minimum=1)
    with pytest.raises(BadInput, match=r"z_spec has shape \(1,\): expected \(2,\)"):
        metrics.delta_z([0.1, 0.2], [0.1])
    with pytest.raises(BadInput, match=r"z_spec: -1\.0"):
        metrics.delta_z([0.1], [-1.0])
    with pytest.raises(BadInput, match="pit: inf in row 0"):
        metrics.pit_ks([np.inf])


def test_the_module_is_quick_to_import_and_leaves_scipy_alone():
    code = (
        "import time; t = time.perf_counter(); import numpy; n = time.perf_counter(); import redshelf.models.metrics; "
    )
    code += "import sys; print(time.perf_counter() - n, 'scipy' in sys.modules, 'torch' in sys.modules)"
    took, *heavy = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert float(took) < 0.5 and heavy == ["False", "False"]


@pytest.mark.parametrize("weights", [np.zeros(3), np.array([1, -1, 1]), np.array([1, np.nan, 1]), np.ones(2)])
def test_unusable_weights_are_refused(weights):
    with pytest.raises(BadInput, match="weights"):
        metrics.bias(np.zeros(3), weights)

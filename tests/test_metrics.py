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


def test_weights_of_few_objects_give_the_error_and_the_quantile_of_a_hand_count():
    values, weights = [1.0, 2.0, 4.0], [1.0, 2.0, 1.0]  # mean 2.25
    squares = 1 * 1.25**2 + 4 * 0.25**2 + 1 * 1.75**2
    assert metrics.weighted_mean_error(values, weights) == pytest.approx(np.sqrt(squares) / 4)
    # the centres of the steps lie at 1/8, 1/2 and 7/8 of the weight
    for q, expected in ((0.0, 1.0), (0.125, 1.0), (0.3125, 1.5), (0.5, 2.0), (0.6875, 3.0), (0.875, 4.0), (1.0, 4.0)):
        assert metrics.weighted_quantile(values, q, weights) == pytest.approx(expected)
    for q, expected in ((0.5, 2.0), (1.0, 4.0)):  # what has no weight is nowhere
        assert metrics.weighted_quantile([4.0, 9.0, 1.0, 2.0], q, [1.0, 0.0, 1.0, 2.0]) == pytest.approx(expected)
    rng = np.random.default_rng(8)
    for n in (4, 5):
        some = rng.normal(size=n)
        assert metrics.weighted_quantile(some, 0.5) == pytest.approx(np.median(some))


def test_whole_numbers_are_as_good_as_their_floats():
    big = np.full(3, 2**62, dtype=np.int64)  # whose squares and sums do not fit
    assert metrics.effective_sample_size(big) == pytest.approx(3)
    assert metrics.weighted_mean(big) == pytest.approx(2.0**62)
    assert metrics.weighted_mean_error(np.array([0, 2], dtype=np.uint8)) == pytest.approx(np.sqrt(0.5))


def test_what_lies_on_a_threshold_is_no_outlier():
    assert metrics.outlier_fraction([0.15, -0.15, 0.2, 0.0]) == 0.25
    assert metrics.outlier_fraction([0.05, 0.06], threshold=0.05) == 0.5
    row = metrics.rejection_curve([0.0, 1.0], [0.15, 0.2], kept=[0.5], minimum=1)[0]
    assert (row["outliers"], row["outliers_rest"]) == (0.0, 1.0)


def test_a_summary_wants_a_hundred_objects_and_draws_the_same_each_time():
    z = np.linspace(0.1, 1, 100)
    phot = z + 0.01 * np.sin(40 * z)
    assert metrics.summary(phot[:99], z[:99]) is None and metrics.summary(phot, z) is not None
    assert metrics.summary(phot[:1], z[:1], minimum=1) is not None and metrics.summary([], [], minimum=0) is None
    said = metrics.summary(phot, z, bootstrap=20)
    assert said == metrics.summary(phot, z, bootstrap=20, seed=0) != metrics.summary(phot, z, bootstrap=20, seed=1)
    assert {"n", "ess", "bias", "bias_error"} <= set(said)


def test_errors_over_tiles_are_those_of_tiles_that_differ():
    tiles = np.repeat(np.arange(10), 20)
    offset = np.repeat(np.random.default_rng(3).normal(0, 0.1, 10), 20)  # the same for all of a tile
    z = np.full(200, 0.5)
    over = [metrics.summary(z + offset, z, bootstrap=400, tiles=t)["bias_error"] for t in (None, tiles)]
    assert over[1] == pytest.approx(over[0] * np.sqrt(20), rel=0.25)


def test_a_gain_is_judged_by_the_weights():
    rng = np.random.default_rng(4)
    new = np.full(100, 1.0)
    old = new + np.where(np.arange(100) < 50, 0.5, -0.5) + rng.normal(0, 0.01, 100)
    for better, weights in ((True, np.arange(100) < 50), (False, np.arange(100) >= 50), (False, np.ones(100))):
        assert metrics.clearly_better(old, new, weights.astype(float)) == better


def test_a_region_that_ends_at_the_redshift_holds_it():
    pdf = Pdf.from_mass(np.array([0.0, 1.0, 2.0, 3.0]), np.array([[0.5, 0.25, 0.25]]))
    at = [np.array([z]) for z in (0.0, 0.5, 1.5, 3.0, 3.01, -0.01)]
    # half of the mass is denser than the second and the third bin, none than the first
    assert [metrics.hpd_coverage(pdf, z, 0.5) for z in at] == [1, 1, 1, 1, 0, 0]
    assert [metrics.hpd_coverage(pdf, z, 0.49) for z in at] == [1, 1, 0, 0, 0, 0]
    uniform = Pdf.from_mass(np.array([0.0, 4.0]), np.array([[1.0]]))
    assert [metrics.coverage(uniform, np.array([z]), 0.5) for z in (0.99, 1.0, 3.0, 3.01)] == [0, 1, 1, 0]


def test_a_rejection_curve_of_four_objects_is_counted_by_hand():
    rows = metrics.rejection_curve(
        [3.0, 0.0, np.inf, 1.0], [0.3, 0.0, 0.4, 0.2], [1, 2, 1, 4], kept=[0.0, 0.25, 1.0], minimum=1
    )
    assert rows == [
        {"kept": 0.0, "score": None, "n": 0.0, "outliers": None, "outliers_rest": pytest.approx(6 / 8)},
        {"kept": 0.25, "score": 0.0, "n": 1.0, "outliers": 0.0, "outliers_rest": pytest.approx(1.0)},
        {"kept": 1.0, "score": np.inf, "n": 4.0, "outliers": pytest.approx(6 / 8), "outliers_rest": None},
    ]
    assert len(metrics.rejection_curve([0.0], [0.0], minimum=1)) == 5
    ties = metrics.rejection_curve(np.zeros(40), np.where(np.arange(40) < 20, 0.0, 1.0), kept=[0.5], minimum=1)
    assert ties[0]["outliers"] == 0.0  # equal scores keep their order


@pytest.mark.parametrize(("score", "dz"), [([0.0, 1.0], [0.0]), ([], []), ([np.nan], [0.0]), ([[0.0]], [0.0])])
def test_scores_that_cannot_be_ranked_are_refused(score, dz):
    with pytest.raises(BadInput, match=r"rejection_curve: score has shape"):
        metrics.rejection_curve(score, dz)


def test_every_argument_that_is_no_number_is_named():
    pdf = Pdf.from_mass(np.array([0.0, 4.0]), np.array([[1.0]]))
    for name, ask in (
        ("dz", lambda: metrics.median([np.nan])),
        ("dz", lambda: metrics.rejection_curve([0.0], [np.nan])),
        ("kept", lambda: metrics.rejection_curve([0.0], [0.0], kept=[np.nan])),
        ("z_spec", lambda: metrics.crps(pdf, [np.nan])),
        ("z_spec", lambda: metrics.crps(pdf, [0.1, 0.2])),
        ("pit", lambda: metrics.pit_ks([np.inf])),
    ):
        with pytest.raises(BadInput, match=f"^{name}\\b"):
            ask()


def test_a_rejection_curve_cuts_where_half_of_an_object_is_inside():
    score, dz, weights = [0.0, 1.0, 2.0, 3.0], [0.2, 0.0, 0.3, 0.0], [1, 4, 1, 2]
    row = metrics.rejection_curve(score, dz, weights, kept=[0.5], minimum=1)[0]
    assert (row["n"], row["outliers"], row["outliers_rest"]) == (2, pytest.approx(1 / 5), pytest.approx(1 / 3))
    row = metrics.rejection_curve(score, dz, weights, kept=[0.5], minimum=3)[0]
    assert (row["outliers"], row["outliers_rest"]) == (None, None)
    # objects that nobody weighs have no outliers to tell of
    assert metrics.rejection_curve([0.0, 1.0], [1.0, 1.0], [0, 1], kept=[1e-3], minimum=1)[0]["outliers"] is None
    assert metrics.rejection_curve([0.0, 1.0], [1.0, 1.0], [1, 0], kept=[1.0], minimum=1)[0]["outliers_rest"] is None


def test_crps_under_the_grid_counts_the_way_to_it():
    pdf = Pdf.from_mass(np.array([1.0, 2.0, 3.0]), np.array([[0.5, 0.5]]))
    assert metrics.crps(pdf, [0.5])[0] == pytest.approx(0.5 + 2 / 3)
    assert metrics.crps(pdf, [3.5])[0] == pytest.approx(0.5 + 2 / 3)

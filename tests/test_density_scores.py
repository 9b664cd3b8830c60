"""Scores of densities against qp, cdetools, scipy and closed forms."""

import numpy as np
import pytest
import qp
from cdetools.cde_loss import cde_loss
from cdetools.cdf_coverage import cdf_coverage
from cdetools.hpd_coverage import hpd_coverage
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from qp.metrics.array_metrics import quick_kld
from qp.metrics.brier import Brier
from qp.metrics.concrete_metric_classes import CDELossMetric
from qp.metrics.goodness_of_fit import goodness_of_fit_metrics
from qp.metrics.metrics import calculate_outlier_rate
from qp.metrics.pit import PIT
from scipy import stats

from redshelf.models import density_scores as scores
from redshelf.models import distances, metrics
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf

EDGES = np.linspace(0, 3, 61)
EXACT = 1e-6
PITS = arrays.arrays(np.float64, st.integers(1, 30), elements=st.floats(1e-6, 1 - 1e-6))


def bumpy(n, *, seed=0, edges=EDGES):
    """Densities of two bumps, without mass in the first and the last bin."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(0.3, 2.7, (2, n, 1))
    z = 0.5 * (edges[1:] + edges[:-1])
    mass = sum(np.exp(-0.5 * ((z - c) / 0.2) ** 2) * share for c, share in zip(centre, (0.7, 0.3), strict=True)) + 1e-4
    mass[:, [0, -1]] = 0
    return Pdf.from_mass(edges, mass)


def in_qp(pdf):
    return qp.Ensemble(qp.hist, data={"bins": pdf.edges, "pdfs": pdf.density})


def on_cdetools_grid(seed=1):
    """Densities, the G points at which cdetools takes them to lie, and a true z at one of these points for each.

    cdetools' step is (last - first) / G: over points from the first edge to the last, that is our bins' width, and
    point g lies in bin g.
    """
    pdf = bumpy(200, seed=seed)
    grid = np.linspace(EDGES[0], EDGES[-1], len(EDGES) - 1)
    return pdf, grid, grid[np.random.default_rng(seed).integers(1, len(grid) - 1, len(pdf))]


def test_cde_loss_equals_cdetools():
    pdf, grid, z = on_cdetools_grid()
    loss, error = cde_loss(pdf.density, grid, z)
    assert metrics.cde_loss(pdf, z) == pytest.approx(loss, abs=EXACT)
    assert metrics.weighted_mean_error(metrics.cde_losses(pdf, z)) == pytest.approx(error, abs=EXACT)


def test_cde_loss_equals_qp_on_a_grid_of_which_every_edge_is_a_middle():
    pdf = bumpy(100)
    z = np.random.default_rng(2).choice(pdf.centres, 100)
    fine = (np.arange(60 * 10) + 0.5) * 0.005
    assert metrics.cde_loss(pdf, z) == pytest.approx(CDELossMetric(fine).evaluate(in_qp(pdf), z), abs=EXACT)


def test_the_pit_equals_cdetools_and_qp():
    pdf, grid, _ = on_cdetools_grid()
    z = EDGES[np.random.default_rng(3).integers(1, 60, len(pdf))]
    assert 1 - pdf.pit(z) == pytest.approx(cdf_coverage(pdf.density, grid, z), abs=EXACT)
    anywhere = np.random.default_rng(4).uniform(0, 3, len(pdf))
    assert pdf.pit(anywhere) == pytest.approx(PIT(in_qp(pdf), anywhere).pit_samps, abs=EXACT)


def test_hpd_levels_equal_cdetools_and_make_the_coverage():
    pdf, grid, z = on_cdetools_grid()
    levels = scores.hpd_levels(pdf, z)
    assert levels == pytest.approx(hpd_coverage(pdf.density, grid, z), abs=EXACT)
    assert (levels <= 0.68).mean() == metrics.hpd_coverage(pdf, z, 0.68)
    assert scores.hpd_levels(pdf, np.full(len(pdf), 3.5)).tolist() == [1.0] * len(pdf)


def test_pit_distances_equal_qp_and_scipy():
    pdf = bumpy(400)
    z = np.random.default_rng(5).uniform(0.2, 2.8, 400)
    theirs, pit = PIT(in_qp(pdf), z), pdf.pit(z)
    assert scores.pit_cvm(pit) == pytest.approx(theirs.evaluate_PIT_CvM().statistic, abs=EXACT)
    assert metrics.pit_ks(pit) == pytest.approx(theirs.evaluate_PIT_KS().statistic, abs=EXACT)
    uniform = stats.uniform()
    assert scores.pit_ad(pit) == pytest.approx(goodness_of_fit_metrics["ad"](uniform, pit), abs=EXACT)
    assert scores.pit_cvm(pit) == pytest.approx(goodness_of_fit_metrics["cvm"](uniform, pit), abs=EXACT)
    fine = (np.arange(200_000) + 0.5) / 200_000
    assert scores.pit_w1(pit) == pytest.approx(stats.wasserstein_distance(pit, fine), abs=1e-5)


def test_the_pit_outlier_rate_equals_qp_on_a_histogram_of_the_same_pits():
    pit = np.concatenate([np.random.default_rng(6).uniform(0.001, 0.999, 1000), [0, 5e-5, 1, 0.99995, 0.99985]])
    bins = np.array([0, 1e-4, 1 - 1e-4, 1])
    shares, _ = np.histogram(pit, bins)
    theirs = calculate_outlier_rate(qp.Ensemble(qp.hist, data={"bins": bins, "pdfs": shares[None] / np.diff(bins)}))
    assert scores.pit_outlier_rate(pit) == pytest.approx(theirs.item(), abs=EXACT)
    assert scores.pit_outlier_rate(pit) == pytest.approx(4 / 1005)


def test_brier_scores_equal_qp():
    pdf = bumpy(50)
    z = np.random.default_rng(7).uniform(0, 3, 50)
    hit = np.eye(60)[np.searchsorted(EDGES, z, side="right") - 1]
    ours = scores.brier_scores(pdf, z)
    assert ours.mean() == pytest.approx(Brier(pdf.density * pdf.widths, hit).evaluate(), abs=EXACT)
    assert scores.brier_scores(pdf, np.full(50, 9.0)) == pytest.approx(1 + ((pdf.density * 0.05) ** 2).sum(axis=1))


def test_kl_divergence_of_densities_equals_qp():
    p, q = bumpy(30, seed=1), bumpy(30, seed=2)
    theirs = quick_kld(p.density, q.density, dx=0.05)
    assert distances.kl_divergence(p.density * p.widths, q.density * q.widths) == pytest.approx(theirs, abs=EXACT)


def test_log_scores_are_the_log_of_qps_density_and_never_infinite():
    pdf = bumpy(50)
    z = np.random.default_rng(8).uniform(0.06, 2.94, 50)
    assert scores.log_scores(pdf, z) == pytest.approx(np.log(in_qp(pdf).pdf(z[:, None])[:, 0]), abs=EXACT)
    assert scores.log_scores(pdf, np.full(50, 5.0)) == pytest.approx(np.log(1e-12))


def test_sharpness_is_half_of_qps_central_68_percent():
    pdf = bumpy(20)
    theirs = 0.5 * (in_qp(pdf).ppf(0.84) - in_qp(pdf).ppf(0.16))[:, 0]
    assert scores.sharpness(pdf) == pytest.approx(theirs, abs=EXACT)


def test_statistics_of_known_pits():
    assert scores.pit_cvm([0.5]) == pytest.approx(1 / 12)
    assert scores.pit_cvm([0.0, 0.0]) == pytest.approx(2 / 3)
    assert scores.pit_ad([0.5]) == pytest.approx(2 * np.log(2) - 1)
    assert scores.pit_w1([0.0, 0.0]) == pytest.approx(0.5)
    assert scores.pit_w1([0.5]) == pytest.approx(0.25)
    assert scores.pit_w1([0.25, 0.75]) == pytest.approx(0.125)
    assert scores.pit_ad([0.0, 1.0, 0.5]) < 100  # held away from infinity
    assert scores.pit_histogram([0.1, 0.2, 0.9, 1.0], [1, 1, 1, 3], bins=2).tolist() == pytest.approx([2 / 3, 4 / 3])


@settings(deadline=None)
@given(PITS, st.data())
def test_whole_number_weights_of_pits_are_repeated_rows(pit, data):
    counts = data.draw(arrays.arrays(np.int64, len(pit), elements=st.integers(0, 3)))
    counts[0] += 1
    repeated = np.repeat(pit, counts)
    ess, n = metrics.effective_sample_size(counts), len(repeated)
    assert scores.pit_cvm(pit, counts) / ess == pytest.approx(scores.pit_cvm(repeated) / n, abs=1e-10)
    assert scores.pit_ad(pit, counts) / ess == pytest.approx(scores.pit_ad(repeated) / n, abs=1e-8)
    assert scores.pit_w1(pit, counts) == pytest.approx(scores.pit_w1(repeated), abs=1e-10)
    assert scores.pit_outlier_rate(pit, counts) == pytest.approx(scores.pit_outlier_rate(repeated), abs=1e-10)
    assert metrics.pit_ks(pit, counts) == pytest.approx(metrics.pit_ks(repeated), abs=1e-10)


def test_the_pit_of_a_gaussian_under_its_own_law_is_uniform():
    rng = np.random.default_rng(9)
    edges = np.linspace(0, 2, 801)
    centre = rng.uniform(0.8, 1.2, 4000)
    z = rng.normal(centre, 0.05)
    for sigma, calibrated in ((0.05, True), (0.03, False)):
        pdf = Pdf.from_mass(edges, np.diff(stats.norm.cdf((edges - centre[:, None]) / sigma), axis=1))
        assert pdf.pit(z) == pytest.approx(stats.norm.cdf((z - centre) / sigma), abs=2e-3)
        out = scores.density_summary(scores.density_scores(pdf, z))
        assert out is not None
        assert (out["pit_cvm"] < 0.74) is calibrated  # 1% points of both statistics
        assert (out["pit_ad"] < 3.88) is calibrated
        assert (abs(out["coverage_68"] - 0.68) < 0.02) is calibrated
        assert (abs(out["hpd_95"] - 0.95) < 0.02) is calibrated
        assert out["sigma_68"] == pytest.approx(sigma * stats.norm.ppf(0.84), rel=1e-3)


def test_the_summary_holds_every_score_by_its_own_function_in_any_block():
    pdf = bumpy(300)
    rng = np.random.default_rng(10)
    z, w = rng.uniform(-0.1, 3.1, 300), rng.lognormal(0, 1, 300)
    out = scores.density_summary(scores.density_scores(pdf, z, block=7), w)
    pit = pdf.pit(z)
    assert out == pytest.approx(
        {
            "n": 300,
            "ess": metrics.effective_sample_size(w),
            "crps": metrics.weighted_mean(metrics.crps(pdf, z), w),
            "cde_loss": metrics.cde_loss(pdf, z, w),
            "log_score": metrics.weighted_mean(scores.log_scores(pdf, z), w),
            "brier": metrics.weighted_mean(scores.brier_scores(pdf, z), w),
            "sigma_68": metrics.weighted_mean(scores.sharpness(pdf), w),
            "hpd_68": metrics.hpd_coverage(pdf, z, 0.68, w),
            "hpd_95": metrics.hpd_coverage(pdf, z, 0.95, w),
            "pit_mean": metrics.weighted_mean(pit, w),
            "pit_ks": metrics.pit_ks(pit, w),
            "pit_cvm": scores.pit_cvm(pit, w),
            "pit_ad": scores.pit_ad(pit, w),
            "pit_w1": scores.pit_w1(pit, w),
            "pit_outliers": scores.pit_outlier_rate(pit, w),
            "coverage_68": metrics.coverage(pdf, z, 0.68, w),
            "coverage_95": metrics.coverage(pdf, z, 0.95, w),
        }
    )
    assert scores.density_summary(scores.density_scores(pdf, z), np.arange(300) < 99) is None


def test_crps_of_samples_is_that_of_their_step_function():
    rng = np.random.default_rng(11)
    samples, weights, z = rng.uniform(0, 2, (5, 9)), rng.integers(1, 4, (5, 9)), rng.uniform(-0.5, 2.5, 5)
    fine = (np.arange(60_000) + 0.5) / 10_000 - 2  # middles of steps from -2 to 4
    for row in range(5):
        cdf = ((samples[row][:, None] <= fine) * weights[row][:, None]).sum(axis=0) / weights[row].sum()
        exact = ((cdf - (fine >= z[row])) ** 2).sum() / 10_000
        assert scores.crps_of_samples(samples, z, weights)[row] == pytest.approx(exact, abs=1e-3)
        pairs = np.abs(samples[row][:, None] - samples[row]).mean()
        plain = np.abs(samples[row] - z[row]).mean() - 0.5 * pairs
        assert scores.crps_of_samples(samples, z)[row] == pytest.approx(plain)


def test_bad_input_is_named():
    pdf = bumpy(3)
    with pytest.raises(BadInput, match="z_spec: nan in row 1"):
        scores.density_scores(pdf, [0.1, np.nan, 1])
    with pytest.raises(BadInput, match=r"z_spec has shape \(2,\): expected \(3,\)"):
        scores.log_scores(pdf, [0.1, 1])
    with pytest.raises(BadInput, match=r"pit: 1\.5 in row 1: expected 0 to 1"):
        scores.pit_cvm([0.5, 1.5])
    with pytest.raises(BadInput, match="all zero"):
        scores.pit_ad([0.5, 0.6], [0, 0])
    with pytest.raises(BadInput, match="no row all zero"):
        scores.crps_of_samples(np.ones((2, 2)), [1, 1], [[1, 1], [0, 0]])

"""n(z) of tomographic bins: stacks whose moments and distances are known."""

import numpy as np
import pytest
import qp
from scipy import stats

from redshelf.models import binned, distances, tomography
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges

EDGES = np.linspace(0, 3, 301)
BINS = [0.0, 0.8, 1.2, 3.0]
SIGMA = 0.1


def calibrated(n=20_000, *, seed=0, shift=0.0):
    """Densities N(measured + shift, SIGMA) of truths that scatter by SIGMA about `measured`: right where shift is 0."""
    rng = np.random.default_rng(seed)
    measured = rng.uniform(0.5, 2.0, n)
    z = measured + rng.normal(0, SIGMA, n)
    mass = np.diff(stats.norm.cdf((EDGES - measured[:, None] - shift) / SIGMA), axis=1)
    return Pdf.from_mass(EDGES, mass), measured, z


def test_calibrated_densities_stack_to_the_true_n_of_z():
    pdf, measured, z = calibrated()
    rows = tomography.truth_recovery(pdf, measured, z, BINS, bootstrap=100)
    assert [(row["low"], row["high"]) for row in rows] == [(0, 0.8), (0.8, 1.2), (1.2, 3)]
    for row in rows:
        assert row["mean_z"] == pytest.approx(row["mean_stack"] - row["delta_mean"])
        assert abs(row["delta_mean"]) < 4 * row["delta_mean_error"]
        assert abs(row["delta_sigma"]) < 4 * row["delta_sigma_error"]
        assert row["delta_mean_error"] == pytest.approx(SIGMA / np.sqrt(row["n"]), rel=0.3)
        assert row["wasserstein"] < 0.005 and row["kl"] < 0.01 and row["js"] < 0.003 and row["total_variation"] < 0.03


def test_a_shift_of_every_density_is_the_shift_of_the_mean_and_the_wasserstein_distance():
    pdf, measured, z = calibrated(shift=0.05)
    for row in tomography.truth_recovery(pdf, measured, z, BINS):
        assert row["delta_mean"] == pytest.approx(0.05, abs=0.004)
        assert row["delta_mean_scaled"] == pytest.approx(row["delta_mean"] / (1 + row["mean_z"]))
        assert abs(row["delta_mean_scaled"]) > tomography.EUCLID_MEAN
        assert row["wasserstein"] == pytest.approx(0.05, abs=0.004)
        assert row["delta_sigma"] == pytest.approx(0, abs=0.004)


def test_moments_of_a_stack_are_those_of_qp_with_the_width_of_the_bins():
    pdf, measured, z = calibrated(500)
    bins = binned.edged(measured, BINS)
    stacked = tomography.stack(pdf, bins)
    rows = tomography.recovery(EDGES, stacked, z, bins, minimum=1)
    theirs = qp.Ensemble(qp.hist, data={"bins": EDGES, "pdfs": stacked / stacked.sum(axis=1, keepdims=True) / 0.01})
    assert [row["mean_stack"] for row in rows] == pytest.approx(theirs.mean().ravel(), abs=1e-6)
    in_bins = 0.01**2 / 12  # qp puts the mass of a bin at its centre
    assert [row["sigma_stack"] ** 2 - in_bins for row in rows] == pytest.approx(theirs.var().ravel(), abs=1e-9)


def test_distances_of_a_row_are_those_of_its_histograms():
    pdf, measured, z = calibrated(2000, shift=0.1)
    bins = binned.edged(measured, [0, 3])
    wide = EDGES[::25]
    (row,) = tomography.recovery(EDGES, tomography.stack(pdf, bins), z, bins, histogram_edges=wide)
    p = (pdf.density * pdf.widths).sum(axis=0).reshape(12, 25).sum(axis=1)
    q, _ = np.histogram(z, wide)
    assert row["kl"] == pytest.approx(distances.kl_divergence(q, p))
    assert row["js"] == pytest.approx(distances.js_divergence(q, p))
    assert row["total_variation"] == pytest.approx(distances.total_variation(q, p))


def test_stacks_of_parts_add_up():
    pdf, measured, _ = calibrated(300)
    weights = np.random.default_rng(1).random(300)
    whole = tomography.stack(pdf, binned.edged(measured, BINS), weights)
    parts = [
        tomography.stack(Pdf(EDGES, pdf.density[rows]), binned.edged(measured[rows], BINS), weights[rows])
        for rows in (slice(0, 100), slice(100, 300))
    ]
    assert sum(parts) == pytest.approx(whole)
    assert whole.sum() == pytest.approx(weights.sum())
    assert not tomography.stack(pdf, binned.edged(measured, BINS), np.zeros(300)).any()


def test_weighted_labels_recover_the_n_of_z_that_plain_ones_miss():
    pdf, measured, _ = calibrated(20_000)
    _, of_labels, z = calibrated(20_000, seed=2)
    rate = np.exp(-3 * of_labels)  # labels thin out with redshift: covariate shift in what is measured
    drawn = np.random.default_rng(3).random(len(z)) < rate
    bins = binned.edged(of_labels[drawn], [0, 3])
    stacked = tomography.stack(pdf, binned.edged(measured, [0, 3]))
    (plain,) = tomography.recovery(EDGES, stacked, z[drawn], bins)
    (weighted,) = tomography.recovery(EDGES, stacked, z[drawn], bins, 1 / rate[drawn], bootstrap=100)
    assert plain["delta_mean"] > 0.2
    assert abs(weighted["delta_mean"]) < 4 * weighted["delta_mean_error"] < 0.2
    assert weighted["ess"] < weighted["n"] and weighted["js"] < 0.3 * plain["js"]


def test_whole_number_weights_are_repeated_rows():
    pdf, measured, z = calibrated(1000, shift=0.02)
    counts = np.random.default_rng(4).integers(0, 3, 1000)
    (one,) = tomography.truth_recovery(pdf, measured, z, [0, 3], counts)
    rows = np.repeat(np.arange(1000), counts)
    (other,) = tomography.truth_recovery(Pdf(EDGES, pdf.density[rows]), measured[rows], z[rows], [0, 3])
    assert {k: v for k, v in one.items() if k not in ("n", "ess")} == pytest.approx(
        {k: v for k, v in other.items() if k not in ("n", "ess")}
    )


def test_errors_over_tiles_grow_with_what_a_tile_has_in_common():
    pdf, measured, z = calibrated(4000)
    tiles = np.arange(4000) % 50
    moved = z + np.random.default_rng(5).normal(0, 0.05, 50)[tiles]
    (objects,) = tomography.truth_recovery(pdf, measured, moved, [0, 3], bootstrap=100)
    (blocks,) = tomography.truth_recovery(pdf, measured, moved, [0, 3], bootstrap=100, tiles=tiles)
    assert blocks["delta_mean_error"] > 2 * objects["delta_mean_error"]


def test_bins_of_few_redshifts_or_of_no_stack_hold_no_number():
    pdf, measured, z = calibrated(500)
    rows = tomography.truth_recovery(pdf, measured, z, [0, 0.51, 3], bootstrap=20)
    assert rows[0]["n"] < 100 and rows[0]["delta_mean"] is None and rows[0]["delta_mean_error"] is None
    assert rows[1]["delta_mean"] is not None and list(rows[0]) == list(rows[1])
    bins = binned.edged(measured, [0, 3])
    assert "delta_mean" not in tomography.recovery(EDGES, np.zeros((1, 300)), z, bins)[0]


def test_coarse_edges_are_edges_of_the_grid_and_wide():
    edges = default_edges(6.0)
    coarse = tomography.coarse_edges(edges)
    assert np.isin(coarse, edges).all() and (coarse[0], coarse[-1]) == (edges[0], edges[-1])
    assert np.diff(np.log1p(coarse))[:-1].min() > 0.045 and np.diff(np.log1p(coarse)).max() < 0.06


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p, m, z: tomography.truth_recovery(p, m, z[:5], BINS), r"z_true has shape \(5,\): expected \(200,\)"),
        (lambda p, m, z: tomography.truth_recovery(p, m[:5], z, BINS), r"z_phot has shape \(5,\)"),
        (lambda p, m, z: tomography.truth_recovery(p, m, z, BINS[::-1]), r"edges: 1\.2 after 3\.0"),
        (lambda p, m, z: tomography.truth_recovery(p, m, z, BINS, np.zeros(200)), "all zero"),
        (lambda p, m, z: tomography.stack(p, binned.edged(m[:5], BINS)), "bins of 5 objects: expected 200"),
        (lambda p, m, z: tomography.stack(p, binned.edged(m, BINS), -np.ones(200)), r"weights: -1\.0"),
        (lambda p, m, z: tomography.recovery(EDGES, np.ones((1, 9)), z, binned.edged(m, [0, 3])), r"shape \(1, 9\)"),
        (
            lambda p, m, z: tomography.recovery(EDGES, np.ones((1, 300)), z * np.nan, binned.edged(m, [0, 3])),
            "z: nan in row 0",
        ),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call(*calibrated(200))

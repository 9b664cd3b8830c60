"""Every method of shift weights: no shift, a Gaussian shift known in closed form, rows in any order, bad input."""

import warnings

import densratio
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from redshelf.models.errors import BadInput
from redshelf.models.ratio_choice import METHODS
from redshelf.models.ratio_classifier import auc, calibrated, classifier_weights, logistic
from redshelf.models.ratio_kernels import fit_ratio, gaussian_kernel, rulsif_weights, ulsif_weights
from redshelf.models.ratio_matching import kmm_weights
from redshelf.models.ratio_space import fit_space
from redshelf.models.ratio_strata import fit_strata, strata_weights
from redshelf.models.shift import neighbour_weights

ALL = pytest.mark.parametrize("name", METHODS)
SHIFTED = pytest.mark.parametrize("name", [name for name in METHODS if name != "none"])
SHIFT = 0.8
# correlation with the true weights at the labels that each method must reach here, and error allowed in <x>
REACHED = {
    "neighbour-ratio": (0.9, 0.08),
    "cunha": (0.9, 0.08),
    "classifier": (0.9, 0.08),
    "ulsif": (0.85, 0.1),
    "rulsif": (0.85, 0.3),
    "kmm": (0.9, 0.08),
    "strata": (0.7, 0.15),
}


def gaussians(n: int, m: int, *, shift: float = SHIFT, dim: int = 2, seed: int = 0):
    """Labels N(0, 1), targets N(shift, 1) in the first column."""
    rng = np.random.default_rng(seed)
    labelled, target = rng.normal(size=(n, dim)), rng.normal(size=(m, dim))
    target[:, 0] += shift
    return labelled, target


def truth(points, shift: float = SHIFT):
    return np.exp(shift * points[:, 0] - shift**2 / 2)


@ALL
def test_a_null_shift_gives_weights_near_one(name):
    found = METHODS[name](*gaussians(2000, 6000, shift=0.0), seed=1)
    assert found.mean_weight == pytest.approx(1, abs=0.1)
    assert np.median(found.weights) == pytest.approx(1, abs=0.12)
    assert found.effective_sample_size > 0.8 * 2000
    assert not found.warnings()


@SHIFTED
def test_a_gaussian_shift_is_recovered_at_the_labels_and_anywhere(name):
    labelled, target = gaussians(2000, 6000)
    found = METHODS[name](labelled, target, seed=1)
    correlation, error = REACHED[name]
    assert np.corrcoef(found.weights, truth(labelled))[0, 1] > correlation
    assert np.average(labelled[:, 0], weights=found.weights) == pytest.approx(SHIFT, abs=error)
    fresh = np.random.default_rng(9).normal(size=(1000, 2))
    assert np.corrcoef(found.at(fresh), truth(fresh))[0, 1] > correlation - 0.02
    assert found.at(fresh).mean() == pytest.approx(1, abs=0.25)


@ALL
def test_rows_in_another_order_have_the_same_weights_in_that_order(name):
    labelled, target = gaussians(400, 150)
    order, other = np.random.default_rng(5).permutation(400), np.random.default_rng(6).permutation(150)
    found, again = METHODS[name](labelled, target), METHODS[name](labelled[order], target[other])
    if name in ("classifier", "strata"):  # other folds
        assert np.corrcoef(found.weights[order], again.weights)[0, 1] > 0.7
    elif name == "kmm":  # to where its minimisation stops
        assert again.weights == pytest.approx(found.weights[order], abs=0.05)
    else:
        assert again.weights == pytest.approx(found.weights[order], rel=1e-6, abs=1e-9)


@ALL
def test_columns_that_are_constant_or_collinear_change_little(name):
    labelled, target = gaussians(600, 1500)
    more = [np.column_stack([part, np.full(len(part), 7.0), part[:, 0]]) for part in (labelled, target)]
    found = METHODS[name](*more)
    assert np.isfinite(found.weights).all() and np.isfinite(found.at(more[1])).all()
    if name != "none":
        assert np.average(labelled[:, 0], weights=found.weights) > SHIFT / 2


@ALL
def test_labels_at_one_point_have_finite_weights(name):
    found = METHODS[name](np.zeros((60, 2)), gaussians(1, 200)[1])
    assert np.isfinite(found.weights).all() and (found.weights >= 0).all()
    assert np.isfinite(found.at(np.ones((3, 2)))).all()


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(name, bad):
    labelled, target = gaussians(60, 80)
    spoilt = target.copy()
    spoilt[70, 1] = bad
    if name != "none":  # which looks at no target
        with pytest.raises(BadInput, match="NaN or infinity"):
            METHODS[name](labelled, spoilt)
    labelled[3, 0] = bad
    with pytest.raises(BadInput, match="NaN or infinity"):
        METHODS[name](labelled, target)


@ALL
def test_the_same_seed_gives_the_same_weights(name):
    sets = gaussians(150, 300)
    assert np.array_equal(METHODS[name](*sets, seed=4).weights, METHODS[name](*sets, seed=4).weights)


@ALL
@settings(max_examples=4, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    n=st.integers(5, 60),
    m=st.integers(5, 80),
    dim=st.integers(1, 20),
    shift=st.floats(-30, 30),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
def test_weights_are_finite_and_count_for_no_more_than_their_labels(name, seed, n, m, dim, shift, scale):
    labelled, target = gaussians(n, m, shift=shift, dim=dim, seed=seed)
    found = METHODS[name](scale * labelled, scale * target, seed=seed)
    assert found.weights.shape == (n,) and np.isfinite(found.weights).all() and (found.weights >= 0).all()
    assert 0 <= found.effective_sample_size <= n * (1 + 1e-9)
    assert np.isfinite(found.at(scale * target)).all() and (found.at(scale * target) >= 0).all()


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.5])
def test_kernel_ratios_equal_those_of_densratio(alpha):
    labelled, target = gaussians(300, 150)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = densratio.densratio(
            target, labelled, method="RuLSIF", alpha=alpha, sigma=0.9, lambda_=0.05, kernel_num=80, verbose=False
        )
    centres = np.asarray(theirs.kernel_info.centers)
    ours = fit_ratio(labelled, target, centres, alpha=alpha, sigmas=(0.9,), ridges=(0.05,))
    assert ours.theta == pytest.approx(theirs.theta, abs=1e-9)
    assert ours(labelled) == pytest.approx(theirs.compute_density_ratio(labelled), abs=1e-9)


@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_leaving_one_out_is_fitting_without_it(alpha):
    labelled, target = gaussians(40, 30)
    centres = target[:12]
    options = {"alpha": alpha, "sigmas": (0.8,), "ridges": (0.1,)}
    fit = fit_ratio(labelled, target, centres, **options)
    by_label = [
        fit_ratio(np.delete(labelled, i, axis=0), target, centres, **options)(labelled[i : i + 1])[0] for i in range(40)
    ]
    by_target = [
        fit_ratio(labelled, np.delete(target, i, axis=0), centres, **options)(target[i : i + 1])[0] for i in range(30)
    ]
    assert fit.unseen_label(labelled) == pytest.approx(np.array(by_label), abs=1e-10)
    assert fit.unseen_target(target) == pytest.approx(np.array(by_target), abs=1e-10)


def test_the_width_is_the_one_of_least_loss():
    labelled, target = gaussians(500, 900)
    found = ulsif_weights(labelled, target, sigmas=(0.01, 1.0), ridges=(0.1, 100.0))
    assert (found.details["sigma"], found.details["ridge"]) == (1.0, 0.1)


def test_the_relative_ratio_stays_below_its_bound_and_says_so_of_no_lost_targets():
    labelled, target = gaussians(500, 900, shift=3.0)
    found = rulsif_weights(labelled, target, alpha=0.5)
    assert found.weights.max() < 2.6  # 1 / alpha, and the error of a fit
    assert not any("mean weight" in line for line in found.warnings())


def test_a_kernel_of_a_point_with_itself_is_one():
    points = np.random.default_rng(0).normal(size=(5, 3)) + 100
    assert np.diag(gaussian_kernel(points, points, 0.5)) == pytest.approx(1, abs=1e-6)


def test_matched_weights_move_every_moment_of_the_labels_to_the_target():
    labelled, target = gaussians(1500, 4000)
    found = kmm_weights(labelled, target)
    assert np.average(labelled[:, 0] ** 2, weights=found.weights) == pytest.approx(1 + SHIFT**2, abs=0.15)
    assert found.weights.mean() == pytest.approx(1, abs=0.05)
    assert kmm_weights(labelled, target, largest=1.5).weights.max() <= 1.5


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    rng = np.random.default_rng(0)
    score, y = rng.integers(0, 9, 60), rng.random(60) < 0.4
    pairs = score[y][:, None] - score[~y]
    assert auc(score, y) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())


def test_the_classifier_reports_how_far_labels_and_targets_can_be_told_apart():
    found = classifier_weights(*gaussians(1500, 3000))
    assert found.details["auc"] == pytest.approx(norm.cdf(SHIFT / np.sqrt(2)), abs=0.04)
    apart = classifier_weights(*gaussians(1500, 3000, shift=6.0))
    assert any("nearly separable" in line for line in apart.warnings())


@pytest.mark.parametrize("method", ["isotonic", "platt"])
def test_calibrated_probabilities_are_those_of_the_classes(method):
    rng = np.random.default_rng(1)
    score = rng.normal(size=20_000)
    y = (rng.random(20_000) < norm.cdf(score / 2)).astype(float)
    at = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    found = calibrated(score, y, at, method=method)
    assert (np.diff(found) >= 0).all()
    assert found == pytest.approx(norm.cdf(at / 2), abs=0.04)


def test_logistic_coefficients_are_those_of_the_sample():
    from sklearn.linear_model import LogisticRegression

    rng = np.random.default_rng(2)
    x = rng.normal(size=(500, 3))
    y = (rng.random(500) < 1 / (1 + np.exp(-(x @ [1.0, -2.0, 0.0] + 0.5)))).astype(float)
    theirs = LogisticRegression(C=1 / (0.01 * 500), tol=1e-10, max_iter=1000).fit(x, y)
    expected = np.append(theirs.coef_[0], theirs.intercept_)
    assert logistic(x, y, ridge=0.01) == pytest.approx(expected, abs=1e-5)


def test_classes_without_overlap_have_finite_coefficients():
    x = np.concatenate([np.full((50, 1), -1.0), np.full((50, 1), 1.0)])
    assert np.isfinite(logistic(x, np.repeat([0.0, 1.0], 50), ridge=1e-4)).all()


def test_strata_are_ordered_by_propensity_hold_enough_labels_and_are_balanced():
    labelled, target = gaussians(4000, 8000)
    found = fit_strata(labelled, target)
    counts = np.bincount(found.labels)
    assert counts.sum() == 4000 and counts.min() >= 400
    means = [labelled[found.labels == s, 0].mean() for s in range(len(counts))]
    assert means == sorted(means)  # targets lie at greater x: the first stratum is the least like them
    assert (np.diff(found.ratio()) > 0).all()
    assert all(row["smd"] < 0.6 * SHIFT for row in found.balance)
    assert (found.of(labelled) == found.labels).mean() > 0.98
    assert sum(row["labels"] for row in found.balance) == 4000


def test_starved_strata_are_merged():
    labelled, target = gaussians(3000, 12_000, shift=3.0)
    found = fit_strata(labelled, target)
    assert 1 < len(found.balance) < 5
    assert min(row["labels"] for row in found.balance) >= 300
    weights = strata_weights(labelled, target)
    assert weights.weights.mean() == pytest.approx(1)
    assert (weights.strata == found.labels).all()


def test_many_columns_are_projected_and_points_follow():
    rng = np.random.default_rng(3)
    mix = rng.normal(size=(5, 64))
    labelled, target = rng.normal(size=(1500, 5)), rng.normal([1, 0, 0, 0, 0], 1, size=(4000, 5))
    noise = [0.01 * rng.normal(size=(len(part), 64)) for part in (labelled, target)]
    space, bank, _ = fit_space(labelled @ mix + noise[0], target @ mix + noise[1])
    assert bank.shape == (1500, 16) and space.components.shape == (64, 16)
    found = neighbour_weights(labelled @ mix + noise[0], target @ mix + noise[1])
    true = np.exp(labelled[:, 0] - 0.5)
    assert np.corrcoef(found.weights, true)[0, 1] > 0.75
    fresh = rng.normal(size=(500, 5))
    assert np.corrcoef(found.at(fresh @ mix), np.exp(fresh[:, 0] - 0.5))[0, 1] > 0.7


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: ulsif_weights(a, b, alpha=1.0),
        lambda a, b: ulsif_weights(a, b, centres=0),
        lambda a, b: ulsif_weights(a, b[:1]),
        lambda a, b: rulsif_weights(a, b, alpha=0.0),
        lambda a, b: kmm_weights(a, b, largest=0.5),
        lambda a, b: kmm_weights(np.zeros((20_001, 1)), np.zeros((5, 1))),
        lambda a, b: classifier_weights(a, b, limits=(2.0, 1.0)),
        lambda a, b: classifier_weights(a[:4], b),
        lambda a, b: strata_weights(a, b, strata=0),
        lambda a, b: strata_weights(a, b[:4]),
    ],
)
def test_options_out_of_range_and_sets_too_small_are_refused(call):
    with pytest.raises(BadInput, match="expected"):
        call(*gaussians(20, 20))

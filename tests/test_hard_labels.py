"""Labels as surveys have them: repeated, wrong, few, from one corner; never a confidence that they do not support."""

import numpy as np
import pytest

from redshelf.models import metrics
from redshelf.models.fitting import fit_redshift
from redshelf.models.redshift import ESTIMATORS

NAMES = ("g-r", "r-i", "i")


def survey(n, seed):
    rng = np.random.default_rng(seed)
    magnitude = rng.normal(21, 0.7, n)
    z = np.clip(0.15 * (magnitude - 18) + 0.1 * rng.normal(size=n), 0.01, 3)
    colours = np.column_stack([z, 0.5 * z**2]) + 0.02 * rng.normal(size=(n, 2))
    return np.column_stack([colours, magnitude]), z


def whole(model, target):
    """Answers of every estimator, each a density that integrates to 1."""
    for estimator in ESTIMATORS:
        answer = model.predict(target, estimator=estimator)
        np.testing.assert_allclose(answer.pdf.density @ answer.pdf.widths, 1)
        low, middle, high = answer.pdf.quantiles([0.16, 0.5, 0.84])
        assert (low <= middle).all() and (middle <= high).all()
    return model.predict(target)


def test_labels_in_two_surveys_with_other_redshifts_are_fitted_on_and_never_answer_for_one_another():
    x, z = survey(150, 0)
    twice, other = np.concatenate([x, x[:30]]), np.concatenate([z, z[:30] + 0.3])
    sky = np.r_[np.arange(150), np.arange(30)] * 0.01, np.zeros(180)
    model = fit_redshift(twice, other, survey(300, 1)[0], names=NAMES, sky=sky, threads=1)
    answer = whole(model, x[:5])
    assert answer.neighbours.shape[0] == 5
    hidden = model.predict(x[:30], exclude=np.arange(30), estimator="knn")
    assert not any({i, 150 + i} & set(hidden.neighbours[i].tolist()) for i in range(30))


def test_one_wrong_redshift_in_a_hundred_moves_little():
    x, z = survey(600, 2)
    target, truth = survey(1500, 3)
    wrong = z.copy()
    wrong[::100] = 2.5
    clean, dirty = (fit_redshift(x, labels, target, names=NAMES, threads=1) for labels in (z, wrong))
    for model in (clean, dirty):
        scores = metrics.summary(model.predict(target, estimator="knn").point, truth)
        assert abs(scores["bias"]) < 0.01 and scores["sigma_mad"] < 0.035 and scores["outliers"] < 0.02


def test_columns_that_repeat_one_another_and_a_constant_one_are_harmless():
    x, z = survey(150, 4)
    target, truth = survey(400, 5)
    columns = [np.column_stack([part, part[:, 0], np.ones(len(part))]) for part in (x, target)]
    model = fit_redshift(columns[0], z, columns[1], names=(*NAMES, "g-z", "observed_g"), threads=1)
    scores = metrics.summary(whole(model, columns[1]).point, truth)
    assert scores["sigma_mad"] < 0.06


def test_a_target_that_is_the_labelled_set_has_no_shift():
    x, z = survey(200, 6)
    model = fit_redshift(x, z, x, names=NAMES, threads=1)
    assert model.shift.is_null and model.report["shift"]["warnings"] == []
    assert model.report["network"]["shift_weights"] == 0
    whole(model, x)


def test_labels_from_one_corner_support_that_corner_alone():
    x, z = survey(800, 7)
    corner = x[:, 0] < np.quantile(x[:, 0], 0.25)
    model = fit_redshift(x[corner], z[corner], x, names=NAMES, threads=1)
    inside = whole(model, x).support.in_support
    assert inside[corner].mean() > 0.8
    assert inside[x[:, 0] > np.quantile(x[:, 0], 0.7)].mean() < 0.05


def test_a_hundred_labels_are_enough_for_every_estimator():
    x, z = survey(100, 8)
    target, truth = survey(500, 9)
    scores = metrics.summary(whole(fit_redshift(x, z, target, names=NAMES, threads=1), target).point, truth)
    assert abs(scores["bias"]) < 0.03 and scores["sigma_mad"] < 0.08


@pytest.mark.parametrize(("n", "highest"), [(50, 1.5), (60, 3.0), (100, 15.0)])
def test_few_labels_that_reach_far_are_fitted_on(n, highest):
    x, z = survey(n, 13)
    z[0] = highest
    whole(fit_redshift(x, z, survey(100, 14)[0], names=NAMES, threads=1), survey(20, 15)[0])


def test_a_magnitude_alone_is_not_left_out():
    x, z = survey(450, 16)
    target = survey(600, 17)[0] + [0, 0, 3]
    model = fit_redshift(x[:, 2:], z, target[:, 2:], names=("i",), threads=1)
    assert set(model.report["rehearsal"]) == {"nothing"}
    whole(model, target[:20, 2:])


@pytest.mark.parametrize("n", [50, 60])
def test_the_fewest_labels_that_are_taken_are_fitted_on(n):
    x, z = survey(n, 10)
    model = fit_redshift(x, z, survey(100, 11)[0], names=NAMES, threads=1)
    whole(model, survey(20, 12)[0])

"""Fits whose target is fainter than every label: rehearsed on bright and faint labels."""

import numpy as np
import pytest

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.fitting import fit_redshift

FULL_TRAINING = True  # of the networks: see conftest

NAMES = ("g-r", "r-i", "i")


def survey(n, seed, bright, faint):
    """Colours that tell the redshift, and a magnitude that only seems to: bright sources are near."""
    rng = np.random.default_rng(seed)
    magnitude = rng.uniform(bright, faint, n)
    z = np.clip(0.2 + 0.1 * (magnitude - 18) + 0.15 * rng.normal(size=n), 0.01, 2)
    colours = np.column_stack([z + 0.02 * rng.normal(size=n), z**2 + 0.02 * rng.normal(size=n)])
    return np.column_stack([colours, magnitude]), z


@pytest.fixture(scope="module")
def beyond():
    x, z = survey(500, 0, 18, 21)
    target, truth = survey(1500, 1, 21, 22)
    return x, z, target, truth, fit_redshift(x, z, target, names=NAMES, threads=1)


def test_a_target_fainter_than_the_labels_is_rehearsed_and_keeps_no_weights(beyond):
    report = beyond[4].report
    assert set(report["rehearsal"]) == {"nothing", "i"}
    assert report["lightgbm"]["shift_weights"] == report["network"]["shift_weights"] == 0
    assert report["validation"] == report["rehearsal"][report["left_out"][0] if report["left_out"] else "nothing"]


def test_what_is_left_out_is_not_seen_by_the_estimators_and_still_by_the_support(beyond):
    x, _, _, _, model = beyond
    frame = model.frame
    assert len(model.network.spread) == 3 - len(frame.left_out)
    assert frame.transform(x).shape[1] == len(model.network.spread)
    assert frame.spaces(x)["colours+magnitude"].shape[1] == 3


def test_a_target_fainter_than_the_labels_is_answered_where_colours_support_it(beyond):
    _, _, target, truth, model = beyond
    answer = model.predict(target)
    inside = answer.support.in_support
    assert inside.mean() > 0.3
    scores = metrics.summary(answer.point[inside], truth[inside])
    assert abs(scores["bias"]) < 0.02 and scores["sigma_mad"] < 0.04


def test_features_without_a_magnitude_are_rehearsed_by_the_magnitudes_given():
    (x, z), (target, _) = survey(420, 4, 18, 21), survey(600, 5, 21, 22)
    mix = np.random.default_rng(6).normal(size=(3, 8))
    names = tuple(f"e{n}" for n in range(8))
    told = {"observables": (x, target), "magnitudes": (x[:, 2], target[:, 2])}
    model = fit_redshift(x @ mix, z, target @ mix, names=names, threads=1, **told)
    assert set(model.report["rehearsal"]) == {"nothing"} and model.frame.left_out == ()
    np.testing.assert_array_equal(model.shift.reference_weights, 1)
    with pytest.raises(BadInput, match=r"magnitudes of shapes \(420,\), \(1,\): expected finite ones, \(420\)"):
        fit_redshift(x @ mix, z, target @ mix, names=names, magnitudes=(x[:, 2], target[:1, 2]))


def test_a_target_as_bright_as_the_labels_is_not_rehearsed():
    x, z = survey(420, 2, 18, 21)
    model = fit_redshift(x, z, survey(800, 3, 18, 21)[0], names=NAMES, threads=1)
    assert model.report["rehearsal"] == {} and model.report["left_out"] == []
    assert model.report["validation"]["knn"]["unweighted"]["n"] == 420

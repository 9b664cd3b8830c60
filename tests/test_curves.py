"""Curves against counts by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from redshelf.models import curves, metrics
from redshelf.models.errors import BadInput


def test_a_cut_keeps_what_lies_at_or_under_it():
    score = np.arange(1000.0)
    dz = np.where((score >= 900) | (score < 10), 0.5, 0.0)
    strict, loose, all_ = curves.threshold_curve(score, dz, [199, 899, np.inf])
    assert (strict["n"], strict["kept"], strict["outliers"]) == (200, 0.2, 0.05)
    assert (strict["purity"], strict["completeness"]) == pytest.approx((0.95, 190 / 890))
    assert loose["outliers_rest"] == 1.0 and loose["completeness"] == 1.0
    assert (all_["outliers"], all_["outliers_rest"]) == (pytest.approx(0.11), None)


def test_cuts_at_its_scores_are_the_rejection_curve():
    rng = np.random.default_rng(0)
    score, dz = rng.random(1000), rng.normal(0, 0.15, 1000)
    weights = rng.lognormal(0, 0.5, 1000)
    for row in metrics.rejection_curve(score, dz, weights):
        (at,) = curves.threshold_curve(score, dz, [row["score"]], weights)
        assert at["n"] == row["n"] and at["kept"] == pytest.approx(row["kept"], abs=2e-3)
        assert at["outliers"] == pytest.approx(row["outliers"])
        assert at["outliers_rest"] == (None if row["outliers_rest"] is None else pytest.approx(row["outliers_rest"]))


def test_whole_number_weights_are_repeated_rows():
    rng = np.random.default_rng(1)
    score, dz, counts = rng.random(500), rng.normal(0, 0.15, 500), rng.integers(0, 4, 500)
    one = curves.threshold_curve(score, dz, [0.3, 0.6], counts)
    other = curves.threshold_curve(np.repeat(score, counts), np.repeat(dz, counts), [0.3, 0.6])
    for row, expected in zip(one, other, strict=True):
        assert {**row, "n": 0} == pytest.approx({**expected, "n": 0})


def test_few_objects_give_no_number():
    rows = curves.threshold_curve(np.arange(150), np.zeros(150), [10, 120])
    assert (rows[0]["outliers"], rows[0]["outliers_rest"]) == (None, 0.0)
    assert (rows[1]["outliers"], rows[1]["outliers_rest"]) == (0.0, None)


def test_the_auc_equals_scikit_learns():
    rng = np.random.default_rng(2)
    low, high = rng.integers(0, 20, 300), rng.integers(5, 25, 200)  # with ties
    w, v = rng.random(300), rng.random(200)
    labels, values = np.repeat([0, 1], [300, 200]), np.concatenate([low, high])
    assert curves.auc(low, high) == pytest.approx(roc_auc_score(labels, values))
    expected = roc_auc_score(labels, values, sample_weight=np.concatenate([w, v]))
    assert curves.auc(low, high, w, v) == pytest.approx(expected)
    assert curves.auc(low, low) == pytest.approx(0.5) and curves.auc([0, 1], [2, 3]) == 1.0


def test_the_label_curve_gives_mean_and_error_of_nested_draws():
    drawn = []

    def score(rows):
        drawn.append(set(rows.tolist()))
        assert np.array_equal(rows, np.unique(rows))
        return float(len(rows)) + rows[0]

    rows = curves.label_curve(score, 100, [10, 50, 100], draws=4)
    assert [row["size"] for row in rows] == [10, 50, 100]
    assert all(few < many for few, many in zip(drawn[:4], drawn[4:8], strict=True))
    assert rows[2]["mean"] == 100 and rows[2]["spread"] == 0
    assert rows[0]["error"] == pytest.approx(rows[0]["spread"] / 2)
    assert curves.label_curve(score, 100, [10], draws=1)[0]["spread"] is None


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: curves.threshold_curve([1, 2], [0.1], [1]), r"score has shape \(2,\), dz \(1,\)"),
        (lambda: curves.threshold_curve([np.nan], [0.1], [1]), "no NaN"),
        (lambda: curves.threshold_curve([1], [np.nan], [1]), "dz: nan in row 0"),
        (lambda: curves.threshold_curve([1], [0.1], [np.nan]), "thresholds hold nan"),
        (lambda: curves.threshold_curve([1], [0.1], [1], [0]), "all zero"),
        (lambda: curves.auc([], [1]), "low has 0 values"),
        (lambda: curves.label_curve(len, 10, [11]), "sizes hold 11: expected 1 to 10"),
        (lambda: curves.label_curve(len, 10, [1], draws=0), "draws=0"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call()

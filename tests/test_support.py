"""Support against closed forms and a shift that is known."""

import numpy as np
import pytest

from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.support import REASONS, choose_space, fit_support

EDGES = default_edges(2)


def narrow(z):
    mass = np.zeros((len(z), len(EDGES) - 1))
    mass[np.arange(len(z)), np.searchsorted(EDGES, z) - 1] = 1
    return Pdf.from_mass(EDGES, mass)


def test_a_hundredth_of_the_labels_lies_beyond_ratio_one():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2000, 3))
    support = fit_support(x, rng.random(2000))
    ratio = support.distance_ratio(x, exclude=np.arange(2000))
    assert np.mean(ratio > 1) == pytest.approx(0.01, abs=0.001)


def test_the_ratio_is_the_fifth_distance_over_its_unit():
    x = np.random.default_rng(1).normal(size=(200, 2))
    support = fit_support(x, np.linspace(0, 1, 200))
    distance = np.sort(np.linalg.norm(x.astype(np.float32), axis=1))[4]
    assert support.distance_ratio(np.zeros((1, 2)))[0] == pytest.approx(distance / support.unit_distance, rel=1e-5)


def test_each_reason_is_said_in_words_and_only_where_it_holds():
    rng = np.random.default_rng(2)
    support = fit_support(rng.normal(size=(500, 2)), rng.uniform(0, 1, 500))
    points = np.zeros((6, 2))
    points[1] = 50.0
    pdf = narrow(np.array([0.5, 0.5, 0.5, 1.5, 0.5, 0.5]))
    weights = np.full((6, 20), 1 / 20)
    weights[2] = np.r_[1.0, np.zeros(19)]
    answer = support.answer(
        points,
        pdf,
        weights,
        disagreement=np.array([0.1, 0, 0, 0, 0.11, 0]),
        mass_at_infinity=np.array([0.05, 0, 0, 0, 0, 0.06]),
    )
    assert [answer.reasons(row) for row in range(6)] == [[], *([reason] for reason in REASONS)]
    assert answer.in_support.tolist() == [True] + [False] * 5
    np.testing.assert_allclose(answer.effective_neighbours, [20, 20, 1, 20, 20, 20])
    np.testing.assert_allclose(answer.beyond_labels, [0, 0, 0, 1, 0, 0], atol=1e-12)


def asked(support, points, **options):
    n, zero = len(points), np.zeros(len(points))
    told = {"disagreement": zero, "mass_at_infinity": zero, **options}
    return support.answer(points, narrow(np.full(n, 0.5)), np.full((n, 20), 1 / 20), **told).labels_in_radius


def test_labels_nearer_than_the_tenth_target_are_counted_to_twenty():
    rng = np.random.default_rng(4)
    labels, targets = rng.normal(size=(400, 3)), rng.normal(0.7, 1.3, size=(400, 3))
    support = fit_support(labels, rng.random(400), targets=targets)
    points = rng.normal(size=(50, 3))
    radius = np.sort(np.linalg.norm(points[:, None] - targets, axis=2), axis=1)[:, 9]
    expected = (np.linalg.norm(points[:, None] - labels, axis=2) <= radius[:, None]).sum(axis=1)
    assert expected.min() < 10 and expected.max() > 20
    np.testing.assert_array_equal(asked(support, points), np.minimum(expected, 20))
    near = np.sort(np.linalg.norm(points[:, None] - labels, axis=2), axis=1)
    np.testing.assert_array_equal(asked(support, points, distances=near[:, :10]), np.minimum(expected, 10))


def test_a_source_among_labels_and_targets_counts_as_neither():
    x = np.random.default_rng(5).normal(size=(300, 2))
    support = fit_support(x, np.linspace(0, 1, 300), targets=x)
    np.testing.assert_array_equal(asked(support, x, exclude=np.arange(300)), 10)


def test_without_targets_labels_within_the_radius_are_not_known():
    x = np.random.default_rng(6).normal(size=(60, 2))
    assert np.isnan(asked(fit_support(x, np.linspace(0, 1, 60)), x[:3])).all()


def test_labels_that_coincide_support_only_themselves():
    support = fit_support(np.zeros((50, 2)), np.linspace(0, 1, 50))
    ratio = support.distance_ratio(np.array([[0.0, 0.0], [0.1, 0.0]]))
    assert ratio[0] == 0 and ratio[1] > 1


def test_the_space_that_marks_the_bad_answers_is_chosen():
    rng = np.random.default_rng(3)
    magnitude = rng.uniform(18, 23, 3000)
    # fainter sources reach colours that bright ones never show, and are redshifted otherwise there
    colour = rng.uniform(-1, 1, 3000) + np.where(rng.random(3000) < (magnitude - 18) / 10, 3.0, 0.0)
    z = np.where(colour > 1.5, 2.0, 0.5) + 0.01 * rng.normal(size=3000)
    spaces = {
        "noise": rng.normal(size=(3000, 2)),
        "magnitude": magnitude[:, None] * np.ones(2),
        "colour": np.column_stack([colour, rng.uniform(-1, 1, 3000)]),
    }
    far = (colour > 1.5) & (magnitude < 20.5)
    name, report = choose_space(
        {k: v[~far] for k, v in spaces.items()}, spaces["colour"][~far], z[~far], magnitude[~far]
    )
    assert name == "colour" and report["chosen"]
    assert report["scores"]["colour"] > report["scores"]["magnitude"]


def test_few_labels_take_the_first_space_and_say_so():
    x = np.zeros((100, 2))
    assert choose_space({"a": x, "b": x}, x, np.ones(100), np.arange(100)) == (
        "a",
        {"space": "a", "chosen": False, "scores": {}},
    )


def test_too_few_labels_are_refused():
    with pytest.raises(BadInput, match="support"):
        fit_support(np.zeros((5, 2)), np.zeros(5))

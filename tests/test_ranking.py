"""Queries and scores from examples, and the overlap of rankings, against closed forms and definitions."""

from itertools import permutations

import numpy as np
import pytest

from redshelf.models.errors import BadInput
from redshelf.models.ranking import PERSISTENCE, discriminant, jaccard, rank_biased_overlap, rocchio


def test_rocchio_moves_the_positive_mean_away_from_the_negative_one() -> None:
    positive = np.array([[0, 0], [2, 2]], dtype=np.float32)
    negative = np.array([[1, -3], [1, -7], [1, -5]], dtype=np.float32)
    none = np.empty((0, 2), dtype=np.float32)
    np.testing.assert_allclose(rocchio(positive, none), [1, 1])
    np.testing.assert_allclose(rocchio(positive, negative), [1, 1 + 0.25 * 6])


def test_rocchio_does_not_depend_on_where_the_origin_is() -> None:
    rng = np.random.default_rng(0)
    positive, negative, shift = (rng.normal(size=(n, 5)).astype(np.float32) for n in (4, 3, 1))
    np.testing.assert_allclose(
        rocchio(positive + shift, negative + shift), rocchio(positive, negative) + shift[0], atol=1e-5
    )


@pytest.mark.parametrize("dim", [6, 80])
def test_the_score_equals_weighted_ridge_regression_on_standardised_numbers(dim: int) -> None:
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.1, 5, dim)
    positive, negative, background = (rng.normal(size=(n, dim)) * scale for n in (4, 3, 50))
    found = discriminant(*(some.astype(np.float32) for some in (positive, negative, background)))
    spread = background.std(axis=0)
    x = np.concatenate([positive, negative, background]) / spread
    y, weight = np.repeat([1, -1, -1], [4, 3, 50]), np.repeat([0.5 / 4, 0.1 / 3, 0.4 / 50], [4, 3, 50])
    centred, target = x - weight @ x, y - weight @ y
    covariance = (centred * weight[:, None]).T @ centred
    ridge = 0.3 * np.trace(covariance) / dim * np.eye(dim)
    expected = np.linalg.solve(covariance + ridge, centred.T @ (weight * target))
    np.testing.assert_allclose(found.weights * spread, expected, rtol=1e-4, atol=1e-6)
    vectors = rng.normal(size=(20, dim)).astype(np.float32)
    scores = (vectors / spread - weight @ x) @ expected + weight @ y
    np.testing.assert_allclose(found.score(vectors), scores, rtol=1e-3, atol=1e-4)


def test_a_number_that_never_changes_does_not_matter_and_no_examples_are_refused() -> None:
    rng = np.random.default_rng(2)
    positive, background = np.full((2, 3), 2.0, np.float32), rng.normal(size=(30, 3)).astype(np.float32)
    background[:, 1] = 2
    found = discriminant(positive, np.empty((0, 3), np.float32), background)
    assert found.weights[1] == 0 and np.isfinite(found.score(background)).all()
    with pytest.raises(BadInput, match="0 positive examples before a background of 30"):
        discriminant(positive[:0], positive[:0], background)


def test_overlap_is_one_for_the_same_list_and_zero_without_anything_in_common() -> None:
    names = list("abcdefgh")
    assert rank_biased_overlap(names, names) == pytest.approx(1)
    assert rank_biased_overlap(names, list("ijklmnop")) == 0
    assert rank_biased_overlap(names, []) is None and jaccard([], []) is None
    assert jaccard(["a", "b"], ["b", "c"]) == 1 / 3 and jaccard(["a"], []) == 0


def test_overlap_is_equation_23_of_its_paper_on_every_order_of_five_names() -> None:
    first, p = list("abcde"), PERSISTENCE
    for second in permutations("abxde"):
        shared = [len(set(first[:d]) & set(second[:d])) for d in range(1, 6)]
        expected = shared[-1] / 5 * p**5 + (1 - p) / p * sum(x / d * p**d for d, x in enumerate(shared, start=1))
        assert rank_biased_overlap(first, second) == pytest.approx(expected)
    assert rank_biased_overlap(first, list("abced")) > rank_biased_overlap(first, list("bacde"))  # the top counts

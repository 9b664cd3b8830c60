"""Neighbour-ratio weights against brute force and known ratios."""

import numpy as np
import pytest
from sklearn.neighbors import BallTree, NearestNeighbors

from redshelf.models.errors import BadInput
from redshelf.models.shift import ShiftWeights, neighbour_weights


def oracle(labelled, target, k):
    """Lima weights by trees, as in the baseline."""
    radius = NearestNeighbors(n_neighbors=k + 1).fit(labelled).kneighbors(labelled)[0][:, -1]
    count = BallTree(target).query_radius(labelled, radius * (1 + 1e-12), count_only=True)
    return (count / len(target)) / (k / len(labelled))


@pytest.mark.parametrize("dim", [1, 3, 9])
def test_weights_equal_a_tree_search(dim):
    rng = np.random.default_rng(dim)
    labelled, target = rng.normal(size=(800, dim)), rng.normal(0.5, 1.1, size=(2500, dim))
    ours = neighbour_weights(labelled, target, k=30)
    np.testing.assert_allclose(ours.weights, oracle(labelled, target, 30), rtol=1e-6)


def test_the_size_of_the_blocks_changes_nothing():
    rng = np.random.default_rng(0)
    labelled, target = rng.normal(size=(300, 4)), rng.normal(size=(1000, 4))
    whole = neighbour_weights(labelled, target).weights
    np.testing.assert_array_equal(neighbour_weights(labelled, target, block_pairs=7000).weights, whole)


def test_weights_far_from_the_origin_are_the_same():
    rng = np.random.default_rng(1)
    labelled, target = rng.normal(size=(300, 3)), rng.normal(size=(900, 3))
    np.testing.assert_allclose(
        neighbour_weights(labelled + 1000, target + 1000).weights, oracle(labelled, target, 30), rtol=1e-6
    )


def test_a_null_shift_gives_weights_near_one():
    rng = np.random.default_rng(2)
    out = neighbour_weights(rng.normal(size=(2000, 3)), rng.normal(size=(20000, 3)))
    assert out.mean_weight == pytest.approx(1, abs=0.05)
    assert np.median(out.weights) == pytest.approx(1, abs=0.1)
    assert out.is_null and not out.warnings()


def test_a_target_equal_to_the_labels_counts_itself_and_its_neighbours():
    x = np.random.default_rng(3).normal(size=(500, 5))
    np.testing.assert_allclose(neighbour_weights(x, x, k=20).weights, 21 / 20)


def test_a_known_density_ratio_is_recovered():
    rng = np.random.default_rng(4)
    labelled, target = rng.uniform(0, 1, (4000, 1)), np.sqrt(rng.uniform(0, 1, (40000, 1)))
    ratio = neighbour_weights(labelled, target, k=60).weights
    inner = (labelled[:, 0] > 0.1) & (labelled[:, 0] < 0.9)
    relative = ratio[inner] / (2 * labelled[inner, 0])
    assert relative.mean() == pytest.approx(1, abs=0.05)
    assert relative.std() < 1.5 / np.sqrt(60)


def test_a_target_out_of_reach_lowers_the_mean_weight_and_warns():
    rng = np.random.default_rng(5)
    out = neighbour_weights(rng.normal(size=(500, 2)), rng.normal(50, 1, size=(500, 2)))
    assert out.mean_weight == 0 and out.effective_sample_size == 0
    assert len(out.warnings()) == 2


def test_few_labels_lower_k():
    rng = np.random.default_rng(6)
    assert neighbour_weights(rng.normal(size=(10, 2)), rng.normal(size=(100, 2))).weights.shape == (10,)


def test_repeated_labels_are_finite():
    out = neighbour_weights(np.zeros((100, 2)), np.random.default_rng(7).normal(size=(50, 2)))
    assert np.isfinite(out.weights).all()


@pytest.mark.parametrize(
    ("labelled", "target"),
    [
        (np.zeros((1, 2)), np.zeros((5, 2))),
        (np.zeros((5, 2)), np.zeros((0, 2))),
        (np.zeros((5, 2)), np.zeros((5, 3))),
        (np.full((5, 2), np.nan), np.zeros((5, 2))),
    ],
)
def test_what_cannot_be_weighted_is_refused(labelled, target):
    with pytest.raises(BadInput):
        neighbour_weights(labelled, target)


def test_moderate_weights_of_many_labels_are_no_null_shift_and_no_warning():
    weights = np.concatenate([np.full(5000, 0.5), np.full(5000, 1.5)])
    out = ShiftWeights("neighbour-ratio", weights, 8000.0, 1.0)
    assert not out.is_null and not out.warnings()

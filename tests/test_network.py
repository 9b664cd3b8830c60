"""The network ensemble: what it learns, what it never sees, and that the same seed gives the same numbers."""

import numpy as np
import pytest
import training_length

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.network import fit_network
from redshelf.models.pdf import default_edges

EDGES = default_edges(2)


def survey(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 4))
    z = np.expm1(np.clip(0.4 + 0.1 * x[:, 0] + 0.05 * np.sin(3 * x[:, 1]), 0.01, 0.9))
    return x, z * np.exp(0.01 * rng.normal(size=n))


def fitted(n=500, seed=0, **options):
    x, z = survey(n, seed)
    own = {"edges": EDGES, "importance": np.ones(n), "exclude": np.arange(n)[:, None], "threads": 1}
    return x, z, *fit_network(x, z, **(own | options))


@pytest.fixture(scope="module")
def network():
    with training_length.full():
        return fitted()


def test_a_smooth_relation_is_learned_with_its_width(network):
    model = network[2]
    x, z = survey(2000, 1)
    answer = model.predict(x)
    scores = metrics.summary(answer.median(), z)
    assert abs(scores["bias"]) < 0.01 and scores["sigma_mad"] < 0.03
    np.testing.assert_allclose(answer.density @ answer.widths, 1)


def test_a_label_is_answered_by_those_that_did_not_see_it():
    x, z = survey(120, 2)
    z[7] = 1.9  # wrong: nobody who has not seen it can say so
    own = {"edges": EDGES, "importance": np.ones(120), "exclude": np.arange(120)[:, None], "threads": 1}
    model, _ = fit_network(x, z, **own)
    blind = model.predict(x, exclude=np.arange(120)).median()
    assert abs(blind[7] - 1.9) > 0.5


def test_companions_share_a_fold():
    exclude = np.column_stack([np.arange(200), np.full(200, -1)])
    exclude[3, 1], exclude[150, 1] = 150, 3
    x, z = survey(200, 3)
    model, _ = fit_network(x, z, edges=EDGES, importance=np.ones(200), exclude=exclude, threads=1)
    assert model.fold[3] == model.fold[150]


def test_the_same_seed_gives_the_same_network():
    one, again = fitted(120)[2], fitted(120)[2]
    np.testing.assert_array_equal(again.bins, one.bins)
    np.testing.assert_array_equal(again.mixtures, one.mixtures)


def test_weights_enter_where_they_are_demanded_and_else_not():
    x, z = survey(150, 4)
    own = {"edges": EDGES, "importance": np.where(x[:, 2] > 1, 10.0, 0.1), "exclude": np.arange(150)[:, None]}
    plain, forbidden = fit_network(x, z, threads=1, **own)
    weighted, demanded = fit_network(x, z, threads=1, shift_weights=True, **own)
    assert forbidden["shift_weights"] == 0 and demanded["shift_weights"] == 1
    assert np.isfinite(weighted.bins).all() and not np.array_equal(plain.bins, weighted.bins)


def test_features_of_another_width_and_nan_are_refused(network):
    model = network[2]
    with pytest.raises(BadInput, match="expected finite values"):
        model.predict(np.zeros((3, 5)))
    with pytest.raises(BadInput, match="expected finite values"):
        model.predict(np.full((3, 4), np.nan))


def test_features_far_outside_the_labels_are_answered_with_finite_densities(network):
    answer = network[2].predict(np.full((2, 4), 1e9))
    assert np.isfinite(answer.density).all()

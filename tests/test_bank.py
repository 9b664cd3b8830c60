"""Each way to find neighbours against brute force, and the choice among them."""

import numpy as np
import pytest

from redshelf.models import bank as module
from redshelf.models.bank import LISTS_RECALL, TREE_DIM, Bank, exact_neighbours, fit_bank
from redshelf.models.errors import BadInput


def brute(points, queries, k):
    distance = np.linalg.norm(queries[:, None].astype(float) - points[None].astype(float), axis=2)
    rows = np.argsort(distance, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distance, rows, axis=1), rows


@pytest.fixture(scope="module")
def listed():
    """Few numbers behind many columns, as in an embedding."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(6000, 5))
    points = np.tanh(hidden @ rng.normal(size=(5, 24))).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LISTS_ROWS", 2000)
        return fit_bank(points)


@pytest.mark.parametrize("dim", [1, 3, TREE_DIM, TREE_DIM + 1, 40])
@pytest.mark.parametrize("n", [1, 300])
def test_neighbours_equal_brute_force_in_any_number_of_dimensions(dim, n):
    rng = np.random.default_rng(dim)
    points, queries = rng.normal(size=(500, dim)), rng.normal(size=(n, dim))
    distance, rows = exact_neighbours(points, queries, 9)
    np.testing.assert_array_equal(rows, brute(points, queries, 9)[1])
    np.testing.assert_allclose(distance, brute(points, queries, 9)[0], rtol=1e-9)


@pytest.mark.parametrize("dim", [2, 30])
def test_points_that_coincide_are_all_found(dim):
    distance, rows = exact_neighbours(np.zeros((50, dim)), np.zeros((3, dim)), 50)
    assert (distance == 0).all() and (np.sort(rows, axis=1) == np.arange(50)).all()


def test_lists_find_what_they_promise(listed):
    assert listed.probe and len(listed.centres) == 6000 // 40
    queries = listed.points[::7] + 1e-3
    distance, rows = listed.nearest(queries, 20)
    truth = brute(listed.points, queries, 20)
    found = np.mean([np.isin(a, b).mean() for a, b in zip(truth[1], rows, strict=True)])
    assert found >= LISTS_RECALL - 0.005
    np.testing.assert_allclose(distance[:, 0], truth[0][:, 0], rtol=1e-4)
    assert (np.diff(distance, axis=1) >= 0).all()


def test_lists_hide_what_is_excluded(listed):
    rows = np.arange(0, 6000, 60)
    exclude = np.column_stack([rows, rows + 1, np.full(len(rows), -1)])
    distance, found = listed.nearest(listed.points[rows], 15, exclude=exclude)
    assert found.shape == (100, 15) and np.isfinite(distance).all()
    assert not (found[:, :, None] == exclude[:, None]).any()


def test_more_neighbours_than_the_lists_hold_are_found_one_by_one(listed):
    few = Bank(listed.points, listed.centres, 1)
    distance, rows = few.nearest(listed.points[:40], 2000)
    np.testing.assert_allclose(distance, brute(listed.points, listed.points[:40], 2000)[0], atol=1e-3)
    assert all(len(set(row)) == 2000 for row in rows.tolist())


def test_lists_are_made_only_of_many_points_in_many_dimensions():
    rng = np.random.default_rng(1)
    assert not len(fit_bank(rng.normal(size=(500, 30))).centres)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "LISTS_ROWS", 400)
        few = np.pad(rng.normal(size=(500, TREE_DIM)), ((0, 0), (0, 20)))  # columns that do not vary do not count
        assert fit_bank(few).has_few_dimensions and not len(fit_bank(few).centres)


def test_points_without_any_order_are_compared_one_by_one(monkeypatch):
    monkeypatch.setattr(module, "LISTS_ROWS", 2000)
    monkeypatch.setattr(module, "PROBES", (2,))  # in 60 dimensions of noise no two lists hold the nearest
    found = fit_bank(np.random.default_rng(2).normal(size=(3000, 60)))
    assert not len(found.centres) and not found.probe


def test_more_than_there_are_is_refused():
    with pytest.raises(BadInput, match="k=5: expected 1 to 4"):
        exact_neighbours(np.zeros((5, 12)), np.zeros((1, 12)), 5, exclude=np.array([2]))

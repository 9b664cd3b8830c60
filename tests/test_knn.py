"""Neighbours against brute force, local-linear fits against planes, densities against their samples."""

import numpy as np
import pytest

from redshelf.models import metrics
from redshelf.models.bank import exact_neighbours
from redshelf.models.errors import BadInput
from redshelf.models.knn import (
    KnnRedshift,
    companions,
    fit_knn,
    kernel_weights,
    local_samples,
    row_quantile,
    smoothed_pdf,
)
from redshelf.models.pdf import default_edges


def test_neighbours_equal_brute_force():
    rng = np.random.default_rng(0)
    bank, queries = rng.normal(size=(500, 12)), rng.normal(size=(60, 12))
    distance, rows = exact_neighbours(bank, queries, 7)
    brute = np.linalg.norm(queries[:, None] - bank[None], axis=2)
    np.testing.assert_array_equal(rows, np.argsort(brute, axis=1)[:, :7])
    np.testing.assert_allclose(distance, np.sort(brute, axis=1)[:, :7], rtol=1e-12)


def test_excluded_rows_are_never_neighbours():
    bank = np.random.default_rng(1).normal(size=(100, 3))
    exclude = np.column_stack([np.arange(100), np.r_[1:100, -1]])
    distance, rows = exact_neighbours(bank, bank, 20, exclude=exclude)
    assert not (rows == exclude[:, :1]).any() and not (rows == exclude[:, 1:]).any()
    assert np.isfinite(distance).all()


def test_more_neighbours_than_labels_are_refused():
    with pytest.raises(BadInput, match="k=10"):
        exact_neighbours(np.zeros((10, 2)), np.zeros((1, 2)), 10, exclude=np.array([3]))


def test_companions_lie_within_two_arcsec_across_ra_zero():
    ra = np.array([0.0, 359.9997, 10.0, 0.0])
    dec = np.array([0.0, 0.0, 0.0, 1.0 / 3600])
    assert companions(ra, dec).tolist() == [[0, 1, 3], [1, 0, 3], [2, -1, -1], [3, 0, 1]]


def test_local_samples_of_a_plane_hold_its_value_at_the_query():
    rng = np.random.default_rng(2)
    offsets = rng.normal(size=(50, 40, 3))
    values = 1.0 + offsets @ np.array([0.1, -0.2, 0.05])
    weights = kernel_weights(np.sort(np.linalg.norm(offsets, axis=2), axis=1), np.ones((50, 40)))
    moved = local_samples(values, offsets, weights)
    # the ridge keeps about a tenth of the slope
    assert np.abs((weights * moved).sum(axis=1) - 1).max() < 0.3 * np.abs((weights * values).sum(axis=1) - 1).max()


def test_local_samples_never_leave_the_neighbours_range():
    rng = np.random.default_rng(3)
    offsets = rng.normal(10, 1, size=(20, 15, 2))  # the query is far away: a plane would extrapolate
    values = offsets[:, :, 0] + rng.normal(size=(20, 15))
    moved = local_samples(values, offsets, np.full((20, 15), 1 / 15))
    assert (moved >= values.min(axis=1, keepdims=True)).all() and (moved <= values.max(axis=1, keepdims=True)).all()


def test_local_samples_of_identical_neighbours_stay():
    values = np.array([[0.1, 0.2, 0.3]])
    np.testing.assert_allclose(local_samples(values, np.zeros((1, 3, 4)), np.full((1, 3), 1 / 3)), values)


def test_row_quantile_equals_the_weighted_quantile_of_each_row():
    rng = np.random.default_rng(4)
    values, weights = rng.normal(size=(10, 31)), rng.random((10, 31))
    weights /= weights.sum(axis=1, keepdims=True)
    for q in (0.16, 0.5, 0.9):
        expected = [metrics.weighted_quantile(v, q, w) for v, w in zip(values, weights, strict=True)]
        np.testing.assert_allclose(row_quantile(values, weights, q), expected)


def test_kernel_weights_sum_to_one_and_survive_zero_shift_weights():
    distance = np.sort(np.random.default_rng(5).random((4, 9)), axis=1)
    out = kernel_weights(distance, np.zeros((4, 9)))
    np.testing.assert_allclose(out.sum(axis=1), 1)
    assert (np.diff(out, axis=1) <= 0).all()
    np.testing.assert_allclose(kernel_weights(np.zeros((1, 5)), np.ones((1, 5))), 0.2)


def test_smoothed_density_is_the_gaussian_of_one_sample():
    edges = default_edges(3)
    pdf = smoothed_pdf(edges, np.log1p([[1.0]]), np.ones((1, 1)), np.array([0.05]))
    np.testing.assert_allclose((pdf.density * pdf.widths).sum(), 1)
    low, high = np.log1p(pdf.quantile(0.16)), np.log1p(pdf.quantile(0.84))
    assert (high - low)[0] / 2 == pytest.approx(0.05, rel=0.1)
    assert pdf.median()[0] == pytest.approx(1.0, abs=0.005)


def test_mass_near_zero_redshift_stays_on_the_grid():
    pdf = smoothed_pdf(default_edges(1), np.array([[0.001]]), np.ones((1, 1)), np.array([0.03]))
    np.testing.assert_allclose((pdf.density * pdf.widths).sum(), 1)


def sample(n, seed, noise=0.02):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(n, 3))
    return x, np.expm1(0.5 + 0.3 * x[:, 0] + 0.1 * x[:, 1] + noise * rng.normal(size=n))


def fitted(n=1500, **options):
    x, z = sample(n, 6)
    arguments = {"edges": default_edges(3), "importance": np.ones(n), "exclude": np.arange(n)[:, None], **options}
    return x, z, *fit_knn(x, z, **arguments)


def test_validation_picks_the_local_fit_where_redshift_is_a_plane():
    _, _, model, report = fitted()
    assert report["local_linear"] and not report["shift_weights"]
    new, truth = sample(2000, 7)
    answer = model.predict(new)
    assert metrics.sigma_mad(metrics.delta_z(answer.pdf.median(), truth)) < 0.025
    assert metrics.pit_ks(answer.pdf.pit(truth)) < 0.06


def test_a_labelled_query_does_not_use_itself():
    x, _, model, _ = fitted(300)
    answer = model.predict(x, exclude=np.arange(300))
    assert not (answer.neighbours == np.arange(300)[:, None]).any()
    assert (model.predict(x).neighbours[:, 0] == np.arange(300)).all()


def test_an_answer_does_not_depend_on_the_rest_of_the_batch():
    _, _, model, _ = fitted(400)
    new, _ = sample(3000, 8)
    np.testing.assert_allclose(
        model.predict(new).pdf.density[2500:2510], model.predict(new[2500:2510]).pdf.density, atol=1e-6
    )


def test_shift_weights_move_a_wide_neighbourhood_to_the_target():
    rng = np.random.default_rng(9)
    y = np.concatenate([np.full(500, 0.2), np.full(500, 0.6)])
    bank = np.zeros((1000, 2), np.float32) + rng.normal(0, 1e-3, (1000, 2)).astype(np.float32)
    edges = default_edges(2)
    plain = KnnRedshift(bank, y, np.ones(1000), edges, 200, False, 1.0, 0.01)
    shifted = KnnRedshift(bank, y, np.where(y > 0.4, 9.0, 1.0), edges, 200, False, 1.0, 0.01)
    query = np.zeros((1, 2))
    assert shifted.predict(query).pdf.mean()[0] > plain.predict(query).pdf.mean()[0] + 0.2


def test_too_few_labels_and_bad_queries_are_refused():
    with pytest.raises(BadInput, match="labelled sources"):
        fitted(15)
    _, _, model, _ = fitted(100)
    with pytest.raises(BadInput, match="queries"):
        model.predict(np.full((1, 3), np.nan))
    with pytest.raises(BadInput, match="queries"):
        model.predict(np.zeros((1, 4)))

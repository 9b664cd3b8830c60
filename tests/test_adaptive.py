"""The adaptive kNN against a plain loop of the paper's description, on blobs with known truth, and on poor labels."""

from dataclasses import fields, replace

import numpy as np
import pytest

from redshelf.models import metrics
from redshelf.models.adaptive import AdaptiveKnn
from redshelf.models.adaptive_fit import fit_adaptive
from redshelf.models.errors import BadInput
from redshelf.models.knn import kernel_weights, local_samples, local_slopes
from redshelf.models.pdf import default_edges

EDGES = default_edges(2.0)


def survey(n, seed=0, dim=3, scatter=0.05):
    """Features (n, dim) and redshifts of which the first two features tell."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim))
    z = np.clip(0.8 + 0.2 * x[:, 0] + 0.1 * np.sin(2 * x[:, 1]) + scatter * rng.normal(size=n), 0.01, 1.9)
    return x.astype(np.float32), z


@pytest.fixture(scope="module")
def fitted():
    x, z = survey(1500)
    return fit_adaptive(x, z, edges=EDGES)


def reference_choice(x, z, query, sizes, *, self_match):
    """k and its distance from uniform, by loops over the description."""

    def nearest(point, hidden=None):
        order = sorted(range(len(x)), key=lambda j: float(((x[j].astype(float) - point) ** 2).sum()))
        return [j for j in order if j != hidden]

    best = (np.inf, 0)
    for k in sizes:
        histogram = [0] * 100
        for i in nearest(query)[:k]:
            hits = nearest(x[i], None if self_match else i)[:k]
            step = (sum(z[j] < z[i] for j in hits) + 0.5 * sum(z[j] == z[i] for j in hits)) / k
            pit = step if self_match else (k * step + 0.5) / (k + 1)
            histogram[min(int(pit * 100 + 1e-9), 99)] += 1
        total, distance = 0.0, 0.0
        for b in range(100):
            total += histogram[b] / k
            distance += abs(total - (b + 1) / 100) / 100
        if distance < best[0] - 1e-12:
            best = (distance, k)
    return best


@pytest.mark.parametrize("self_match", [False, True])
def test_k_equals_a_plain_loop_of_the_papers_description(self_match):
    x, z = survey(120, seed=1)
    queries = survey(15, seed=2)[0]
    model, _ = fit_adaptive(x, z, edges=EDGES, shape="clap", choice="pit", share=0.3, self_match=self_match)
    assert model.sizes.tolist() == [5, 10, 15, 20, 25, 30, 35]
    answer = model.predict(queries)
    for i, query in enumerate(queries):
        distance, k = reference_choice(x, z, query, model.sizes.tolist(), self_match=self_match)
        assert answer.w1[i] == pytest.approx(distance, abs=0.011), i  # a PIT on the edge between two bins
        assert answer.k[i] == k or answer.w1[i] == pytest.approx(distance, abs=1e-9), i


def test_densities_integrate_to_one_and_hold_the_truth(fitted):
    model, report = fitted
    x, z = survey(1000, seed=9)
    answer = model.predict(x)
    assert (answer.pdf.density >= 0).all()
    np.testing.assert_allclose((answer.pdf.density * answer.pdf.widths).sum(axis=1), 1)
    assert metrics.sigma_mad(metrics.delta_z(answer.pdf.median(), z)) < 0.04  # the scatter alone is 0.028
    assert metrics.pit_ks(answer.pdf.pit(z)) < 0.06
    assert set(report["loss"]) == {"clap pit", "clap cde", "local pit", "local cde"}
    assert report["chosen"] == f"{model.shape} {model.choice}"


def test_neighbours_are_the_nearest_and_their_shares_end_at_k(fitted):
    model = replace(fitted[0], choice="pit")
    queries = survey(50, seed=3)[0]
    answer = model.predict(queries)
    brute = np.argsort(((queries[:, None].astype(float) - model.bank[None]) ** 2).sum(axis=2), axis=1)
    np.testing.assert_array_equal(answer.neighbours, brute[:, : answer.neighbours.shape[1]])
    np.testing.assert_allclose(answer.neighbour_weights.sum(axis=1), 1)
    assert all((answer.neighbour_weights[i, k:] == 0).all() for i, k in enumerate(answer.k))


def test_an_excluded_label_and_its_companion_are_not_seen():
    x, z = survey(400, seed=4)
    x, z = np.concatenate([x, x]), np.concatenate([z, z])  # every galaxy twice
    exclude = np.stack([np.arange(800), (np.arange(800) + 400) % 800], axis=1)
    hidden, _ = fit_adaptive(x, z, edges=EDGES, exclude=exclude, shape="local", choice="pit")
    answer = hidden.predict(x, exclude=exclude)
    assert not (answer.neighbours[:, :, None] == exclude[:, None]).any()
    seen, _ = fit_adaptive(x, z, edges=EDGES, shape="local", choice="pit", self_match=True)
    # who sees the other observation takes few neighbours for enough, and answers too narrowly
    target, truth = survey(1000, seed=5)
    errors = [metrics.pit_ks(model.predict(target, recalibrate=False).pdf.pit(truth)) for model in (hidden, seen)]
    assert errors[0] < 0.06 < 0.1 < errors[1]


def test_blocks_are_the_whole(fitted):
    queries = survey(300, seed=6)[0]
    whole, parts = fitted[0].predict(queries), [fitted[0].predict(queries[i : i + 100]) for i in (0, 100, 200)]
    np.testing.assert_array_equal(whole.k, np.concatenate([p.k for p in parts]))
    np.testing.assert_allclose(whole.pdf.density, np.concatenate([p.pdf.density for p in parts]), atol=1e-9)


def test_a_million_queries_are_answered_in_parts_of_one_size(fitted):
    parts = fitted[0].blocks(np.zeros((1_000_000, 3), dtype=np.float32))
    assert [len(next(parts).k) for _ in range(2)] == [4096, 4096]


def test_the_same_seed_gives_the_same_model(fitted):
    again, report = fit_adaptive(*survey(1500), edges=EDGES)
    for field in fields(AdaptiveKnn):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(fitted[0], field.name), err_msg=field.name)
    assert report == fitted[1]


def test_fields_are_arrays_numbers_and_strings(fitted):
    assert all(isinstance(getattr(fitted[0], f.name), np.ndarray | int | float | str) for f in fields(AdaptiveKnn))


def test_a_shifted_target_is_calibrated_by_weighted_labels():
    rng = np.random.default_rng(12)

    def drawn(n, slope):  # ever wider towards high u, where the target lies
        u = np.log1p(rng.random(n) * np.expm1(slope)) / slope
        return np.stack([u, rng.random(n)], axis=1), np.clip(rng.normal(0.8, 0.02 + 0.1 * u), 0.01, 1.9)

    x, z = drawn(1500, -1.5)
    target, truth = drawn(3000, 1.5)
    model, _ = fit_adaptive(x, z, edges=EDGES, importance=np.exp(3 * x[:, 0]), shape="clap", choice="pit", share=0.1)
    for recalibrate in (False, True):
        assert metrics.pit_ks(model.predict(target, recalibrate=recalibrate).pdf.pit(truth)) < 0.04


def test_slopes_are_those_of_the_plain_estimator():
    rng = np.random.default_rng(11)
    offsets, values = rng.normal(size=(20, 30, 4)), rng.normal(size=(20, 30))
    weights = kernel_weights(np.sort(np.linalg.norm(offsets, axis=2), axis=1), np.ones((20, 30)))
    moved = values - (offsets @ local_slopes(values, offsets, weights)[:, :, None])[:, :, 0]
    inside = np.clip(moved, values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True))
    np.testing.assert_allclose(inside, local_samples(values, offsets, weights), atol=1e-5)


def test_one_k_for_all_is_the_plain_estimator_there():
    from redshelf.models.knn import KnnRedshift

    x, z = survey(600, seed=12)
    model, _ = fit_adaptive(x, z, edges=EDGES, shape="local", choice="cde", shift_weights=False)
    plain = KnnRedshift(
        model.bank, model.log1pz, model.weights, EDGES, model.k, model.plane > 0, model.smoothing, model.floor
    )
    if model.plane:
        model = replace(model, plane=model.k)  # the plane through the same labels
    queries = survey(200, seed=13)[0]
    found = model.predict(queries, recalibrate=False)
    np.testing.assert_allclose(found.pdf.median(), plain.predict(queries).pdf.median(), atol=1e-3)


def test_fifty_labels_are_enough_and_duplicates_do_no_harm():
    x, z = survey(50, seed=14)
    model, report = fit_adaptive(x, z, edges=EDGES)
    assert report["sizes"] == [5, 20, 4]
    np.testing.assert_allclose((model.predict(x).pdf.density * model.predict(x).pdf.widths).sum(axis=1), 1)
    same = fit_adaptive(np.zeros((60, 3)), np.repeat([0.5, 0.7], 30), edges=EDGES)[0].predict(np.zeros((2, 3)))
    assert np.isfinite(same.pdf.density).all() and np.isfinite(same.w1).all()


def test_labels_at_one_redshift_answer_with_it_and_are_flagged():
    x, _ = survey(200, seed=15)
    answer = fit_adaptive(x, np.full(200, 0.7), edges=EDGES)[0].predict(survey(5, seed=16)[0])
    np.testing.assert_allclose(answer.pdf.median(), 0.7, atol=0.01)
    assert answer.not_calibrated.all()


def test_weights_all_zero_count_as_none(fitted):
    x, z = survey(1500)
    model, report = fit_adaptive(x, z, edges=EDGES, importance=np.zeros(1500))
    assert report == fitted[1]
    np.testing.assert_array_equal(model.bins, fitted[0].bins)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.nan}, "features hold NaN"),
        ({"z": np.nan}, "redshifts hold NaN"),
        ({"importance": -np.ones(200)}, "importance of shape"),
        ({"importance": np.ones(3)}, "importance of shape"),
        ({"exclude": np.zeros((200, 1), dtype=np.int64)}, "exclude of shape"),
    ],
)
def test_bad_input_is_refused_by_name(change, message):
    x, z = survey(200, seed=17)
    x[0, 0], z[0] = change.pop("x", x[0, 0]), change.pop("z", z[0])
    with pytest.raises(BadInput, match=message):
        fit_adaptive(x, z, edges=EDGES, **change)


def test_queries_that_do_not_fit_are_refused(fitted):
    for queries in (np.full((2, 3), np.nan), np.zeros((2, 4)), np.zeros((0, 3))):
        with pytest.raises(BadInput):
            fitted[0].predict(queries)

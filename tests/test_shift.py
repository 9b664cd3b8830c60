"""Neighbour-ratio weights against brute force and known ratios."""

import json
import tracemalloc
from dataclasses import fields, replace

import numpy as np
import pytest
from sklearn.neighbors import BallTree, NearestNeighbors

from redshelf.models import ratio_space, shift
from redshelf.models.errors import BadInput
from redshelf.models.metrics import effective_sample_size
from redshelf.models.ratio_choice import METHODS, choose_weights, density_ratio_risk
from redshelf.models.shift import ShiftWeights, clipped, cunha_weights, neighbour_weights, powered


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


def shifted(n, m, shift=1.0, dim=2, seed=0):
    """Labels N(0, 1), targets N(shift, 1) in the first column."""
    rng = np.random.default_rng(seed)
    labelled, target = rng.normal(size=(n, dim)), rng.normal(size=(m, dim))
    target[:, 0] += shift
    return labelled, target


def test_rows_of_labels_in_another_order_have_their_weights_in_that_order():
    labelled, target = shifted(300, 900)
    order = np.random.default_rng(1).permutation(300)
    np.testing.assert_array_equal(
        neighbour_weights(labelled[order], target).weights, neighbour_weights(labelled, target).weights[order]
    )


def test_the_ratio_at_targets_is_that_of_a_brute_count_without_themselves():
    labelled, target = shifted(200, 500)
    found = neighbour_weights(labelled, target, k=10)
    near = np.sort(np.linalg.norm(target[:, None] - labelled, axis=2), axis=1)[:, 9]
    inside = (np.linalg.norm(target[:, None] - target, axis=2) <= near[:, None]).sum(axis=1) - 1
    np.testing.assert_allclose(found.reference_weights[200:], inside / 499 / (10 / 201))
    np.testing.assert_allclose(found.reference[200:], target - labelled.mean(axis=0), atol=1e-6)


def test_the_ratio_anywhere_agrees_with_the_true_one():
    rng = np.random.default_rng(8)
    labelled, target = rng.uniform(0, 1, (4000, 1)), np.sqrt(rng.uniform(0, 1, (20000, 1)))
    at = np.linspace(0.1, 0.9, 50)[:, None]
    ratio = neighbour_weights(labelled, target, k=100).at(at) / (2 * at[:, 0])
    assert ratio.mean() == pytest.approx(1, abs=0.04)
    assert ratio.std() < 1.5 / np.sqrt(100)


def test_the_ratio_where_only_targets_are_is_large():
    labelled, target = shifted(1000, 3000, shift=6.0)
    assert neighbour_weights(labelled, target).at([[6.0, 0.0]])[0] > 10


def test_points_of_another_width_and_weights_without_a_reference_are_refused():
    found = neighbour_weights(*shifted(50, 80))
    for points in (np.zeros((3, 5)), np.zeros((0, 5)), np.zeros(3), [[np.nan, 0.0]]):
        with pytest.raises(BadInput):
            found.at(points)
    assert found.at(np.zeros((0, 2))).shape == (0,)
    with pytest.raises(BadInput, match="no reference points"):
        ShiftWeights("neighbour-ratio", np.ones(3), 3.0, 1.0).at(np.zeros((1, 2)))


def test_a_target_on_disk_is_read_in_blocks(tmp_path):
    labelled, target = shifted(200, 3000)
    np.save(tmp_path / "target.npy", target.astype(np.float32))
    mapped = np.load(tmp_path / "target.npy", mmap_mode="r")
    np.testing.assert_array_equal(
        neighbour_weights(labelled, mapped).weights,
        neighbour_weights(labelled, target.astype(np.float32)).weights,
    )


def test_memory_does_not_grow_with_the_targets(tmp_path, monkeypatch):
    monkeypatch.setattr(shift, "REFERENCE", 100)
    labelled, target = shifted(200, 300_000)
    np.save(tmp_path / "target.npy", target)

    def peak(rows):
        mapped = np.load(tmp_path / "target.npy", mmap_mode="r")[:rows]
        tracemalloc.start()
        neighbour_weights(labelled, mapped)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(1000)
    assert peak(300_000) < peak(30_000) + 500_000


def test_lost_targets_are_those_in_no_ball_and_cunha_drops_them():
    labelled, target = shifted(400, 1200, shift=3.0)
    lima, cunha = neighbour_weights(labelled, target, k=10), cunha_weights(labelled, target, k=10)
    distance = np.linalg.norm(labelled[:, None] - labelled, axis=2)
    radius = np.sort(distance, axis=1)[:, 10]
    connected = (np.linalg.norm(target[:, None] - labelled, axis=2) <= radius).any(axis=1)
    assert 0.02 < connected.mean() < 0.98
    assert lima.details["targets_lost"] == pytest.approx(1 - connected.mean())
    np.testing.assert_allclose(cunha.weights, neighbour_weights(labelled, target[connected], k=10).weights)
    np.testing.assert_allclose(cunha.at(target), lima.at(target) / connected.mean())
    assert any("outside every label's neighbourhood" in line for line in cunha.warnings())


def test_cunha_without_any_connected_target_has_no_weight():
    found = cunha_weights(*shifted(100, 100, shift=1000.0))
    assert found.mean_weight == 0 and found.details["targets_lost"] == 1


def test_clipping_cuts_weights_and_ratio_and_lets_the_mean_fall():
    found = neighbour_weights(*shifted(500, 2000))
    cut = clipped(found, value=2.0)
    np.testing.assert_array_equal(cut.weights, np.minimum(found.weights, 2))
    assert cut.reference_weights.max() == 2 and cut.mean_weight < found.mean_weight
    assert cut.effective_sample_size == effective_sample_size(cut.weights) > found.effective_sample_size
    quantile = clipped(found, quantile=0.9)
    assert quantile.weights.max() == pytest.approx(np.quantile(found.weights, 0.9))
    assert quantile.method.startswith("neighbour-ratio, clipped at ")


def test_a_power_keeps_the_mean():
    found = neighbour_weights(*shifted(500, 2000))
    root = powered(found, 0.5)
    assert root.mean_weight == pytest.approx(found.mean_weight)
    np.testing.assert_allclose(root.weights / root.weights[0], np.sqrt(found.weights / found.weights[0]))
    factor = root.weights[0] / np.sqrt(found.weights[0])
    np.testing.assert_allclose(root.reference_weights, factor * np.sqrt(found.reference_weights))
    np.testing.assert_allclose(powered(found, 1).weights, found.weights)
    np.testing.assert_allclose(powered(found, 0).weights, found.mean_weight)
    nothing = neighbour_weights(*shifted(100, 100, shift=1000.0))
    assert powered(nothing, 0.5).mean_weight == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda found: clipped(found),
        lambda found: clipped(found, value=1, quantile=0.5),
        lambda found: clipped(found, value=0),
        lambda found: clipped(found, quantile=1.1),
        lambda found: powered(found, -0.1),
        lambda found: powered(found, 1.5),
    ],
)
def test_stabilisers_out_of_range_are_refused(call):
    with pytest.raises(BadInput, match="expected"):
        call(neighbour_weights(*shifted(50, 80)))


def test_the_risk_is_least_for_the_true_ratio():
    labelled, target = shifted(20_000, 20_000)
    near, far = (np.exp(part[:, 0] - 0.5) for part in (labelled, target))
    risk, error = density_ratio_risk(near, far)
    assert risk == pytest.approx(-np.e / 2, abs=4 * error)  # -1/2 mean over labels of the squared ratio
    for other in (lambda r: r**0.7, lambda r: 1.3 * r, np.ones_like):
        assert density_ratio_risk(other(near), other(far))[0] > risk
    assert density_ratio_risk([1, 1], [1, 1, 1]) == (-0.5, 0)


def test_a_method_nearer_to_the_truth_is_chosen_and_one_further_from_it_is_not():
    labelled, target = shifted(1500, 4000, dim=9)

    def true(x, y, *, seed=0):
        found = neighbour_weights(x, y, seed=seed)
        centre = found.reference + found.centre
        return replace(found, weights=np.exp(x[:, 0] - 0.5), reference_weights=np.exp(centre[:, 0] - 0.5))

    def wild(x, y, *, seed=0):
        found = neighbour_weights(x, y, seed=seed)
        return replace(found, reference_weights=found.reference_weights[::-1])

    names = {"neighbour-ratio": neighbour_weights, "wild": wild}
    chosen, report = choose_weights(names, labelled, target, redshifts=labelled[:, 0] + 5)
    assert report["chosen"] == "neighbour-ratio" and report["candidates"]["wild"]["gain"] < 0
    np.testing.assert_array_equal(chosen.weights, neighbour_weights(labelled, target).weights)
    scores = report["candidates"]["neighbour-ratio"]
    assert scores["weighted_mean_z"] == pytest.approx(np.average(labelled[:, 0] + 5, weights=chosen.weights))
    assert scores["gain"] == 0 and scores["risk"] < -0.5
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    chosen, report = choose_weights({**names, "true": true}, labelled, target)
    assert report["chosen"] == "true" and chosen.weights == pytest.approx(np.exp(labelled[:, 0] - 0.5))


def test_where_labels_reach_few_targets_the_first_method_stays_whatever_the_risk_says():
    def boundless(x, y, *, seed=0):
        found = neighbour_weights(x, y, seed=seed)
        return replace(found, reference_weights=100 * (found.reference[:, 0] > 3))

    candidates = {"neighbour-ratio": neighbour_weights, "boundless": boundless}
    _, report = choose_weights(candidates, *shifted(500, 1000, shift=6.0))
    scores = report["candidates"]["boundless"]
    assert scores["gain"] > scores["gain_error"]
    assert report["chosen"] == "neighbour-ratio" and not report["by_risk"]


def test_a_method_that_gives_the_labels_no_weight_is_not_chosen():
    def empty(x, y, *, seed=0):
        found = neighbour_weights(x, y, seed=seed)
        right = np.exp((found.reference + found.centre)[:, 0] - 0.5)
        return replace(found, mean_weight=0.1 * found.mean_weight, reference_weights=right)

    candidates = {"neighbour-ratio": neighbour_weights, "empty": empty}
    _, report = choose_weights(candidates, *shifted(800, 2000, dim=9))
    scores = report["candidates"]["empty"]
    assert report["by_risk"] and scores["gain"] > scores["gain_error"] and report["chosen"] == "neighbour-ratio"


def test_every_method_can_be_a_candidate_and_one_that_refuses_is_reported():
    def refusing(x, y, *, seed=0):
        raise BadInput("too many: expected fewer")

    _, report = choose_weights({**METHODS, "refusing": refusing}, *shifted(300, 600))
    assert set(report["candidates"]) == {*METHODS, "refusing"}
    assert report["candidates"]["refusing"] == {"refused": "too many: expected fewer"}
    assert report["candidates"]["none"]["risk"] == -0.5
    assert {"auc", "risk_error", "warnings"} <= report["candidates"]["classifier"].keys()
    with pytest.raises(BadInput, match="too many"):
        choose_weights({"refusing": refusing}, *shifted(300, 600))


def test_without_a_shift_no_weights_is_chosen():
    chosen, report = choose_weights(
        {"none": METHODS["none"], "neighbour-ratio": neighbour_weights}, *shifted(1000, 3000, shift=0.0)
    )
    assert report["chosen"] == "none" and chosen.is_null and not chosen.warnings()


@pytest.mark.parametrize(
    ("candidates", "n", "m", "z"),
    [({}, 50, 50, None), (METHODS, 2, 50, None), (METHODS, 50, 2, None), (METHODS, 50, 50, np.ones(49))],
)
def test_a_choice_that_cannot_be_made_is_refused(candidates, n, m, z):
    with pytest.raises(BadInput, match="expected"):
        choose_weights(candidates, *shifted(n, m), redshifts=z)


def test_weights_with_their_reference_survive_the_arrays_of_a_model():
    found = cunha_weights(*shifted(200, 400))
    arrays = {f.name: getattr(found, f.name) for f in fields(found) if isinstance(getattr(found, f.name), np.ndarray)}
    rest = {f.name: getattr(found, f.name) for f in fields(found) if f.name not in arrays}
    again = ShiftWeights(**arrays, **json.loads(json.dumps(rest, allow_nan=False)))
    np.testing.assert_array_equal(again.at(np.ones((4, 2))), found.at(np.ones((4, 2))))
    assert again.details == found.details


@pytest.mark.parametrize("name", METHODS)
def test_weights_say_which_method_they_are_by(name):
    found = METHODS[name](*shifted(300, 600))
    assert found.method == name and found.reference.dtype == np.float32
    assert len(found.reference) == len(found.reference_weights)


@pytest.mark.parametrize("name", ["none", "neighbour-ratio", "cunha"])
def test_what_is_drawn_is_drawn_by_the_seed(name, monkeypatch):
    monkeypatch.setattr(shift, "REFERENCE", 40)
    monkeypatch.setattr(ratio_space, "PCA_ROWS", 50)
    sets = shifted(200, 400, dim=20)
    first, again, usual, other = (METHODS[name](*sets, **seed) for seed in ({"seed": 0}, {"seed": 0}, {}, {"seed": 1}))
    for same in (again, usual):
        np.testing.assert_array_equal(same.reference, first.reference)
        np.testing.assert_array_equal(same.components, first.components)
    assert not np.array_equal(other.components, first.components)
    if name != "none":
        drawn = [np.sort(found.reference_weights) for found in (first, other)]
        assert len(drawn[0]) == 80 and not np.array_equal(*drawn)


def test_k_is_as_asked_at_least_1_and_at_most_the_other_labels():
    labelled, target = shifted(12, 40)
    assert cunha_weights(*shifted(50, 80)).details["k"] == neighbour_weights(*shifted(50, 80)).details["k"] == 30
    np.testing.assert_allclose(neighbour_weights(labelled, target, k=1).weights, oracle(labelled, target, 1))
    few = neighbour_weights(labelled, target)
    assert few.details["k"] == 11
    np.testing.assert_allclose(few.weights, oracle(labelled, target, 11))
    with pytest.raises(BadInput, match="k=0: expected at least 1"):
        neighbour_weights(labelled, target, k=0)


@pytest.mark.parametrize("m", [1, 2])
def test_of_so_few_targets_each_has_the_ratio_that_the_others_give(m):
    labelled, target = shifted(20, m)
    found = neighbour_weights(labelled, target, k=19)
    near = np.sort(np.linalg.norm(target[:, None] - labelled, axis=2), axis=1)[:, 18]
    inside = (np.linalg.norm(target[:, None] - target, axis=2) <= near[:, None]).sum(axis=1) - 1
    np.testing.assert_allclose(found.reference_weights[20:], inside / max(m - 1, 1) / (19 / 21))


LOST = "mean weight 0.79 instead of 1: targets lie outside every label's neighbourhood"


@pytest.mark.parametrize(
    ("size", "mean", "details", "labels", "told"),
    [
        (1000.0, 1.0, {}, 10_000, []),
        (999.0, 1.0, {}, 10_000, ["effective sample size 999 of 10000 labels: noisy"]),
        (50.0, 1.0, {}, 100, []),
        (49.0, 1.0, {}, 100, ["effective sample size 49 of 100 labels: noisy"]),
        (5000.0, 0.8, {}, 10_000, []),
        (5000.0, 0.79, {}, 10_000, [LOST]),
        (5000.0, 0.79, {"alpha": 0.1}, 10_000, []),
        (5000.0, 0.79, {"targets_lost": 0.2}, 10_000, [LOST]),
        (5000.0, 1.0, {"targets_lost": 0.1}, 10_000, []),
        (5000.0, 1.0, {"targets_lost": 0.2}, 10_000, ["20% of the targets lie outside every label's neighbourhood"]),
        (5000.0, 1.0, {"auc": 0.95}, 10_000, []),
        (5000.0, 1.0, {"auc": 0.951}, 10_000,
         ["labels and targets are nearly separable (AUC 0.951): few labels carry the weight"]),
    ],
)  # fmt: skip
def test_what_a_reader_must_know_is_said(size, mean, details, labels, told):
    assert ShiftWeights("a", np.ones(labels), size, mean, details=details).warnings() == told


def test_the_limits_of_clipping_are_themselves_allowed_or_not():
    found = neighbour_weights(*shifted(500, 2000))
    np.testing.assert_array_equal(clipped(found, quantile=1).weights, found.weights)
    assert clipped(found, value=0.5).weights.max() == 0.5
    with pytest.raises(BadInput, match="quantile=0: expected above 0, at most 1"):
        clipped(found, quantile=0)
    mostly = replace(found, weights=np.where(np.arange(500) < 400, 0.0, found.weights))
    with pytest.raises(BadInput, match=r"quantile=0\.5 of the weights is 0: clipped there, none would be left"):
        clipped(mostly, quantile=0.5)
    one = replace(found, weights=np.ones(500))  # at which nothing is cut, and nothing wrong
    np.testing.assert_array_equal(clipped(one, quantile=0.5).weights, one.weights)
    assert powered(found, 0.5).method == "neighbour-ratio^0.5"

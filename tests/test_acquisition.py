"""Which sources to take spectra of: the error learnt from labels, and the greedy choice against brute force."""

import numpy as np
import pytest

from redshelf.models import acquisition
from redshelf.models.acquisition import COVER, ErrorModel, _Cover, _greedy, choose, expected_error, learn_error
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges

LINEAR = ErrorModel(np.array([0.0, 100.0]), np.array([0.0, 100.0]))


def labelled(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels spread evenly in two dimensions, redshift along the first, and nobody's companion but their own."""
    points = np.random.default_rng(seed).uniform(0, 4, (n, 2)).astype(np.float32)
    return points, 0.2 + 0.3 * points[:, 0], np.arange(n)[:, None]


def test_the_error_grows_with_the_distance_to_the_labels_and_never_beyond_an_outlier() -> None:
    model = learn_error(*labelled())
    assert (np.diff(model.distance) > 0).all() and (np.diff(model.error) >= 0).all()
    assert model.error[-1] > 2 * model.error[0]
    assert model.error[0] > 0 and model.error[-1] <= acquisition.OUTLIER
    assert model.at(0) == model.error[0] and model.at(1e9) == model.error[-1]


def test_the_error_of_labels_of_one_redshift_is_zero_at_every_distance() -> None:
    points, _, hidden = labelled()
    np.testing.assert_allclose(learn_error(points, np.full(len(points), 0.7), hidden).error, 0, atol=1e-12)


def test_companions_never_answer_for_one_another() -> None:
    points, z, _ = labelled(100)
    rng = np.random.default_rng(1)
    z = rng.uniform(0.1, 3, 100)  # nothing to learn but from a copy of oneself
    twins, both = np.concatenate([points, points]), np.concatenate([z, z])
    hidden = np.stack([np.arange(200), (np.arange(200) + 100) % 200], axis=1)
    assert learn_error(twins, both, hidden).error[0] > 0.1


def test_the_expected_error_of_a_density_is_that_of_its_own_quantiles() -> None:
    edges = default_edges(3.0)
    inside = (edges[:-1] >= 1.0) & (edges[1:] <= 1.1)
    narrow = np.where(inside, 1.0, 0.0)
    wide = np.ones(len(edges) - 1)
    pdf = Pdf.from_mass(edges, np.stack([narrow, wide]) * np.diff(edges))
    found = expected_error(pdf)
    low, high = edges[:-1][inside][0], edges[1:][inside][-1]
    assert found[0] == pytest.approx((high - low) / 4 / (1 + (low + high) / 2), rel=0.05)
    assert found[0] < found[1] <= acquisition.OUTLIER


def test_the_greedy_choice_is_that_of_brute_force() -> None:
    rng = np.random.default_rng(2)
    labels, wanted, points = (rng.normal(size=(n, 3)).astype(np.float32) for n in (10, 80, 30))
    error = rng.uniform(0.01, 0.1, 80)
    distance = np.sort(np.linalg.norm(wanted[:, None] - labels[None], axis=2), axis=1)[:, :COVER]
    to_points = np.linalg.norm(wanted[:, None] - points[None], axis=2)

    def mean(chosen: list[int]) -> float:
        nearest = np.sort(np.concatenate([distance, to_points[:, chosen]], axis=1), axis=1)[:, :COVER]
        return float((error * nearest.mean(axis=1) / distance.mean(axis=1)).mean())

    expected: list[int] = []
    steps = [mean([])]
    for _ in range(8):
        left = [n for n in range(30) if n not in expected]
        expected.append(min(left, key=lambda n: mean([*expected, n])))
        steps.append(mean(expected))
    chosen, gain = _greedy(_Cover(LINEAR.at(distance), error), LINEAR, wanted, points, 8)
    assert chosen.tolist() == expected
    np.testing.assert_allclose(gain, -np.diff(steps), rtol=1e-5)


def test_the_gains_add_up_to_what_all_labels_together_lower_the_error_by() -> None:
    points, z, hidden = labelled()
    rng = np.random.default_rng(3)
    targets = rng.uniform(0, 8, (200, 2))
    found = choose(points, z, hidden, targets, np.full(200, 0.05), targets, 20)
    assert found.error - found.after == pytest.approx(found.gain.sum(), rel=1e-6)
    assert found.after < found.at_random < found.error
    assert len(set(found.candidates.tolist())) == 20


def test_sources_without_labels_near_them_come_first_and_do_not_repeat_one_another() -> None:
    points, z, hidden = labelled()
    rng = np.random.default_rng(4)
    covered = rng.uniform(0, 4, (200, 2))
    clumps = [rng.normal(centre, 0.05, (50, 2)) for centre in ((12.0, 0.0), (0.0, 12.0))]
    targets = np.concatenate([covered, *clumps])
    found = choose(points, z, hidden, targets, np.full(300, 0.05), targets, 6)
    assert (found.candidates >= 200).all()
    assert np.bincount((found.candidates - 200) // 50).tolist() == [3, 3]  # until each has as many labels as tell


def test_where_more_targets_are_a_label_is_worth_more() -> None:
    points, z, hidden = labelled()
    rng = np.random.default_rng(5)
    targets = np.concatenate([rng.normal((12, 0), 0.05, (10, 2)), rng.normal((0, 12), 0.05, (90, 2))])
    found = choose(points, z, hidden, targets, np.full(100, 0.05), targets, 2)
    assert found.candidates[0] >= 10


def test_where_the_fit_is_surer_a_label_is_worth_less() -> None:
    points, z, hidden = labelled()
    rng = np.random.default_rng(6)
    targets = np.concatenate([rng.normal((12, 0), 0.05, (50, 2)), rng.normal((0, 12), 0.05, (50, 2))])
    found = choose(points, z, hidden, targets, np.repeat([0.001, 0.1], 50), targets, 1)
    assert found.candidates[0] >= 50


def test_fewer_candidates_than_wanted_are_all_chosen() -> None:
    points, z, hidden = labelled()
    found = choose(points, z, hidden, points + 5, np.full(len(points), 0.05), points[:3] + 5, 500)
    assert sorted(found.candidates.tolist()) == [0, 1, 2]
    assert found.after == pytest.approx(found.at_random)


@pytest.mark.parametrize(("n", "targets", "candidates"), [(0, 5, 5), (1, 0, 5), (1, 5, 0)])
def test_nothing_to_choose_is_refused(n: int, targets: int, candidates: int) -> None:
    points, z, hidden = labelled()
    with pytest.raises(BadInput, match=f"n={n}, {targets} targets, {candidates} candidates"):
        choose(points, z, hidden, points[:targets], np.full(targets, 0.1), points[:candidates], n)


def test_too_few_labels_are_refused() -> None:
    points, z, hidden = labelled(20)
    with pytest.raises(BadInput, match="20 labelled sources: expected at least 21"):
        learn_error(points, z, hidden)

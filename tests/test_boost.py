"""LightGBM densities: colours, folds, residuals, determinism."""

from dataclasses import replace

import numpy as np
import pytest
import training_length

from redshelf.models import metrics
from redshelf.models.boost import fit_boost, fold_of, pair_colours, residual_cdfs
from redshelf.models.errors import BadInput
from redshelf.models.pdf import default_edges


def sample(n, seed):
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, size=(n, 3))
    return x, np.expm1(0.5 + 0.3 * x[:, 0] + 0.1 * x[:, 1] + 0.02 * (1.5 + x[:, 0]) * rng.normal(size=n))


def fit(x, z, **options):
    arguments = {"edges": default_edges(3), "importance": np.ones(len(x)), "exclude": np.arange(len(x))[:, None]}
    with training_length.full():
        return fit_boost(x, z, **(arguments | {"shift_weights": False} | options))


@pytest.fixture(scope="module")
def fitted():
    x, z = sample(1200, 0)
    return x, z, *fit(x, z)


def test_every_colour_between_bands_of_a_chain_is_added():
    magnitude = np.random.default_rng(1).normal(size=(5, 4))
    colours = magnitude[:, :-1] - magnitude[:, 1:]
    out, names = pair_colours(np.column_stack([colours, magnitude[:, 2]]), ("u-g", "g-r", "r-i", "r"))
    assert names == ("u-g", "g-r", "r-i", "r", "u-r", "u-i", "g-i")
    np.testing.assert_allclose(out[:, 5], magnitude[:, 0] - magnitude[:, 3])


def test_features_without_colours_are_left_as_they_are():
    x = np.ones((2, 2))
    assert pair_colours(x, ("i", "observed_g"))[1] == ("i", "observed_g")
    assert pair_colours(np.ones((2, 2)), ("u-g", "z-y"))[1] == ("u-g", "z-y")


def test_companions_share_a_fold():
    exclude = np.full((100, 2), -1)
    exclude[:, 0] = np.arange(100)
    exclude[:50, 1] = np.arange(50, 100)
    fold = fold_of(exclude, 5, 0)
    np.testing.assert_array_equal(fold[:50], fold[50:])
    assert set(fold) == {0, 1, 2, 3, 4}


def test_densities_of_unseen_sources_are_calibrated(fitted):
    _, _, model, report = fitted
    x, z = sample(3000, 2)
    pdf = model.predict(x)
    np.testing.assert_allclose((pdf.density * pdf.widths).sum(axis=1), 1)
    assert metrics.pit_ks(pdf.pit(z)) < 0.06
    assert metrics.coverage(pdf, z, 0.68) == pytest.approx(0.68, abs=0.05)
    assert report["shift_weights"] == 0


def test_a_labelled_query_gets_the_prediction_that_has_not_seen_it(fitted):
    x, z, model, _ = fitted
    label = np.arange(len(x))
    np.testing.assert_array_equal(model.log1pz(x, exclude=label), model.out_of_fold)
    seen, unseen = (np.abs(model.log1pz(x, exclude=e) - np.log1p(z)).mean() for e in (None, label))
    assert seen < unseen
    np.testing.assert_array_equal(model.log1pz(x, exclude=np.full(len(x), -1)), model.log1pz(x))


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(fitted):
    x, z, model, _ = fitted
    again, _ = fit(x, z, threads=1)
    assert again.texts == model.texts
    np.testing.assert_array_equal(again.out_of_fold, model.out_of_fold)


def test_a_model_rebuilt_from_its_text_answers_the_same(fitted):
    x, _, model, _ = fitted
    np.testing.assert_array_equal(replace(model).log1pz(x), model.log1pz(x))


def test_predictions_far_outside_stay_within_the_labels(fitted):
    _, z, model, _ = fitted
    out = model.log1pz(np.full((1, 3), 1e6))
    assert np.log1p(z.min()) <= out[0] <= np.log1p(z.max())


def test_the_kind_of_leaf_is_the_one_with_the_lower_loss(fitted):
    report = fitted[3]
    assert report["linear_leaves"] == (report["loss"]["linear leaves"] < report["loss"]["constant leaves"])


def test_residuals_follow_the_predicted_value():
    rng = np.random.default_rng(3)
    predicted = rng.uniform(0.1, 0.9, 8000)
    sigma = np.where(predicted < 0.5, 0.02, 0.1)
    node, cdf = residual_cdfs(predicted, predicted + sigma * rng.normal(size=8000), np.ones(8000), default_edges(3))
    grid = 0.004 * np.arange(-(cdf.shape[1] // 2), cdf.shape[1] // 2 + 1)
    for value, width in ((0.3, 0.02), (0.7, 0.1)):
        row = cdf[np.abs(node - value).argmin()]
        assert np.interp(0.84, row, grid) == pytest.approx(width, rel=0.2)


def test_weights_choose_whose_residuals_count():
    predicted, truth = np.full(1000, 0.5), np.tile([0.4, 0.6], 500)
    _, cdf = residual_cdfs(predicted, truth, np.tile([0.0, 1.0], 500), default_edges(3))
    centre = cdf.shape[1] // 2
    assert cdf[0, centre] < 0.01


def test_nan_is_refused(fitted):
    with pytest.raises(BadInput, match="NaN"):
        fitted[2].predict(np.full((1, 3), np.nan))

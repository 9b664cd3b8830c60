"""The joined model: what is refused, what is kept apart, and that it comes back from disk whole."""

import io
import json

import numpy as np
import pytest

from redshelf.models import metrics
from redshelf.models.errors import BadInput, NotFound
from redshelf.models.fitting import checked_redshifts, fit_redshift
from redshelf.models.frame import fit_frame, is_magnitude
from redshelf.models.pdf import Pdf
from redshelf.models.redshift import ESTIMATORS, RedshiftModel

FULL_TRAINING = True  # of the networks: see conftest

NAMES = ("u-g", "g-r", "r-i", "i", "observed_g")
EMBEDDING = tuple(f"e{n}" for n in range(80))


def survey(n, seed, faint=0.0):
    """Photometry (N, 5) and redshifts: colours follow z and a type, magnitude follows z."""
    rng = np.random.default_rng(seed)
    magnitude = rng.normal(21 + faint, 0.7, n)
    z = np.clip(0.15 * (magnitude - 18) + 0.1 * rng.normal(size=n), 0.01, 3)
    kind = rng.normal(size=n)
    colours = np.column_stack([z + 0.3 * kind, 1.5 * z - 0.2 * kind, 0.5 * z**2 + 0.1 * kind])
    x = np.column_stack([colours + 0.03 * rng.normal(size=(n, 3)), magnitude, np.ones(n)])
    return x, z


@pytest.fixture(scope="module")
def fitted():
    x, z = survey(400, 0)
    target, truth = survey(1500, 1, faint=0.5)
    return x, z, target, truth, fit_redshift(x, z, target, names=NAMES)


def test_every_estimator_finds_the_redshift_and_its_uncertainty(fitted):
    _, _, target, truth, model = fitted
    for estimator in ESTIMATORS:
        answer = model.predict(target, estimator=estimator)
        inside = answer.support.in_support
        scores = metrics.summary(answer.point[inside], truth[inside])
        assert scores is not None and abs(scores["bias"]) < 0.02 and scores["sigma_mad"] < 0.04
        np.testing.assert_allclose((answer.pdf.density * answer.pdf.widths).sum(axis=1), 1)


def test_the_report_states_the_shift_and_the_choice(fitted):
    report = fitted[4].report
    json.dumps(report, allow_nan=False)
    assert report["shift"]["weighted_mean_z"] > report["mean_z_labels"]
    assert report["default_estimator"] in ESTIMATORS
    for scores in report["validation"].values():
        assert scores["weighted"]["ess"] < scores["unweighted"]["n"] == 400


def test_a_labelled_source_and_its_companions_never_answer_for_it():
    x, z = survey(200, 2)
    ra, dec = np.arange(200) * 0.01, np.zeros(200)
    ra[101] = ra[100] + 1.0 / 3600
    model = fit_redshift(x, z, x, names=NAMES, sky=(ra, dec))
    answer = model.predict(x[[100, 100]], exclude=np.array([100, -1]), estimator="knn")
    assert not {100, 101} & set(answer.neighbours[0].tolist())
    assert 100 in answer.neighbours[1]
    assert answer.support.distance_ratio[0] > answer.support.distance_ratio[1]


def test_a_null_shift_uses_no_weights():
    x, z = survey(300, 3)
    model = fit_redshift(x, z, survey(3000, 4)[0], names=NAMES)
    assert model.shift.is_null
    assert not model.report["knn"]["shift_weights"]
    assert model.report["lightgbm"]["shift_weights"] == model.report["network"]["shift_weights"] == 0
    np.testing.assert_array_equal(model.knn.weights, 1)


def test_arrays_bring_the_model_back_without_pickle(fitted):
    _, _, target, _, model = fitted
    arrays, config = model.to_arrays()
    file = io.BytesIO()
    np.savez(file, **arrays)
    file.seek(0)
    with np.load(file, allow_pickle=False) as loaded:
        again = RedshiftModel.from_arrays(dict(loaded), json.loads(json.dumps(config)))
    for estimator in ESTIMATORS:
        one, two = model.predict(target[:50], estimator=estimator), again.predict(target[:50], estimator=estimator)
        np.testing.assert_array_equal(one.pdf.density, two.pdf.density)
        np.testing.assert_array_equal(one.support.flags, two.support.flags)
    assert again.report == model.report
    del arrays["knn.bank"]
    with pytest.raises(BadInput, match="bank"):
        RedshiftModel.from_arrays(arrays, config)


def test_the_mixture_of_the_blend_is_told_and_is_what_it_answers(fitted):
    _, _, target, _, model = fitted
    shares = model.report["blend"]
    assert sum(shares.values()) == pytest.approx(1) and set(shares) == {"knn", "lightgbm", "network"}
    members = model.members(target[:20], np.full(20, -1), frozenset({"lightgbm"}), 1)[0]
    mixed = sum(shares[name] * members[name].density for name in members)
    expected = model.calibrations["blend"].recalibrated(Pdf(model.knn.edges, mixed))
    np.testing.assert_allclose(model.predict(target[:20], estimator="blend").pdf.density, expected.density, atol=1e-9)


def test_conformal_intervals_hold_the_quantiles_they_promise(fitted):
    _, _, target, truth, model = fitted
    answer = model.predict(target, estimator="knn")
    inside = answer.support.in_support
    for level in (0.68, 0.95):
        low, high = model.interval(answer, level)
        assert ((low <= truth) & (truth <= high))[inside].mean() > level - 0.08


def test_many_sources_are_answered_as_few_are(fitted):
    _, _, target, _, model = fitted
    many = np.tile(target, (6, 1))  # more than one block
    answer = model.predict(many, estimator="lightgbm")
    np.testing.assert_allclose(answer.point[:1500], answer.point[-1500:], atol=1e-6)
    assert len(answer.pdf) == len(answer.support.flags) == len(answer.neighbours) == 9000


def test_an_embedding_is_projected_and_scaled_against_photometry():
    x, z = survey(300, 5)
    rng = np.random.default_rng(5)
    embedding = np.column_stack([z, rng.normal(size=300)]) @ rng.normal(size=(2, 80)) + rng.normal(size=(300, 80))
    both = np.concatenate([x, embedding], axis=1)
    frame = fit_frame(both, both, NAMES + EMBEDDING)
    photometry, projected = frame.parts(both)
    assert photometry.shape[1] == 5 and photometry.shape[1] + projected.shape[1] == 64
    assert projected.var(axis=0).sum() == pytest.approx(5, rel=0.15)
    np.testing.assert_allclose(photometry[:, :4].std(axis=0), 1)
    assert (photometry[:, 4] == 0).all()
    assert set(frame.spaces(both)) == {"colours", "colours+magnitude", "embedding", "embedding+colours+magnitude"}


def test_an_embedding_alone_weighs_by_the_observables_given():
    x, z = survey(150, 6)
    target = survey(600, 7, faint=0.6)[0]
    rng = np.random.default_rng(8)
    mix = rng.normal(size=(5, 12))
    names = EMBEDDING[:12]
    seen = {"observables": (x[:, :4], target[:, :4]), "magnitudes": (x[:, 3], target[:, 3])}
    model = fit_redshift(x @ mix, z, target @ mix, names=names, **seen)
    assert model.support_space == "embedding"
    assert not model.shift.is_null
    assert model.predict(target @ mix).support.in_support.shape == (600,)


def test_a_target_out_of_reach_is_answered_without_confidence():
    x, z = survey(150, 9)
    far = x + 40
    model = fit_redshift(x, z, far, names=NAMES)
    assert not model.shift.weights.any() and len(model.report["shift"]["warnings"]) == 2
    for estimator in ESTIMATORS:
        answer = model.predict(far, estimator=estimator)
        assert not answer.support.in_support.any()
        assert np.isfinite(answer.pdf.density).all()


def test_constant_features_and_constant_embeddings_are_harmless():
    x, z = survey(100, 10)
    both = np.concatenate([x, np.ones((100, 8))], axis=1)
    model = fit_redshift(both, z, both, names=NAMES + EMBEDDING[:8])
    assert np.isfinite(model.predict(both).point).all()


def test_a_reference_magnitude_is_told_from_other_columns():
    assert [name for name in (*NAMES, "e12") if is_magnitude(name)] == ["i"]


def test_small_negative_redshifts_become_zero_and_are_counted():
    z, clipped = checked_redshifts(np.r_[-0.002, np.linspace(0, 1, 60)], 61)
    assert z[0] == 0 and clipped == 1


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.linspace(0, 1, 49), "49 labelled"),
        (np.r_[np.linspace(0, 1, 60), 20.5], "20.5"),
        (np.r_[np.linspace(0, 1, 60), -0.5], "-0.5"),
        (np.r_[np.linspace(0, 1, 60), np.nan], "nan"),
        (np.full(60, 0.7), "all 60"),
    ],
)
def test_labels_that_cannot_be_fitted_on_are_refused(z, message):
    with pytest.raises(BadInput, match=message):
        checked_redshifts(z, len(z))


def test_unusable_input_is_refused_by_name(fitted):
    x, z, target, _, model = fitted
    broken = x.copy()
    broken[3, 1] = np.nan
    with pytest.raises(BadInput, match="'g-r'"):
        fit_redshift(broken, z, target, names=NAMES)
    with pytest.raises(BadInput, match="target_features is empty"):
        fit_redshift(x, z, target[:0], names=NAMES)
    with pytest.raises(BadInput, match="expected at least the largest"):
        fit_redshift(x, z, target, names=NAMES, z_max=0.5)
    with pytest.raises(BadInput, match="each once"):
        fit_redshift(x, z, target, names=("i",) * 5)
    with pytest.raises(BadInput, match="one column a name"):
        model.predict(target[:, :3])
    with pytest.raises(BadInput, match="exclude"):
        model.predict(target[:2], exclude=np.array([0, 400]))
    with pytest.raises(BadInput, match="no sources"):
        model.predict(target[:0])
    with pytest.raises(NotFound, match="lightgbm"):
        model.predict(target, estimator="lightgbn")

"""Labels that depend on redshift at fixed observables: the success tables read the right way round, scenario s2."""

from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table

from redshelf.indexing import success, survey
from redshelf.indexing.spectroscopy import Labels, confuse, which_survey
from redshelf.models.bands import flux_to_ab

pytest.importorskip("galsim", reason="the `sim` extra is not installed")


@pytest.fixture(scope="module")
def skies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, np.ndarray]]:
    """Galaxies of s1 and s2 on the same sky of 60,000 sources: i, r, g - z, true redshift, chance of a label, label."""
    from redshelf.indexing.simulate import simulate

    out = {}
    for scenario in ("s1", "s2"):
        folder = tmp_path_factory.mktemp(scenario) / "sky"
        simulate(folder, sources=60_000, scenario=scenario, seed=2, catalogue_only=True)
        catalogue, truth = (Table.read(folder / name, mask_invalid=False) for name in ("catalogue.fits", "truth.fits"))
        galaxies = truth["CLASS"] == "galaxy"
        g, r, i, z = (np.asarray(flux_to_ab(catalogue[f"FLUX_{name}"]))[galaxies] for name in "griz")
        out[scenario] = {
            "i": i, "r": r, "g-z": g - z, "z": np.asarray(truth["Z_TRUE"])[galaxies],
            "chance": np.asarray(truth["P_LABEL"])[galaxies],
            "labelled": np.isfinite(np.asarray(catalogue["Z_SPEC"]))[galaxies],
        }  # fmt: skip
        out[scenario]["folder"] = np.array(str(folder))
    return out


def test_zcosmos_is_read_with_magnitude_on_the_first_axis() -> None:
    i, z = np.array([18.0, 18.0, 21.7, 22.39]), np.array([0.2, 0.8, 0.8, 0.2])
    np.testing.assert_allclose(success.zcosmos(i, z), [0.992, 0.0, 0.918, 0.65], atol=0.01)


def test_zcosmos_ends_at_its_magnitude_and_at_the_end_of_its_window() -> None:
    np.testing.assert_array_equal(success.zcosmos(np.array([22.5, 23.0, np.nan]), np.array([0.5, 0.5, 0.5])), 0)
    faint = np.full(3, 22.4)
    at = success.zcosmos(faint, np.array([1.09, 1.15, 1.21]))
    assert at[0] > 0.6 and at[1] == pytest.approx(at[0] / 2, abs=0.05) and at[2] == 0


def test_vvds_depends_on_redshift_as_published() -> None:
    z = np.array([0.0, 0.55, 1.749, 2.151, 2.552, 2.952])
    expected = [0.888, 0.962, 0.836, 0.686, 0.657, 0.905]
    np.testing.assert_allclose(success.vvds_redshift(np.full(6, 23.5), z), expected, atol=1e-9)
    np.testing.assert_allclose(success.vvds_redshift(np.array([22.0]), np.array([1.541])), 0.568)


def test_the_deep_survey_is_the_product_of_its_tables_and_leaves_a_desert() -> None:
    one = success.vvds_deep2(np.array([23.7]), np.array([24.0]), np.array([0.55]))
    assert one[0] == pytest.approx(0.685 * 0.533 * 0.962)
    bright = success.vvds_deep2(np.array([20.2]), np.array([19.05]), np.array([0.239]))
    assert bright[0] == pytest.approx(0.960 * 0.931 * 0.958)
    i, r = np.full(3, 23.2), np.full(3, 23.6)
    low, desert, high = success.vvds_deep2(i, r, np.array([1.35, 1.65, 2.65]))
    assert desert < 0.15 * low and desert < 0.15 * high
    nothing = success.vvds_deep2(np.array([24.0, np.nan, 23.0]), np.array([24.0, 24.0, np.nan]), np.full(3, 0.5))
    np.testing.assert_array_equal(nothing, 0)


def test_the_survey_of_high_redshifts_takes_nothing_else() -> None:
    i, z = np.array([24.5, 24.5, 25.1]), np.array([1.9, 2.1, 2.1])
    np.testing.assert_array_equal(success.vuds(i, z), [0, success.VUDS_SUCCESS, 0])


def test_each_label_names_a_survey_that_could_have_taken_it() -> None:
    rates = np.array([[0.3, 0.1, 0.0]] * 20_000 + [[0.0, 0.0, 0.2], [0.0, 0.0, 0.0]])
    named = which_survey(rates, 4)
    assert np.mean(named[:-2] == success.SURVEYS[0]) == pytest.approx(0.75, abs=0.01)
    assert np.mean(named[:-2] == success.SURVEYS[1]) == pytest.approx(0.25, abs=0.01)
    assert list(named[-2:]) == [success.SURVEYS[2], ""]


def test_spectroscopic_labels_are_a_fifth_and_much_nearer(skies: dict[str, dict[str, np.ndarray]]) -> None:
    sky = skies["s2"]
    labelled = sky["labelled"]
    assert sky["chance"].mean() == pytest.approx(5139 / 60_000, abs=0.01)
    assert sky["z"][labelled].mean() == pytest.approx(0.60, abs=0.03)
    assert sky["z"][~labelled].mean() == pytest.approx(1.08, abs=0.03)


def test_in_a_cell_of_observables_the_chance_depends_on_redshift_in_s2_alone(
    skies: dict[str, dict[str, np.ndarray]],
) -> None:
    ratio = {}
    for scenario, sky in skies.items():
        cell = (np.abs(sky["i"] - 23.7) < 0.25) & (np.abs(sky["g-z"] - 0.9) < 0.15)
        near, far = sky["chance"][cell & (sky["z"] < 1.3)], sky["chance"][cell & (sky["z"] > 1.45) & (sky["z"] < 2.5)]
        assert len(near) > 100 and len(far) > 100
        ratio[scenario] = near.mean() / far.mean()
    assert ratio["s1"] == pytest.approx(1, abs=0.1)
    assert ratio["s2"] > 4


def test_labels_leave_a_desert_between_the_redshifts_of_two_spectrographs(
    skies: dict[str, dict[str, np.ndarray]],
) -> None:
    sky = skies["s2"]
    share = [sky["labelled"][(sky["z"] > low) & (sky["z"] < high)].mean() for low, high in ((0.5, 1), (1.5, 2), (2, 3))]
    assert share[1] < 0.1 * share[0] and share[1] < 0.2 * share[2]
    faint = (sky["i"] > 24.1) & (sky["i"] < 24.9)
    assert sky["labelled"][faint].any() and sky["z"][faint & sky["labelled"]].min() > success.VUDS_Z


def test_a_shelf_tells_which_survey_took_each_label(skies: dict[str, dict[str, np.ndarray]], tmp_path: Path) -> None:
    from redshelf.indexing import store
    from redshelf.service.ingest import ingest
    from redshelf.service.shelf import Layout

    folder = Path(str(skies["s2"]["folder"]))
    assert [section.survey for section in survey.load(folder / "survey.toml").labels] == list(success.SURVEYS)
    layout = Layout(tmp_path / "shelf")
    ingest(folder / "survey.toml", layout.root)
    ids = store.open_table(layout.sources).to_table(columns=["row", "source_id"]).to_pandas().set_index("row")
    labels = store.open_table(layout.table("labels")).to_table(columns=["row", "z_survey"]).to_pandas()
    catalogue = Table.read(folder / "catalogue.fits", mask_invalid=False)
    taken = dict(
        zip(np.asarray(catalogue["ID"]).astype(str), np.asarray(catalogue["Z_SURVEY"]).astype(str), strict=True)
    )
    expected = {name: value for name, value in taken.items() if value}
    assert dict(zip(ids["source_id"][labels["row"]], labels["z_survey"], strict=True)) == expected
    assert set(expected.values()) == set(success.SURVEYS)


def test_a_hundredth_of_the_labels_is_confused_and_the_rest_stays() -> None:
    rng = np.random.default_rng(3)
    z_true = rng.uniform(0, 4, 10_000)
    z_spec = np.where(rng.random(10_000) < 0.5, z_true + 1e-4, np.nan)
    labels = Labels(np.isfinite(z_spec), z_spec, np.where(np.isfinite(z_spec), 4, 0).astype(np.int16))
    confused, wrong = confuse(labels, z_true=z_true, seed=1)
    assert wrong.sum() == round(0.01 * np.isfinite(z_spec).sum())
    np.testing.assert_array_equal(confused.z_spec[~wrong], z_spec[~wrong])
    np.testing.assert_array_equal(confused.quality, labels.quality)
    ratio = (1 + confused.z_spec[wrong]) / (1 + z_true[wrong])
    assert np.abs(np.log(ratio)).min() > 0.019
    lines = np.array([1216.0, 3727.0, 5007.0, 6563.0])
    by_lines = np.abs(ratio[:, None] / (lines[:, None] / lines).ravel() - 1).min(axis=1) < 1e-9
    seen = ((lines * (1 + z_true[wrong, None]) > 3800) & (lines * (1 + z_true[wrong, None]) < 9500)).any(axis=1)
    assert by_lines[seen].mean() > 0.9  # a line whose every confusion lies below z = 0 or beyond 6 has none
    assert confused.z_spec[wrong].min() > 0 and confused.z_spec[wrong].max() < 6


def test_a_single_label_without_a_line_stays_right() -> None:
    labels = Labels(np.array([True]), np.array([1.8]), np.array([4], dtype=np.int16))
    confused, wrong = confuse(labels, z_true=np.array([1.8]), seed=1)
    assert not wrong.any() and confused.z_spec[0] == 1.8

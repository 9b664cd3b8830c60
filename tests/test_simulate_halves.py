"""Switches of the simulated survey: half of the field shallower, with u* for u, without near-infrared; wrong labels."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS

pytest.importorskip("galsim", reason="the `sim` extra is not installed")

from redshelf.indexing import files, survey, telescope
from redshelf.indexing.simulate import simulate
from redshelf.indexing.telescope import Field
from redshelf.models.errors import BadInput

SWITCHES = {"two_depths": True, "u_star": True, "missing_nir": True}
BANDS = ("g", "u", "i", "J")


@pytest.fixture(scope="module")
def imaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves") / "imaged"
    simulate(folder, sources=300, bands=BANDS, scenario="s0", seed=5, processes=1, **SWITCHES)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("halves") / "listed"
    simulate(folder, sources=8000, bands=BANDS, scenario="s0", catalogue_only=True, **SWITCHES)  # type: ignore[arg-type]
    return folder


def read(folder: Path, name: str = "catalogue") -> Table:
    return Table.read(folder / f"{name}.fits", mask_invalid=False)


def place(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """x and y of the sources in units of the field's side, from 0 to 1, by the catalogue alone."""
    table = read(folder)
    x = -(table["RA"] - telescope.RA0_DEG) * np.cos(np.deg2rad(telescope.DEC0_DEG))
    y = np.asarray(table["DEC"]) - telescope.DEC0_DEG
    side = np.ptp(y) * 1.01
    return np.asarray(x) / side + 0.5, y / side + 0.5


def test_every_combination_of_halves_covers_an_eighth_of_the_field() -> None:
    field = Field(800, 64, two_depths=True, u_star=True, missing_nir=True)
    x, y = np.meshgrid(np.arange(800.0), np.arange(800.0))
    halves = np.stack(
        [
            field.noise_factor(y) > 1,
            field.observed(x, y, ("g", "u", "ustar", "J"), 1),
            field.observed(x, y, ("g", "u", "ustar", "J"), 3),
        ]
    )
    counts = np.bincount((halves * np.array([1, 2, 4])[:, None, None]).sum(axis=0).ravel(), minlength=8)
    np.testing.assert_allclose(counts / 800**2, 1 / 8, atol=0.002)


def test_a_field_without_switches_is_whole_but_for_the_strip_of_the_first_band() -> None:
    field = Field(100, 64)
    x, y = np.meshgrid(np.arange(100.0), np.arange(100.0))
    assert (field.noise_factor(y) == 1).all()
    np.testing.assert_array_equal(field.observed(x, y, ("u", "ustar", "J"), 0), x < 96)
    assert all(field.observed(x, y, ("u", "ustar", "J"), band).all() for band in (1, 2))


@pytest.mark.parametrize("survey_name", ["imaged", "listed"])
def test_each_source_is_seen_in_one_of_u_and_ustar(survey_name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(survey_name)
    assert survey.load(folder / "survey.toml").band_names == ("g", "u", "ustar", "i", "J")
    table, (x, y) = read(folder), place(folder)
    clear = (np.abs(x - 0.5) > 0.03) & (np.abs(x - 0.5) < 0.48) & (np.abs(y - 0.5) < 0.48)  # of seams and of the rim
    seen = {name: np.isfinite(np.asarray(table[f"FLUX_{name}"]))[clear] for name in ("u", "ustar")}
    agree = np.mean((seen["u"] == (x < 0.5)[clear]) & (seen["ustar"] == (x > 0.5)[clear]))
    assert agree > 0.98  # bad columns take a few sources of a mosaic


@pytest.mark.parametrize("survey_name", ["imaged", "listed"])
def test_half_of_the_sources_have_no_near_infrared(survey_name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(survey_name)
    table, (_, y) = read(folder), place(folder)
    seen = np.isfinite(np.asarray(table["FLUX_J"]))
    assert seen.mean() == pytest.approx(0.5, abs=0.07)
    assert not seen[np.abs(y - 0.5) < 0.22].any()
    assert seen[(np.abs(y - 0.5) > 0.28) & (np.abs(y - 0.5) < 0.48)].mean() > 0.97


@pytest.mark.parametrize("survey_name", ["imaged", "listed"])
def test_errors_of_the_shallow_half_are_two_and_a_half_times_those_of_the_deep_one(
    survey_name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(survey_name)
    table, (_, y) = read(folder), place(folder)
    for name in ("g", "i"):
        error = np.asarray(table[f"FLUXERR_{name}"])
        low, high = (np.nanmedian(error[part]) for part in (y < 0.47, y > 0.53))
        assert high / low == pytest.approx(10**0.4, rel=0.1)


def test_errors_stay_the_scatter_about_the_truth_in_both_depths(listed: Path) -> None:
    table, truth, (_, y) = read(listed), read(listed, "truth"), place(listed)
    for half in (y < 0.49, y > 0.51):
        expected = truth["FLUX_i"] * 10 ** (-0.4 * telescope.BANDS["i"].extinction * table["EBV"])
        pull = np.asarray((table["FLUX_i"] - expected) / table["FLUXERR_i"])[half]
        assert np.std(pull) == pytest.approx(1, abs=0.04)


def _pixels(folder: Path, band: str) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Image, weight, and the place of each pixel in units of the field's side, tile by tile."""
    names = survey.load(folder / "survey.toml").tiles.names or []
    with fits.open(folder / "mosaics" / band / f"{names[0]}.fits") as first:
        side = 2 * first[0].header["CRPIX1"] - 1
    for name in names:
        image, header = fits.getdata(folder / "mosaics" / band / f"{name}.fits", header=True)
        y, x = np.mgrid[: image.shape[0], : image.shape[1]]
        left, low = (side + 1) / 2 - WCS(header).wcs.crpix
        yield image, fits.getdata(folder / "weights" / band / f"{name}.fits"), (x + left) / side, (y + low) / side


def test_weights_and_noise_of_the_mosaics_follow_the_depth(imaged: Path) -> None:
    for half in (0, 1):
        rms, expected = [], []
        for image, weight, _, y in _pixels(imaged, "i"):
            good = (weight > 0) & ((y > 0.501) if half else (y < 0.499))
            if good.sum() > 50_000:
                rms.append(1.4826 * np.median(np.abs(image[good] - np.median(image[good]))))
                expected.append(np.median(weight[good]) ** -0.5)
        assert rms and np.allclose(rms, expected, rtol=0.15)
        assert np.mean(expected) == pytest.approx(telescope.BANDS["i"].noise_ujy * (10**0.4 if half else 1), rel=1e-4)


@pytest.mark.parametrize(("band", "axis"), [("u", "x"), ("ustar", "x"), ("J", "y")])
def test_pixels_of_a_band_that_a_half_lacks_are_nan_without_weight(imaged: Path, band: str, axis: str) -> None:
    for image, weight, x, y in _pixels(imaged, band):
        lacks = {"u": x > 0.501, "ustar": x < 0.499, "J": np.abs(y - 0.5) < 0.249}[band]
        has = {"u": x < 0.499, "ustar": x > 0.501, "J": np.abs(y - 0.5) > 0.251}[band]
        assert np.isnan(image[lacks]).all() and (weight[lacks] == 0).all()
        assert np.isfinite(image[has]).all()


def test_ustar_is_a_little_redder_than_u_and_shares_its_scatter(tmp_path: Path) -> None:
    simulate(tmp_path / "s", sources=2000, bands=("i", "u", "ustar"), scenario="s0", catalogue_only=True)
    truth = read(tmp_path / "s", "truth")
    galaxies = (truth["CLASS"] == "galaxy") & (truth["Z_TRUE"] < 1.5)  # where no light is gone
    ratio = np.log10(truth["FLUX_ustar"][galaxies] / truth["FLUX_u"][galaxies])
    assert 0 < np.median(ratio) < 0.1
    table = read(tmp_path / "s")
    assert np.isfinite(table["FLUX_u"]).all() and np.isfinite(table["FLUX_ustar"]).all()  # without the switch, both


def test_wrong_redshifts_are_told_by_the_truth_alone(tmp_path: Path) -> None:
    for name, wrong in (("right", False), ("wrong", True)):
        simulate(tmp_path / name, sources=3000, scenario="s1", catalogue_only=True, wrong_redshifts=wrong)
    right, wrong_table, truth = read(tmp_path / "right"), read(tmp_path / "wrong"), read(tmp_path / "wrong", "truth")
    differs = np.asarray(right["Z_SPEC"]) != np.asarray(wrong_table["Z_SPEC"])
    differs &= np.isfinite(np.asarray(right["Z_SPEC"]))
    np.testing.assert_array_equal(differs, truth["WRONG_Z"])
    assert differs.sum() == round(0.01 * np.isfinite(np.asarray(right["Z_SPEC"])).sum())
    assert wrong_table.colnames == right.colnames
    assert "WRONG_Z" not in read(tmp_path / "right", "truth").colnames


def test_with_all_switches_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        simulate(
            tmp_path / name, sources=60, bands=BANDS, scenario="s0", seed=7, processes=1, cutout_px=32,
            wrong_redshifts=True, **SWITCHES,  # type: ignore[arg-type]
        )  # fmt: skip
    one, two = (files.manifest(tmp_path / name, [tmp_path / name]) for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize(
    ("bands", "switch", "message"),
    [
        (("g", "i"), "u_star", "add the band u to g, i"),
        (("u", "ustar"), "u_star", "none of u, ustar covers the whole field"),
        (("g", "i"), "missing_nir", "add one of Y, J, H, Ks to g, i"),
        (("J", "Ks"), "missing_nir", "none of J, Ks covers the whole field"),
    ],
)
def test_a_switch_that_would_leave_sources_without_bands_is_refused(
    tmp_path: Path, bands: tuple[str, ...], switch: str, message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        simulate(tmp_path / "s", sources=20, bands=bands, scenario="s0", **{switch: True})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_command_line_passes_its_switches_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from redshelf.api import cli

    switches = ["--two-depths", "--u-star", "--missing-nir", "--wrong-redshifts"]
    words = ["simulate", str(tmp_path / "s"), "--sources", "2000", "--bands", "u,g,r,i,z,J", "--scenario", "s2"]
    assert cli.main([*words, "--catalogue-only", *switches]) == 0
    assert str(tmp_path / "s" / "survey.toml") in capsys.readouterr().out
    table, truth = read(tmp_path / "s"), read(tmp_path / "s", "truth")
    assert "FLUX_ustar" in table.colnames and "WRONG_Z" in truth.colnames
    assert 0.4 < np.isnan(np.asarray(table["FLUX_J"])).mean() < 0.6
    assert np.ptp(np.percentile(np.asarray(table["FLUXERR_i"]), [25, 75])) > 0.01


def test_every_scenario_and_switch_stands_in_the_first_hour() -> None:
    from redshelf.indexing.spectroscopy import SCENARIOS

    page = (Path(__file__).resolve().parents[1] / "docs" / "first-hour.md").read_text(encoding="utf-8")
    for name in (*SCENARIOS, "--two-depths", "--u-star", "--missing-nir", "--wrong-redshifts"):
        assert f"`{name}`" in page, name

"""Template spectra through filters: the colour table against direct integration, absorption, lines, and its cache."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from redshelf.indexing import sed
from redshelf.indexing.telescope import BANDS

NAMES = list(BANDS)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sed.ColourTable]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        sed.table.cache_clear()
        yield sed.table()
        sed.table.cache_clear()


@pytest.mark.parametrize(("kind", "z"), [(4, 0.4), (15, 1.3), (27, 3.1)])
def test_the_table_is_the_integral_of_the_shifted_spectrum_through_the_filters(
    table: sed.ColourTable, kind: int, z: float
) -> None:
    rest = np.exp(np.arange(np.log(400), np.log(25000), 0.0003))
    spectrum = sed.templates(rest)[kind]
    observed = np.exp(np.arange(np.log(2900), np.log(25000), 0.0003))
    shifted = np.interp(observed / (1 + z), rest, spectrum / np.interp(sed.NORMALISED_ANGSTROM, rest, spectrum))
    direct = sed.filter_responses(observed) @ (shifted * sed.madau(observed, z))
    found = table.fluxes(np.array([float(kind)]), np.zeros(1), np.array([z]))[0]
    np.testing.assert_allclose(found / found[3], direct / direct[3], rtol=0.01)
    np.testing.assert_allclose(found, direct, rtol=0.03)


def test_one_band_alone_equals_that_column_of_all(table: sed.ColourTable) -> None:
    rng = np.random.default_rng(0)
    kind, dust, z = rng.uniform(0, 30, 50), rng.uniform(0, 0.5, 50), rng.uniform(0.1, 5, 50)
    widths = rng.uniform(0, 50, (50, len(sed.LINES_WIDTH)))
    both = table.fluxes(kind, dust, z, widths)
    np.testing.assert_allclose(table.fluxes(kind, dust, z, widths, band=3)[:, 0], both[:, 3], rtol=1e-6)


def test_a_line_brightens_only_the_band_that_it_falls_in(table: sed.ColourTable) -> None:
    at = (np.array([25.0]), np.zeros(1), np.array([0.19]))  # [OIII] 5007 at 5958: in r alone
    widths = np.zeros((1, len(sed.LINES_WIDTH)))
    widths[0, 4] = 100.0
    gain = table.fluxes(*at, widths)[0] / table.fluxes(*at)[0]
    assert gain[NAMES.index("r")] > 1.05
    assert np.delete(gain, NAMES.index("r")).max() == pytest.approx(1.0, abs=1e-3)


def test_a_line_adds_its_flux(table: sed.ColourTable) -> None:
    observed = np.exp(np.arange(np.log(2900), np.log(25000), 0.0003))
    response = sed.filter_responses(observed)[NAMES.index("r")]
    at = (np.array([25.0]), np.zeros(1), np.array([0.25]))
    widths = np.zeros((1, len(sed.LINES_WIDTH)))
    widths[0, 4] = 10.0
    gain = table.fluxes(*at, widths)[0] - table.fluxes(*at)[0]
    wavelength = 5007 * 1.25
    continuum = table.line_continuum[25, 0, 4]
    # EW (1 + z) of continuum, spread over ln(wavelength), through the response at the line
    expected = 10.0 * 1.25 / wavelength / 0.0003 * np.interp(wavelength, observed, response) * continuum
    assert gain[NAMES.index("r")] == pytest.approx(expected, rel=0.02)


def test_dust_reddens_and_high_redshift_removes_the_u_band(table: sed.ColourTable) -> None:
    def fluxes(dust: float, z: float) -> np.ndarray:
        return table.fluxes(np.array([25.0]), np.array([dust]), np.array([z]))[0]

    assert fluxes(0.4, 0.5)[0] / fluxes(0.4, 0.5)[4] < 0.7 * fluxes(0.0, 0.5)[0] / fluxes(0.0, 0.5)[4]
    assert fluxes(0.0, 4.0)[0] < 1e-3 * fluxes(0.0, 4.0)[3]


def test_intergalactic_absorption_starts_at_lyman_alpha_and_grows_with_redshift() -> None:
    observed = np.linspace(3000, 9000, 400)
    means = []
    for z in (1.0, 2.0, 3.0, 4.0, 5.0):
        through = sed.madau(observed, z)
        assert np.all((through >= 0) & (through <= 1))
        np.testing.assert_allclose(through[observed > 1215.67 * (1 + z)], 1.0)
        means.append(through.mean())
    assert means == sorted(means, reverse=True)


def test_calzetti_dust_has_the_published_ratio_and_stays_positive() -> None:
    assert sed.calzetti(np.array([5500.0]))[0] == pytest.approx(4.05, abs=0.03)  # R_V
    assert np.all(np.diff(sed.calzetti(np.linspace(1200, 22000, 200))) < 0.2)
    assert sed.calzetti(np.array([3e4]))[0] >= 0


def test_hot_stars_are_bluer() -> None:
    colour = sed.blackbody(np.array([3200.0, 5000.0, 8000.0]))
    ratio = colour[:, NAMES.index("g")] / colour[:, NAMES.index("z")]
    assert ratio[0] < ratio[1] < ratio[2]
    np.testing.assert_allclose(colour[:, NAMES.index("i")], 1.0)


def test_the_cache_honours_xdg_and_a_damaged_file_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    small = sed.ColourTable(*(np.full(shape, 2.0, dtype=np.float32) for shape in ((2, 2, 2, 1), (2, 2, 1), (2, 1, 1))))
    built = []
    monkeypatch.setattr(sed, "build", lambda: built.append(1) or small)

    def read() -> int:
        sed.table.cache_clear()
        np.testing.assert_array_equal(sed.table().continuum, small.continuum)
        assert list((tmp_path / "redshelf").iterdir()) == [sed.cache_file()]
        return len(built)

    assert (read(), read()) == (1, 1)
    sed.cache_file().write_bytes(sed.cache_file().read_bytes()[:100])
    assert (read(), read()) == (2, 2)
    sed.table.cache_clear()

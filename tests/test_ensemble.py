"""Harmonic means against closed forms."""

import numpy as np
import pytest
from scipy.stats import norm

from redshelf.models.ensemble import bootstraps, deviation, harmonic_mean, smoothed
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges

EDGES = default_edges(3.0, step=0.001)
LOG = np.log1p(EDGES)


def gaussian(centre, width):
    """One Gaussian in ln(1+z)."""
    return Pdf.from_mass(EDGES, np.diff(norm.cdf(LOG, centre, width))[None])


def test_two_gaussians_have_the_closed_harmonic_mean():
    # of N(m - d, s) and N(m + d, s): exp(-(x - m)^2 / 2 s^2) / cosh(d (x - m) / s^2)
    centre, apart, width = 0.6, 0.02, 0.03
    found = harmonic_mean([gaussian(centre - apart, width), gaussian(centre + apart, width)], fraction=0.0)
    x = 0.5 * (LOG[1:] + LOG[:-1]) - centre
    expected = Pdf.from_mass(EDGES, (np.exp(-(x**2) / (2 * width**2)) / np.cosh(apart * x / width**2))[None])
    np.testing.assert_allclose(found.density, expected.density, atol=2e-4 * expected.density.max())


def test_the_mean_of_one_density_with_itself_is_itself():
    one = gaussian(0.5, 0.05)
    np.testing.assert_allclose(harmonic_mean([one, one, one], fraction=0.0).density, one.density, rtol=1e-9)


def test_smoothing_adds_its_fraction_of_the_variance():
    one = gaussian(0.6, 0.05)
    assert deviation(one)[0] == pytest.approx(0.05, rel=1e-3)
    assert deviation(smoothed(one, fraction=1.0))[0] == pytest.approx(0.05 * np.sqrt(2), rel=0.05)
    assert deviation(smoothed(one))[0] == pytest.approx(0.05 * np.sqrt(1 + 0.05**2), rel=1e-3)


def test_a_density_of_one_bin_stays():
    mass = np.zeros((1, len(EDGES) - 1))
    mass[0, 200] = 1
    np.testing.assert_allclose(smoothed(Pdf.from_mass(EDGES, mass)).density, Pdf.from_mass(EDGES, mass).density)


def test_what_one_realisation_excludes_all_exclude():
    mass = np.zeros((1, len(EDGES) - 1))
    mass[0, 100:300] = 1
    out = harmonic_mean([Pdf.from_mass(EDGES, mass), gaussian(0.3, 0.1)], fraction=0.0)
    assert out.density[0, :100].max() == 0 and out.density[0, 300:].max() == 0 and out.density[0, 200] > 0


def test_realisations_that_exclude_one_another_are_averaged():
    first, second = np.zeros((1, len(EDGES) - 1)), np.zeros((1, len(EDGES) - 1))
    first[0, 100], second[0, 200] = 1, 1
    out = harmonic_mean([Pdf.from_mass(EDGES, first), Pdf.from_mass(EDGES, second)], fraction=0.0)
    np.testing.assert_allclose((out.density * out.widths)[0, [100, 200]], 0.5)


def test_realisations_on_other_grids_and_none_at_all_are_refused():
    with pytest.raises(BadInput, match="no realisation"):
        harmonic_mean([])
    other = default_edges(2.0)
    with pytest.raises(BadInput, match="same edges"):
        harmonic_mean([gaussian(0.5, 0.1), Pdf(other, np.ones((1, len(other) - 1)))])


def test_bootstraps_hide_the_same_sources_in_their_own_numbering():
    exclude = np.stack([np.arange(200), np.r_[np.arange(100) + 100, np.full(100, -1)]], axis=1)
    drawn = list(bootstraps(exclude, n=3))
    assert len(drawn) == 3 and not np.array_equal(drawn[0][0], drawn[1][0])
    for rows, hidden in drawn:
        assert 0.55 < len(rows) / 200 < 0.72 and (np.diff(rows) > 0).all()
        for row, own in zip(rows, hidden, strict=True):
            assert {int(rows[i]) for i in own if i >= 0} == {int(i) for i in exclude[row] if i in rows}

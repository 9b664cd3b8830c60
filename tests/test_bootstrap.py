"""Resampled errors against known standard errors, over objects and over tiles."""

import numpy as np
import pytest
from astropy import units
from astropy_healpix import lonlat_to_healpix

from redshelf.indexing.catalogue import healpix29
from redshelf.models import bootstrap, metrics
from redshelf.models.bootstrap import Resampling
from redshelf.models.errors import BadInput

N, TILES = 4000, 100


def error_of_bias(values, *, tiles=None, weights=None, draws=400):
    out = metrics.summary(values, np.zeros(len(values)), weights, bootstrap=draws, tiles=tiles)
    assert out is not None
    return out["bias_error"]


def test_each_draw_counts_as_many_objects_as_there_are():
    for tiles in (None, np.arange(60) // 6):
        draws = list(Resampling.of(60, draws=5, tiles=tiles).counts())
        assert [draw.sum() for draw in draws] == [60] * 5
        assert not np.array_equal(draws[0], draws[1])


def test_a_tile_is_drawn_as_a_whole():
    tiles = np.repeat(["a", "b", "c", "d"], [1, 2, 3, 4])
    for draw in Resampling.of(10, draws=20, tiles=tiles).counts():
        assert all(len(set(draw[tiles == name])) == 1 for name in "abcd")


def test_errors_over_independent_tiles_agree_with_those_over_objects():
    rng = np.random.default_rng(0)
    values, tiles = rng.normal(0, 0.1, N), rng.integers(0, TILES, N)
    objects, blocks = error_of_bias(values), error_of_bias(values, tiles=tiles)
    assert objects == pytest.approx(0.1 / np.sqrt(N), rel=0.12)
    assert blocks == pytest.approx(objects, rel=0.25)


def test_errors_over_tiles_grow_with_what_a_tile_has_in_common():
    rng = np.random.default_rng(1)
    tiles = np.arange(N) % TILES
    noise, shared = rng.normal(0, 0.1, N), rng.normal(0, 1, TILES)
    found = [error_of_bias(noise + scatter * shared[tiles], tiles=tiles) for scatter in (0.0, 0.02, 0.05, 0.1)]
    assert found == sorted(found)
    expected = np.hypot(0.1 / np.sqrt(N), 0.1 / np.sqrt(TILES))
    assert found[-1] == pytest.approx(expected, rel=0.25)
    assert error_of_bias(noise + 0.1 * shared[tiles]) < 0.3 * found[-1]  # objects know nothing of it


def test_a_handful_of_tiles_gives_the_unbiased_error_of_a_mean():
    """Over 4 tiles a plain bootstrap is sqrt(3/4) of it, as a mean over many samples of tiles tells."""
    rng = np.random.default_rng(2)
    tiles, found = np.repeat(np.arange(4), 25), []
    for _ in range(100):
        values = np.repeat(rng.normal(0, 1, 4), 25)
        part = (np.arange(100), lambda w, v=values: {"mean": float(w @ v / w.sum())})
        resampling = Resampling.of(100, draws=200, seed=int(rng.integers(1000)), tiles=tiles)
        found.append(bootstrap.errors([part], np.ones(100), resampling)[0]["mean"])
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(0.5, rel=0.15)


def test_errors_of_weighted_scores_are_those_of_the_weighted_mean():
    rng = np.random.default_rng(3)
    values, weights = rng.normal(0, 0.1, N), rng.lognormal(0, 1, N)
    assert error_of_bias(values, weights=weights) == pytest.approx(
        metrics.weighted_mean_error(values, weights), rel=0.15
    )


def test_the_weight_of_one_tile_has_no_error_over_tiles():
    weights = np.zeros(300)
    weights[:150] = 1
    out = metrics.summary(np.linspace(0, 0.1, 300), np.zeros(300), weights, bootstrap=50, tiles=np.repeat([7, 8], 150))
    assert out is not None and "bias" in out and "bias_error" not in out


def test_scores_that_are_not_defined_have_no_error():
    part = (np.arange(9), lambda w: {"never": float("nan"), "always": float(w[0])})
    out = bootstrap.errors([part], np.ones(9), Resampling.of(9, draws=30))[0]
    assert out["never"] is None and out["always"] is not None


def test_tiles_are_the_healpix_pixels_of_their_order():
    ra, dec = np.array([150.1, 150.4, 10.0, 359.9]), np.array([2.2, 2.2, -45.0, 89.0])
    for order in (0, 6, 8):
        expected = lonlat_to_healpix(ra * units.deg, dec * units.deg, nside=2**order, order="nested")
        assert bootstrap.healpix_tiles(healpix29(ra, dec), order=order).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: Resampling.of(3, draws=1), "bootstrap=1: expected at least 2"),
        (lambda: Resampling.of(3, draws=9, tiles=[1, 2]), r"tiles of shape \(2,\): expected \(3,\)"),
        (lambda: Resampling.of(3, draws=9, tiles=[1, 1, 1]), "at least 2 different"),
        (lambda: Resampling.of(3, draws=9, tiles=[1, np.nan, 2]), "tiles: nan in row 1"),
        (lambda: bootstrap.healpix_tiles([0.5]), "float64: expected"),
        (lambda: bootstrap.healpix_tiles([-1]), "-1 in row 0"),
        (lambda: bootstrap.healpix_tiles([1], order=30), "order=30: expected 0 to 29"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call()

"""Cutouts against astropy's Cutout2D, the centre convention, edges, and what bad pixels become."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

from redshelf.indexing import cutouts
from redshelf.indexing.mosaic import Mosaic, pixel_positions
from redshelf.models.bands import State

SCALE = 0.2


def mosaic_of(tmp_path: Path, image: np.ndarray, *, angle_deg: float = 0.0, saturation: float | None = None) -> Mosaic:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0, 2.0]
    wcs.wcs.crpix = [image.shape[1] / 2, image.shape[0] / 3]
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * SCALE / 3600
    fits.PrimaryHDU(image, wcs.to_header()).writeto(tmp_path / "m.fits", overwrite=True)
    shape = (int(image.shape[0]), int(image.shape[1]))
    return Mosaic(tmp_path / "m.fits", 0, shape, wcs, "", 1.0, saturation, None, None)


Cut = tuple[np.ndarray, np.ndarray, np.ndarray]


def cut(mosaic: Mosaic, x: Any, y: Any, cutout_px: int, *, noise_ujy: float = 1.0) -> Cut:
    """Pixels, bad and state around 0-based x, y."""
    positions = np.asarray(x, np.float64), np.asarray(y, np.float64)
    found = cutouts.band_image(mosaic, *positions, cutout_px=cutout_px, pixel_scale_arcsec=SCALE, noise_ujy=noise_ujy)
    assert found is not None
    return *found.cut(slice(0, len(positions[0])), cutout_px), found.state


def cut_sky(mosaic: Mosaic, x: Any, y: Any, cutout_px: int, *, noise_ujy: float = 1.0) -> Cut:
    """The same by the sky positions of x, y."""
    sky = mosaic.wcs.all_pix2world(np.c_[x, y], 0)
    return cut(mosaic, *pixel_positions(mosaic, sky[:, 0], sky[:, 1]), cutout_px, noise_ujy=noise_ujy)


@pytest.mark.parametrize("cutout_px", [8, 64, 15])
def test_cutouts_equal_astropys_everywhere_and_off_the_edges(tmp_path: Path, cutout_px: int) -> None:
    rng = np.random.default_rng(5)
    image = rng.normal(size=(101, 173)).astype(np.float16).astype(np.float32)
    x, y = rng.uniform(-3, 175, 300), rng.uniform(-3, 103, 300)
    x[:4], y[:4] = [0, 172, 0, 172], [0, 0, 100, 100]
    pixels, bad, _ = cut(mosaic_of(tmp_path, image), x, y, cutout_px)
    assert pixels.shape == bad.shape == (300, cutout_px, cutout_px) and pixels.dtype == np.float16
    for n in range(300):
        # Cutout2D centres an even size on a pixel only at whole positions: ours always does
        centre = (np.floor(x[n] + 0.5), np.floor(y[n] + 0.5))
        expected = Cutout2D(image, centre, cutout_px, mode="partial", fill_value=np.nan).data
        np.testing.assert_array_equal(bad[n], np.isnan(expected))
        np.testing.assert_array_equal(pixels[n], np.nan_to_num(expected))


@pytest.mark.parametrize("angle_deg", [0.0, 25.0])
@pytest.mark.parametrize(("x", "y"), [(40, 30), (150, 28), (35, 80), (160, 75)])
def test_a_one_pixel_source_lands_in_the_centre(tmp_path: Path, x: int, y: int, angle_deg: float) -> None:
    image = np.zeros((101, 203), np.float32)
    image[y, x] = 7.0
    mosaic = mosaic_of(tmp_path, image, angle_deg=angle_deg)
    for dx, dy in ((0, 0), (0.4, -0.4), (-0.4, 0.4)):
        pixels, bad, _ = cut_sky(mosaic, [x + dx], [y + dy], 32, noise_ujy=0.5)
        assert np.argwhere(pixels[0]).tolist() == [[16, 16]]
        assert pixels[0, 16, 16] == 14.0 and not bad.any()


def test_the_part_of_a_mosaic_that_sources_touch_gives_the_same_cutouts_as_all_of_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    image = rng.normal(size=(301, 402)).astype(np.float32)
    mosaic = mosaic_of(tmp_path, image)
    x, y = rng.uniform(150, 401, 50), rng.uniform(0, 120, 50)
    sky = mosaic.wcs.all_pix2world(np.c_[x, y], 0)
    ra, dec = np.append(sky[:, 0], 330.0), np.append(sky[:, 1], -2.0)  # the last is the other side of the sky
    pixels, bad, state = cut(mosaic, *pixel_positions(mosaic, ra, dec), 32)
    whole, off = np.append(x, [0, 401]), np.append(y, [0, 300])
    expected, expected_bad, expected_state = cut(mosaic, whole, off, 32)
    np.testing.assert_array_equal(pixels[:50], expected[:50])
    np.testing.assert_array_equal(bad[:50], expected_bad[:50])
    np.testing.assert_array_equal(state[:50], expected_state[:50])
    assert bad[50].all() and state[50] == State.NOT_OBSERVED and not pixels[50].any()


def test_bad_pixels_are_masked_and_zero_never_nan(tmp_path: Path) -> None:
    image = np.ones((40, 40), np.float32)
    image[20, 20], image[20, 21] = np.nan, np.inf
    weight = np.ones((40, 40), np.float32)
    weight[20, 22], weight[20, 23], weight[20, 24] = 0, -1, np.nan
    mask = np.zeros((40, 40), np.int16)
    mask[20, 25] = 4
    mosaic = replace(mosaic_of(tmp_path, image), weight=tmp_path / "w.fits", mask=tmp_path / "k.fits")
    fits.PrimaryHDU(weight).writeto(tmp_path / "w.fits")
    fits.PrimaryHDU(mask).writeto(tmp_path / "k.fits")
    pixels, bad, _ = cut(mosaic, [22.0], [20.0], 16)
    assert bad.sum() == 6 and bad[0, 8, 6:12].all()
    assert np.isfinite(pixels).all() and (pixels[bad] == 0).all() and (pixels[~bad] == 1).all()


def test_positions_that_are_not_numbers_are_all_bad(tmp_path: Path) -> None:
    mosaic = mosaic_of(tmp_path, np.ones((40, 40), np.float32))
    pixels, bad, state = cut(mosaic, [np.nan, 1e12, 20], [3.0, -1e12, 20], 16)
    assert bad[:2].all() and not pixels[:2].any() and (state[:2] == State.NOT_OBSERVED).all()
    assert not bad[2].any() and (pixels[2] == 1).all()


def test_a_mosaic_that_no_source_touches_or_without_noise_gives_none(tmp_path: Path) -> None:
    mosaic = mosaic_of(tmp_path, np.ones((40, 40), np.float32))
    for x, noise in (([], 1.0), ([-8.0], 1.0), ([47.5], 1.0), ([20.0], np.nan)):
        positions = np.array(x), np.full(len(x), 20.0)
        options = {"cutout_px": 16, "pixel_scale_arcsec": SCALE, "noise_ujy": noise}
        assert cutouts.band_image(mosaic, *positions, **options) is None
    assert cut(mosaic, [-7.0], [20.0], 16)[1].sum() == cut(mosaic, [47.0], [20.0], 16)[1].sum() == 16 * 15


def test_pixels_are_clipped_in_noise_units_and_never_infinite() -> None:
    scaled = cutouts.in_noise_units(np.array([1e9, -1e9, 3.0], np.float32), 0.5)
    assert scaled.tolist() == [60000, -60000, 6] and scaled.dtype == np.float16


def test_states_tell_measured_not_detected_not_observed_and_saturated(tmp_path: Path) -> None:
    image = np.zeros((60, 400), np.float32)
    x, y = np.array([30, 90, 150, 210, 270, 330]), np.full(6, 30)
    image[30, 30] = 50.0  # far above 3 sigma in the aperture
    image[30, 90] = 1.0  # under it
    image[20:41, 140:161] = np.nan  # the aperture of the third is bad
    image[30, 210] = 900.0  # at saturation
    image[30, 275] = 70_000.0  # clipped, and exactly 1 arcsec from the centre
    image[30, 336] = 70_000.0  # the same, 1.2 arcsec from it
    mosaic = mosaic_of(tmp_path, image, saturation=900.0)
    pixels, _, state = cut_sky(mosaic, x, y, 32)
    assert state.tolist() == [
        State.MEASURED, State.NOT_DETECTED, State.NOT_OBSERVED, State.SATURATED, State.SATURATED, State.NOT_DETECTED
    ]  # fmt: skip
    assert np.isfinite(pixels).all() and pixels.max() == 60_000


def test_a_saturated_core_without_weight_is_saturated_not_unobserved(tmp_path: Path) -> None:
    image, weight = np.zeros((60, 60), np.float32), np.ones((60, 60), np.float32)
    image[25:36, 25:36], weight[25:36, 25:36] = 1000.0, 0
    mosaic = mosaic_of(tmp_path, image, saturation=900.0)
    fits.PrimaryHDU(weight).writeto(tmp_path / "w.fits")
    mosaic = replace(mosaic, weight=tmp_path / "w.fits")
    assert cut_sky(mosaic, [30], [30], 32)[2].tolist() == [State.SATURATED]


def test_the_aperture_is_one_arcsecond_and_fits_a_small_cutout() -> None:
    assert cutouts.aperture(64, 0.2).sum() == 81  # pixels within 5 px of one
    assert cutouts.aperture(8, 0.05).sum() == 29  # 3 px is what fits
    assert cutouts.aperture(64, 5.0).sum() == 1

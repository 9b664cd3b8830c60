"""Pictures: colours are kept, the sky is black, FITS comes back with its numbers and its place on the sky."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image

from redshelf.models.bands import Band
from redshelf.models.errors import BadInput, NotFound
from redshelf.service import pictures
from redshelf.service.shelf import OpenShelf, open_shelf


def opened(blob: bytes) -> np.ndarray:
    with Image.open(BytesIO(blob)) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture)


def test_equal_fluxes_are_grey_and_nothing_is_black() -> None:
    planes = np.full((3, 4, 4), 7.0, np.float32)
    planes[:, 0] = 0
    picture = pictures.asinh_rgb(planes, stretch=3.0)
    assert (picture[0] == 0).all()
    assert (picture[1:] == picture[1, 0, 0]).all() and picture[1, 0, 0] > 0


def test_the_stretch_is_asinh_of_the_mean_flux() -> None:
    flux = np.array([1.0, 10.0, 100.0])
    picture = pictures.asinh_rgb(np.broadcast_to(flux, (3, 1, 3)).astype(np.float32), stretch=3.0)
    expected = np.round(255 * np.arcsinh(flux / 3) / np.arcsinh(pictures.WHITE))
    assert picture[0, :, 0].tolist() == expected.tolist()


def test_a_bright_core_keeps_its_colour() -> None:
    faint = np.array([3.0, 2.0, 1.0], np.float32)[:, None, None]
    for scale in (10, 1e3, 1e6):
        red, green, blue = pictures.asinh_rgb(faint * np.float32(scale), stretch=3.0)[0, 0].astype(float)
        assert green / red == pytest.approx(2 / 3, abs=0.03) and blue / red == pytest.approx(1 / 3, abs=0.03)


@pytest.mark.parametrize(
    ("wavelengths", "names"),
    [
        ({"u": 370, "g": 480, "r": 620, "i": 770, "z": 890}, ("i", "r", "g")),
        ({"Y": 1020, "J": 1250, "H": 1650, "K": 2150}, ("K", "J", "Y")),
        ({"g": 480, "i": 770}, ("i", "g", "g")),
        ({"r": 620}, ("r",)),
    ],
)
def test_default_bands_are_i_r_g_or_spread(wavelengths: dict[str, float], names: tuple[str, ...]) -> None:
    assert pictures.default_bands(tuple(Band(n, nm) for n, nm in wavelengths.items())) == names


def test_png_is_a_colour_picture_of_the_cutouts_size_with_the_source_in_it(shelf: OpenShelf) -> None:
    bright = int(np.nanargmin(shelf.columns["magnitudes"][:, 2]))
    picture = opened(pictures.png(shelf, bright))
    assert picture.shape == (32, 32, 3)
    assert picture[13:18, 13:18].mean() > 4 * picture[:4].mean()
    grey = opened(pictures.png(shelf, bright, bands=("r",)))
    assert (grey[..., 0] == grey[..., 1]).all() and (grey[..., 0] == grey[..., 2]).all()


def test_png_has_the_first_row_of_the_fits_image_at_its_bottom(shelf: OpenShelf) -> None:
    row = shelf.row("s0020")
    up = opened(pictures.png(shelf, row, bands=("i",)))[..., 0].astype(float)
    pixels, _, _ = shelf.cutout(row)
    expected = np.clip(np.arcsinh(pixels[2] / 3) / np.arcsinh(pictures.WHITE), 0, 1)[::-1] * 255
    assert np.abs(up - expected).max() < 1


def test_a_band_that_was_not_observed_takes_the_mean_of_the_others(shelf: OpenShelf) -> None:
    row = shelf.row("s0020")
    pixels, mask, state = shelf.cutout(row)
    state = state.copy()
    state[0] = 0  # g, the blue of this survey
    object.__setattr__(shelf, "cutout", lambda row: (pixels, mask, state))
    try:
        picture = opened(pictures.png(shelf, row)).astype(float)
    finally:
        object.__delattr__(shelf, "cutout")
    mean = (picture[..., 0] + picture[..., 1]) / 2
    bright = picture.min(axis=2) > 30
    assert bright.any() and np.abs(picture[..., 2] - mean)[bright].max() <= 1.5


def test_other_numbers_of_bands_and_foreign_bands_are_refused(shelf: OpenShelf) -> None:
    with pytest.raises(BadInput, match="expected one band, or three"):
        pictures.png(shelf, 0, bands=("g", "r"))
    with pytest.raises(BadInput, match="band 'K' is not in survey small"):
        pictures.png(shelf, 0, bands=("K",))
    with pytest.raises(BadInput, match="band 'K'"):
        pictures.fits(shelf, 0, bands=("K",))


def test_fits_has_microjansky_and_the_place_on_the_sky(shelf: OpenShelf) -> None:
    row = shelf.row("s0020")
    pixels, _, _ = shelf.cutout(row)
    with fits.open(BytesIO(pictures.fits(shelf, row, bands=("r", "i")))) as hdus:
        assert [hdu.header["BAND"] for hdu in hdus[1:]] == ["r", "i"]
        np.testing.assert_allclose(hdus[1].data, pixels[1] * shelf.info.bands[1].noise_ujy, rtol=1e-5)
        assert hdus[1].header["BUNIT"] == "uJy" and hdus[1].header["STATE"] == "measured"
        ra, dec = WCS(hdus[2].header).all_pix2world(16, 16, 0)
        scale = WCS(hdus[2].header).proj_plane_pixel_scales()[0].to_value("arcsec")
    assert (float(ra), float(dec)) == pytest.approx((shelf.columns["ra"][row], shelf.columns["dec"][row]), abs=1e-9)
    assert scale == pytest.approx(0.2)


def test_fits_has_the_reddening_where_it_is_known(shelf: OpenShelf) -> None:
    known = replace(shelf, columns={**shelf.columns, "ebv": np.full(len(shelf), 0.031, np.float32)})
    assert fits.getheader(BytesIO(pictures.fits(known, 3)))["EBV"] == pytest.approx(0.031)
    assert "EBV" not in fits.getheader(BytesIO(pictures.fits(shelf, 3)))


def test_fits_leaves_out_a_band_without_images(shelf: OpenShelf) -> None:
    g, r, i = shelf.info.bands
    partly = replace(shelf, info=replace(shelf.info, bands=(g, replace(r, noise_ujy=np.nan), i)))
    with fits.open(BytesIO(pictures.fits(partly, 3))) as hdus:
        assert [hdu.header["BAND"] for hdu in hdus[1:]] == ["g", "i"]


def test_the_flux_of_the_cutout_is_that_of_the_catalogue(shelf: OpenShelf) -> None:
    row = int(np.nanargmin(shelf.columns["magnitudes"][:, 2]))
    with fits.open(BytesIO(pictures.fits(shelf, row, bands=("i",)))) as hdus:
        total = float(hdus[1].data.sum())
    assert total == pytest.approx(float(shelf.columns["flux"][row, 2]), rel=0.1)


def test_a_survey_without_images_has_no_picture(bare_shelf: Path) -> None:
    with pytest.raises(NotFound, match="has no images"):
        pictures.png(open_shelf(bare_shelf), 0)

"""From the pixels of an upload to those of the survey: flux is kept, the source stays in the middle, north is up."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from redshelf.models.errors import BadInput
from redshelf.service import grid, planes
from redshelf.service.planes import Frame, Said

FRAME = Frame("s", ("g", "r", "i"), 32, 0.2)
Floats = npt.NDArray[np.float32]


def header(scale_arcsec: float, angle_deg: float = 0.0, flip: bool = False, **cards: Any) -> fits.Header:
    """A TAN WCS around a galaxy at (150.1, 2.2), which is at `middle` of the image."""
    angle = np.radians(angle_deg)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = np.diag([scale_arcsec if flip else -scale_arcsec, scale_arcsec]) / 3600 @ turn
    told = {f"CD{i + 1}_{j + 1}": matrix[i, j] for i in range(2) for j in range(2)}
    told |= {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.1, "CRVAL2": 2.2}
    return fits.Header(list({**told, **cards}.items()))


def galaxy(cards: fits.Header, n: int, *, sigma_arcsec: float = 0.8, east: float = 0.6, north: float = 0.0) -> Floats:
    """A Gaussian of flux 1, `east` and `north` of the middle pixel in arcsec, as the sum in each pixel (by 9 x 9)."""
    matrix = np.array([[cards[f"CD{i}_{j}"] for j in (1, 2)] for i in (1, 2)]) * 3600
    fine = (np.arange(9 * n) + 0.5) / 9 - 0.5 - n // 2
    x, y = np.meshgrid(fine, fine)
    away = (matrix[0, 0] * x + matrix[0, 1] * y - east) ** 2 + (matrix[1, 0] * x + matrix[1, 1] * y - north) ** 2
    light = np.exp(-away / (2 * sigma_arcsec**2)) / (2 * np.pi * sigma_arcsec**2) * abs(np.linalg.det(matrix)) / 81
    return light.reshape(n, 9, n, 9).sum(axis=(1, 3)).astype(np.float32)


def blob(*images: tuple[str, Floats, fits.Header]) -> bytes:
    hdus: list[Any] = [fits.PrimaryHDU()]
    for name, image, cards in images:
        hdu = fits.ImageHDU(image, header=cards)
        hdu.header["BAND"] = name
        hdus.append(hdu)
    stream = BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def read(*images: tuple[str, Floats, fits.Header], **said: Any) -> Floats:
    return planes.decode(blob(*images), FRAME, Said(**said)).images


EXPECTED = galaxy(header(0.2), 32)


@pytest.mark.parametrize("scale", [0.2, 0.1, 0.05, 0.13, 0.168, 0.3, 0.4])
@pytest.mark.parametrize("n_odd", [0, 1])
def test_another_scale_keeps_the_flux_and_the_place(scale: float, n_odd: int) -> None:
    n, cards = 2 * int(0.2 * 34 / scale / 2) + 2 + n_odd, header(scale)
    found = read(("g", galaxy(cards, n), cards))[0]
    assert found.sum() == pytest.approx(EXPECTED.sum(), rel=3e-4)
    blur = 0.02 if scale <= 0.2 else 0.12  # what is coarse stays so
    np.testing.assert_allclose(found, EXPECTED, atol=blur * EXPECTED.max())
    x = np.arange(32) - 16
    assert -0.2 * (found * x).sum() / found.sum() == pytest.approx(0.6, abs=0.01)  # to the east, which is left


def test_each_pixel_holds_the_flux_of_its_area_to_the_last_digit() -> None:
    rng = np.random.default_rng(0)
    for step_x, step_y in ((1.7, -0.6), (-2.5, 1.0), (0.31, 0.31)):
        image = rng.normal(0, 1, (90, 101)).astype(np.float32)
        found = grid.Resampling(np.diag([step_x, step_y]), (50.3, 44.8), 32).apply(image)
        edges = (np.arange(33) - 16.5)[None, :] * np.array([[step_x], [step_y]]) + np.array([[50.3], [44.8]])
        # the integral of an image of even pixels is bilinear between the corners of its pixels
        whole = np.pad(image.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        along_x = np.array([np.interp(edges[0] + 0.5, np.arange(102), row) for row in whole])
        whole = np.array([np.interp(edges[1] + 0.5, np.arange(91), column) for column in along_x.T]).T
        expected = np.diff(np.diff(whole, axis=0), axis=1) * np.sign(step_x * step_y)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("angle", "flip"), [(90, False), (180, False), (270, False), (0, True), (90, True)])
def test_what_is_turned_by_right_angles_or_mirrored_is_put_upright_exactly(angle: int, flip: bool) -> None:
    cards = header(0.2, angle, flip)
    found = read(("g", galaxy(cards, 33, north=0.3), cards))[0]
    np.testing.assert_allclose(found, galaxy(header(0.2), 32, north=0.3), atol=1e-7)


@pytest.mark.parametrize(("angle", "scale"), [(30, 0.2), (45, 0.1), (-71, 0.15), (12, 0.3)])
def test_what_is_turned_by_any_angle_is_put_upright(angle: float, scale: float) -> None:
    cards = header(scale, angle)
    n = int(0.2 * 32 * 1.5 / scale)
    found = read(("g", galaxy(cards, n, north=0.3), cards))[0]
    expected = galaxy(header(0.2), 32, north=0.3)
    assert found.sum() == pytest.approx(expected.sum(), rel=4e-3)
    np.testing.assert_allclose(found, expected, atol=0.06 * expected.max())


def test_a_pixel_of_which_less_than_half_is_known_is_bad_and_one_of_which_more_is_known_keeps_its_flux() -> None:
    image = np.ones((80, 80), np.float32)
    image[40, 40] = np.nan  # one of four
    image[59:61, 59:61] = np.nan
    found = grid.Resampling(np.diag([2.0, 2.0]), (39.5, 39.5), 32).apply(image)
    assert np.argwhere(np.isnan(found)).tolist() == [[26, 26]]
    assert np.unique(found[np.isfinite(found)]).tolist() == [4.0]


def test_the_form_says_how_large_pixels_are_where_the_file_does_not() -> None:
    image = galaxy(header(0.1), 80)
    stream = BytesIO()
    np.save(stream, image)
    found = planes.decode(stream.getvalue(), FRAME, Said(bands=("g",), scale_arcsec=0.1)).images[0]
    np.testing.assert_allclose(found, EXPECTED, atol=0.02 * EXPECTED.max())
    np.testing.assert_array_equal(read(("g", image, header(0.3)), scale_arcsec=0.1)[0], found)  # and wins over it


def test_bands_of_other_grids_are_laid_over_one_another_by_the_sky() -> None:
    fine, coarse = header(0.2, CRPIX1=17.0, CRPIX2=17.0), header(0.3, CRPIX1=15.4, CRPIX2=20.8)
    shifted = galaxy(header(0.3), 40, east=0.6 + 0.3 * (20 - 14.4), north=0.3 * (19.8 - 20))
    found = read(("g", galaxy(fine, 33), fine), ("r", shifted, coarse))
    np.testing.assert_allclose(found[1], found[0], atol=0.12 * EXPECTED.max())
    x = np.arange(32) - 16
    assert (found[1] * x).sum() / found[1].sum() == pytest.approx((found[0] * x).sum() / found[0].sum(), abs=0.05)


def test_a_tangent_plane_is_that_of_astropy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        at = {"CRVAL1": rng.uniform(0, 360), "CRVAL2": rng.uniform(-89, 89)}
        cards = header(0.2, rng.uniform(0, 360), CRPIX1=rng.uniform(-9000, 9000), CRPIX2=rng.uniform(-9000, 9000), **at)
        ours, theirs = grid.from_cards(dict(cards)), WCS(cards)
        assert ours is not None
        x, y = rng.uniform(0, 100, 2)
        ra, dec = theirs.all_pix2world(x, y, 0)
        found = np.degrees(ours.sky(x, y))
        assert (found[0] - ra + 180) % 360 - 180 == pytest.approx(0, abs=1e-8) and found[1] == pytest.approx(dec)
        np.testing.assert_allclose(ours.pixel(*np.radians((float(ra), float(dec)))), (x, y), atol=1e-4)


@pytest.mark.parametrize(
    "cards",
    [
        {"CDELT1": -5e-5, "CDELT2": 5e-5},
        {"CDELT1": -5e-5, "CDELT2": 6e-5, "CROTA2": 25.0},
        {"CDELT1": -5e-5, "CDELT2": 5e-5, "PC1_1": 0.8, "PC1_2": -0.6, "PC2_1": 0.6, "PC2_2": 0.8},
        {"CD1_2": 5e-5, "CD2_1": 5e-5},
        {"CDELT1": -0.18, "CDELT2": 0.18, "CUNIT1": "arcsec", "CUNIT2": "arcsec"},
    ],
)
def test_every_way_to_write_a_scale_is_read_as_astropy_reads_it(cards: dict[str, Any]) -> None:
    whole = fits.Header([("CTYPE1", "RA---TAN"), ("CTYPE2", "DEC--TAN"), *cards.items()])
    found = grid.from_cards(dict(whole))
    assert found is not None
    np.testing.assert_allclose(found.matrix, WCS(whole).pixel_scale_matrix * 3600, rtol=1e-9, atol=1e-12)


def test_axes_in_the_other_order_are_put_in_ours() -> None:
    cards = {"CTYPE1": "DEC--TAN", "CTYPE2": "RA---TAN", "CD1_1": 5e-5, "CD2_2": -5e-5}
    found = grid.from_cards(cards)
    assert found is not None
    np.testing.assert_allclose(found.matrix, [[0, -0.18], [0.18, 0]])


@pytest.mark.parametrize(
    "cards",
    [{}, {"CDELT1": 1.0, "CDELT2": 1.0}, {"CTYPE1": "LINEAR", "CTYPE2": "LINEAR", "CDELT1": 2.0, "CDELT2": 2.0}],
)
def test_what_tells_no_scale_on_the_sky_is_taken_as_the_surveys(cards: dict[str, Any]) -> None:
    assert grid.from_cards(cards) is None


@pytest.mark.security
@pytest.mark.parametrize(
    ("cards", "words"),
    [
        ({"CD1_1": "x"}, "CD1_1='x': expected a number"),
        ({"CD1_1": float("inf")}, "expected a number"),
        ({"CD1_1": 5e-5, "CD1_2": 5e-5, "CD2_1": 5e-5, "CD2_2": 5e-5}, "no area"),
        ({"CD1_1": 0.0}, "no area"),
        ({"CD1_1": 1e-30, "CD2_2": 1e-30}, "no area"),
        ({"CD1_1": 1e-5, "CD2_2": 1e-5, "CUNIT1": "furlong"}, "CUNIT='furlong' and ''"),
    ],
)
def test_a_wcs_that_is_none_is_refused(cards: dict[str, Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        grid.from_cards(cards)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([("g", np.zeros((40, 40), np.float32), header(5.0))], r"pixels of 5 arcsec: expected 0.02 to 2"),
        ([("g", np.zeros((40, 40), np.float32), header(0.1))], r"40 x 40 pixels of 0.1 arcsec: expected at least 6.4"),
        (
            [
                ("g", np.zeros((40, 40), np.float32), header(0.2, CRPIX1=21, CRPIX2=21)),
                ("r", np.zeros((40, 40), np.float32), header(0.2, CRPIX1=21, CRPIX2=21, CRVAL1=150.2)),
            ],
            "band 'r' does not show the place",
        ),
    ],
)
def test_what_does_not_show_the_source_is_refused(images: list[Any], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        read(*images)

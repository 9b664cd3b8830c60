"""Mosaics: which files are found, which headers are refused, and which tile a source belongs to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from redshelf.indexing import mosaic
from redshelf.indexing import survey as surveys
from redshelf.indexing.survey import Survey
from redshelf.models.errors import BadInput

SCALE = 0.2  # arcsec


def wcs_at(ra: float, dec: float, shape: tuple[int, int], *, scale: float = SCALE, angle_deg: float = 0.0) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [ra, dec]
    wcs.wcs.crpix = [(shape[1] + 1) / 2, (shape[0] + 1) / 2]
    c, s = np.cos(np.deg2rad(angle_deg)), np.sin(np.deg2rad(angle_deg))
    wcs.wcs.cd = np.array([[-c, s], [s, c]]) * scale / 3600
    return wcs


def write(path: Path, image: np.ndarray[Any, Any], wcs: WCS | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(image, None if wcs is None else wcs.to_header()).writeto(path, overwrite=True)


def survey_in(folder: Path, *, bands: str = "gr", tiles: dict[str, Any] | None = None, **band: Any) -> Survey:
    document = {
        "survey": {"name": "s", "pixel_scale_arcsec": SCALE},
        "catalogue": {"path": "c.csv", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [{"name": b, "wavelength_nm": 500, "image": "m/{band}/{tile}.fits", **band} for b in bands],
        "tiles": tiles or {},
    }
    return surveys.parse(document, folder=folder, source="survey.toml")


def test_tiles_are_found_by_the_patterns_of_all_bands(tmp_path: Path) -> None:
    for name in ("g/a", "g/b", "r/b", "r/c.weight"):
        write(tmp_path / f"m/{name}.fits", np.zeros((4, 5), np.float32), None)
    found = mosaic.find_tiles(survey_in(tmp_path, weight="m/{band}/{tile}.weight.fits"))
    assert {tile: sorted(bands) for tile, bands in found.items()} == {"a": ["g"], "b": ["g", "r"]}
    named = mosaic.find_tiles(survey_in(tmp_path, tiles={"names": ["b"]}))
    assert list(named) == ["b"]


def test_a_tile_may_stand_twice_in_a_pattern_or_not_at_all(tmp_path: Path) -> None:
    write(tmp_path / "T1/T1_g.fits", np.zeros((4, 5), np.float32), None)
    write(tmp_path / "T1/T2_g.fits", np.zeros((4, 5), np.float32), None)
    assert list(mosaic.find_tiles(survey_in(tmp_path, bands="g", image="{tile}/{tile}_{band}.fits"))) == ["T1"]
    assert list(mosaic.find_tiles(survey_in(tmp_path, bands="g", image="T1/T1_{band}.fits"))) == [mosaic.ONLY_TILE]


def test_a_band_without_any_image_and_an_unknown_tile_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m/g/a.fits", np.zeros((4, 5), np.float32), None)
    with pytest.raises(BadInput, match=r"band r: no image matches 'm/\{band\}/\{tile\}\.fits'"):
        mosaic.find_tiles(survey_in(tmp_path))
    with pytest.raises(BadInput, match=r"no band has an image of tile 'z'"):
        mosaic.find_tiles(survey_in(tmp_path, bands="g", tiles={"names": ["a", "z"]}))


def opened(folder: Path, path: str = "m/g/a.fits", **band: Any) -> mosaic.Mosaic:
    survey = survey_in(folder, bands="g", **band)
    return mosaic.open_mosaic(survey, survey.bands[0], "a", folder / path)


def box(found: mosaic.Mosaic, rows: tuple[int, int], columns: tuple[int, int]) -> tuple[Any, Any, Any]:
    """Image, weight and mask of a box, from its stripes."""
    stripes = list(mosaic.stripes(found, rows))
    assert [s.first for s in stripes] == list(np.cumsum([rows[0], *(len(s.image) for s in stripes)])[:-1])
    kinds = ([s.image for s in stripes], [s.weight for s in stripes], [s.mask for s in stripes])
    return tuple(None if k[0] is None else np.concatenate(k)[:, slice(*columns)] for k in kinds)  # type: ignore[return-value]


def test_a_header_gives_shape_scale_and_zero_point(tmp_path: Path) -> None:
    write(tmp_path / "m/g/a.fits", np.ones((40, 50), np.float32), wcs_at(150, 2, (40, 50)))
    found = opened(tmp_path, image_zero_point=27.0, saturation=1000.0)
    assert found.shape == (40, 50) and found.hdu == 0
    np.testing.assert_allclose(found.ujy_per_unit, 10 ** (-0.4 * (27.0 - 23.9)))
    np.testing.assert_allclose(found.saturation_ujy, 1000 * 10 ** (-0.4 * (27.0 - 23.9)))
    image, weight, mask = box(found, (0, 3), (1, 4))
    np.testing.assert_allclose(image, np.full((3, 3), found.ujy_per_unit), rtol=1e-6)
    assert image.dtype == np.float32 and weight is None and mask is None


def test_a_mosaic_without_wcs_or_of_another_scale_is_refused_by_name(tmp_path: Path) -> None:
    image = np.zeros((40, 50), np.float32)
    write(tmp_path / "m/g/a.fits", image, None)
    with pytest.raises(BadInput, match=r"a\.fits HDU 0 has no celestial WCS"):
        opened(tmp_path)
    write(tmp_path / "m/g/a.fits", image, wcs_at(150, 2, image.shape, scale=SCALE * 1.02))
    with pytest.raises(
        BadInput, match=r"a\.fits: pixel scale 0\.204 x 0\.204 arcsec, expected pixel_scale_arcsec=0\.2"
    ):
        opened(tmp_path)
    write(tmp_path / "m/g/a.fits", image, wcs_at(150, 2, image.shape, scale=SCALE * 1.005, angle_deg=30))
    opened(tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_truncated_image_is_refused_by_name(tmp_path: Path, compressed: bool) -> None:
    path = tmp_path / "m/g/a.fits"
    header = wcs_at(150, 2, (200, 300)).to_header()
    image = np.random.default_rng(1).normal(size=(200, 300)).astype(np.float32)
    path.parent.mkdir(parents=True)
    (fits.CompImageHDU if compressed else fits.PrimaryHDU)(image, header).writeto(path)
    assert opened(tmp_path).shape == (200, 300)
    path.write_bytes(path.read_bytes()[:30000])
    with pytest.raises(BadInput, match=r"a\.fits is truncated: 30000 bytes"):
        opened(tmp_path)
    path.write_bytes(b"no fits at all")
    with pytest.raises(BadInput, match=r"a\.fits cannot be read"):
        opened(tmp_path)


def test_the_first_image_is_taken_behind_an_empty_primary_hdu(tmp_path: Path) -> None:
    image = np.arange(2000, dtype=np.float32).reshape(40, 50)
    (tmp_path / "m/g").mkdir(parents=True)
    hdu = fits.ImageHDU(image, wcs_at(150, 2, image.shape).to_header())
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "m/g/a.fits")
    found = opened(tmp_path)
    assert found.hdu == 1
    np.testing.assert_array_equal(box(found, (5, 9), (20, 50))[0], image[5:9, 20:50])


def test_pixels_stored_as_scaled_integers_are_read_in_their_unit(tmp_path: Path) -> None:
    image = np.arange(2000, dtype=np.float32).reshape(40, 50) / 10
    unit = fits.PrimaryHDU(image.copy(), wcs_at(150, 2, (40, 50)).to_header())
    unit.scale("int16", bscale=0.1, bzero=100)
    (tmp_path / "m/g").mkdir(parents=True)
    unit.writeto(tmp_path / "m/g/a.fits")
    pixels, _, _ = box(opened(tmp_path, image_zero_point=23.9), (5, 20), (3, 30))
    assert pixels == pytest.approx(image[5:20, 3:30], abs=0.051)


def compressed(kind: str, image: np.ndarray[Any, Any], header: fits.Header | None = None) -> fits.CompImageHDU:
    """An image as fpack writes it: RICE quantises floats with dither (lossy), GZIP keeps them."""
    options: dict[str, Any] = {
        "rice": {"compression_type": "RICE_1", "quantize_level": 16, "quantize_method": 1, "dither_seed": 7},
        "gzip": {"compression_type": "GZIP_2", "quantize_level": 0},
        "tiles": {"compression_type": "GZIP_1", "quantize_level": 0, "tile_shape": (17, 23)},
    }[kind]
    return fits.CompImageHDU(image, header, **options)


@pytest.mark.parametrize("kind", ["rice", "gzip", "tiles"])
def test_compressed_mosaics_are_astropys_pixels_and_lossless_ones_the_uncompressed(tmp_path: Path, kind: str) -> None:
    shape, rng = (90, 110), np.random.default_rng(2)
    image = rng.normal(0, 0.1, shape).astype(np.float32)
    image[30:35, 40:60] = np.nan
    wcs = wcs_at(150, 2, shape, angle_deg=10)
    write(tmp_path / "plain/g/a.fits", image, wcs)
    for name, pixels in (("m/g/a.fits.fz", image), ("w/a.fits.fz", np.where(np.isfinite(image), 100, 0))):
        (tmp_path / name).parent.mkdir(parents=True)
        header = wcs.to_header() if name[0] == "m" else None
        unit = compressed(kind, pixels.astype(np.float32), header)
        fits.HDUList([fits.PrimaryHDU(), unit]).writeto(tmp_path / name)
    (tmp_path / "k").mkdir()
    mask = (rng.random(shape) < 0.1).astype(np.int16)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(mask)]).writeto(tmp_path / "k/a.fits.fz")
    found = opened(tmp_path, "m/g/a.fits.fz", weight="w/{tile}.fits.fz", mask="k/{tile}.fits.fz")
    plain = opened(tmp_path, "plain/g/a.fits")
    assert (found.hdu, found.shape, found.grid) == (1, plain.shape, plain.grid)
    pixels, weight, bad = box(found, (5, 80), (3, 100))
    part = (slice(5, 80), slice(3, 100))
    np.testing.assert_array_equal(pixels, fits.getdata(tmp_path / "m/g/a.fits.fz")[part])
    np.testing.assert_array_equal(weight, fits.getdata(tmp_path / "w/a.fits.fz")[part])
    np.testing.assert_array_equal(bad, mask[part] != 0)
    expected = box(plain, (5, 80), (3, 100))[0]
    if kind == "rice":  # a step of the quantisation is the noise over 16
        assert (pixels != expected).mean() > 0.5
        np.testing.assert_allclose(pixels, expected, atol=0.1 / 16 * 1.1)
    else:
        np.testing.assert_array_equal(pixels, expected)


def test_a_damaged_pixel_of_one_of_three_files_blames_that_one(tmp_path: Path) -> None:
    shape = (300, 200)
    values = np.random.default_rng(2).normal(size=shape).astype(np.float32)
    for name in ("m/g/a.fits.fz", "w/a.fits.fz"):
        (tmp_path / name).parent.mkdir(parents=True)
        header = wcs_at(150, 2, shape).to_header() if name[0] == "m" else None
        fits.HDUList([fits.PrimaryHDU(), compressed("gzip", values, header)]).writeto(tmp_path / name)
    found = opened(tmp_path, "m/g/a.fits.fz", weight="w/{tile}.fits.fz")
    data = bytearray((tmp_path / "m/g/a.fits.fz").read_bytes())
    place = data.rindex(b"\x1f\x8b")  # where the last compressed row begins
    data[place : place + 40] = bytes(40)
    (tmp_path / "m/g/a.fits.fz").write_bytes(data)
    with pytest.raises(BadInput, match=r"m/g/a\.fits\.fz cannot be read"):
        list(mosaic.stripes(found, (0, 300)))


def test_stripes_cover_the_rows_once_and_a_file_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shape = (64, 50)
    image = np.arange(3200, dtype=np.float32).reshape(shape)
    write(tmp_path / "m/g/a.fits", image, wcs_at(150, 2, shape))
    write(tmp_path / "w/a.fits", image + 1, None)
    found = opened(tmp_path, weight="w/{tile}.fits")
    opens: list[Path] = []
    real = fits.open
    monkeypatch.setattr(fits, "open", lambda path, **options: (opens.append(path), real(path, **options))[1])
    monkeypatch.setattr(mosaic, "STRIPE_PIXELS", 7 * 50 + 3)
    stripes = list(mosaic.stripes(found, (2, 61)))
    assert [s.first for s in stripes] == list(range(2, 61, 7)) and len(stripes[-1].image) == 3
    np.testing.assert_array_equal(np.concatenate([s.image for s in stripes]), image[2:61])
    np.testing.assert_array_equal(np.concatenate([s.weight for s in stripes if s.weight is not None]), image[2:61] + 1)
    assert sorted(opens) == sorted([found.path, found.weight])


def test_weight_and_mask_are_read_in_matching_units_and_must_match_in_shape(tmp_path: Path) -> None:
    shape = (40, 50)
    write(tmp_path / "m/g/a.fits", np.ones(shape, np.float32), wcs_at(150, 2, shape))
    write(tmp_path / "w/a.fits", np.full(shape, 4.0, np.float32), None)
    write(tmp_path / "k/a.fits", np.eye(40, 50, dtype=np.int16), None)
    beside = {"weight": "w/{tile}.fits", "mask": "k/{tile}.fits", "image_zero_point": 26.4}
    found = opened(tmp_path, **beside)
    image, weight, mask = box(found, (0, 40), (0, 50))
    assert weight is not None and mask is not None
    np.testing.assert_allclose(image[0, 0] ** 2 * weight[0, 0], 4.0, rtol=1e-5)  # S/N is free of units
    np.testing.assert_array_equal(mask, np.eye(40, 50, dtype=bool))
    write(tmp_path / "w/a.fits", np.ones((50, 40), np.float32), None)
    with pytest.raises(BadInput, match=r"w/a\.fits: the weight has shape \(50, 40\), its image a\.fits \(40, 50\)"):
        opened(tmp_path, **beside)
    (tmp_path / "w/a.fits").unlink()
    with pytest.raises(BadInput, match=r"w/a\.fits does not exist"):
        opened(tmp_path, **beside)


def test_pixel_positions_are_zero_based_with_x_along_columns(tmp_path: Path) -> None:
    shape = (40, 90)
    wcs = wcs_at(150, 2, shape, angle_deg=25)
    write(tmp_path / "m/g/a.fits", np.zeros(shape, np.float32), wcs)
    sky = wcs.all_pix2world([[0, 0], [70.25, 3.5], [89, 39]], 0)
    x, y = mosaic.pixel_positions(opened(tmp_path), sky[:, 0], sky[:, 1])
    np.testing.assert_allclose(np.c_[x, y], [[0, 0], [70.25, 3.5], [89, 39]], atol=1e-6)


def test_each_source_goes_to_the_tile_that_holds_it_deepest(tmp_path: Path) -> None:
    shape, overlap = (200, 300), 60
    step = (shape[1] - overlap) * SCALE / 3600  # tile b lies to the east
    write(tmp_path / "m/g/a.fits", np.zeros(shape, np.float32), wcs_at(10.0, 0.0, shape))
    write(tmp_path / "m/g/b.fits", np.zeros(shape, np.float32), wcs_at(10.0 + step, 0.0, shape))
    survey = survey_in(tmp_path, bands="g")
    tiles = [mosaic.open_tile(survey, name, paths) for name, paths in mosaic.find_tiles(survey).items()]
    middle = 10.0 + step / 2
    ra = np.array([10.0, 10.0 + step, middle - 10 * SCALE / 3600, middle + 10 * SCALE / 3600, 10.0, 190.0])
    dec = np.array([0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
    assert mosaic.assign(tiles, ra, dec).tolist() == [0, 1, 0, 1, -1, -1]


def test_a_tile_with_more_bands_wins_over_a_deeper_one(tmp_path: Path) -> None:
    shape = (200, 200)
    offset = 80 * SCALE / 3600
    write(tmp_path / "m/g/a.fits", np.zeros(shape, np.float32), wcs_at(10.0, 0.0, shape))
    for band in "gr":
        write(tmp_path / f"m/{band}/b.fits", np.zeros(shape, np.float32), wcs_at(10.0, offset, shape))
    survey = survey_in(tmp_path)
    tiles = [mosaic.open_tile(survey, name, paths) for name, paths in mosaic.find_tiles(survey).items()]
    assert tiles[0].mosaics[1] is None
    assert mosaic.assign(tiles, np.array([10.0, 10.0]), np.array([0.0, -0.5 * offset])).tolist() == [1, 0]


def test_pixel_noise_comes_from_weights_or_from_the_sky(tmp_path: Path) -> None:
    shape, rng = (600, 700), np.random.default_rng(3)
    sky = rng.normal(0.0, 0.02, shape).astype(np.float32)
    sky[:, :100] = 0  # uncovered
    sky[300:303, 300:303] = 50
    write(tmp_path / "m/g/a.fits", sky, wcs_at(150, 2, shape))
    np.testing.assert_allclose(mosaic.pixel_noise([opened(tmp_path)]), 0.02, rtol=0.02)
    weight = np.full(shape, 1 / 0.03**2, np.float32)
    weight[:300] = 0
    write(tmp_path / "w/a.fits", weight, None)
    np.testing.assert_allclose(mosaic.pixel_noise([opened(tmp_path, weight="w/{tile}.fits")]), 0.03, rtol=1e-5)
    write(tmp_path / "m/g/a.fits", np.full(shape, np.nan, np.float32), wcs_at(150, 2, shape))
    assert np.isnan(mosaic.pixel_noise([opened(tmp_path)]))


def test_pixel_noise_of_a_sky_that_is_mostly_one_value_is_that_of_the_rest(tmp_path: Path) -> None:
    shape, rng = (600, 700), np.random.default_rng(3)
    filled = rng.normal(0.0, 0.02, shape).astype(np.float32)
    filled[:, :450] = -99.0
    write(tmp_path / "m/g/a.fits", filled, wcs_at(150, 2, shape))
    np.testing.assert_allclose(mosaic.pixel_noise([opened(tmp_path)]), 0.02, rtol=0.03)
    counts = rng.choice(np.float32([0, 1, 2, 3]), shape, p=[0.6, 0.3, 0.08, 0.02])  # 2 and 3 beside 1: 0.4
    write(tmp_path / "m/g/b.fits", counts, wcs_at(150, 2, shape))
    np.testing.assert_allclose(mosaic.pixel_noise([opened(tmp_path, "m/g/b.fits")]), 0.4, rtol=0.03)


def test_a_mosaic_without_any_noise_does_not_count(tmp_path: Path) -> None:
    shape = (600, 700)
    write(tmp_path / "m/g/a.fits", np.full(shape, 3.0, np.float32), wcs_at(150, 2, shape))
    noisy = np.random.default_rng(3).normal(0.0, 0.02, shape).astype(np.float32)
    write(tmp_path / "m/g/b.fits", noisy, wcs_at(150, 2, shape))
    flat = opened(tmp_path)
    assert mosaic.pixel_noise([flat]) == 0
    np.testing.assert_allclose(mosaic.pixel_noise([flat, opened(tmp_path, "m/g/b.fits"), flat]), 0.02, rtol=0.02)
    write(tmp_path / "w/a.fits", np.full(shape, np.inf, np.float32), None)  # no weight at all
    assert np.isnan(mosaic.pixel_noise([opened(tmp_path, weight="w/{tile}.fits")]))

"""Uploaded cutouts: every accepted form gives the survey's own pixels; everything else is refused in words."""

from __future__ import annotations

import gzip
import tomllib
import zipfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import small_survey
import tomli_w
import torture
from astropy.io import fits
from astropy.table import Table

from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import Band, State
from redshelf.models.errors import BadInput, NotFound
from redshelf.service import formats, pictures, redshift, upload
from redshelf.service.shelf import OpenShelf, open_shelf

INFO = ShelfInfo(
    survey="s",
    bands=(Band("g", 480, noise_ujy=0.5), Band("r", 620, noise_ujy=2.0), Band("i", 770, noise_ujy=1.0)),
    cutout_px=8,
    pixel_scale_arcsec=0.5,
)
CUBE = np.random.default_rng(0).normal(0, 1, (3, 8, 8)).astype(np.float32) + 20  # detected in every band
NOISE = np.array([0.5, 2.0, 1.0], np.float32)[:, None, None]


@pytest.fixture(scope="module")
def dusty_shelf(tmp_path_factory: pytest.TempPathFactory) -> OpenShelf:
    """A shelf of sources behind different amounts of dust, with encoder and fit `vit`."""
    from redshelf.service.embedding import embed
    from redshelf.service.fit import fit
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish
    from redshelf.service.training import Run, pretrain

    folder = tmp_path_factory.mktemp("dusty")
    survey, root = small_survey.write(folder, sources=150), folder / "shelf"
    table = Table.read(folder / "catalogue.fits")
    table["EBV"] = np.linspace(0.1, 0.9, len(table))
    table.write(folder / "catalogue.fits", overwrite=True)
    document = tomllib.loads(survey.read_text())
    document["catalogue"]["ebv"] = "EBV"
    survey.write_text(tomli_w.dumps(document))
    ingest(survey, root)
    pretrain(root, name="vit", run=Run(steps=1))
    embed(root, encoder="vit")
    build_index(root, encoder="vit")
    fit(root, encoder="vit")
    publish(root)
    return open_shelf(root)


def fits_bytes(*images: tuple[str, np.ndarray], key: str = "BAND", **cards: object) -> bytes:
    hdus = [fits.PrimaryHDU()]
    for name, image in images:
        hdu = fits.ImageHDU(image)
        hdu.header[key] = name
        hdu.header.update(cards)
        hdus.append(hdu)
    stream = BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def npy_bytes(array: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz_bytes(**arrays: np.ndarray) -> bytes:
    stream = BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def in_noise(cube: np.ndarray) -> np.ndarray:
    return (cube / NOISE).astype(np.float16).astype(np.float32)


@pytest.mark.parametrize("key", ["BAND", "FILTER", "EXTNAME"])
def test_fits_with_an_hdu_a_band_is_read_in_the_surveys_order(key: str) -> None:
    blob = fits_bytes(("i", CUBE[2]), ("g", CUBE[0]), ("r", CUBE[1]), key=key)
    found = upload.read(blob, INFO)
    np.testing.assert_allclose(found.pixels, in_noise(CUBE), rtol=1e-3)
    assert found.bands_missing == ()
    assert found.state.tolist() == [State.MEASURED] * 3
    assert not found.mask.any()


def test_a_cube_an_npy_and_an_npz_are_the_same_cutout() -> None:
    stream = BytesIO()
    fits.PrimaryHDU(CUBE).writeto(stream)
    names = ("g", "r", "i")
    for blob, bands in (
        (stream.getvalue(), names),
        (npy_bytes(CUBE), names),
        (npy_bytes(np.asfortranarray(CUBE)), names),
        (npz_bytes(cutout=CUBE, bands=np.array(names)), None),
    ):
        np.testing.assert_allclose(upload.read(blob, INFO, bands=bands).pixels, in_noise(CUBE), rtol=1e-3)


def test_scaled_integers_and_blanks_are_undone() -> None:
    hdu = fits.ImageHDU(np.arange(64, dtype=np.int16).reshape(8, 8))
    hdu.header.update({"BAND": "i", "BSCALE": 2.0, "BZERO": 5.0, "BLANK": 3})
    stream = BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    blob = stream.getvalue()
    found = upload.read(blob, INFO, unit="noise")
    with fits.open(BytesIO(blob)) as opened:
        expected = opened[1].data
    np.testing.assert_allclose(found.pixels[2][~found.mask[2]], expected[np.isfinite(expected)], rtol=1e-3)
    assert np.array_equal(found.mask[2], ~np.isfinite(expected))


def test_a_larger_cutout_is_cut_so_that_its_centre_stays_the_centre() -> None:
    for shape in ((20, 31), (9, 8), (21, 21)):
        image = np.zeros(shape, np.float32)
        image[shape[0] // 2, shape[1] // 2] = 100
        found = upload.read(npy_bytes(image), INFO, bands=("i",), unit="noise")
        assert np.argwhere(found.pixels[2] == 100).tolist() == [[4, 4]]


def test_not_finite_is_masked_and_a_subset_of_bands_is_said() -> None:
    image = CUBE[2].copy()
    image[0, 0], image[0, 1] = np.nan, np.inf
    found = upload.read(npy_bytes(image), INFO, bands=("i",))
    assert found.mask[2].sum() == 2 and found.pixels[2][found.mask[2]].tolist() == [0, 0]
    assert found.bands_missing == ("g", "r")
    assert found.state.tolist() == [0, 0, State.MEASURED]
    assert found.mask[:2].all()


def test_a_bright_core_is_clipped_and_called_saturated() -> None:
    image = CUBE[2].copy()
    image[4, 4] = 1e30
    found = upload.read(npy_bytes(image), INFO, bands=("i",))
    assert found.state[2] == State.SATURATED
    assert 5.9e4 < found.pixels.max() <= 6e4


@pytest.mark.security
@pytest.mark.parametrize(
    ("blob", "bands", "words"),
    [
        (b"", None, "no image"),
        (b"GIF89a....", None, "no image"),
        (b"\x1f\x8b\x08 and so on", None, "not a valid .gz"),
        (gzip.compress(fits_bytes(("g", CUBE[0])))[:-50], None, "the .gz is truncated"),
        (gzip.compress(npy_bytes(CUBE)), ("g", "r", "i"), "gzip-compressed and no FITS"),
        (npy_bytes(CUBE), None, "needs its band names"),
        (npy_bytes(CUBE), ("g", "r"), "expected \\(2, H, W\\)"),
        (npy_bytes(CUBE), ("g", "r", "K"), "band 'K' is not in survey s; known: g, i, r"),
        (npy_bytes(CUBE), ("g", "r", "g"), "stands twice"),
        (npy_bytes(CUBE[:, :7]), ("g", "r", "i"), "8 x 7 pixels: expected at least 8 x 8"),
        (npy_bytes(np.full((8, 8), np.nan)), ("i",), "finite pixels"),
        (npy_bytes(np.array(["x"])), ("i",), "expected numbers"),
        (npy_bytes(CUBE.astype(complex)), ("g", "r", "i"), "expected numbers"),
        (npy_bytes(CUBE)[:-5], ("g", "r", "i"), "damaged"),
        (npy_bytes(CUBE)[:20], ("g", "r", "i"), "not a valid .npy"),
        (npz_bytes(a=CUBE, b=CUBE, bands=np.array(["g"])), None, "expected one array"),
        (npz_bytes(bands=np.array(["g"])), None, "holds nothing"),
        (npz_bytes(a=CUBE)[:-30], ("g", "r", "i"), "not a valid .npz"),
        (fits_bytes(("g", CUBE[0]), ("K", CUBE[1])), None, "band 'K' is not in survey s"),
        (fits_bytes(("g", CUBE[0]))[:-2880], None, "truncated"),
        (fits_bytes(("g", CUBE[0]))[:300], None, "no END card"),
        (fits_bytes(), None, "holds no image"),
        (fits_bytes(("g", CUBE[0]), ("r", np.zeros((9, 9)))), None, "all alike"),
        (fits_bytes(("g", CUBE[0]), BUNIT="nJy"), None, "BUNIT='nJy'"),
        (fits_bytes(("g", CUBE)), None, "needs its band names"),
    ],
)
def test_what_is_no_cutout_is_refused_in_words(blob: bytes, bands: tuple[str, ...] | None, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        upload.read(blob, INFO, bands=bands)


def test_header_values_are_read_as_astropy_reads_them() -> None:
    values = {"A": "it's / so", "B": -3, "C": 1.5e-7, "D": True, "E": "", "F": 12345678901}
    header = fits.Header([(key, value, "a comment / with 'quotes'") for key, value in values.items()])
    lines = [str(card) for card in header.cards]
    found = {line[:8].strip(): formats.value(line[10:]) for line in lines}
    assert found == {**values, "D": "T"}
    assert formats.value("  1.0D3 / x") == 1000.0


@pytest.mark.security
def test_nothing_is_unpickled() -> None:
    stream = BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match="expected numbers"):
        upload.read(stream.getvalue(), INFO, bands=("g",))


@pytest.mark.security
def test_a_small_file_cannot_ask_for_much_memory() -> None:
    header = fits.Header([("XTENSION", "IMAGE"), ("BITPIX", -64), ("NAXIS", 2), ("NAXIS1", 60000), ("NAXIS2", 60000)])
    bomb = fits_bytes() + header.tostring().encode()
    with pytest.raises(BadInput, match="truncated"):
        upload.read(bomb, INFO)
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", bytes(formats.MAX_UNPACKED_BYTES + 1))
    assert len(stream.getvalue()) < 1 << 20
    with pytest.raises(BadInput, match="unpacks to more"):
        upload.read(stream.getvalue(), INFO)
    with zipfile.ZipFile(stream := BytesIO(), "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("a.npy", npy_bytes(CUBE))
    with pytest.raises(BadInput, match="stored or deflated"):
        upload.read(stream.getvalue(), INFO)
    start = npy_bytes(CUBE)
    huge = start.replace(b"(3, 8, 8)", b"(9, 9999999, 9)", 1).replace(b" " * 6 + b"\n", b"\n", 1)
    with pytest.raises(BadInput):
        upload.read(huge, INFO, bands=("g",))


def test_gzipped_fits_is_the_fits_in_it() -> None:
    blob = fits_bytes(("g", CUBE[0]), ("r", CUBE[1]), ("i", CUBE[2]))
    half = len(blob) // 2
    for packed in (gzip.compress(blob), gzip.compress(blob[:half]) + gzip.compress(blob[half:]) + b"\0" * 100):
        np.testing.assert_array_equal(upload.read(packed, INFO).pixels, upload.read(blob, INFO).pixels)


@pytest.mark.parametrize(
    ("kind", "image", "loss"),
    [
        ("GZIP_1", CUBE[0], 0.0), ("GZIP_2", CUBE[0], 0.0), ("RICE_1", CUBE[0], 0.1), ("HCOMPRESS_1", CUBE[0], 0.1),
        ("RICE_1", np.arange(64, dtype=np.int16).reshape(8, 8), 0.0),
        ("PLIO_1", np.arange(64, dtype=np.int16).reshape(8, 8), 0.0),
        ("NOCOMPRESS", np.arange(64, dtype=np.int32).reshape(8, 8), 0.0),
    ],
)  # fmt: skip
def test_an_image_that_is_compressed_by_tiles_is_the_image_in_it(kind: str, image: np.ndarray, loss: float) -> None:
    lossless = {"quantize_level": 0.0} if kind.startswith("GZIP") else {}
    tile = {"tile_shape": (8, 8)} if kind.startswith("HCOMPRESS") else {}
    packed = fits.CompImageHDU(image, name="i", compression_type=kind, **lossless, **tile)
    stream = BytesIO()
    fits.HDUList([fits.PrimaryHDU(), packed, fits.ImageHDU(CUBE[1], name="r")]).writeto(stream)
    found = upload.read(stream.getvalue(), INFO, unit="noise")
    np.testing.assert_allclose(found.pixels[2], image, atol=loss, rtol=1e-3)
    np.testing.assert_allclose(found.pixels[1], CUBE[1], rtol=1e-3)
    assert found.bands_missing == ("g",)


@pytest.mark.security
def test_damaged_bytes_are_refused_and_never_crash() -> None:
    rng = np.random.default_rng(0)
    whole = [
        (fits_bytes(("g", CUBE[0]), ("r", CUBE[1])), None),
        (npy_bytes(CUBE), ("g", "r", "i")),
        (npz_bytes(cutout=CUBE, bands=np.array(["g", "r", "i"])), None),
    ]
    for blob, bands in whole:
        for _ in range(torture.count(150, 20_000)):
            damaged = bytearray(blob)
            for at in rng.integers(0, len(blob), rng.integers(1, 20)):
                damaged[at] = rng.integers(256)
            try:
                found = upload.read(bytes(damaged), INFO, bands=bands)
            except BadInput:
                continue
            assert np.isfinite(found.pixels).all()


def test_a_survey_without_images_cannot_be_searched_with_a_cutout() -> None:
    with pytest.raises(BadInput, match="has no images"):
        upload.read(npy_bytes(CUBE), ShelfInfo(survey="s", bands=INFO.bands), bands=("g", "r", "i"))


def test_the_exported_cutout_of_a_source_finds_the_source_itself(shelf: OpenShelf) -> None:
    row = shelf.row("s0011")
    cutout = upload.read(pictures.fits(shelf, row), shelf.info)
    pixels, mask, state = shelf.cutout(row)
    np.testing.assert_allclose(cutout.pixels, pixels, rtol=2e-3, atol=1e-3)
    assert np.array_equal(cutout.mask, mask) and np.array_equal(cutout.state, state)
    encoder = upload.pixel_encoder(shelf, None)
    vector = upload.embed(shelf, encoder, cutout)
    _, rows = encoder.index.search(vector[None], 1)
    assert rows[0, 0] == row


@pytest.mark.parametrize("name", ["shelf", "dusty_shelf"])
@pytest.mark.parametrize("source_id", ["s0014", "s0124"])  # not labelled: a label is no neighbour of its own source
def test_an_exported_cutout_has_the_vector_and_the_redshift_of_its_source(
    name: str, source_id: str, request: pytest.FixtureRequest
) -> None:
    shelf: OpenShelf = request.getfixturevalue(name)
    row, encoder = shelf.row(source_id), shelf.encoder("vit")
    vector = upload.embed(shelf, encoder, upload.read(pictures.fits(shelf, row), shelf.info))
    # bfloat16 rounds a batch of one and a batch of many in another order
    np.testing.assert_allclose(vector, encoder.vectors(np.array([row]))[0], rtol=0, atol=0.02)
    found = redshift.redshift_of_vector(shelf, vector, encoder="vit", estimator="knn")
    expected = redshift.redshifts(shelf, [source_id], encoder="vit", estimator="knn")[0]
    assert found.z_median == pytest.approx(expected.z_median, abs=5e-3)


def test_reddening_is_what_was_given_else_the_headers_else_the_median_of_the_shelf(dusty_shelf: OpenShelf) -> None:
    shelf, encoder = dusty_shelf, dusty_shelf.encoder("vit")
    images = tuple(zip(shelf.info.band_names, shelf.cutout(0)[0], strict=True))
    with_card, without = fits_bytes(*images, EBV=0.25), fits_bytes(*images)
    assert upload.read(with_card, shelf.info, ebv=0.0).ebv == 0
    assert upload.read(with_card, shelf.info).ebv == 0.25
    cutout = upload.read(without, shelf.info)
    assert cutout.ebv is None
    vectors = {e: upload.embed(shelf, encoder, replace(cutout, ebv=e)) for e in (None, 0.5, 0.9)}
    assert np.median(shelf.columns["ebv"]) == pytest.approx(0.5)
    np.testing.assert_allclose(vectors[None], vectors[0.5], rtol=1e-4, atol=1e-5)
    assert np.abs(vectors[0.9] - vectors[0.5]).max() > 0.01


@pytest.mark.parametrize("ebv", [-0.1, 10.1, float("nan"), float("inf")])
def test_reddening_out_of_range_is_refused(ebv: float) -> None:
    with pytest.raises(BadInput, match=r"ebv=.*: expected 0 to 10 mag"):
        upload.read(npy_bytes(CUBE), INFO, bands=("g", "r", "i"), ebv=ebv)


@pytest.mark.parametrize("card", ["much", -1.0, True])
def test_a_header_whose_reddening_is_no_such_number_is_refused(card: object) -> None:
    with pytest.raises(BadInput, match=r"ebv=.*: expected 0 to 10 mag"):
        upload.read(fits_bytes(("g", CUBE[0]), EBV=card), INFO)


@pytest.mark.parametrize("unit", ["uJy", "noise"])
def test_a_band_without_images_is_refused_in_every_unit(unit: Literal["uJy", "noise"]) -> None:
    info = replace(INFO, bands=(*INFO.bands, Band("K", 2150)))
    with pytest.raises(BadInput, match="band 'K' has no images in survey s"):
        upload.read(npy_bytes(CUBE[0]), info, bands=("K",), unit=unit)


def test_a_redshift_by_fluxes_is_refused_and_why(shelf: OpenShelf) -> None:
    for name in ("photometry",):
        with pytest.raises(BadInput, match=r"needs fluxes, .* another photometric system, which biases redshifts"):
            upload.pixel_encoder(shelf, name)


def test_the_first_encoder_on_pixels_alone_embeds_uploads(shelf: OpenShelf) -> None:
    assert upload.pixel_encoder(shelf, None).name == "vit"
    with pytest.raises(BadInput, match=r"encoder 'photometry' needs fluxes.*vit"):
        upload.pixel_encoder(shelf, "photometry")
    with pytest.raises(NotFound, match="no encoder 'dino'"):
        upload.pixel_encoder(shelf, "dino")


def test_a_shelf_without_a_pixel_encoder_says_so(bare_shelf: Path) -> None:
    with pytest.raises(BadInput, match="no encoder here works on pixels alone"):
        upload.pixel_encoder(open_shelf(bare_shelf), None)

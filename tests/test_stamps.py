"""Stamp archives: the shelf of a survey's mosaics again, from stamps cut of them, and everything wrong in one."""

import gzip
import hashlib
import json
import os
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pytest
import tomli_w
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from shelves import assert_same_rows, columns_of, cut_parts, kill_ingest

from redshelf.indexing import archives, arrays, cutouts, mosaic, stamps, store
from redshelf.indexing import survey as surveys
from redshelf.indexing.files import sha256
from redshelf.indexing.layout import Layout
from redshelf.indexing.origin import sampled_sha256
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.ingest import IngestReport, ingest

SCALE, SHAPE, CUTOUT = 0.2, (90, 130), 16
BANDS, TILES, SOURCES, LOST = ("g", "r", "z"), ("t0", "t1"), 40, 2
NOISE = [0.1, 0.2, 0.3]
Values = npt.NDArray[Any]
Arrays = dict[str, Values]


def tile_wcs(tile: str) -> WCS:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [150.0 + 0.01 * int(tile[1]), 2.0]
    wcs.wcs.crpix = [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2]
    wcs.wcs.cd = np.array([[-SCALE, 0], [0, SCALE]]) / 3600
    return wcs


def write_mosaics(folder: Path) -> Path:
    """Two tiles in g, r (of another zero point) and z (only t0); NaN, bad weights, masks, a saturated source, edges."""
    rng = np.random.default_rng(3)
    xy = np.round(rng.uniform(1, [SHAPE[1] - 2, SHAPE[0] - 2], (SOURCES - LOST, 2))) + rng.uniform(-0.4, 0.4)
    tiles = [TILES[n % 2] for n in range(SOURCES - LOST)]
    sky = [tile_wcs(tile).all_pix2world([at], 0)[0] for tile, at in zip(tiles, xy, strict=True)]
    for b, band in enumerate(BANDS):
        for tile in TILES[: 1 if band == "z" else 2]:
            image = rng.normal(0, NOISE[b], SHAPE).astype(np.float32)
            for x, y in np.rint(xy[::3]).astype(int):
                image[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] += 3
            image[tuple(np.rint(xy[1, ::-1]).astype(int))] = 50
            image[tuple(np.rint(xy[5, ::-1]).astype(int))] = 20  # in r 73 uJy, of 145 that are saturated
            image[rng.uniform(size=SHAPE) < 0.02] = np.nan
            weight = np.where(rng.uniform(size=SHAPE) < 0.02, 0, rng.uniform(50, 150, SHAPE)).astype(np.float32)
            mask = (rng.uniform(size=SHAPE) < 0.02).astype(np.uint8)
            for what, pixels in {"image": image, "weight": weight, "mask": mask}.items():
                path = folder / what / band / f"{tile}.fits"
                path.parent.mkdir(parents=True, exist_ok=True)
                fits.PrimaryHDU(pixels, tile_wcs(tile).to_header()).writeto(path)
    ra_dec = np.array([*sky, *[[10.0, -40.0]] * LOST])
    table = Table({"id": [f"s{n}" for n in range(SOURCES)], "ra": ra_dec[:, 0], "dec": ra_dec[:, 1]})
    table.write(folder / "catalogue.fits")
    document = {
        "survey": {"name": "toy", "pixel_scale_arcsec": SCALE, "cutout_px": CUTOUT},
        "catalogue": {"path": "catalogue.fits", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [
            {"name": b, "wavelength_nm": 500, "saturation": 40.0, "image_zero_point": 22.5 if b == "r" else 23.9}
            | {what: f"{what}/{{band}}/{{tile}}.fits" for what in ("image", "weight", "mask")}
            for b in BANDS
        ],
    }
    (folder / "mosaics.toml").write_text(tomli_w.dumps(document))
    return folder / "mosaics.toml"


def cut_stamps(folder: Path, rows: dict[str, Values], size: int) -> dict[str, Arrays]:
    """{tile: arrays (N, bands, size, size) and ids, in no order}, cut by plain slices of mosaics in frames of NaN."""
    found: dict[str, Arrays] = {}
    rng = np.random.default_rng(8)
    for tile in TILES:
        here = rng.permutation(np.flatnonzero(rows["tile"] == tile))
        sky = np.stack([rows["ra_deg"][here], rows["dec_deg"][here]], axis=1)
        corners = np.rint(tile_wcs(tile).all_world2pix(sky, 0)).astype(int) - size // 2 + 50
        made: Arrays = {"ids": rows["source_id"][here].astype(str)}
        for what, fill, dtype in (("image", np.nan, "f4"), ("weight", 0, "f4"), ("mask", 0, "u1")):
            planes = []
            for band in BANDS:
                path = folder / what / band / f"{tile}.fits"
                pixels = fits.getdata(path) if path.exists() else np.full(SHAPE, fill, dtype)
                framed = np.pad(pixels, 50, constant_values=fill)
                planes.append(np.stack([framed[y : y + size, x : x + size] for x, y in corners]))
            made[what] = np.stack(planes, axis=1).astype(dtype)
        found[tile] = made
    return found


def write_archive(path: Path, made: Arrays, *, axes: str = "nchw", packed: bool = False) -> Path:
    """The arrays of one tile as a file of its ending's format, images along `axes`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {
        n: np.ascontiguousarray(np.moveaxis(v, 1, 3)) if axes == "nhwc" and v.ndim == 4 else v for n, v in made.items()
    }
    if path.suffix == ".npz":
        (np.savez_compressed if packed else np.savez)(path, **made)  # type: ignore[operator]
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            for name, values in made.items():
                text = values.dtype.kind == "U"
                values = values.astype(object if packed else bytes) if text else values
                file.create_dataset(name, data=values, compression="gzip" if packed and not text else None)
    else:
        units = [
            (
                fits.CompImageHDU(v, name=n, compression_type="GZIP_2", quantize_level=0)
                if packed
                else fits.ImageHDU(v, name=n)
            )
            for n, v in made.items()
            if v.ndim > 1
        ]
        ids = fits.BinTableHDU(Table({"ids": made["ids"]}))
        fits.HDUList([fits.PrimaryHDU(), *units, ids]).writeto(path)
    return path


def write_survey(folder: Path, mosaics: Path, *, name: str = "stamps.toml", **section: Any) -> Path:
    """The survey file of the mosaics with [stamps] instead of its images."""
    document = tomllib.loads(mosaics.read_text())
    document["catalogue"]["path"] = str(mosaics.parent / "catalogue.fits")
    for band in document["bands"]:
        for what in ("image", "weight", "mask"):
            del band[what]
    given: dict[str, Any] = {"path": "{tile}.npz", "array": "image", "ids": "ids", "axes": "nchw", "bands": list(BANDS)}
    given |= {"weight": "weight", "mask": "mask"} | section
    document["stamps"] = {key: value for key, value in given.items() if value is not None}
    (folder / name).write_text(tomli_w.dumps(document))
    return folder / name


def pixels_of(shelf: Path) -> tuple[Values, Values, Values]:
    """Pixels, bad and state by increasing id."""
    rows = np.argsort(columns_of(Layout(shelf).sources)["source_id"])
    table = store.open_table(Layout(shelf).cutouts).to_table()
    pixels, bad, state = store.unpack_cutouts(table, len(BANDS), CUTOUT)
    return pixels[rows], bad[rows], state[rows]


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same noise for mosaics and stamps: it is measured on other pixels of the two."""
    monkeypatch.setattr(stamps, "noise", lambda survey, archives: NOISE)


@pytest.fixture(scope="module")
def mosaics(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mosaics(tmp_path_factory.mktemp("mosaics"))


@pytest.fixture(scope="module")
def ingested(mosaics: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The shelf of the mosaics."""
    shelf, given = tmp_path_factory.mktemp("shelf") / "s", iter(NOISE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mosaic, "pixel_noise", lambda images: next(given))
        ingest(mosaics, shelf, part_rows=8)
    yield shelf


@pytest.fixture(scope="module")
def cut(mosaics: Path, ingested: Path) -> dict[str, Arrays]:
    """Stamps of 20 pixels: the cutout and a rim of 2."""
    return cut_stamps(mosaics.parent, columns_of(Layout(ingested).sources), 20)


@pytest.fixture
def npz(cut: dict[str, Arrays], mosaics: Path, tmp_path: Path) -> Path:
    """A survey file with npz archives beside it."""
    for tile in TILES:
        write_archive(tmp_path / f"{tile}.npz", cut[tile])
    return write_survey(tmp_path, mosaics)


def only(folder: Path, mosaics: Path, made: Arrays, **section: Any) -> IngestReport:
    """Ingest one npz of these arrays."""
    write_archive(folder / "t0.npz", made)
    return ingest(write_survey(folder, mosaics, **section), folder / "s")


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
@pytest.mark.parametrize("axes", ["nchw", "nhwc"])
@pytest.mark.parametrize("ending", [".npz", ".h5", ".fits"])
@pytest.mark.usefixtures("fixed_noise")
def test_stamps_cut_from_mosaics_give_the_shelf_of_the_mosaics(
    mosaics: Path, ingested: Path, cut: dict[str, Arrays], tmp_path: Path, ending: str, axes: str, packed: bool
) -> None:
    for tile in TILES:
        write_archive(tmp_path / f"{tile}{ending}", cut[tile], axes=axes, packed=packed)
    survey = write_survey(tmp_path, mosaics, path=f"*{ending}", axes=axes)
    report = ingest(survey, tmp_path / "s", part_rows=8)
    assert_same_rows(tmp_path / "s", ingested)
    assert (report.tiles, report.sources_on_no_tile, report.stamps_of_no_source) == (2, LOST, 0)
    states = pixels_of(tmp_path / "s")[2]
    assert set(states.ravel().tolist()) == set(State) and (states[:, 2] == State.NOT_OBSERVED).any()


@pytest.mark.parametrize("size", [CUTOUT, 11, 12])
@pytest.mark.usefixtures("fixed_noise")
def test_smaller_stamps_are_padded_as_bad_around_the_same_centre(
    mosaics: Path, ingested: Path, tmp_path: Path, size: int
) -> None:
    for tile, made in cut_stamps(mosaics.parent, columns_of(Layout(ingested).sources), size).items():
        write_archive(tmp_path / f"{tile}.npz", made)
    ingest(write_survey(tmp_path, mosaics), tmp_path / "s")
    (pixels, bad, _), (whole, wholly_bad, _) = pixels_of(tmp_path / "s"), pixels_of(ingested)
    rim = np.ones((CUTOUT, CUTOUT), dtype=bool)
    first = CUTOUT // 2 - size // 2
    rim[first : first + size, first : first + size] = False
    np.testing.assert_array_equal(bad, wholly_bad | rim)
    np.testing.assert_array_equal(pixels, np.where(rim, np.float16(0), whole))


@pytest.mark.usefixtures("fixed_noise")
def test_strips_of_a_large_archive_give_each_source_the_same_cutout_and_read_it_once(
    npz: Path, ingested: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutouts, "HELD_BYTES", 5 * 3 * len(BANDS) * CUTOUT**2)
    monkeypatch.setattr(archives, "PIECE_BYTES", 1)
    read: list[tuple[str, int]] = []
    real = archives.OpenArchive.read

    def counting(self: archives.OpenArchive, first: int, past: int, size: int | None = None) -> list[archives.Piece]:
        read.extend((self.image.name, row) for row in range(first, past))
        return real(self, first, past, size)

    monkeypatch.setattr(archives.OpenArchive, "read", counting)
    ingest(npz, tmp_path / "s", part_rows=8)
    assert len(read) == SOURCES - LOST
    for found, expected in zip(pixels_of(tmp_path / "s"), pixels_of(ingested), strict=True):
        np.testing.assert_array_equal(found, expected)
    order = [columns_of(Layout(shelf).sources)["source_id"].tolist() for shelf in (tmp_path / "s", ingested)]
    assert order[0] != order[1] and set(order[0]) == set(order[1])


@pytest.mark.parametrize("done", [0, 4])
def test_a_killed_ingest_of_stamps_resumes_to_the_same_shelf(npz: Path, tmp_path: Path, done: int) -> None:
    shelf = tmp_path / "s"
    kill_ingest(npz, shelf, done=done)
    assert len(cut_parts(shelf)) == done
    assert ingest(npz, shelf, part_rows=8).stamps_of_no_source == 0
    ingest(npz, tmp_path / "whole", part_rows=8)
    assert_same_rows(shelf, tmp_path / "whole")


def test_changed_stamps_are_another_shelf(npz: Path, cut: dict[str, Arrays], tmp_path: Path) -> None:
    ingest(npz, tmp_path / "s")
    assert ingest(npz, tmp_path / "s").stamps_of_no_source is None
    write_archive(npz.parent / "t1.npz", cut["t1"] | {"image": cut["t1"]["image"] * 2})
    with pytest.raises(Conflict, match="set of images"):
        ingest(npz, tmp_path / "s")


def test_noise_is_measured_on_the_borders_of_the_stamps(mosaics: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(0, np.array(NOISE)[:, None, None], (SOURCES, 3, 32, 32)).astype(np.float32)
    images[:, :, 8:-8, 8:-8] += 100
    images[::5, :, :, :2] = 0  # uncovered
    made = {"image": images, "ids": np.array([f"s{n}" for n in range(SOURCES)]), "weight": np.ones_like(images)}
    only(tmp_path, mosaics, made, weight=None, mask=None, bands=["z", "g", "r"])
    found = {band.name: band.noise_ujy for band in Layout(tmp_path / "s").read_info().bands}
    expected = {"z": NOISE[0], "g": NOISE[1], "r": NOISE[2] * 10 ** (0.4 * (23.9 - 22.5))}
    assert found == {name: pytest.approx(value, rel=0.03) for name, value in expected.items()}
    weights = (1 / np.array(NOISE)[:, None, None] ** 2 * np.ones_like(images)).astype(np.float32)
    (tmp_path / "w").mkdir()
    only(tmp_path / "w", mosaics, made | {"weight": weights}, mask=None)
    found = {band.name: band.noise_ujy for band in Layout(tmp_path / "w" / "s").read_info().bands}
    assert found["g"] == pytest.approx(NOISE[0], rel=1e-6) and found["z"] == pytest.approx(NOISE[2], rel=1e-6)


def test_a_band_without_stamps_is_not_observed_and_its_noise_unknown(
    mosaics: Path, cut: dict[str, Arrays], tmp_path: Path
) -> None:
    made = {n: v if n == "ids" else v[:, 0] for n, v in cut["t0"].items()}
    path = write_survey(tmp_path, mosaics, axes="nhw", bands=["g"])
    document = tomllib.loads(path.read_text())
    document["bands"] = [b | {"magnitude": "ra", "default_error": 0.1} for b in document["bands"]]
    path.write_text(tomli_w.dumps(document))
    np.savez(tmp_path / "t0.npz", **made)
    report = ingest(path, tmp_path / "s")
    pixels, bad, state = pixels_of(tmp_path / "s")
    assert bad[:, 1:].all() and not pixels[:, 1:].any() and not state[:, 1:].any() and state[:, 0].any()
    assert report.sources_on_no_tile == SOURCES - len(made["ids"])
    assert np.isnan([band.noise_ujy for band in Layout(tmp_path / "s").read_info().bands]).tolist() == [
        False,
        True,
        True,
    ]


def test_a_mask_for_all_bands_and_units_of_the_archive_are_taken(
    mosaics: Path, cut: dict[str, Arrays], tmp_path: Path
) -> None:
    made = cut["t0"] | {"mask": cut["t0"]["mask"].any(axis=1)}
    path = write_survey(tmp_path, mosaics, unit="nJy")
    document = tomllib.loads(path.read_text())
    for band in document["bands"]:
        del band["image_zero_point"]
    path.write_text(tomli_w.dumps(document))
    np.savez(tmp_path / "t0.npz", **made)
    ingest(path, tmp_path / "s")
    pixels, bad, _ = pixels_of(tmp_path / "s")
    ids = np.sort(columns_of(Layout(tmp_path / "s").sources)["source_id"])
    at, noise = np.searchsorted(ids, made["ids"]), Layout(tmp_path / "s").read_info().bands[0].noise_ujy
    masked = made["mask"][:, 2:-2, 2:-2] != 0
    good = ~(masked | np.isnan(made["image"][:, 0, 2:-2, 2:-2]) | (made["weight"][:, 0, 2:-2, 2:-2] == 0))
    np.testing.assert_array_equal(bad[at, 0], ~good)
    expected = np.where(good, made["image"][:, 0, 2:-2, 2:-2] * 1e-3 / noise, 0)
    np.testing.assert_allclose(pixels[at, 0], expected, rtol=1e-3, atol=1e-6)


def test_ids_that_are_not_in_the_catalogue_are_counted(mosaics: Path, cut: dict[str, Arrays], tmp_path: Path) -> None:
    ids = cut["t0"]["ids"].astype("U20")
    ids[:3] = ["elsewhere-1", "elsewhere-2", "elsewhere-3"]
    report = only(tmp_path, mosaics, cut["t0"] | {"ids": ids})
    assert report.stamps_of_no_source == 3 and report.sources_on_no_tile == SOURCES - len(ids) + 3
    rows = columns_of(Layout(tmp_path / "s").sources)
    without = ~np.isin(rows["source_id"].astype(str), ids)
    assert (rows["flags"][without] == store.FLAG_NO_TILE).all() and (rows["tile"][without] == "").all()
    assert (rows["tile"][~without] == "t0").all() and not rows["flags"][~without].any()
    table = store.open_table(Layout(tmp_path / "s").cutouts).to_table()
    pixels, bad, state = store.unpack_cutouts(table, len(BANDS), CUTOUT)
    assert not pixels[without].any() and bad[without].all() and not state[without].any()


@pytest.mark.parametrize("cuts", [[], [{"column": "ra", "operator": ">", "value": 100}]])
def test_without_ids_stamps_are_in_the_catalogues_order_of_rows(mosaics: Path, tmp_path: Path, cuts: list[Any]) -> None:
    rng = np.random.default_rng(2)
    images = rng.normal(0, 0.1, (SOURCES, 3, 16, 16)).astype(np.float32)
    images[:, :, 8, 8] = np.arange(SOURCES)[:, None] + 1
    table = Table.read(mosaics.parent / "catalogue.fits")[::-1]
    table.write(tmp_path / "catalogue.fits")
    path = write_survey(tmp_path, mosaics, ids=None, weight=None, mask=None)
    document = tomllib.loads(path.read_text())
    document["catalogue"] |= {"path": "catalogue.fits", "cuts": cuts}
    path.write_text(tomli_w.dumps(document))
    np.savez(tmp_path / "t0.npz", image=images)
    report = ingest(path, tmp_path / "s")
    assert report.stamps_of_no_source == (LOST if cuts else 0) and report.sources_on_no_tile == 0
    rows, noise = columns_of(Layout(tmp_path / "s").sources), Layout(tmp_path / "s").read_info().bands[0].noise_ujy
    centre = store.list_values(store.open_table(Layout(tmp_path / "s").cutouts).to_table()["pixels"])
    place = {name: n for n, name in enumerate(table["id"])}
    expected = [place[name] + 1 for name in rows["source_id"]]
    np.testing.assert_allclose(centre.reshape(-1, 3, 16, 16)[:, 0, 8, 8] * noise, expected, rtol=1e-3)
    np.savez(tmp_path / "t0.npz", image=images[:-1])
    with pytest.raises(BadInput, match=r"39 stamps in t0\.npz.* 40 rows of catalogue\.fits: without stamps\.ids"):
        ingest(path, tmp_path / "other")


def test_an_id_twice_is_named_with_its_files(npz: Path, cut: dict[str, Arrays], tmp_path: Path) -> None:
    ids = cut["t1"]["ids"].copy()
    ids[0] = cut["t0"]["ids"][0]
    write_archive(npz.parent / "t1.npz", cut["t1"] | {"ids": ids})
    with pytest.raises(BadInput, match=rf"the id '{ids[0]}' stands more than once, in t0\.npz and t1\.npz"):
        ingest(npz, tmp_path / "s")
    write_archive(npz.parent / "t1.npz", cut["t1"] | {"ids": np.where(np.arange(len(ids)) < 2, "s1", ids)})
    with pytest.raises(BadInput, match=r"the id 's1' stands more than once, in t1\.npz"):
        ingest(npz, tmp_path / "s")
    assert not (tmp_path / "s" / "shelf.toml").exists()


def wrong(**arrays: Any) -> Any:
    """Arrays that replace those of a good archive; a function makes one of the one that was there."""

    def change(made: Arrays) -> Arrays:
        return made | {n: value(made.get(n)) if callable(value) else value for n, value in arrays.items()}

    return change


@pytest.mark.parametrize(
    ("change", "section", "says"),
    [
        (wrong(image=lambda v: v[:, 0]), {}, r"image has 3 axes, its shape is \(19, 20, 20\): expected 4"),
        (wrong(image=lambda v: v[:, :2]), {}, r"that is 2 bands along the axis c of 'nchw': expected 3, g, r, z"),
        (wrong(image=lambda v: v.astype(object)), {}, "image holds Python objects"),
        (wrong(image=lambda v: v.astype(complex)), {}, "image is of type complex128: expected real numbers"),
        (wrong(image=lambda v: np.isnan(v)), {}, "image is of type bool: expected fluxes"),
        (wrong(image=lambda v: v[:0]), {}, "it holds no stamps"),
        (wrong(image=np.asfortranarray), {}, "image is in Fortran order"),
        (wrong(image=lambda v: np.ones_like(v), weight=0), {"weight": None}, "so that their noise is 0"),
        (wrong(ids=lambda v: v.astype(object)), {}, "ids is of type object"),
        (wrong(ids=lambda v: v[:-1]), {}, "18 ids in ids for 19 stamps"),
        (wrong(ids=lambda v: np.char.add(v, "!")), {}, r"t0\.npz: .*does not match"),
        (wrong(ids=lambda v: np.char.add(v, "x")), {}, r"none of the 19 ids in 1 files is in catalogue\.fits"),
        (wrong(weight=lambda v: v[:, :1]), {}, r"the weight weight has shape \(19, 1, 20, 20\), the stamps"),
        (wrong(mask=lambda v: v[:-1, 0]), {}, "the mask mask has shape"),
        (wrong(), {"array": "imgae"}, "has no array 'imgae'; nearest: image"),
        (wrong(), {"path": "{tile}.h5"}, r"stamps: no file matches '\{tile\}\.h5'"),
        (wrong(), {"path": "t0.npz", "format": "hdf5"}, r"t0\.npz cannot be read as an HDF5 file"),
        (wrong(), {"path": "t0.npz", "format": "fits"}, r"t0\.npz cannot be read as a FITS image"),
        (wrong(), {"path": "stamps.*"}, r"its ending names no format: expected one of \.npz"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_an_archive_is_named(
    mosaics: Path, cut: dict[str, Arrays], tmp_path: Path, change: Any, section: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        only(tmp_path, mosaics, change(cut["t0"]), **section)
    assert not (tmp_path / "s" / "shelf.toml").exists()


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"bnads": ["g"]}, r"unknown key 'stamps\.bnads'; nearest: .*bands"),
        ({"bands": ["g", "r", "y"]}, "stamps.bands: 'y' is no band of the survey"),
        ({"bands": ["g", "r", "r"]}, "stamps.bands: 'r' stands twice"),
        ({"bands": ["g", "r"]}, "band z: has neither flux, magnitude nor image, nor stamps"),
        ({"unit": "uJy", "zero_point": 25.0}, "give unit or zero_point, not both"),
        ({"axes": "nhw"}, "axes = 'nhw' holds one band, not 3"),
        ({"axes": "chw"}, r"stamps\.axes='chw'"),
    ],
)
def test_a_wrong_section_of_stamps_is_refused_by_its_key(
    mosaics: Path, tmp_path: Path, section: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadInput, match=says):
        surveys.load(write_survey(tmp_path, mosaics, **section))


def test_images_and_stamps_exclude_one_another(mosaics: Path, tmp_path: Path) -> None:
    document = tomllib.loads(mosaics.read_text()) | {"stamps": {"path": "a.npz", "bands": ["g"]}}
    (tmp_path / "both.toml").write_text(tomli_w.dumps(document))
    with pytest.raises(BadInput, match=r"band g: 'image' and \[stamps\] exclude one another"):
        surveys.load(tmp_path / "both.toml")


def test_a_survey_without_stamps_keeps_the_fingerprint_that_it_had(mosaics: Path, ingested: Path) -> None:
    document = surveys.load(mosaics).model_dump(mode="json", exclude={"labels", "stamps"})
    images: list[Any] = []
    for tile in TILES:
        for band in BANDS[: 3 if tile == "t0" else 2]:
            for what in ("image", "weight", "mask"):
                path = mosaics.parent / what / band / f"{tile}.fits"
                images.append([tile, band, what, path.name, path.stat().st_size, sampled_sha256(path)])
    text = json.dumps([document, images, sha256(mosaics.parent / "catalogue.fits")], sort_keys=True)
    assert Layout(ingested).read_info().fingerprint == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize("ending", [".npz", ".h5", ".fits"])
@pytest.mark.parametrize("keep", [0.2, 0.95])
def test_a_truncated_archive_is_named(
    mosaics: Path, cut: dict[str, Arrays], tmp_path: Path, ending: str, keep: float
) -> None:
    path = write_archive(tmp_path / f"t0{ending}", cut["t0"])
    os.truncate(path, int(path.stat().st_size * keep))
    with pytest.raises(BadInput, match=rf"t0\{ending}.*(cannot be read|truncated|damaged)"):
        ingest(write_survey(tmp_path, mosaics, path=path.name), tmp_path / "s")
    assert not (tmp_path / "s" / "shelf.toml").exists()


def test_a_changed_byte_of_an_npz_is_found_by_its_checksum(npz: Path, cut: dict[str, Arrays], tmp_path: Path) -> None:
    content = (npz.parent / "t1.npz").read_bytes()
    place = content.index(cut["t1"]["image"][5].tobytes())
    (npz.parent / "t1.npz").write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    with pytest.raises(BadInput, match=r"t1\.npz cannot be read as an npz file: Bad CRC-32"):
        ingest(npz, tmp_path / "s")


@pytest.mark.parametrize("ending", [".npz", ".h5"])
def test_an_archive_that_unpacks_to_hundreds_of_times_its_size_is_refused_unread(
    mosaics: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "FREE_BYTES", 2**20)
    made = {"image": np.zeros((200, 3, 32, 32), np.float32), "ids": np.arange(200).astype(str)}
    path = write_archive(tmp_path / f"t0{ending}", made, packed=True)
    with pytest.raises(BadInput, match=rf"t0\{ending}: image unpacks from \d+ to 24\d+ bytes"):
        ingest(write_survey(tmp_path, mosaics, path=path.name, weight=None, mask=None), tmp_path / "s")


def test_a_header_that_promises_more_than_is_there_is_refused(
    mosaics: Path, cut: dict[str, Arrays], tmp_path: Path
) -> None:
    path = write_archive(tmp_path / "t0.npz", cut["t0"])
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["image.npy"] = members["image.npy"].replace(b"(19, 3", b"(99, 3", 1)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(BadInput, match=re.escape("image of shape (99, 3, 20, 20) takes 475200 bytes, 91200 are there")):
        ingest(write_survey(tmp_path, mosaics), tmp_path / "s")


def test_datasets_that_lie_in_other_files_are_refused(mosaics: Path, cut: dict[str, Arrays], tmp_path: Path) -> None:
    write_archive(tmp_path / "other.h5", cut["t0"])
    with h5py.File(tmp_path / "t0.h5", "w") as file:
        file["ids"] = cut["t0"]["ids"].astype(bytes)
        file["image"] = h5py.ExternalLink("other.h5", "image")
    survey = write_survey(tmp_path, mosaics, path="t0.h5", weight=None, mask=None)
    with pytest.raises(BadInput, match=r"t0\.h5: image keeps its values in other files"):
        ingest(survey, tmp_path / "s")


def test_a_gzip_compressed_archive_is_refused(mosaics: Path, cut: dict[str, Arrays], tmp_path: Path) -> None:
    write_archive(tmp_path / "t0.fits", cut["t0"])
    (tmp_path / "t0.fits.gz").write_bytes(gzip.compress((tmp_path / "t0.fits").read_bytes()))
    for format in (None, "fits"):
        with pytest.raises(BadInput, match=r"t0\.fits\.gz is gzip-compressed.*gunzip or fpack it"):
            ingest(write_survey(tmp_path, mosaics, path="*.gz", format=format), tmp_path / "s")


def test_integer_ids_of_another_width_are_matched(mosaics: Path, tmp_path: Path) -> None:
    """Stamps of int16 pixels with int32 ids, of a catalogue whose ids are 64-bit integers."""
    table = Table.read(mosaics.parent / "catalogue.fits")
    table["id"] = np.arange(SOURCES) + 7
    table.write(tmp_path / "catalogue.fits")
    path = write_survey(tmp_path, mosaics, path="t0.fits", weight=None, mask=None)
    document = tomllib.loads(path.read_text())
    document["catalogue"]["path"] = "catalogue.fits"
    path.write_text(tomli_w.dumps(document))
    images = np.random.default_rng(6).integers(-300, 300, (SOURCES, 3, 16, 16)).astype(np.int16)
    ids = np.random.default_rng(7).permutation(SOURCES).astype(np.int32) + 7
    write_archive(tmp_path / "t0.fits", {"image": images, "ids": ids})
    assert ingest(path, tmp_path / "s").stamps_of_no_source == 0
    rows, bands = columns_of(Layout(tmp_path / "s").sources), Layout(tmp_path / "s").read_info().bands
    at = np.argsort(ids.astype(str))[np.argsort(np.argsort(rows["source_id"].astype(str)))]
    pixels = store.list_values(store.open_table(Layout(tmp_path / "s").cutouts).to_table()["pixels"])
    expected = images[at][:, 0].astype(np.float32) / np.float32(bands[0].noise_ujy)
    np.testing.assert_allclose(pixels.reshape(-1, 3, 16, 16)[:, 0], expected, rtol=1e-3)


def test_a_pattern_names_tiles_as_mosaics_do_and_named_tiles_are_taken_alone(mosaics: Path, tmp_path: Path) -> None:
    for name in ("a.npz", "a.fits.fz", "b[1]/cut_c.npz", "b[1]/cut_d.npz", "b.v2.npz"):
        (tmp_path / "x[0]" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "x[0]" / name).touch()

    def found(path: str, **tiles: list[str]) -> list[str]:
        survey = surveys.load(write_survey(tmp_path / "x[0]", mosaics, path=path))
        return list(archives.find(survey.model_copy(update={"tiles": surveys.Tiles(**tiles)})))

    assert found("*.npz") == ["a", "b.v2"] and found("{tile}.fits.fz") == ["a"]
    assert found("b[[]1]/*.npz") == ["cut_c", "cut_d"] and found("b[[]1]/cut_*.npz", names=["cut_d"]) == ["cut_d"]
    assert found("b[1]/cut_{tile}.npz") == ["c", "d"]  # beside {tile} everything stands for itself
    with pytest.raises(BadInput, match="are both called 'a'"):
        found("a.*")
    with pytest.raises(BadInput, match="no file of stamps is called 'e'"):
        found("*.npz", names=["a", "e"])

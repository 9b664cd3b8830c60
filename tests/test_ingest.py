"""Ingest end to end: two tiles, three bands, a real kill, and everything a survey can get wrong."""

import os
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import tomli_w
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS
from filelock import FileLock
from shelves import assert_same_rows, columns_of, cut_parts, kill_ingest
from tiled_survey import BANDS, CUTOUT, SCALE, SHAPE, tile_wcs, write_survey

from redshelf.api import show
from redshelf.indexing import cutouts, mosaic, store
from redshelf.indexing.layout import Layout
from redshelf.indexing.origin import sampled_sha256
from redshelf.indexing.tiling import plan
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.ingest import IngestReport, ingest

DATA = Path(os.environ.get("REDSHELF_DATA", "/nowhere"))


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def cutout_arrays(shelf: Path) -> tuple[npt.NDArray[np.float16], npt.NDArray[np.bool_], npt.NDArray[np.int8]]:
    table = store.open_table(Layout(shelf).cutouts).to_table()
    shape = (-1, len(BANDS), CUTOUT, CUTOUT)
    bad = np.unpackbits(store.list_values(table["mask"]), axis=1, count=len(BANDS) * CUTOUT**2)
    return (
        store.list_values(table["pixels"]).reshape(shape),
        bad.reshape(shape).astype(bool),
        store.list_values(table["state"]),
    )


@pytest.fixture(scope="module")
def survey_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_survey(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="module")
def ingested(survey_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, IngestReport]:
    shelf = tmp_path_factory.mktemp("shelf") / "s"
    return shelf, ingest(survey_file, shelf, part_rows=8)


def test_a_plan_covers_every_row_once_in_pieces_of_one_strip_and_fills_its_parts() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        counts = rng.integers(0, 30, 5)
        tile_of, strip_of = np.repeat([3, 3, 0, 7, -1], counts), np.repeat([0, 1, 1, 0, 0], counts)
        most = int(rng.integers(1, 40))
        parts = plan(tile_of, strip_of, most)
        rows = [row for part in parts for row in range(part.first_row, part.first_row + part.rows)]
        assert rows == list(range(len(tile_of))) and [p.number for p in parts] == list(range(len(parts)))
        pieces = [piece for part in parts for piece in part.pieces]
        assert [row for p in pieces for row in range(p.first_row, p.first_row + p.rows)] == rows
        for p in pieces:
            here = slice(p.first_row, p.first_row + p.rows)
            assert set(zip(tile_of[here], strip_of[here], strict=True)) == {(p.tile, p.strip)}
        assert all(part.rows <= most for part in parts)
        assert all(part.rows + after.pieces[0].rows > most for part, after in pairwise(parts))


def test_the_report_says_what_there_is(ingested: tuple[Path, IngestReport]) -> None:
    report = ingested[1]
    assert (report.sources, report.tiles, report.empty_tiles, report.sources_on_no_tile) == (60, 3, ("t2",), 3)
    assert report.labelled == 20 and report.labels[0].bad_z == 40 and not report.labels_only
    assert report.states["r"]["not_observed"] == 30 and report.states["g"]["not_observed"] == 0


def test_shelf_toml_holds_measured_noise_and_depth(ingested: tuple[Path, IngestReport]) -> None:
    info = Layout(ingested[0]).read_info()
    np.testing.assert_allclose([b.noise_ujy for b in info.bands], [0.1, 0.1, np.nan], rtol=0.02)
    np.testing.assert_allclose([b.depth_ab for b in info.bands], 23.9 - 2.5 * np.log10(0.3), rtol=1e-6)
    assert info.cutout_px == CUTOUT and info.bands[0].psf_fwhm_arcsec == 0.7


def test_rows_are_positions_ordered_by_tile_then_by_sky(ingested: tuple[Path, IngestReport]) -> None:
    table = store.open_table(Layout(ingested[0]).sources).to_table()
    assert table["row"].to_pylist() == list(range(60))
    tiles = table["tile"].to_pylist()
    assert tiles == sorted(tiles, key=["t0", "t1", ""].index) or tiles == sorted(tiles, key=["t1", "t0", ""].index)
    for tile in ("t0", "t1", ""):
        assert (
            np.diff([h for h, t in zip(table["healpix29"].to_pylist(), tiles, strict=True) if t == tile]) >= 0
        ).all()
    flags = np.array(table["flags"].to_pylist())
    assert (flags[-3:] == store.FLAG_NO_TILE).all() and not flags[:-3].any() and tiles[-3:] == ["", "", ""]


def test_cutouts_are_the_mosaics_pixels_in_noise_units(survey_file: Path, ingested: tuple[Path, IngestReport]) -> None:
    shelf = ingested[0]
    pixels, bad, state = cutout_arrays(shelf)
    table = store.open_table(Layout(shelf).sources).to_table()
    for row in range(57):
        tile = table["tile"][row].as_py()
        image = fits.getdata(survey_file.parent / "mosaics" / "g" / f"{tile}.fits")
        wcs = tile_wcs(int(tile[1]))
        x, y = np.rint(wcs.all_world2pix([[table["ra_deg"][row].as_py(), table["dec_deg"][row].as_py()]], 0)[0]).astype(
            int
        )
        noise = Layout(shelf).read_info().bands[0].noise_ujy
        np.testing.assert_allclose(pixels[row, 0, CUTOUT // 2, CUTOUT // 2], image[y, x] / noise, rtol=2e-3, atol=1e-4)
        assert not bad[row, 0, CUTOUT // 2, CUTOUT // 2]
    assert np.isfinite(pixels).all()
    assert bad[-3:].all() and (state[-3:] == State.NOT_OBSERVED).all()  # on no tile
    assert bad[:, 2].all() and (state[:, 2] == State.NOT_OBSERVED).all()  # z is NaN in t0 and absent in t1


def test_sources_carry_the_catalogue(survey_file: Path, ingested: tuple[Path, IngestReport]) -> None:
    catalogue = Table.read(survey_file.parent / "catalogue.fits")
    table = store.open_table(Layout(ingested[0]).sources).to_table()
    row_of = {s: n for n, s in enumerate(table["source_id"].to_pylist())}
    order = [row_of[s] for s in catalogue["id"]]
    np.testing.assert_allclose(table["flux_g"].to_numpy()[order], catalogue["f_g"], rtol=1e-6)
    np.testing.assert_array_equal(table["ra_deg"].to_numpy()[order], catalogue["ra"])
    labels = store.open_table(Layout(ingested[0]).labels).to_table()
    expected = {row_of[s]: z for s, z in zip(catalogue["id"], catalogue["z"], strict=True) if z > 0}
    np.testing.assert_allclose(labels["z_spec"], [expected[r] for r in labels["row"].to_pylist()], rtol=1e-6)


@pytest.mark.parametrize("done", [0, 3, 9])  # 9: all cutouts are committed, no source is
def test_a_killed_ingest_resumes_to_the_same_shelf(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path, done: int
) -> None:
    shelf = tmp_path / "s"
    kill_ingest(survey_file, shelf, done=done)
    assert len(cut_parts(shelf)) == (done if done < 9 else 0)
    report = ingest(survey_file, shelf, part_rows=8)
    assert not report.labels_only and report.states == ingested[1].states
    assert_same_rows(shelf, ingested[0])


def test_another_part_size_gives_the_same_rows(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path
) -> None:
    ingest(survey_file, tmp_path / "s", part_rows=1000)
    assert_same_rows(tmp_path / "s", ingested[0])


def test_batches_of_a_single_source_give_the_same_rows(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutouts, "BATCH_BYTES", 1)
    ingest(survey_file, tmp_path / "s", part_rows=8)
    assert_same_rows(tmp_path / "s", ingested[0])


@pytest.mark.parametrize("part_rows", [8, 1000])
def test_each_mosaic_is_read_once_whatever_the_number_of_parts(
    survey_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int
) -> None:
    rows_read: list[tuple[Path, int]] = []
    real = mosaic.stripes

    def counting(image: mosaic.Mosaic, rows: tuple[int, int]) -> Iterator[mosaic.Stripe]:
        rows_read.extend((image.path, row) for row in range(*rows))
        return real(image, rows)

    monkeypatch.setattr(cutouts, "stripes", counting)
    ingest(survey_file, tmp_path / "s", part_rows=part_rows)
    assert len(rows_read) == len(set(rows_read)) > SHAPE[0]
    assert {p.stem for p, _ in rows_read} == {"t0", "t1"}  # no source lies on t2


def test_strips_of_a_large_tile_give_each_source_the_same_cutout(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = 40 * SHAPE[1] * 3 * cutouts.HELD_BYTES_A_PIXEL  # 40 rows of t0, which has three bands, 60 of t1
    monkeypatch.setattr(cutouts, "HELD_BYTES", held)
    heights: list[int] = []
    real = cutouts.band_images

    def measured(*args: Any) -> list[cutouts.BandImage | None]:
        images = real(*args)
        heights.extend(len(image.pixels) - 2 * CUTOUT for image in images if image is not None)
        return images

    monkeypatch.setattr(cutouts, "band_images", measured)
    ingest(survey_file, tmp_path / "s", part_rows=8)
    assert max(heights) <= 60 + CUTOUT and len(heights) > 10
    by_id = []
    for shelf in (tmp_path / "s", ingested[0]):
        rows = np.argsort(columns_of(Layout(shelf).sources)["source_id"])
        by_id.append([values[rows] for values in cutout_arrays(shelf)])
    for found, expected in zip(*by_id, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not (
        columns_of(Layout(tmp_path / "s").sources)["source_id"] == columns_of(Layout(ingested[0]).sources)["source_id"]
    ).all()


def test_fpacked_mosaics_give_the_shelf_of_plain_ones(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path
) -> None:
    shutil.copytree(survey_file.parent, tmp_path / "d")
    for path in sorted((tmp_path / "d" / "mosaics").glob("*/*.fits")):
        image, header = fits.getdata(path, header=True)
        unit = fits.CompImageHDU(image, header, compression_type="GZIP_2", quantize_level=0)
        fits.HDUList([fits.PrimaryHDU(), unit]).writeto(path.with_suffix(".fits.fz"))
        path.unlink()
    edit(tmp_path / "d" / "survey.toml", "{tile}.fits", "{tile}.fits.fz")
    ingest(tmp_path / "d" / "survey.toml", tmp_path / "s", part_rows=8)
    assert_same_rows(tmp_path / "s", ingested[0])


def test_pixels_that_cannot_be_unpacked_are_named_and_the_tiles_before_stay(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mosaic, "NOISE_BOX_PX", 4)
    shutil.copytree(survey_file.parent, tmp_path / "d")
    tiles = columns_of(Layout(ingested[0]).sources)["tile"].tolist()
    image, header = fits.getdata(tmp_path / "d" / "mosaics" / "r" / f"{tiles[56]}.fits", header=True)
    damaged = tmp_path / "d" / "mosaics" / "r" / f"{tiles[56]}.fits"  # of the tile that comes last
    unit = fits.CompImageHDU(image, header, compression_type="GZIP_1", quantize_level=0)
    fits.HDUList([fits.PrimaryHDU(), unit]).writeto(damaged, overwrite=True)
    data = bytearray(damaged.read_bytes())
    place = data.rindex(b"\x1f\x8b")  # where the last pixel row begins; no noise is measured there
    data[place : place + 40] = bytes(40)
    damaged.write_bytes(data)
    with pytest.raises(BadInput, match=rf"mosaics/r/{tiles[56]}\.fits cannot be read"):
        ingest(tmp_path / "d" / "survey.toml", tmp_path / "s", part_rows=8)
    assert cut_parts(tmp_path / "s") == set(range(-(-tiles.count(tiles[0]) // 8)))


def test_a_tile_in_another_projection_is_cut_where_its_own_wcs_says(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval = ["GLON-ZEA", "GLAT-ZEA"], [236.82, 42.12]  # galactic, rotated, another projection
    wcs.wcs.crpix = [(SHAPE[1] + 1) / 2, (SHAPE[0] + 1) / 2]
    wcs.wcs.cd = np.array([[-0.8, 0.6], [0.6, 0.8]]) * SCALE / 3600
    wcs.wcs.set()
    centre = wcs.pixel_to_world((SHAPE[1] - 1) / 2, (SHAPE[0] - 1) / 2).icrs
    x, y = np.array([40, 100, 180]), np.array([50, 120, 30])
    sky = wcs.pixel_to_world(x, y).icrs
    assert centre.separation(sky).deg.max() < 0.01
    for band in BANDS[:2]:
        image = np.random.default_rng(3).normal(0, 0.1, SHAPE).astype(np.float32)
        image[y, x] = [100, 200, 300]
        name = tmp_path / "d" / "mosaics" / band / "t0.fits"
        fits.PrimaryHDU(image, wcs.to_header()).writeto(name, overwrite=True)
    table = Table.read(tmp_path / "d" / "catalogue.fits")[:3]
    table["ra"], table["dec"] = sky.ra.deg, sky.dec.deg
    table.write(tmp_path / "d" / "catalogue.fits", overwrite=True)
    assert ingest(path, tmp_path / "s").sources_on_no_tile == 0
    pixels, bad, _ = cutout_arrays(tmp_path / "s")
    rows = np.argsort(columns_of(Layout(tmp_path / "s").sources)["source_id"])
    for b in (0, 1):
        noise = Layout(tmp_path / "s").read_info().bands[b].noise_ujy
        middle = pixels[rows, b, CUTOUT // 2, CUTOUT // 2]
        np.testing.assert_allclose(middle, np.array([100, 200, 300]) / noise, rtol=1e-3)
    assert not bad[:, :2].any()


def test_regions_without_a_value_are_masked_and_leave_noise_and_depth_alone(
    survey_file: Path, ingested: tuple[Path, IngestReport], tmp_path: Path
) -> None:
    shutil.copytree(survey_file.parent, tmp_path / "d")
    for tile in range(2):
        with fits.open(tmp_path / "d" / "mosaics" / "g" / f"t{tile}.fits", mode="update") as units:
            units[0].data[:, :110] = np.nan
    ingest(tmp_path / "d" / "survey.toml", tmp_path / "s")
    found, expected = (Layout(shelf).read_info().bands[0] for shelf in (tmp_path / "s", ingested[0]))
    assert found.noise_ujy == pytest.approx(expected.noise_ujy, rel=0.02) and found.depth_ab == expected.depth_ab
    pixels, bad, state = cutout_arrays(tmp_path / "s")
    assert np.isfinite(pixels).all() and not pixels[bad].any()
    whole = bad[:57, 0].all(axis=(1, 2))
    assert 5 < whole.sum() < 52 and (state[:57, 0][whole] == State.NOT_OBSERVED).all()
    intact = ~bad[:57, 0].any(axis=(1, 2))
    plain = cutout_arrays(ingested[0])[0][:57, 0][intact].astype(np.float32) * expected.noise_ujy
    np.testing.assert_allclose(pixels[:57, 0][intact] * np.float32(found.noise_ujy), plain, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("by", ["weight", "mask"])
def test_a_band_whose_pixels_are_all_masked_is_not_observed(tmp_path: Path, by: str) -> None:
    path = write_survey(tmp_path / "d")
    edit(path, 'name = "g"', f'name = "g"\n{by} = "{by}.fits"')
    beside = np.zeros(SHAPE, np.float32) if by == "weight" else np.ones(SHAPE, np.int16)
    fits.PrimaryHDU(beside).writeto(tmp_path / "d" / f"{by}.fits")
    ingest(path, tmp_path / "s")
    pixels, bad, state = cutout_arrays(tmp_path / "s")
    assert bad[:, 0].all() and not pixels[:, 0].any() and (state[:, 0] == State.NOT_OBSERVED).all()
    assert not bad[:50, 1].all(axis=(1, 2)).any()
    assert np.isnan(Layout(tmp_path / "s").read_info().bands[0].noise_ujy)


def test_a_catalogue_that_lies_on_no_tile_at_all_is_refused_with_both_places(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    table = Table.read(tmp_path / "d" / "catalogue.fits")
    table["ra"], table["dec"] = table["ra"] / 15, table["dec"]  # hours
    table.write(tmp_path / "d" / "catalogue.fits", overwrite=True)
    with pytest.raises(BadInput, match=r"none of its 60 sources lies on any of the 3 tiles; .* expected RA and Dec in"):
        ingest(path, tmp_path / "s")
    assert not (tmp_path / "s" / "shelf.toml").exists()


def test_the_report_says_what_each_cut_removed(survey_file: Path, tmp_path: Path) -> None:
    shutil.copytree(survey_file.parent, tmp_path / "d")
    path = tmp_path / "d" / "survey.toml"
    flux = np.asarray(Table.read(tmp_path / "d" / "catalogue.fits")["f_g"])
    edit(path, 'dec = "dec"\n', 'dec = "dec"\ncuts = [{column = "f_g", operator = ">", value = 1.5}, '
         '{column = "id", operator = "not in", value = ["s0", "s1", "s2"]}]\n')  # fmt: skip
    report = ingest(path, tmp_path / "s")
    first, second = (flux <= 1.5).sum(), (flux[:3] > 1.5).sum()
    assert report.cut == {"f_g > 1.5": {"removed": first}, "id not in ['s0', 's1', 's2']": {"removed": second}}
    lines = [line.split("  ") for line in show.facts(report, as_json=False).splitlines()]
    assert ["cut f_g > 1.5", f"removed {first}"] in [[line[0], line[-1].strip()] for line in lines]
    assert report.sources == 60 - first - second and 0 < first < 60 and second > 0
    assert ingest(path, tmp_path / "s").cut == {}  # labels only: the catalogue is not read


@pytest.mark.slow
def test_one_repeated_id_among_two_million_is_named(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    count = 2_000_000
    source_id = np.arange(count) + 10**15
    source_id[1_234_567] = source_id[89]
    angle = np.linspace(0, 80, count)
    columns = {"id": source_id, "ra": angle, "dec": angle, "f": np.ones(count), "e": np.ones(count)}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    document = {
        "survey": {"name": "large"},
        "catalogue": {"path": "c.parquet", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [{"name": "g", "wavelength_nm": 480, "flux": "f", "flux_error": "e", "unit": "uJy"}],
    }
    (tmp_path / "survey.toml").write_text(tomli_w.dumps(document))
    with pytest.raises(BadInput, match=r"c\.parquet: the id '1000000000000089' stands more than once \(1 such ids\)"):
        ingest(tmp_path / "survey.toml", tmp_path / "s")
    assert not (tmp_path / "s" / "shelf.toml").exists()


def test_ingesting_again_rewrites_the_labels_only(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    ingest(path, tmp_path / "s")
    before = store.open_table(Layout(tmp_path / "s").sources).version
    Table({"id": ["s1", "s2"], "z": [0.5, 0.6]}).write(tmp_path / "d" / "drawn.csv")
    edit(path, 'survey = "own"', 'survey = "drawn", path = "drawn.csv", id = "id"')
    report = ingest(path, tmp_path / "s")
    assert report.labels_only and report.labelled == 2
    assert store.open_table(Layout(tmp_path / "s").sources).version == before


def test_a_shelf_of_something_else_is_left_alone(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    ingest(path, tmp_path / "s")
    shutil.copytree(tmp_path / "s", tmp_path / "before")
    edit(path, 'name = "toy"', 'name = "other"')
    with pytest.raises(Conflict, match="made from another catalogue, survey file or set of images"):
        ingest(path, tmp_path / "s")
    edit(path, 'name = "other"', 'name = "toy"')
    edit(tmp_path / "s" / "shelf.toml", "schema_version = 3", "schema_version = 99")
    with pytest.raises(BadInput, match="schema version 99, this redshelf reads version 3"):
        ingest(path, tmp_path / "s")
    assert_same_rows(tmp_path / "s", tmp_path / "before")


@pytest.mark.parametrize("what", ["image", "weight", "mask"])
@pytest.mark.parametrize("finished", [True, False])
def test_new_pixels_in_a_file_of_the_same_size_make_another_shelf(tmp_path: Path, what: str, finished: bool) -> None:
    path = write_survey(tmp_path / "d")
    edit(path, 'name = "g"', 'name = "g"\nweight = "weights/{tile}.fits"\nmask = "mask.fits"')
    (tmp_path / "d" / "weights").mkdir()
    for tile in range(3):
        fits.PrimaryHDU(np.full(SHAPE, 100, np.float32)).writeto(tmp_path / "d" / "weights" / f"t{tile}.fits")
    fits.PrimaryHDU(np.zeros(SHAPE, np.int16)).writeto(tmp_path / "d" / "mask.fits")
    if finished:
        ingest(path, tmp_path / "s")
    else:
        kill_ingest(path, tmp_path / "s", done=3)
    changed = tmp_path / "d" / {"image": "mosaics/g/t1.fits", "weight": "weights/t0.fits", "mask": "mask.fits"}[what]
    before = changed.stat().st_size
    with fits.open(changed, mode="update") as units:
        units[0].data[SHAPE[0] // 2] += 1
    assert changed.stat().st_size == before
    with pytest.raises(Conflict, match="made from another catalogue, survey file or set of images"):
        ingest(path, tmp_path / "s")


def test_an_absent_weight_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    edit(path, 'name = "r"', 'name = "r"\nweight = "weights/{tile}.fits"')
    with pytest.raises(BadInput, match=r"band r, tile t0: the weight .*weights/t0\.fits does not exist"):
        ingest(path, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_sampled_hash_sees_each_block_and_all_of_a_small_file(tmp_path: Path) -> None:
    file, block = tmp_path / "f", 65_536
    for size, changes in (
        (3, (0, 2)),
        (16 * block, (0, block, 9 * block - 1, 16 * block - 1)),
        (40 * block, (0, 40 * block // 2 + block, 40 * block - 1)),
    ):
        data = bytearray(size)
        file.write_bytes(data)
        plain = sampled_sha256(file)
        for at in changes:
            data[at] = 1
            file.write_bytes(data)
            assert sampled_sha256(file) != plain, (size, at)
            data[at] = 0


def test_a_band_without_noise_is_named_before_anything_is_written(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    for tile in range(3):
        with fits.open(tmp_path / "d" / "mosaics" / "r" / f"t{tile}.fits", mode="update") as units:
            units[0].data[:] = 7
    with pytest.raises(BadInput, match=r"band r: its 3 sampled images, the first .*r/t\d\.fits, hold hardly"):
        ingest(path, tmp_path / "s")
    assert not (tmp_path / "s" / "shelf.toml").exists()


def test_a_band_whose_sky_is_mostly_one_value_is_ingested(tmp_path: Path) -> None:
    path = write_survey(tmp_path / "d")
    for tile in range(3):
        with fits.open(tmp_path / "d" / "mosaics" / "r" / f"t{tile}.fits", mode="update") as units:
            units[0].data[:100] = 7
    ingest(path, tmp_path / "s")
    np.testing.assert_allclose(Layout(tmp_path / "s").read_info().bands[1].noise_ujy, 0.1, rtol=0.03)


def test_two_ingests_at_once_are_refused(survey_file: Path, tmp_path: Path) -> None:
    (tmp_path / "s" / "work").mkdir(parents=True)
    with (
        FileLock(str(tmp_path / "s" / "work" / "ingest.lock")),
        pytest.raises(Conflict, match="another process is writing"),
    ):
        ingest(survey_file, tmp_path / "s")
    assert ingest(survey_file, tmp_path / "s").sources == 60


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("wcs", r"t1\.fits HDU 0 has no celestial WCS"),
        ("scale", r"t1\.fits: pixel scale 0\.4 x 0\.4"),
        ("truncated", r"t1\.fits is truncated"),
        ("duplicate", "'s0' stands more than once"),
        ("column", "no column 'f_x'; nearest: f_"),
        ("catalogue", r"catalogue .*absent\.fits does not exist"),
    ],
)
def test_bad_input_is_named_and_leaves_no_shelf(tmp_path: Path, damage: str, says: str) -> None:
    path = write_survey(tmp_path / "d")
    image = tmp_path / "d" / "mosaics" / "r" / "t1.fits"
    if damage == "wcs":
        fits.PrimaryHDU(np.zeros(SHAPE, np.float32)).writeto(image, overwrite=True)
    elif damage == "scale":
        wcs = tile_wcs(1)
        wcs.wcs.cd = wcs.wcs.cd * 2
        fits.PrimaryHDU(np.zeros(SHAPE, np.float32), wcs.to_header()).writeto(image, overwrite=True)
    elif damage == "truncated":
        image.write_bytes(image.read_bytes()[:20000])
    elif damage == "duplicate":
        table = Table.read(tmp_path / "d" / "catalogue.fits")
        table["id"][1] = "s0"
        table.write(tmp_path / "d" / "catalogue.fits", overwrite=True)
    else:
        edit(path, 'flux = "f_g"', 'flux = "f_x"') if damage == "column" else edit(
            path, "catalogue.fits", "absent.fits"
        )
    with pytest.raises(BadInput, match=says):
        ingest(path, tmp_path / "s")
    assert not (tmp_path / "s" / "shelf.toml").exists()
    with pytest.raises(BadInput, match="is a file"):
        ingest(path, path)


def test_a_catalogue_without_images_makes_a_shelf_without_cutouts(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,ra,dec,m,e\n1,10,20,22,.1\n2,11,20,23,.1\n3,359,-80,24,.1\n")
    document = {
        "survey": {"name": "flat"},
        "catalogue": {"path": "c.csv", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [{"name": "g", "wavelength_nm": 480, "magnitude": "m", "magnitude_error": "e"}],
    }
    (tmp_path / "survey.toml").write_text(tomli_w.dumps(document))
    report = ingest(tmp_path / "survey.toml", tmp_path / "s")
    table = store.open_table(Layout(tmp_path / "s").sources).to_table()
    assert (report.sources, report.labelled, report.tiles, report.sources_on_no_tile) == (3, 0, 0, 0)
    assert not Layout(tmp_path / "s").cutouts.exists() and not Layout(tmp_path / "s").read_info().has_images
    assert set(table["tile"].to_pylist()) == {""} and not any(table["flags"].to_pylist())
    assert (np.diff(table["healpix29"].to_numpy()) > 0).all()
    assert store.open_table(Layout(tmp_path / "s").labels).count_rows() == 0


@pytest.mark.data
def test_zcosmos_gives_the_baselines_rows_and_its_stars(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DATA / "zcosmost_bright20k.csv").is_file():
        pytest.skip("$REDSHELF_DATA has no zcosmost_bright20k.csv")
    monkeypatch.setenv("REDSHELF_DATA", str(DATA))
    survey = Path(__file__).resolve().parent.parent / "deploy" / "surveys" / "zcosmos.toml"
    report = ingest(survey, tmp_path / "s")
    table = store.open_table(Layout(tmp_path / "s").sources).to_table()
    observed = np.all([table[f"state_{b}"].to_numpy() != State.NOT_OBSERVED for b in "ubgvrizjk"], axis=0)
    object_class = np.array(table["object_class"].to_pylist())
    assert report.labelled == report.sources == 10_102
    assert ((object_class == "galaxy") & observed).sum() == 9_732  # load_zcosmos of baseline.py
    assert (object_class == "star").sum() == 338  # of 571 secure stars, those with unmasked photometry
    labels = store.open_table(Layout(tmp_path / "s").labels).to_table()
    assert labels["object_class"].to_pylist() == object_class[labels["row"].to_numpy()].tolist()


@pytest.mark.data
def test_vvds_deep_gives_the_baselines_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (DATA / "vvds_deep_veryreliable.csv").is_file():
        pytest.skip("$REDSHELF_DATA has no vvds_deep_veryreliable.csv")
    monkeypatch.setenv("REDSHELF_DATA", str(DATA))
    ingest(Path(__file__).resolve().parent.parent / "deploy" / "surveys" / "vvds-deep.toml", tmp_path / "s")
    table = store.open_table(Layout(tmp_path / "s").sources).to_table()
    observed = np.all([table[f"state_{b}"].to_numpy() != State.NOT_OBSERVED for b in "ugriz"], axis=0)
    assert ((np.array(table["object_class"].to_pylist()) == "galaxy") & observed).sum() == 4_672

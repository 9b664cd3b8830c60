"""HATS folders, in and out: what is read is what was written, and a folder that is not whole is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import tomli_w
from astropy.table import Table
from small_survey import BANDS, write

from redshelf.indexing import catalogue as catalogues
from redshelf.indexing import hats, labels, store
from redshelf.indexing import survey as surveys
from redshelf.indexing.export import export_hats
from redshelf.indexing.layout import Layout
from redshelf.indexing.tables import read_columns
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.ingest import ingest


def folder_of(root: Path, columns: dict[str, list[object]], *, parts: dict[str, slice], nrows: int | None) -> Path:
    """A HATS catalogue with the given rows in each file of `parts`, as another program may have made it."""
    table = pa.table(columns)
    for name, rows in parts.items():
        path = root / "dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(rows.start, rows.stop - rows.start), path)
    lines = ["#HATS catalog", "obs_collection=c", "dataproduct_type=object", "hats_creation_date=2025-01-01T00\\:00UTC"]
    lines += [] if nrows is None else [f"hats_nrows={nrows}"]
    (root / "hats.properties").write_text("\n".join(lines))
    return root


COLUMNS: dict[str, list[object]] = {
    "id": ["a", "b", "c", "d"],
    "ra": [10.0, 20.0, 30.0, 40.0],
    "dec": [1.0, 2.0, 3.0, 4.0],
    "m": [22.0, None, 24.0, 25.0],
    "n": [1, 2, None, 4],
}
PARTS = {
    "Norder=1/Dir=0/Npix=17.parquet": slice(0, 2),
    "Norder=1/Dir=0/Npix=4/part0.parquet": slice(2, 3),  # a pixel may be a folder of files
    "Norder=6/Dir=10000/Npix=12001.parquet": slice(3, 4),
}


def test_a_folder_is_read_in_the_order_of_its_pixels_with_missing_values_as_nan(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "c", COLUMNS, parts=PARTS, nrows=4)
    for name in ("_metadata", "_common_metadata"):
        pq.write_metadata(pa.table(COLUMNS).schema, root / "dataset" / name)
    found = read_columns(root, ["id", "m", "n"], alternatives=[["EBV", "ra"]])
    assert found["id"].tolist() == ["c", "a", "b", "d"]
    np.testing.assert_array_equal(found["m"], [24.0, 22.0, np.nan, 25.0])
    np.testing.assert_array_equal(found["n"], [np.nan, 1, 2, 4])
    np.testing.assert_array_equal(found["ra"], [30.0, 10.0, 20.0, 40.0])
    with pytest.raises(BadInput, match="c has no column 'mm'; nearest: m"):
        read_columns(root, ["mm"])


def test_a_column_without_a_value_in_one_pixel_is_still_read(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "c", COLUMNS, parts=PARTS, nrows=None)
    pq.write_table(
        pa.table({**pa.table(COLUMNS).slice(3, 1).to_pydict(), "m": pa.nulls(1)}), root / "dataset" / list(PARTS)[2]
    )
    np.testing.assert_array_equal(read_columns(root, ["m"])["m"], [24.0, 22.0, np.nan, np.nan])


def test_the_main_catalogue_of_a_collection_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "all" / "objects", COLUMNS, parts=PARTS, nrows=4)
    (tmp_path / "all" / "collection.properties").write_text("obs_collection=all\nhats_primary_table_url=objects\n")
    assert len(read_columns(tmp_path / "all", ["id"])["id"]) == 4


def test_a_folder_that_is_no_hats_catalogue_or_lacks_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    with pytest.raises(BadInput, match=r"plain is a folder without hats\.properties"):
        read_columns(tmp_path / "plain", ["id"])
    with pytest.raises(BadInput, match="is a folder: expected a fits file"):
        read_columns(tmp_path / "plain", ["id"], format="fits")
    root = folder_of(tmp_path / "c", COLUMNS, parts=PARTS, nrows=4)
    (root / "dataset" / next(iter(PARTS))).unlink()
    with pytest.raises(BadInput, match=r"its 2 files hold 2 rows, hats\.properties promises 4"):
        read_columns(root, ["id"])
    shutil.rmtree(root / "dataset")
    with pytest.raises(BadInput, match="the HATS catalogue is empty"):
        read_columns(root, ["id"])
    margin = folder_of(tmp_path / "m", COLUMNS, parts=PARTS, nrows=4)
    (margin / "hats.properties").write_text("dataproduct_type=margin\n")
    with pytest.raises(BadInput, match="of type 'margin': expected 'object' or 'source'"):
        read_columns(margin, ["id"])


def test_a_truncated_partition_is_refused_and_named(tmp_path: Path) -> None:
    root = folder_of(tmp_path / "c", COLUMNS, parts=PARTS, nrows=4)
    path = root / "dataset" / next(iter(PARTS))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(BadInput, match="c cannot be read as hats"):
        read_columns(root, ["id"])


@pytest.mark.parametrize(
    ("rows", "spread", "limit"), [(0, 180.0, 5), (1, 180.0, 1), (5000, 180.0, 100), (3000, 0.5, 50)]
)
def test_a_plan_puts_every_row_into_one_pixel_of_at_most_the_limit(rows: int, spread: float, limit: int) -> None:
    rng = np.random.default_rng(rows)
    ra, dec = rng.uniform(0, 2 * spread, rows), rng.uniform(-spread / 2, spread / 2, rows)
    index = np.sort(catalogues.healpix29(ra, dec)) if rows else np.empty(0, dtype=np.int64)
    pixels = hats.plan(index, max_rows=limit)
    assert [p.start for p in pixels] == [0, *(p.stop for p in pixels)][: len(pixels)]
    assert (pixels[-1].stop if pixels else 0) == rows
    for pixel in pixels:
        assert pixel.stop - pixel.start <= limit
        assert set(index[pixel.start : pixel.stop] >> (2 * (29 - pixel.order))) == {pixel.number}
        if pixel.order:  # the largest that will do: the pixel above holds too many
            above = index >> (2 * (30 - pixel.order))
            assert (above == pixel.number // 4).sum() > limit


def test_rows_at_one_point_stay_together_at_the_deepest_order() -> None:
    pixels = hats.plan(np.full(7, 123456789, dtype=np.int64), max_rows=2)
    assert [(p.order, p.start, p.stop) for p in pixels] == [(hats.MAX_ORDER, 0, 7)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Path]:
    folder = tmp_path_factory.mktemp("export")
    ingest(write(folder / "survey", sources=120, images=False), folder / "shelf")
    layout = Layout(folder / "shelf")
    assert export_hats(layout, folder / "hats", rows_per_pixel=40) == 120
    return layout, folder / "hats"


def test_an_export_has_the_layout_and_properties_of_a_hats_catalogue(exported: tuple[Layout, Path]) -> None:
    _, folder = exported
    lines = (folder / "hats.properties").read_text().splitlines()
    properties = dict(line.split("=") for line in lines if not line.startswith("#"))
    assert (folder / "properties").read_bytes() == (folder / "hats.properties").read_bytes()
    assert properties["dataproduct_type"] == "object" and properties["obs_collection"] == "small"
    assert (properties["hats_col_ra"], properties["hats_col_dec"]) == ("ra_deg", "dec_deg")
    assert (properties["hats_col_healpix"], properties["hats_col_healpix_order"]) == ("_healpix_29", "29")
    assert properties["hats_nrows"] == "120" and int(properties["hats_max_rows"]) <= 40
    pixels = [tuple(map(int, line.split(","))) for line in (folder / "partition_info.csv").read_text().split()[1:]]
    files = {path.relative_to(folder / "dataset").as_posix() for path in folder.rglob("*.parquet")}
    assert files == {f"Norder={o}/Dir={p // 10000 * 10000}/Npix={p}.parquet" for o, p in pixels} and len(files) > 2
    for order, pixel in pixels:
        index = pq.read_table(folder / "dataset" / hats.Pixel(order, pixel, 0, 0).path)["_healpix_29"].to_numpy()
        assert (index >> (2 * (29 - order)) == pixel).all() and (np.diff(index) >= 0).all()
    assert ds.parquet_dataset(folder / "dataset" / "_metadata").count_rows() == 120
    assert pq.read_schema(folder / "dataset" / "_common_metadata").names[0] == "_healpix_29"


def test_an_export_holds_every_source_with_its_label_or_none(exported: tuple[Layout, Path]) -> None:
    layout, folder = exported
    found = hats.open_hats(folder).to_table().sort_by("source_id").to_pylist()
    expected = store.open_table(layout.sources).to_table().sort_by("source_id").to_pylist()
    by_row = {label["row"]: label for label in store.open_table(layout.labels).to_table().to_pylist()}
    assert len(found) == len(expected) and 0 < len(by_row) < len(found)
    for one, other in zip(found, expected, strict=True):
        label = by_row.get(other["row"])
        assert one["source_id"] == other["source_id"] and one["_healpix_29"] == other["healpix29"]
        np.testing.assert_equal([one[f"flux_{b}"] for b in BANDS], [other[f"flux_{b}"] for b in BANDS])
        assert one["object_class"] == other["object_class"] and "row" not in one
        assert one["z_spec"] == (label and label["z_spec"]) and one["z_survey"] == (label and label["z_survey"])
        assert one["label_class"] == (label and label["object_class"])


def test_an_exported_folder_is_ingested_as_the_catalogue_it_came_from(
    exported: tuple[Layout, Path], tmp_path: Path
) -> None:
    layout, folder = exported
    bands = [
        {"name": b, "wavelength_nm": nm, "flux": f"flux_{b}", "flux_error": f"flux_error_{b}", "unit": "uJy"}
        for b, nm in BANDS.items()
    ]
    shutil.copytree(folder, tmp_path / "hats")
    catalogue: dict[str, Any] = {"path": "hats", "id": "source_id", "ra": "ra_deg", "dec": "dec_deg"}
    catalogue |= {"object_class": "object_class", "class_values": {"star": "star", "galaxy": "galaxy"}}
    document = {"survey": {"name": "again"}, "catalogue": catalogue, "bands": bands}
    document["labels"] = [{"z": "z_spec", "survey": "blobs"}]
    (tmp_path / "survey.toml").write_text(tomli_w.dumps(document))
    report = ingest(tmp_path / "survey.toml", tmp_path / "shelf")
    before, after = (store.open_table(at.sources).to_table() for at in (layout, Layout(tmp_path / "shelf")))
    for name in before.column_names:
        np.testing.assert_array_equal(after[name].to_numpy(), before[name].to_numpy(), err_msg=name)
    assert report.labelled == len(store.open_table(layout.labels).to_table())
    path = next((tmp_path / "hats").rglob("*.parquet"))
    pq.write_table(pq.read_table(path), path, compression="gzip")
    with pytest.raises(Conflict, match="was made from another catalogue"):
        ingest(tmp_path / "survey.toml", tmp_path / "shelf")


def test_a_shelf_without_labels_is_exported_and_an_existing_folder_left_alone(tmp_path: Path) -> None:
    ingest(write(tmp_path / "survey", sources=10, images=False, labels=False), tmp_path / "shelf")
    layout = Layout(tmp_path / "shelf")
    export_hats(layout, tmp_path / "hats")
    assert hats.open_hats(tmp_path / "hats").to_table()["z_spec"].null_count == 10
    with pytest.raises(Conflict, match="exists already"):
        export_hats(layout, tmp_path / "hats")


def test_a_label_list_may_be_a_hats_folder(tmp_path: Path) -> None:
    folder_of(
        tmp_path / "z",
        {"id": ["b", "a"], "z": [0.2, 0.1]},
        parts={"Norder=0/Dir=0/Npix=1.parquet": slice(0, 2)},
        nrows=2,
    )
    Table({"id": ["a", "b"], "ra": [1.0, 2.0], "dec": [0.0, 0.0], "m": [20.0, 21.0]}).write(tmp_path / "c.csv")
    document = {
        "survey": {"name": "s"},
        "catalogue": {"path": "c.csv", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [{"name": "g", "wavelength_nm": 480, "magnitude": "m", "default_error": 0.1}],
        "labels": [{"path": "z", "id": "id", "z": "z", "survey": "s"}],
    }
    survey = surveys.parse(document, folder=tmp_path, source="survey.toml")
    found, _ = catalogues.read(survey)
    merged = labels.build(survey, found.source_id, found.ra_deg, found.dec_deg, found.object_class)
    np.testing.assert_allclose(merged.table["z_spec"], [0.1, 0.2], rtol=1e-6)

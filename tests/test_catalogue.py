"""Catalogues: five formats, exact photometry, and everything that must be refused."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from redshelf.indexing import catalogue as catalogues
from redshelf.indexing import survey as surveys
from redshelf.indexing.catalogue import Catalogue
from redshelf.indexing.store import FLAG_MASKED
from redshelf.indexing.tables import read_columns
from redshelf.models.bands import State, ab_to_flux
from redshelf.models.errors import BadInput

Columns = dict[str, Any]
COLUMNS: Columns = {
    "id": ["a", "b", "c"],
    "ra": [10.0, 0.0, 359.9],
    "dec": [-90.0, 0.0, 90.0],
    "m": [22.0, -99.9, 24.5],
    "e": [0.1, 0.1, 0.5],
}
MAGNITUDE = {"magnitude": "m", "magnitude_error": "e", "missing": [-99.9]}


def read(tmp_path: Path, columns: Columns, *, band: dict[str, Any] | None = None, **catalogue: Any) -> Catalogue:
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    return survey_of(tmp_path, "c.parquet", band=band, **catalogue)


def survey_of(tmp_path: Path, path: str, *, band: dict[str, Any] | None = None, **catalogue: Any) -> Catalogue:
    document = {
        "survey": {"name": "s"},
        "catalogue": {"path": path, "id": "id", "ra": "ra", "dec": "dec", **catalogue},
        "bands": [{"name": "g", "wavelength_nm": 480, **(MAGNITUDE if band is None else band)}],
    }
    return catalogues.read(surveys.parse(document, folder=tmp_path, source="survey.toml"))[0]


@pytest.mark.parametrize("ending", ["fits", "fits.gz", "vot", "ecsv", "csv", "parquet"])
def test_every_format_gives_the_same_catalogue(tmp_path: Path, ending: str) -> None:
    expected = read(tmp_path, COLUMNS)
    table = Table(COLUMNS)
    if ending == "parquet":
        pq.write_table(pa.table(COLUMNS), tmp_path / "t.parquet")
    else:
        table.write(tmp_path / f"t.{ending}", format="votable" if ending == "vot" else None)
    found = survey_of(tmp_path, f"t.{ending}")
    for name in ("source_id", "ra_deg", "flux_ujy", "flux_error_ujy", "state", "healpix29", "object_class"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert found.source_id.tolist() == [b"a", b"b", b"c"]
    assert found.state[:, 0].tolist() == [State.MEASURED, State.NOT_OBSERVED, State.NOT_DETECTED]


def test_missing_integers_and_texts_become_nan_and_empty(tmp_path: Path) -> None:
    table = Table({"n": np.ma.array([1, 2], mask=[False, True]), "t": np.ma.array(["x", "y"], mask=[False, True])})
    for ending in ("ecsv", "fits"):
        table.write(tmp_path / f"t.{ending}")
        found = read_columns(tmp_path / f"t.{ending}", ["n", "t"])
        np.testing.assert_array_equal(found["n"], [1.0, np.nan])
        assert found["t"][0] == "x" and found["t"][1] in ("", "N/A")  # astropy writes masked text as its fill value


def test_a_fits_table_of_many_blocks_is_read_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        fits.Column("large", format="K", bzero=2**63, array=np.array([2**63 + 1, 2, 3, 2**64 - 1, 5], dtype=np.uint64)),
        fits.Column("null", format="J", null=-1, array=[1, 2, 3, -1, 5]),
        fits.Column("flag", format="L", array=[True, False, True, False, True]),
        fits.Column("text", format="8A", array=["a", "bcd", "", "efghijkl", "m"]),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    monkeypatch.setattr("redshelf.indexing.tables.FITS_BLOCK_ROWS", 2)
    found = read_columns(tmp_path / "t.fits", ["large", "null", "flag", "text"])
    assert found["large"].tolist() == [2**63 + 1, 2, 3, 2**64 - 1, 5]
    np.testing.assert_array_equal(found["null"], [1, 2, 3, np.nan, 5])
    assert found["flag"].tolist() == [True, False, True, False, True]
    assert found["text"].tolist() == ["a", "bcd", "", "efghijkl", "m"]


def test_a_missing_number_of_a_scaled_or_unsigned_fits_column_is_missing(tmp_path: Path) -> None:
    """TNULL is what is stored: before TSCAL and TZERO."""
    stored = np.array([3, -99, 0], dtype=np.int16)
    columns = [fits.Column(name, format="I", array=stored) for name in ("plain", "scaled", "moved", "both")]
    unsigned = np.array([1, 0, 2**15 + 7], dtype=np.uint16)
    columns.append(fits.Column("unsigned", format="I", bzero=2**15, array=unsigned))
    columns.append(fits.Column("large", format="K", bzero=2**63, array=np.array([5, 0, 2**63], dtype=np.uint64)))
    columns.append(fits.Column("real", format="E", array=np.array([1, -99, 2.5], dtype=np.float32)))
    table = fits.BinTableHDU.from_columns(columns)
    for number, null, scale, zero in (
        (1, -99, None, None), (2, -99, 0.5, None), (3, -99, None, 0.1), (4, -99, 0.01, 20.3),
        (5, -(2**15), None, None), (6, -(2**63), None, None), (7, None, None, None),
    ):  # fmt: skip
        given = {f"TNULL{number}": null, f"TSCAL{number}": scale, f"TZERO{number}": zero}
        table.header.update({key: value for key, value in given.items() if value is not None})
    table.writeto(tmp_path / "t.fits")
    names = ["plain", "scaled", "moved", "both", "unsigned", "large", "real"]
    found = read_columns(tmp_path / "t.fits", names)
    expected = {
        "plain": [3, np.nan, 0], "scaled": [1.5, np.nan, 0], "moved": [3.1, np.nan, 0.1], "both": [20.33, np.nan, 20.3],
        "unsigned": [1, np.nan, 2**15 + 7], "large": [5, np.nan, 2.0**63], "real": [1, -99, 2.5],
    }  # fmt: skip
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


def test_a_fits_table_without_rows_has_empty_columns(tmp_path: Path) -> None:
    fits.BinTableHDU.from_columns([fits.Column("m", format="E", array=[])]).writeto(tmp_path / "t.fits")
    assert read_columns(tmp_path / "t.fits", ["m"])["m"].shape == (0,)


def test_ids_of_a_csv_stay_as_they_stand(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,ra,dec,m,e\n007,1,2,20,.1\n7,1,2,20,.1\n1e3,1,2,20,.1\n")
    assert survey_of(tmp_path, "c.csv").source_id.tolist() == [b"007", b"7", b"1e3"]


def test_integer_ids_become_decimal_text_without_loss(tmp_path: Path) -> None:
    ids = np.array([2**62 + 1, 2**62 + 2, 5], dtype=np.int64)
    assert read(tmp_path, {**COLUMNS, "id": ids}).source_id.tolist() == [str(i).encode() for i in ids]


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "é", "x" * 65, "a\n"])
def test_an_id_that_cannot_stand_in_a_url_is_refused(tmp_path: Path, bad: str) -> None:
    with pytest.raises(BadInput, match="does not match"):
        read(tmp_path, {**COLUMNS, "id": ["a", bad, "c"]})


def test_whole_numbers_stored_as_doubles_are_ids(tmp_path: Path) -> None:
    assert read(tmp_path, {**COLUMNS, "id": [1.0, 2.0, 2.0**53 - 1]}).source_id.tolist() == [
        b"1",
        b"2",
        str(2**53 - 1).encode(),
    ]


@pytest.mark.parametrize("bad", [2.5, 2.0**53, np.nan, np.inf])
def test_floats_that_may_have_lost_an_id_are_refused(tmp_path: Path, bad: float) -> None:
    with pytest.raises(BadInput, match="ids are integers or text"):
        read(tmp_path, {**COLUMNS, "id": [1.0, bad, 3.0]})


def test_float32_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ids are integers or text"):
        read(tmp_path, {**COLUMNS, "id": np.float32([1, 2, 3])})


def test_reddening_may_go_by_several_names_of_which_the_first_there_is_wins(tmp_path: Path) -> None:
    columns = {**COLUMNS, "EBV": [0.1, 0.2, 0.3], "E2": [9.0, 9.0, 9.0]}
    for ending in ("fits", "csv", "ecsv", "parquet"):
        Table(columns).write(tmp_path / f"t.{ending}")
        found = survey_of(tmp_path, f"t.{ending}", ebv=["EBV_MW", "EBV", "E2"])
        np.testing.assert_allclose(found.ebv, [0.1, 0.2, 0.3], rtol=1e-6)
        with pytest.raises(BadInput, match=rf"t.{ending} has none of the columns 'EBV_MW', 'EB_V'; nearest: .*EBV"):
            survey_of(tmp_path, f"t.{ending}", ebv=["EBV_MW", "EB_V"])


def test_a_reference_redshift_that_is_none_is_nan(tmp_path: Path) -> None:
    found = read(tmp_path, {**COLUMNS, "z": [-99.0, 0.0, 20.5]}, z_reference="z")
    np.testing.assert_array_equal(found.z_reference, np.float32([np.nan, 0.0, np.nan]))


def test_an_aperture_correction_of_a_missing_value_makes_the_flux_unknown(tmp_path: Path) -> None:
    columns = {**COLUMNS, "total": np.float32([-0.3, 0.0, -99.9])}
    found = read(tmp_path, columns, band={**MAGNITUDE, "aperture_to_total": "total"})
    np.testing.assert_allclose(found.flux_ujy[0, 0], 10 ** (-0.4 * (21.7 - 23.9)), rtol=1e-6)
    assert found.state[2, 0] == State.NOT_OBSERVED and np.isnan(found.flux_ujy[2, 0])


def test_duplicate_ids_are_refused_and_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"'b' stands more than once \(1 such ids\)"):
        read(tmp_path, {**COLUMNS, "id": ["b", "a", "b"]})


def test_a_missing_column_lists_the_nearest_names(tmp_path: Path) -> None:
    for ending in ("fits", "csv", "ecsv", "parquet"):
        Table({**COLUMNS, "mag_auto_g": [1.0, 2.0, 3.0]}).write(tmp_path / f"t.{ending}")
        with pytest.raises(BadInput, match=rf"t.{ending} has no column 'mag_auto_q'; nearest: mag_auto_g"):
            survey_of(tmp_path, f"t.{ending}", band={**MAGNITUDE, "magnitude": "mag_auto_q"})


@pytest.mark.parametrize(
    ("column", "value"), [("ra", 360.0), ("ra", -0.1), ("ra", np.nan), ("dec", 90.1), ("dec", -91.0), ("dec", np.inf)]
)
def test_a_position_off_the_sky_is_refused_with_its_id(tmp_path: Path, column: str, value: float) -> None:
    with pytest.raises(BadInput, match=rf"{column}=.* of b \(row 1 after cuts\), 1 such rows: expected"):
        read(tmp_path, {**COLUMNS, column: [1.0, value, 2.0]})


def test_text_where_numbers_are_expected_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="column 'm' holds 'bright': expected numbers"):
        read(tmp_path, {**COLUMNS, "m": ["bright", "22", "23"]})


@pytest.mark.parametrize("ending", ["fits", "parquet", "ecsv", "vot"])
def test_a_truncated_table_is_refused_and_named(tmp_path: Path, ending: str) -> None:
    columns = {name: values * 500 for name, values in COLUMNS.items()}
    Table(columns).write(tmp_path / f"t.{ending}", format="votable" if ending == "vot" else None)
    whole = (tmp_path / f"t.{ending}").read_bytes()
    (tmp_path / f"t.{ending}").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(BadInput, match=rf"t.{ending}"):
        survey_of(tmp_path, f"t.{ending}")


def test_cuts_select_rows_and_missing_values_pass_none(tmp_path: Path) -> None:
    columns = {**COLUMNS, "cc": [3.5, 13.5, np.nan], "kind": ["G", "S", ""], "n": [1, 2, 3]}

    def kept(**cut: Any) -> list[bytes]:
        return read(tmp_path, columns, cuts=[cut]).source_id.tolist()

    assert kept(column="cc", operator="in", value=[3, 4], floor=True) == [b"a"]
    assert kept(column="cc", operator="in", value=[3, 4], floor=True, modulo=10) == [b"a", b"b"]
    assert kept(column="cc", operator="!=", value=3.5) == [b"b"]
    assert kept(column="kind", operator="not in", value=["S"]) == [b"a"]
    assert kept(column="n", operator=">=", value=2) == [b"b", b"c"]
    with pytest.raises(BadInput, match="none of its 3 rows"):
        kept(column="n", operator=">", value=3)
    with pytest.raises(BadInput, match="values are text"):
        kept(column="kind", operator="==", value=3)


@pytest.mark.parametrize("ending", ["fits", "parquet"])
def test_cuts_compare_in_the_precision_of_the_column(tmp_path: Path, ending: str) -> None:
    columns = {**COLUMNS, "z": np.array([0.3, -99.9, 1.5], dtype=np.float32)}
    Table(columns).write(tmp_path / f"t.{ending}")

    def kept(operator: str, value: Any) -> list[bytes]:
        cut = {"column": "z", "operator": operator, "value": value}
        return survey_of(tmp_path, f"t.{ending}", cuts=[cut]).source_id.tolist()

    assert kept("!=", -99.9) == kept("not in", [-99.9]) == [b"a", b"c"]
    assert kept("==", -99.9) == kept("in", [-99.9, 7]) == [b"b"]
    assert kept("<=", 0.3) == [b"a", b"b"] and kept(">", 0.3) == [b"c"]
    assert kept("<", 1e300) == [b"a", b"b", b"c"]  # more than a float32 holds


def test_cuts_on_large_integers_are_exact(tmp_path: Path) -> None:
    columns = {**COLUMNS, "n": [2**62 + 1, 2**62 + 2, 5]}
    cut = {"column": "n", "operator": "!=", "value": 2**62 + 1}
    assert read(tmp_path, columns, cuts=[cut]).source_id.tolist() == [b"b", b"c"]


def test_a_row_that_is_cut_may_be_wrong(tmp_path: Path) -> None:
    columns = {**COLUMNS, "id": ["a", "a", "c"], "ra": [10.0, 999.0, 1.0], "use": [1, 0, 1]}
    found = read(tmp_path, columns, cuts=[{"column": "use", "operator": "==", "value": 1}])
    assert found.source_id.tolist() == [b"a", b"c"]


def test_a_magnitude_becomes_microjansky_with_its_error(tmp_path: Path) -> None:
    found = read(tmp_path, COLUMNS)
    flux = 10 ** (-0.4 * (22.0 - 23.9))
    np.testing.assert_allclose(found.flux_ujy[0, 0], flux, rtol=1e-6)
    np.testing.assert_allclose(found.flux_error_ujy[0, 0], flux * 0.1 * np.log(10) / 2.5, rtol=1e-6)
    assert np.isnan(found.flux_ujy[1, 0]) and np.isnan(found.flux_error_ujy[1, 0])
    assert found.flux_ujy.dtype == np.float32


@pytest.mark.parametrize(("unit", "scale"), [("uJy", 1.0), ("nJy", 1e-3), ("Jy", 1e6), ("erg/s/cm2/Hz", 1e29)])
def test_flux_units_are_converted_and_negative_fluxes_stay(tmp_path: Path, unit: str, scale: float) -> None:
    columns = {**COLUMNS, "f": np.array([5.0, -2.0, 1.0]) / scale, "ef": np.array([1.0, 1.0, -1.0]) / scale}
    found = read(tmp_path, columns, band={"flux": "f", "flux_error": "ef", "unit": unit})
    np.testing.assert_allclose(found.flux_ujy[:, 0], [5.0, -2.0, np.nan], rtol=1e-6)
    assert found.state[:, 0].tolist() == [State.MEASURED, State.NOT_DETECTED, State.NOT_OBSERVED]


def test_a_zero_point_of_fluxes_is_honoured(tmp_path: Path) -> None:
    columns = {**COLUMNS, "f": [1.0, 10.0, 100.0], "ef": [0.1, 0.1, 0.1]}
    found = read(tmp_path, columns, band={"flux": "f", "flux_error": "ef", "zero_point": 27.0})
    np.testing.assert_allclose(found.flux_ujy[:, 0], ab_to_flux([27.0, 24.5, 22.0]), rtol=1e-6)


def test_offset_aperture_correction_and_extinction_shift_flux_and_error(tmp_path: Path) -> None:
    columns = {**COLUMNS, "ebv": [0.1, 0.0, 0.02], "total": [-0.3, 0.0, np.nan]}
    band = {**MAGNITUDE, "zero_point_offset": 0.05, "aperture_to_total": "total", "extinction": 3.0}
    found = read(tmp_path, columns, band=band, ebv="ebv")
    plain = read(tmp_path, columns)
    factor = 10 ** (-0.4 * (0.05 - 0.3 - 3.0 * 0.1))
    np.testing.assert_allclose(found.flux_ujy[0, 0], plain.flux_ujy[0, 0] * factor, rtol=1e-6)
    np.testing.assert_allclose(found.flux_error_ujy[0, 0], plain.flux_error_ujy[0, 0] * factor, rtol=1e-6)
    assert found.state[2, 0] == State.NOT_OBSERVED  # its aperture correction is missing
    np.testing.assert_allclose(found.ebv, [0.1, 0.0, 0.02], rtol=1e-6)
    done = read(tmp_path, columns, band={**MAGNITUDE, "extinction": 3.0, "dereddened": True}, ebv="ebv")
    np.testing.assert_array_equal(done.flux_ujy, plain.flux_ujy)


def test_a_missing_or_negative_reddening_is_refused(tmp_path: Path) -> None:
    for bad in (np.nan, -0.1):
        with pytest.raises(BadInput, match=r"ebv=.* of b: expected a finite E\(B-V\) >= 0"):
            read(tmp_path, {**COLUMNS, "ebv": [0.1, bad, 0.1]}, ebv="ebv")


def test_the_first_valid_column_wins_with_its_own_error(tmp_path: Path) -> None:
    columns = {
        **COLUMNS,
        "m": [22.0, -99.9, 99.0],
        "e": [0.1, 0.2, 0.3],
        "m2": [21.0, 21.0, 45.0],
        "e2": [0.4, 0.5, 0.6],
    }
    band = {"magnitude": ["m", "m2"], "magnitude_error": ["e", "e2"], "valid_range": (5.0, 40.0)}
    found = read(tmp_path, columns, band=band)
    flux = ab_to_flux([22.0, 21.0, np.nan])
    np.testing.assert_allclose(found.flux_ujy[:, 0], flux, rtol=1e-6)
    np.testing.assert_allclose(found.flux_error_ujy[:, 0], flux * 0.4 * np.log(10) * [0.1, 0.5, 0.6], rtol=1e-6)


def test_a_float32_missing_value_is_recognised(tmp_path: Path) -> None:
    columns = {**COLUMNS, "m": np.array([22.0, -99.9, 24.5], dtype=np.float32)}
    assert read(tmp_path, columns).state[1, 0] == State.NOT_OBSERVED


def test_magnitudes_without_errors_take_the_default_and_errors_have_a_floor(tmp_path: Path) -> None:
    found = read(tmp_path, COLUMNS, band={"magnitude": "m", "default_error": 0.2, "missing": [-99.9]})
    np.testing.assert_allclose(found.flux_error_ujy[0, 0], found.flux_ujy[0, 0] * 0.4 * np.log(10) * 0.2, rtol=1e-6)
    floored = read(tmp_path, COLUMNS, band={**MAGNITUDE, "error_floor": 0.5})
    plain = read(tmp_path, COLUMNS)
    expected = np.hypot(plain.flux_error_ujy[0, 0], 0.5 * plain.flux_ujy[0, 0])
    np.testing.assert_allclose(floored.flux_error_ujy[0, 0], expected, rtol=1e-6)


def test_classes_masks_and_saturation(tmp_path: Path) -> None:
    columns = {**COLUMNS, "type": [0, 1, 7], "bad": [0, 1, 0], "sat": [1, 1, 0], "z": [0.5, np.nan, 1.0]}
    found = read(
        tmp_path, columns, object_class="type", class_values={"0": "galaxy", "1": "star"},
        mask_flags=["bad"], saturation_flags=["sat"], z_reference="z",
    )  # fmt: skip
    assert found.object_class.tolist() == ["galaxy", "star", "unknown"]
    assert found.flags.tolist() == [0, FLAG_MASKED, 0]
    assert found.state[:, 0].tolist() == [State.SATURATED, State.NOT_OBSERVED, State.NOT_DETECTED]
    np.testing.assert_array_equal(found.z_reference, np.float32([0.5, np.nan, 1.0]))
    ranged = read(tmp_path, columns, object_class="z", class_ranges=[{"low": 0, "high": 1, "object_class": "agn"}])
    assert ranged.object_class.tolist() == ["agn", "unknown", "unknown"]


def test_healpix_order_29_is_nested_and_finer_than_a_milliarcsecond() -> None:
    here = catalogues.healpix29([150.1, 150.1, 10.0], [2.2, 2.2 + 1e-3 / 3600, -45.0])
    assert here[0] != here[1] and abs(int(here[0] - here[1])) < abs(int(here[0] - here[2]))
    assert here.min() >= 0 and here.max() < 12 * 4**29


def test_a_fits_vector_column_is_refused(tmp_path: Path) -> None:
    column = fits.Column("v", format="3E", array=np.zeros((2, 3)))
    fits.BinTableHDU.from_columns([column]).writeto(tmp_path / "v.fits")
    with pytest.raises(BadInput, match=r"column 'v' holds \(3,\) values a row"):
        read_columns(tmp_path / "v.fits", ["v"])


@pytest.mark.data
def test_the_first_hundred_cosmos_sources_read_from_their_fits_file() -> None:
    data = Path(os.environ.get("REDSHELF_DATA", "")) / "COSMOS_first100specz.fits"
    if not data.is_file():
        pytest.skip("$REDSHELF_DATA has no COSMOS_first100specz.fits")
    names = Table.read(data).colnames
    flux = next(n for n in names if n.startswith("f_"))
    columns = read_columns(data, [flux, flux.replace("f_", "ferr_"), "zspec"])
    assert len(columns["zspec"]) == 100 and np.isfinite(columns["zspec"]).all()


def test_a_float32_column_with_nulls_keeps_its_precision(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    from redshelf.indexing import tables

    column = pa.array([0.3, -99.9, None], type=pa.float32())
    parquet.write_table(pa.table({"z": column}), tmp_path / "c.parquet")
    found = tables.read_columns(tmp_path / "c.parquet", ["z"], format=None, hdu=None, text=[])["z"]
    assert found.dtype == np.float32 and np.isnan(found[2])
    assert found[1] == np.float32(-99.9)

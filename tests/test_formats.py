"""Answers as tables: the same to the bit in every format, with units, UCDs and where they come from."""

from __future__ import annotations

import csv
from io import BytesIO, StringIO
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse
from astropy.io.votable.ucd import parse_ucd
from astropy.table import Table
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st

from redshelf.indexing import joining, tabular, votable
from redshelf.models.errors import BadInput
from redshelf.service import tables
from redshelf.service.fields import FIELDS

FORMATS = ("votable", "csv", "parquet", "fits")
LISTS = {  # question -> where its list stands in JSON
    "/v1/sources/s0010/neighbours?k=20": "neighbours",
    "/v1/cone?ra_deg=150.1&dec_deg=2.2&radius_arcsec=60": "sources",
    "/v1/outliers?encoder=vit&n=15": "outliers",
}
BODIES: dict[str, tuple[dict[str, Any], str]] = {
    "neighbours": ({"source_id": "s0010", "k": 7, "encoder": "vit"}, "neighbours"),
    "redshifts": ({"ids": ["s0001", "s0049", "s0004", "s0002"], "pdf": False}, "redshifts"),
}


def read(format: str, content: bytes) -> Table:
    """As a user reads it with astropy."""
    if format == "votable":
        return parse(BytesIO(content), verify="exception").get_first_table().to_table(use_names_over_ids=True)
    how = {"csv": "ascii.csv", "parquet": "parquet", "fits": "fits"}[format]
    if format == "csv":
        return Table.read(content.decode(), format=how)
    return Table.read(BytesIO(content), format=how)


def values(column: Any) -> list[Any]:
    """Values as JSON has them: null for what is masked or NaN, also for an empty text."""
    found = []
    for value in np.ma.asarray(column).tolist():
        text = value.decode().strip() if isinstance(value, bytes) else value
        found.append(None if text in (None, "") or text != text else text)
    return found


def same(table: Table, rows: list[dict[str, Any]]) -> None:
    """Every column of the table that JSON has is equal to it, to the bit, and none is missing."""
    for name in rows[0]:
        if rows[0][name] is None or not isinstance(rows[0][name], (list, dict)):
            if name in ("score", "encoder") or name not in FIELDS:  # an encoder of all is a fact of the table
                continue
            assert values(table[name]) == [row[name] for row in rows], name
            if name == "source_id":
                assert all(isinstance(value, str) for value in values(table[name]))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("path", LISTS)
def test_every_format_of_a_list_is_read_back_to_the_bit(client: TestClient, path: str, format: str) -> None:
    document = client.get(path).json()
    response = client.get(f"{path}&format={format}")
    assert response.status_code == 200 and response.headers["content-type"].startswith(tabular.FORMATS[format].media)
    same(read(format, response.content), document[LISTS[path]])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("route", BODIES)
def test_posted_questions_are_answered_in_every_format(client: TestClient, route: str, format: str) -> None:
    body, name = BODIES[route]
    document = client.post(f"/v1/{route}", json=body).json()
    response = client.post(f"/v1/{route}?format={format}", json=body)
    assert response.status_code == 200, response.text
    same(read(format, response.content), document[name])


def test_an_uploaded_cutout_is_answered_as_a_table(client: TestClient) -> None:
    files = {"file": client.get("/v1/sources/s0012/cutout?format=fits").content}
    document = client.post("/v1/cutouts/neighbours?k=4", files=files).json()
    response = client.post("/v1/cutouts/neighbours?k=4&format=parquet", files=files)
    same(read("parquet", response.content), document["neighbours"])
    assert "neighbours-cutout-generation1.parquet" in response.headers["content-disposition"]


def test_a_comparison_is_one_table_with_the_lines_of_both_encoders(client: TestClient) -> None:
    path = "/v1/sources/s0010/compare?encoders=vit,photometry&k=6"
    document, table = client.get(path).json(), read("votable", client.get(f"{path}&format=votable").content)
    assert list(table["encoder"]) == ["vit"] * 6 + ["photometry"] * 6
    same(table[:6], document["neighbours"][0]["neighbours"])
    same(table[6:], document["neighbours"][1]["neighbours"])


@pytest.mark.parametrize("format", ["votable", "parquet", "fits"])
def test_densities_are_lists_of_a_line_and_a_star_has_none(client: TestClient, format: str) -> None:
    body = {"ids": ["s0001", "s0049", "s0004"]}
    document = client.post("/v1/redshifts", json=body).json()["redshifts"]
    table = read(format, client.post(f"/v1/redshifts?format={format}", json=body).content)
    for row, name in ((0, "s0001"), (2, "s0004")):
        assert document[row]["source_id"] == name
        np.testing.assert_array_equal(np.asarray(table["pdf_density"][row], float), document[row]["pdf"]["density"])
        np.testing.assert_array_equal(np.asarray(table["pdf_z"][row], float), document[row]["pdf"]["z"])
    star = table["pdf_density"][1]
    assert star is None or np.ma.getmaskarray(np.ma.asarray(star)).all() or np.isnan(np.asarray(star, float)).all()


def test_a_csv_has_no_densities_and_refuses_to_be_asked_for_them(client: TestClient) -> None:
    silent = client.post("/v1/redshifts?format=csv", json={"ids": ["s0001"]})
    assert silent.status_code == 200 and "pdf" not in silent.text.splitlines()[0]
    asked = client.post("/v1/redshifts?format=csv", json={"ids": ["s0001"], "pdf": True})
    assert asked.status_code == 422 and "which CSV cannot hold" in asked.json()["detail"]


def test_where_a_table_comes_from_travels_with_it(client: TestClient) -> None:
    path = "/v1/sources/s0010/neighbours?k=3&encoder=vit"
    document = client.get(path).json()
    expected = {"survey": "small", "generation": "1", "encoder": "vit", "revision": document["revision"]}
    expected |= {"recall": "1.0", "exact": "True", "query": "s0010", "n_matching": "299"}

    def told(format: str) -> bytes:
        return client.get(f"{path}&format={format}").content

    facts = joining.facts_of(pq.read_schema(BytesIO(told("parquet"))))
    assert {name: facts[name] for name in expected} == expected
    header = fits.getheader(BytesIO(told("fits")), 1)
    assert {name: str(header[f"REDSHELF {name}".upper()]) for name in expected} == expected
    params = {one.name: one.value for one in parse(BytesIO(told("votable"))).get_first_table().params}
    assert {name: params[name] for name in expected} == expected
    lines = list(csv.DictReader(StringIO(told("csv").decode())))
    assert len(lines) == 3
    for line in lines:
        assert {name: line[name] for name in ("survey", "generation", "encoder", "revision", "recall")}.items() <= (
            expected.items()
        )


def test_columns_have_units_and_ucds_of_the_vocabulary(client: TestClient) -> None:
    for name, one in FIELDS.items():
        assert one.ucd is None or parse_ucd(one.ucd, check_controlled_vocabulary=True), name
    path = "/v1/sources/s0010/neighbours?k=3&format="
    fields = {one.name: one for one in parse(BytesIO(client.get(path + "votable").content)).get_first_table().fields}
    ucds = {"z_spec": "src.redshift", "z_phot": "src.redshift.phot", "z_error": "stat.error;src.redshift"}
    ucds |= {"source_id": "meta.id;meta.main", "ra_deg": "pos.eq.ra;meta.main", "object_class": "src.class"}
    assert {name: fields[name].ucd for name in ucds} == ucds
    assert str(fields["ra_deg"].unit) == "deg" and fields["z_spec"].unit is None and fields["z_spec"].description
    table = Table.read(BytesIO(client.get(path + "fits").content), format="fits")
    assert str(table["dec_deg"].unit) == "deg"
    header = fits.getheader(BytesIO(client.get(path + "fits").content), 1)
    assert header[f"TUCD{table.colnames.index('z_phot') + 1}"] == "src.redshift.phot"


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        (None, "application/json"),
        ("*/*", "application/json"),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", "application/json"),
        ("text/csv", "text/csv"),
        ("text/*", "text/csv"),
        ("application/x-votable+xml, application/json;q=0.5", "application/x-votable+xml"),
        ("application/json;q=0.1, application/FITS;q=0.2", "application/fits"),
        ("image/fits", "application/fits"),
        ("application/json;q=0, */*;q=0.1", "application/x-votable+xml"),
    ],
)
def test_the_accept_header_chooses_where_format_does_not(client: TestClient, accept: str | None, media: str) -> None:
    headers = {} if accept is None else {"accept": accept}
    response = client.get("/v1/sources/s0010/neighbours?k=2", headers=headers)
    assert response.headers["content-type"].startswith(media) and response.headers["vary"] == "accept"
    named = client.get("/v1/sources/s0010/neighbours?k=2&format=parquet", headers=headers)
    assert named.headers["content-type"] == "application/vnd.apache.parquet"


@pytest.mark.parametrize("accept", ["text/html", "image/png", "application/json;q=0", "nonsense"])
def test_an_accept_header_that_cannot_be_met_is_406_in_words(client: TestClient, accept: str) -> None:
    response = client.get("/v1/outliers", headers={"accept": accept})
    assert response.status_code == 406 and response.headers["content-type"] == "application/problem+json"
    assert f"Accept: {accept}" in response.json()["detail"] and "text/csv" in response.json()["detail"]


@pytest.mark.parametrize("format", ["xml", "", "JSON", "hdf5"])
def test_an_unknown_format_is_refused(client: TestClient, format: str) -> None:
    for response in (
        client.get(f"/v1/outliers?format={format}"),
        client.post(f"/v1/neighbours?format={format}", json={"source_id": "s0010"}),
    ):
        assert response.status_code == 422 and f"format='{format}'" in response.json()["detail"]
    in_body = client.post("/v1/neighbours", json={"source_id": "s0010", "format": "csv"})
    assert in_body.status_code == 422 and "unknown field 'format'" in in_body.json()["detail"]


@pytest.mark.parametrize("format", FORMATS)
def test_an_empty_list_is_a_table_without_lines(client: TestClient, format: str) -> None:
    response = client.get(f"/v1/cone?ra_deg=10&dec_deg=-40&radius_arcsec=5&format={format}")
    table = read(format, response.content)
    assert response.status_code == 200 and len(table) == 0 and "source_id" in table.colnames


def test_a_download_has_a_name(client: TestClient) -> None:
    headers = client.get("/v1/sources/s0010/neighbours?format=csv").headers
    assert headers["content-disposition"] == ('attachment; filename="redshelf-small-neighbours-s0010-generation1.csv"')
    assert "content-disposition" not in client.get("/v1/sources/s0010/neighbours").headers


TEXTS = st.text(st.characters(codec="ascii", exclude_characters="\r"), max_size=12)  # XML has one kind of line end
ROWS = st.lists(
    st.tuples(
        TEXTS,
        st.floats(allow_nan=False),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        st.integers(-(2**31), 2**31 - 1),
        st.booleans(),
        st.none() | st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=3, max_size=3),
    ),
    max_size=9,
)


@settings(deadline=None, max_examples=60)
@given(ROWS)
@pytest.mark.parametrize("serialization", ["tabledata", "binary2"])
def test_any_table_comes_back_from_a_votable(serialization: votable.Serialization, rows: list[Any]) -> None:
    types = [pa.string(), pa.float64(), pa.float64(), pa.int32(), pa.bool_(), pa.list_(pa.float64(), 3)]
    names = list("abcdef")
    columns = list(zip(*rows, strict=True)) or [()] * 6
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    table = pa.Table.from_arrays(arrays, names=names)
    found = (
        parse(BytesIO(votable.write(table, serialization=serialization)), verify="exception").get_first_table().array
    )
    assert len(found) == len(rows)
    for row, line in zip(rows, found, strict=True):
        clean = "".join(char if char in "\t\n" or char >= " " else "?" for char in row[0])
        if serialization == "binary2":
            clean = row[0].rstrip("\0")
            assert str(line["a"]).rstrip("\0") == clean or "\0" in clean
        else:
            assert str(line["a"]).strip() == clean.strip()
        assert line["b"] == row[1] and line["d"] == row[3] and bool(line["e"]) == row[4]
        assert (line["c"] is np.ma.masked or np.isnan(line["c"])) if row[2] is None else line["c"] == row[2]
        if row[5] is None:
            assert np.ma.getmaskarray(line["f"]).all() or np.isnan(np.asarray(line["f"])).all()
        else:
            np.testing.assert_array_equal(np.asarray(line["f"]), row[5])


def test_a_table_of_astropy_has_masks_units_ucds_and_facts() -> None:
    table = tables.make({"source_id": ["a", "b"], "z_spec": [0.5, None], "ra_deg": [1.0, 2.0]}, {"survey": "x", "k": 2})
    found = tabular.to_astropy(table)
    assert found.colnames == ["source_id", "ra_deg", "z_spec"] and found.meta == {"survey": "x", "k": "2"}
    assert found["ra_deg"].unit == "deg" and found["z_spec"].meta["ucd"] == "src.redshift"
    assert found["z_spec"].mask.tolist() == [False, True] and found["z_spec"][0] == 0.5
    assert found["source_id"].tolist() == ["a", "b"]


def test_a_list_is_refused_by_csv_and_long_facts_do_not_break_fits() -> None:
    table = tables.make({"pdf_z": [[0.0, 1.0]]}, {"bands_missing": [f"band{i}" for i in range(40)], "survey": "é"})
    with pytest.raises(BadInput, match="pdf_z is a list, which CSV cannot hold"):
        tabular.FORMATS["csv"].write(table)
    header = fits.getheader(BytesIO(tabular.FORMATS["fits"].write(table)), 1)
    assert header["REDSHELF SURVEY"] == "?" and "band39" in "".join(header["COMMENT"])

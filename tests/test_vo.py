"""The Virtual Observatory: Simple Cone Search, VOSI, DataLink and cutouts, as their documents have it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from io import BytesIO
from pathlib import Path
from typing import Any

import known_shelf
import numpy as np
import pyarrow.parquet as pq
import pytest
import torture
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.io.votable import parse
from astropy.io.votable.tree import VOTableFile
from astropy.table import Table
from astropy.wcs import WCS
from fastapi.testclient import TestClient
from httpx import Response
from hypothesis import given, settings
from hypothesis import strategies as st

from redshelf.api.app import create_app
from redshelf.service import cone
from redshelf.service.explore import cone as cone_answer
from redshelf.service.pictures import Circle
from redshelf.service.settings import load
from redshelf.service.shelf import OpenShelf
from redshelf.service.sources import iau_name

AT = "RA=150.1&DEC=2.2&SR=0.01"
UCD1 = {"ID_MAIN": "char", "POS_EQ_RA_MAIN": "double", "POS_EQ_DEC_MAIN": "double"}
VOT = "{http://www.ivoa.net/xml/VOTable/v1.3}"


def votable(response: Response) -> VOTableFile:
    assert response.status_code == 200
    return parse(BytesIO(response.content), verify="ignore")


def statuses(response: Response) -> list[tuple[str, str]]:
    """Each QUERY_STATUS of a document, with its words."""
    found = ET.fromstring(response.content).iter(f"{VOT}INFO")
    return [(one.get("value", ""), one.text or "") for one in found if one.get("name") == "QUERY_STATUS"]


def rows(response: Response) -> list[dict[str, Any]]:
    """The lines of the first table, as Python values."""
    table = votable(response).get_first_table().to_table(use_names_over_ids=True)
    lines = zip(*(column.tolist() for column in table.columns.values()), strict=True)
    return [dict(zip(table.colnames, line, strict=True)) for line in lines]


def test_a_cone_search_finds_what_the_cone_route_does(client: TestClient, shelf: OpenShelf) -> None:
    expected = cone_answer(shelf, 150.1, 2.2, 36.0, n=1000)
    response = client.get(f"/scs?{AT}")
    assert response.headers["content-type"].startswith("text/xml") and statuses(response) == [("OK", "")]
    found = rows(response)
    assert [row["source_id"] for row in found] == [one.source_id for one in expected.sources] and len(found) > 10
    for row, one in zip(found, expected.sources, strict=True):
        assert (row["ra_deg"], row["dec_deg"], row["separation_arcsec"]) == (
            one.ra_deg, one.dec_deg, one.separation_arcsec,
        )  # fmt: skip
        assert row["iau_name"] == iau_name(one.ra_deg, one.dec_deg) and row["object_class"] == one.object_class


@pytest.mark.parametrize("verb", ["1", "2", "3"])
def test_the_three_columns_of_the_protocol_are_there_once_at_every_verbosity(client: TestClient, verb: str) -> None:
    document = votable(client.get(f"/scs?{AT}&VERB={verb}"))
    results = [one for one in document.resources if one.type == "results"]
    assert len(results) == 1 and len(results[0].tables) == 1
    fields = results[0].tables[0].fields
    for ucd, datatype in UCD1.items():
        found = [field for field in fields if field.ucd == ucd]
        assert len(found) == 1 and found[0].datatype == datatype
    names = [field.name for field in fields]
    assert len(names) == {"1": 3, "2": 8, "3": 14}[verb]
    assert ("magnitude_i" in names) == (verb == "3") and ("z_phot" in names) == (verb != "1")


@pytest.mark.parametrize("query", ["RA=150.1&DEC=2.2&SR=0", f"{AT}&MAXREC=0", "MAXREC=0"])
def test_nothing_but_columns_is_answered_where_nothing_else_is_asked(client: TestClient, query: str) -> None:
    response = client.get(f"/scs?{query}")
    table = votable(response).get_first_table()
    assert len(table.fields) == 8 and len(table.array) == 0 and statuses(response)[0][0] in ("OK", "OVERFLOW")


NAMES = st.sampled_from(["RA", "dec", "SR", "VERB", "MAXREC", "RESPONSEFORMAT", "ID", "CIRCLE", "POS", "BAND"])
ODD = ["", "1", "150.1 2.2 0.001", "-1", "1e400", "nan", "s0010", "CIRCLE 1 2 3", "4e-7 6e-7", "csv", "\0", "<"]
ASKED = st.lists(st.tuples(NAMES, st.sampled_from(ODD) | st.text(max_size=8)), max_size=6)


@given(st.sampled_from(["/scs", "/datalink", "/soda/sync"]), ASKED)
@settings(deadline=None, max_examples=torture.count(150, 5000))
def test_no_parameters_whatever_make_an_unexpected_error(
    client: TestClient, path: str, asked: list[tuple[str, str]]
) -> None:
    response = client.get(path, params=asked)
    allowed = (200, 204, 400, 404) if path == "/soda/sync" else (200,)
    assert response.status_code in allowed, response.text
    if path != "/soda/sync" and "xml" in response.headers["content-type"]:
        ET.fromstring(response.content)


def test_an_empty_field_is_no_error(client: TestClient) -> None:
    response = client.get("/scs?RA=10&DEC=-60&SR=0.1")
    assert statuses(response) == [("OK", "")] and rows(response) == []


def test_what_is_cut_off_is_told_behind_the_table(client: TestClient) -> None:
    whole, cut = client.get(f"/scs?{AT}"), client.get(f"/scs?{AT}&MAXREC=4")
    assert [row["source_id"] for row in rows(cut)] == [row["source_id"] for row in rows(whole)][:4]
    assert statuses(cut) == [("OVERFLOW", "")]
    assert cut.text.index("OVERFLOW") > cut.text.index("</TABLE>")
    exact = client.get(f"/scs?{AT}&MAXREC={len(rows(whole))}")
    assert statuses(exact) == [("OK", "")]


def test_names_are_read_in_any_case_and_unknown_ones_are_ignored(client: TestClient) -> None:
    usual = client.get(f"/scs?{AT}")
    other = client.get("/scs?ra=150.1&Dec=2.2&sR=0.01&generation=99&format=csv&x=1&RUNID=a")
    assert other.status_code == 200 and other.content == usual.content
    assert client.get("/scs?RA=+150.1&DEC=2.2&SR=1e-2").content == usual.content


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("DEC=2&SR=1", "RA is missing"),
        ("RA=1&DEC=2", "SR is missing"),
        ("RA=&DEC=2&SR=1", "RA is missing"),
        ("RA=x&DEC=2&SR=1", "RA=x: expected a number"),
        ("RA=nan&DEC=2&SR=1", "RA=nan: expected a number"),
        ("RA=1_0&DEC=2&SR=1", "RA=1_0: expected a number"),
        ("RA=1e999&DEC=2&SR=1", "RA=1e999: expected a number"),
        ("RA=10 2&DEC=2&SR=1", "RA=10 2: expected a number"),
        ("RA=361&DEC=2&SR=1", "RA=361.0: expected 0 <= RA <= 360"),
        ("RA=1&DEC=-91&SR=1", "DEC=-91.0: expected -90 <= DEC <= 90"),
        ("RA=1&DEC=2&SR=-1", "SR=-1.0: expected 0 <= SR <= 10"),
        ("RA=1&DEC=2&SR=10.1", "SR=10.1: expected 0 <= SR <= 10"),
        ("RA=1&ra=2&DEC=2&SR=1", "RA is given 2 times: expected once"),
        (f"{AT}&VERB=4", "VERB=4: expected 1, 2 or 3"),
        (f"{AT}&VERB=two", "VERB=two"),
        (f"{AT}&MAXREC=-1", "MAXREC=-1: expected a whole number"),
        (f"{AT}&MAXREC=9&maxrec=9", "MAXREC is given 2 times"),
        (f"{AT}&RESPONSEFORMAT=html", "RESPONSEFORMAT=html: expected one of votable"),
        ("RA=<b>&DEC=2&SR=1", "RA=<b>: expected a number"),
        ("RA=%00%FF&DEC=2&SR=1", "expected a number"),
    ],
)
def test_what_is_wrong_is_told_as_a_votable_with_status_200(client: TestClient, query: str, words: str) -> None:
    response = client.get(f"/scs?{query}")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/xml")
    (status,) = statuses(response)
    assert status[0] == "ERROR" and words in status[1]
    (error,) = (one for one in ET.fromstring(response.content).findall(f"{VOT}INFO") if one.get("name") == "Error")
    assert words in error.get("value", "")


@pytest.mark.parametrize(
    ("format", "media"),
    [
        ("votable", "application/x-votable+xml"),
        ("VOTABLE/B2", "application/x-votable+xml;serialization=binary2"),
        ("application/x-votable%2Bxml; serialization=BINARY2", "application/x-votable+xml;serialization=binary2"),
        ("text/xml", "text/xml"),
        ("csv", "text/csv"),
        ("text/csv", "text/csv"),
        ("fits", "application/fits"),
        ("parquet", "application/vnd.apache.parquet"),
    ],
)
def test_responseformat_chooses_how_the_same_is_written(client: TestClient, format: str, media: str) -> None:
    expected = rows(client.get(f"/scs?{AT}&VERB=1"))
    response = client.get(f"/scs?{AT}&VERB=1&RESPONSEFORMAT={format}")
    assert response.headers["content-type"].startswith(media)
    if "csv" in media:
        table = Table.read(response.text, format="ascii.csv")
    elif "fits" in media:
        table = Table.read(BytesIO(response.content), format="fits")
    elif "parquet" in media:
        table = Table(pq.read_table(BytesIO(response.content)).to_pydict())
    else:
        assert ("BINARY2" in response.text) == ("binary2" in media)
        table = votable(response).get_first_table().to_table(use_names_over_ids=True)
    for name in ("source_id", "ra_deg", "dec_deg"):
        assert np.asarray(table[name]).astype(type(expected[0][name])).tolist() == [row[name] for row in expected]


def test_random_cones_hold_what_skycoord_says_at_the_poles_and_across_ra_0_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    n = 3000
    ra = rng.uniform(0, 360, n)
    dec = np.degrees(np.arcsin(rng.uniform(-1, 1, n)))
    dec[:600] = 90 - rng.gamma(1, 2, 600)  # around the pole
    dec[600:1200] = -90 + rng.gamma(1, 2, 600)
    ra[1200:2000] = rng.normal(0, 2, 800) % 360  # on both sides of RA 0
    dec[1200:2000] = rng.normal(0, 3, 800)
    dec[:3], dec[600:603], ra[1200:1203] = 90, -90, 0  # and on them
    dec = np.clip(dec, -90, 90)
    shelf = known_shelf.open_known(tmp_path, {"any": np.ones((n, 4), np.float16)}, ra_deg=ra, dec_deg=dec)
    sky = SkyCoord(ra, dec, unit="deg")
    for _ in range(torture.count(400, 10_000)):
        near = rng.integers(n)
        centre = (ra[near] + rng.normal(0, 1)) % 360, float(np.clip(dec[near] + rng.normal(0, 1), -90, 90))
        radius = float(10 ** rng.uniform(-3, 1))
        pole = float(rng.choice([-90, 90]))
        if rng.random() < 0.1:
            centre = centre[0], pole
        elif rng.random() < 0.1:  # its border on the pole, or next to it
            centre = centre[0], pole - np.sign(pole) * radius * float(rng.choice([1, 1 - 1e-12, 1 + 1e-12, 0.9, 1.1]))
        found = cone.table(shelf, *centre, radius, maxrec=n).table
        separation = sky.separation(SkyCoord(*centre, unit="deg"))
        surely, perhaps = (np.flatnonzero(separation.deg <= radius + more) for more in (-1e-10, 1e-10))
        names = set(found["source_id"].to_pylist())  # of a source on the border nobody can say
        assert {f"s{row}" for row in surely} <= names <= {f"s{row}" for row in perhaps}, (centre, radius)
        order = [int(one[1:]) for one in found["source_id"].to_pylist()]
        np.testing.assert_allclose(found["separation_arcsec"], separation[order].arcsec, rtol=1e-9, atol=1e-6)
        assert (np.diff(found["separation_arcsec"].to_numpy()) >= 0).all()


def test_ra_360_is_ra_0(client: TestClient) -> None:
    assert rows(client.get("/scs?RA=360&DEC=0&SR=0.1")) == rows(client.get("/scs?RA=0&DEC=0&SR=0.1"))


def test_capabilities_name_every_service_by_the_address_the_client_uses(client: TestClient) -> None:
    response = client.get("/capabilities", headers={"host": "localhost:8080"})
    assert response.headers["content-type"].startswith("application/xml")
    root = ET.fromstring(response.content)
    assert root.tag == "{http://www.ivoa.net/xml/VOSICapabilities/v1.0}capabilities"
    found = {one.get("standardID"): one.findtext("interface/accessURL", "") for one in root.findall("capability")}
    assert found == {
        "ivo://ivoa.net/std/VOSI#capabilities": "http://localhost:8080/capabilities",
        "ivo://ivoa.net/std/VOSI#availability": "http://localhost:8080/availability",
        "ivo://ivoa.net/std/ConeSearch": "http://localhost:8080/scs?",
        "ivo://ivoa.net/std/DataLink#links-1.1": "http://localhost:8080/datalink?",
        "ivo://ivoa.net/std/SODA#sync-1.0": "http://localhost:8080/soda/sync?",
    }
    test = root.find(".//testQuery")
    assert test is not None
    asked = "&".join(f"{name.upper()}={test.findtext(name)}" for name in ("ra", "dec", "sr"))
    assert rows(client.get(f"/scs?{asked}"))


def test_availability_says_what_is_served(client: TestClient) -> None:
    root = ET.fromstring(client.get("/availability").content)
    space = "{http://www.ivoa.net/xml/VOSIAvailability/v1.0}"
    assert root.tag == f"{space}availability" and root.findtext(f"{space}available") == "true"
    assert root.findtext(f"{space}note") == "generation 1 of small, 300 sources"


def test_links_lead_to_the_data_of_a_source(client: TestClient) -> None:
    response = client.get("/datalink?ID=s0010")
    assert response.headers["content-type"].startswith("application/x-votable+xml;content=datalink")
    found = rows(response)
    assert {row["semantics"]: row["content_type"] for row in found} == {
        "#this": "application/json",
        "#documentation": "text/html",
        "#derivation": "application/json",
        "#auxiliary": "application/x-votable+xml",
        "#preview-image": "image/png",
        "#progenitor": "application/fits",
        "#cutout": "",
    }
    for row in found:
        assert row["ID"] == "s0010" and row["error_message"] == ""
        if row["access_url"]:
            linked = client.get(row["access_url"].removeprefix("http://127.0.0.1"))
            assert linked.status_code == 200 and linked.headers["content-type"].startswith(row["content_type"])
    services = [one for one in votable(response).resources if one.ID == "soda"]
    assert len(services) == 1 and found[-1]["service_def"] == "soda"


def test_links_of_several_sources_of_unknown_ones_and_of_none(client: TestClient) -> None:
    several = rows(client.get("/datalink?ID=s0010&id=nope&ID=s0011"))
    assert [row["ID"] for row in several] == ["s0010"] * 7 + ["nope"] + ["s0011"] * 7
    assert several[7]["error_message"].startswith("NotFoundFault: no source 'nope'")
    assert rows(client.get("/datalink")) == []
    many = client.get("/datalink?" + "&".join(f"ID=s{i:04d}" for i in range(120)))
    assert len(rows(many)) == 700 and statuses(many) == [("OVERFLOW", "")]
    wrong = statuses(client.get("/datalink?ID=s0010&RESPONSEFORMAT=csv"))
    assert wrong == [("ERROR", "UsageFault: RESPONSEFORMAT: links are answered as votable")]


def test_a_shelf_without_images_links_to_none(bare_shelf: Path) -> None:
    bare = TestClient(create_app(load(environ={}, shelf=bare_shelf)))
    found = rows(bare.get("/datalink?ID=s0010"))
    assert {row["semantics"] for row in found} == {"#this", "#documentation", "#auxiliary"}
    assert "SODA" not in bare.get("/capabilities").text
    assert bare.get("/soda/sync?ID=s0010").status_code == 404


def test_a_circle_cuts_the_stored_stamp_to_the_pixels_that_it_touches(client: TestClient, shelf: OpenShelf) -> None:
    row = shelf.row("s0010")
    ra, dec = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
    whole = fits.open(BytesIO(client.get("/soda/sync?ID=s0010").content))
    assert [hdu.name for hdu in whole] == ["PRIMARY", "G", "R", "I"] and whole["G"].shape == (32, 32)
    north = dec + 1.0 / 3600  # 5 pixels up
    circle = f"{ra} {north} {0.85 / 3600}"  # of 4.25 pixels
    part = fits.open(BytesIO(client.get(f"/soda/sync?ID=s0010&CIRCLE={circle}").content))
    np.testing.assert_array_equal(part["I"].data, whole["I"].data[17:26, 12:21])
    for pixel in ((0, 0), (8, 3)):
        place = WCS(part["I"].header).pixel_to_world(*pixel)
        same = WCS(whole["I"].header).pixel_to_world(pixel[0] + 12, pixel[1] + 17)
        assert place.separation(same).arcsec < 1e-6
    by_pos = client.get(f"/soda/sync?id=s0010&POS=circle {circle}")
    assert by_pos.content == client.get(f"/soda/sync?ID=s0010&CIRCLE={circle}").content
    by_place = client.get(f"/soda/sync?CIRCLE={circle}")
    assert by_place.content == by_pos.content


def test_the_descriptor_of_one_source_says_which_circle_holds_its_stamp(client: TestClient, shelf: OpenShelf) -> None:
    """By name, UCD and unit clients know a parameter of SODA (1.0, 3.4); the values are of 4.2."""

    def told(ids: str) -> tuple[dict[str, tuple[str, str, str]], list[str]]:
        found = re.search(r'<GROUP name="inputParams">.*?</GROUP>', client.get(f"/datalink?{ids}").text, re.DOTALL)
        assert found
        group = ET.fromstring(found[0])
        inputs = {p.get("name", ""): (p.get("ucd", ""), p.get("unit", ""), p.get("value", "")) for p in group}
        circle = next(p for p in group if p.get("name") == "CIRCLE")
        return inputs, [one.get("value", "") for one in circle.iter("MAX")]

    inputs, (circle,) = told("ID=s0010")
    assert inputs["ID"] == ("meta.ref.url;meta.curation", "", "s0010")
    assert inputs["CIRCLE"] == ("pos.outline;obs", "deg", "")
    assert inputs["BAND"] == ("em.wl;stat.interval", "m", "")
    whole = client.get("/soda/sync?ID=s0010").content
    assert client.get("/soda/sync", params={"ID": "s0010", "CIRCLE": circle}).content == whole
    ra, dec, radius = circle.split()
    smaller = client.get("/soda/sync", params={"CIRCLE": f"{ra} {dec} {float(radius) * 0.65}"})
    assert fits.open(BytesIO(smaller.content))["I"].shape < (32, 32), "the circle is close to the smallest"
    assert told("ID=s0010&ID=s0011")[1] == told("ID=no-such")[1] == []


@pytest.mark.parametrize(
    ("band", "names"),
    [("4e-7 5e-7", ["G"]), ("6.2e-7 1", ["R", "I"]), ("-Inf 6.2e-7", ["G", "R"]), ("0 +inf", ["G", "R", "I"])],
)
def test_band_chooses_by_wavelength(client: TestClient, band: str, names: list[str]) -> None:
    response = client.get("/soda/sync", params={"ID": "s0010", "BAND": band})
    assert [hdu.name for hdu in fits.open(BytesIO(response.content))][1:] == names


@pytest.mark.parametrize("query", ["BAND=1 2", "CIRCLE=10 10 0.1", "CIRCLE=330 -2 1", "POS=CIRCLE 150 3 0.001"])
def test_a_part_that_the_stamp_does_not_have_is_204(client: TestClient, query: str) -> None:
    response = client.get(f"/soda/sync?ID=s0010&{query}")
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize(
    ("query", "status", "words"),
    [
        ("", 400, "UsageError: ID is missing: expected an ID, a CIRCLE, or both"),
        ("ID=nope", 404, "UsageError: no source 'nope'"),
        ("ID=s0010&ID=s0011", 400, "MultiValuedParamNotSupported: ID is given 2 times"),
        ("ID=s0010&CIRCLE=1 2 3&circle=1 2 3", 400, "MultiValuedParamNotSupported: CIRCLE"),
        ("ID=s0010&CIRCLE=1 2 3&POS=CIRCLE 1 2 3", 400, "MultiValuedParamNotSupported: CIRCLE and POS"),
        ("ID=s0010&CIRCLE=1 2", 400, "UsageError: CIRCLE=1 2: expected 3 numbers"),
        ("ID=s0010&CIRCLE=1 2 0", 400, "UsageError: CIRCLE=1.0 2.0 0.0: expected"),
        ("ID=s0010&CIRCLE=1 2 inf", 400, "UsageError: CIRCLE=inf: expected a number"),
        ("ID=s0010&POS=RANGE 1 2 3 4", 400, "UsageError: POS=RANGE 1 2 3 4: expected CIRCLE"),
        ("ID=s0010&BAND=2 1", 400, "UsageError: BAND=2.0 1.0: expected two wavelengths"),
        ("CIRCLE=10 10 0.001", 404, "UsageError: no source within"),
    ],
)
def test_a_wrong_cutout_is_told_as_soda_has_it(client: TestClient, query: str, status: int, words: str) -> None:
    response = client.get(f"/soda/sync?{query}")
    assert (response.status_code, response.headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert response.text.startswith(words)


def refusing(shelf: Path, state: Path, **settings: Any) -> TestClient:
    app = create_app(load(environ={}, shelf=shelf, state_dir=state, **settings))
    return TestClient(app, client=("192.0.2.7", 50_000))  # of loopback no requests are counted


@pytest.mark.parametrize(
    ("path", "word", "passing"),
    [
        ("/soda/sync?ID=s0010", "AuthenticationError: ", "ServiceUnavailable: "),
        ("/datalink?ID=s0010", "DefaultFault: ", "TransientFault: "),
        (f"/scs?{AT}", "", ""),
    ],
)
def test_what_is_refused_before_it_is_answered_is_written_as_the_protocol_has_it(
    tiny_shelf: Path, tmp_path: Path, path: str, word: str, passing: str
) -> None:
    refused = refusing(tiny_shelf, tmp_path, require_key=True).get(path)
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Bearer")
    busy = refusing(tiny_shelf, tmp_path, rate_per_address="1/hour")
    first, second = (busy.get(path, headers={"x-request-id": "r"}) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 429) and int(second.headers["retry-after"]) > 0
    for answer, told in ((refused, f"{word}a key with scope read"), (second, passing)):
        if path.startswith("/soda"):
            assert answer.headers["content-type"] == "text/plain; charset=utf-8"
            assert answer.text.startswith(told)
        else:
            assert answer.headers["content-type"].startswith("text/xml")
            ((status, words),) = statuses(answer)
            assert status == "ERROR" and words.startswith(told)


@given(st.floats(-90, 90), st.floats(0, 359.9), st.floats(-4, 4), st.floats(-4, 4), st.floats(0.05, 3))
@settings(deadline=None)
def test_a_box_holds_every_pixel_of_the_circle_and_no_row_that_it_misses(
    dec: float, ra: float, x: float, y: float, radius: float
) -> None:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype, wcs.wcs.crval, wcs.wcs.crpix = ["RA---TAN", "DEC--TAN"], [ra, dec], [17, 17]
    wcs.wcs.cd, wcs.wcs.lonpole = np.diag([-0.2, 0.2]) / 3600, 180  # north up on the pole too
    place = wcs.pixel_to_world(16 + x / 0.2, 16 + y / 0.2)
    box = Circle(place.ra.deg, place.dec.deg, radius / 3600).box(ra, dec, size_px=32, scale_arcsec=0.2)
    px = np.array([16 + x / 0.2, 16 + y / 0.2])
    low, high = np.floor(px - radius / 0.2 + 0.5), np.floor(px + radius / 0.2 + 0.5)
    if (np.abs(np.concatenate([px - radius / 0.2, px + radius / 0.2]) % 1 - 0.5) < 1e-3).any():
        return  # on the border of two pixels
    low, high = np.clip(low, 0, 32), np.clip(high + 1, 0, 32)
    if (low >= high).any():
        assert box is None
    else:
        assert box is not None
        assert [(one.start, one.stop) for one in box[::-1]] == list(zip(low, high, strict=True))


PART = st.floats(0.02, 0.98)


@given(st.integers(0, 8_639_999), st.integers(0, 3_239_999), PART, PART, st.booleans())
def test_names_are_the_digits_of_the_position_cut_off(
    ra: int, dec: int, more_ra: float, more_dec: float, south: bool
) -> None:
    """`ra` in hundredths of a second, `dec` in tenths of an arcsecond, and what must not round them up."""
    name = iau_name((ra + more_ra) / 24_000, (dec + more_dec) / 36_000 * (-1 if south else 1))
    hms = f"{ra // 360_000:02d}{ra // 6000 % 60:02d}{ra // 100 % 60:02d}.{ra % 100:02d}"
    dms = f"{dec // 36_000:02d}{dec // 600 % 60:02d}{dec // 10 % 60:02d}.{dec % 10}"
    assert name == f"J{hms}{'-' if south else '+'}{dms}"


def test_a_name_never_reaches_24_hours() -> None:
    assert iau_name(359.99999999999, 90.0) == "J000000.00+900000.0"
    assert iau_name(np.nextafter(360, 0), -90.0).startswith("J000000.00-90")

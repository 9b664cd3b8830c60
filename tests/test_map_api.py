"""Maps over HTTP: tiles whose every pixel is counted, points, what is under a pointer, a lasso, and what is refused."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient
from matplotlib import colormaps
from matplotlib.path import Path as Outline
from PIL import Image

from redshelf.api.app import create_app
from redshelf.indexing import colours, morton
from redshelf.service import maps, onmap, tiles
from redshelf.service.mapping import make
from redshelf.service.maps import OpenMap
from redshelf.service.settings import load
from redshelf.service.shelf import OpenShelf, open_shelf

SQUARE = [[0.1, 0.1], [0.9, 0.15], [0.8, 0.9], [0.2, 0.8]]


@pytest.fixture(scope="module")
def client(mapped_shelf: Path) -> TestClient:
    return TestClient(create_app(load(environ={}, shelf=mapped_shelf)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def shelf(mapped_shelf: Path) -> OpenShelf:
    return open_shelf(mapped_shelf)


@pytest.fixture(scope="module")
def opened(shelf: OpenShelf) -> OpenMap:
    return maps.find(shelf, "vit")


def picture(client: TestClient, address: str) -> Image.Image:
    answer = client.get(address)
    assert answer.status_code == 200 and answer.headers["content-type"] == "image/png", answer.text
    return Image.open(io.BytesIO(answer.content))


def positions(opened: OpenMap) -> npt.NDArray[np.float64]:
    """(n, 2), in the order of the map."""
    return morton.positions_of(opened.pyramid.keys)


def test_a_map_that_is_slow_to_open_keeps_nobody_else_waiting(
    mapped_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app, began, go, usual = create_app(load(environ={}, shelf=mapped_shelf)), Event(), Event(), maps.find

    def held(shelf: OpenShelf, name: str) -> OpenMap:
        began.set()
        assert go.wait(5), "nothing else was answered meanwhile"
        return usual(shelf, name)

    monkeypatch.setattr(maps, "find", held)

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as asks:
            asked = asyncio.create_task(asks.get("/v1/maps/vit"))
            while not began.is_set():
                await asyncio.sleep(0.005)
            assert (await asks.get("/healthz")).status_code == 200
            go.set()
            assert (await asked).status_code == 200

    asyncio.run(run())


def test_a_map_says_what_it_is(client: TestClient, opened: OpenMap) -> None:
    told = client.get("/v1/maps/vit").json()
    assert (told["encoder"], told["method"], told["n_sources"], told["generation"]) == ("vit", "pca", 300, 1)
    assert told["map"] == opened.digest and told["tile_px"] == 256 and told["max_zoom"] == 16
    known = {one["name"]: one["known"] for one in told["colours"]}
    assert known["density"] == 300 and known["labelled"] == known["z_spec"] == 240
    assert all(len(one["colours"]) == 62 for one in told["colours"])
    sky = client.get("/v1/maps/sky").json()
    assert sky["method"] == "sky" and sky["side_deg"] > 0 and sky["revision"] == ""


@pytest.mark.parametrize("tile", [(0, 0, 0), (1, 1, 0), (3, 4, 4)])
def test_a_tile_has_a_pixel_for_every_place_with_a_source(
    client: TestClient, opened: OpenMap, tile: tuple[int, int, int]
) -> None:
    zoom, x, y = tile
    at = np.floor(positions(opened) * 256 * 2**zoom).astype(int) - [256 * x, 256 * y]
    at = at[((at >= 0) & (at < 256)).all(axis=1)]
    counts = np.zeros((256, 256), int)
    np.add.at(counts, (at[:, 1], at[:, 0]), 1)
    image = picture(client, f"/v1/maps/vit/{zoom}/{x}/{y}.png")
    assert image.size == (256, 256)
    shown = np.asarray(image.convert("RGBA"))
    assert np.array_equal(shown[..., 3] > 0, counts > 0)
    peak = opened.manifest.peaks[zoom]
    for n in np.unique(counts[counts > 0]):
        level = round(254 * min(math.log1p(n) / math.log1p(max(peak, 2)), 1))
        colour = colours.ramp("inferno", 255, start=0.3)[level]
        assert (shown[counts == n, :3] == colour).all()


@pytest.mark.parametrize("colour", ["z_phot", "z_spec", "magnitude", "error", "support", "labelled"])
def test_a_pixel_has_the_colour_of_its_median_or_share(
    client: TestClient, shelf: OpenShelf, opened: OpenMap, colour: str
) -> None:
    at = np.floor(positions(opened) * 256).astype(int)
    values = maps.values_of(shelf, colour, opened.pyramid.rows, opened.support)
    shown = np.asarray(picture(client, f"/v1/maps/vit/0/0/0.png?colour={colour}").convert("RGBA"))[..., :3]
    low, high = opened.manifest.colours[colour]
    palette = tiles.hues(colour)
    seen = 0
    for x, y in {(int(x), int(y)) for x, y in at}:
        own = values[(at == [x, y]).all(axis=1)]
        own = own[np.isfinite(own)]
        if not len(own):
            assert tuple(shown[y, x]) == colours.UNKNOWN
            continue
        value = np.mean(own) if maps.COLOURS[colour] == "share" else np.median(own)
        part = min(max((value - low) / (high - low), 0), 1)
        place = (1 + 60 * math.sqrt(part) if part else 0) if colour == "labelled" else 61 * part
        near = palette[[math.floor(place), math.ceil(place)]].astype(int)
        assert (np.abs(near - shown[y, x].astype(int)).sum(axis=1) == 0).any(), (colour, value, place)
        seen += 1
    assert seen > 50


def test_a_source_drawn_as_a_dot_reaches_into_the_next_tile(client: TestClient, opened: OpenMap) -> None:
    at = np.floor(positions(opened) * 1024).astype(int)
    expected = np.zeros((1024, 1024), bool)
    for dx in range(-2, 3):
        for dy in range(-2, 3):
            if dx * dx + dy * dy <= 2.3**2:
                x, y = at[:, 0] + dx, at[:, 1] + dy
                inside = (x >= 0) & (y >= 0) & (x < 1024) & (y < 1024)
                expected[y[inside], x[inside]] = True
    found = np.zeros((1024, 1024), bool)
    for x in range(4):
        for y in range(4):
            image = picture(client, f"/v1/maps/vit/2/{x}/{y}.png?dot=5&colour=z_phot").convert("RGBA")
            found[256 * y : 256 * y + 256, 256 * x : 256 * x + 256] = np.asarray(image)[..., 3] > 0
    assert np.array_equal(found, expected)


def test_the_colours_are_those_of_matplotlib() -> None:
    for name in ("viridis", "plasma", "cividis", "inferno"):
        expected = np.array([colormaps[name](i / 255)[:3] for i in range(256)]) * 255
        assert np.abs(colours.ramp(name, 256) - expected).max() < 12
        light = colours.ramp(name, 62, start=0.1).astype(float) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(light) > -0.5).all()


def unpacked(told: dict[str, Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    x, y = (np.frombuffer(base64.b64decode(told[axis]), dtype="<u2") for axis in "xy")
    x0, y0, x1, y1 = told["box"]
    where = np.column_stack([x0 + (x + 0.5) / 65536 * (x1 - x0), y0 + (y + 0.5) / 65536 * (y1 - y0)])
    return where, np.frombuffer(base64.b64decode(told["value"]), dtype=np.uint8)


def test_the_points_of_a_box_are_its_sources_with_their_colours(
    client: TestClient, shelf: OpenShelf, opened: OpenMap
) -> None:
    asked = "/v1/maps/vit/points?x_min=0.2&y_min=0.1&x_max=0.8&y_max=0.7&colour=z_spec"
    told = client.get(asked).json()
    where, value = unpacked(told)
    own = positions(opened)
    inside = ((own > [0.2, 0.1]) & (own < [0.8, 0.7])).all(axis=1)
    assert told["n"] == told["n_within"] == inside.sum() == len(where) > 20
    assert np.abs(where - own[inside]).max() < 0.6 / 65536
    z = np.asarray(shelf.columns["z_spec"])[np.asarray(opened.pyramid.rows)[inside]]
    assert np.array_equal(value == 255, np.isnan(z))
    low, high = opened.manifest.colours["z_spec"]
    expected = np.round(61 * np.clip((z - low) / (high - low), 0, 1))
    assert np.array_equal(value[value < 255], expected[np.isfinite(z)])
    fewer = client.get(f"{asked}&n=10").json()
    assert (fewer["n"], fewer["n_within"]) == (10, inside.sum())
    some, _ = unpacked(fewer)
    assert all((np.abs(where - one).max(axis=1) < 1e-9).any() for one in some)


def test_the_nearest_source_is_the_nearest(client: TestClient, shelf: OpenShelf, opened: OpenMap) -> None:
    own = positions(opened)
    for x, y in np.random.default_rng(0).random((40, 2)).round(4).tolist():
        told = client.get(f"/v1/maps/vit/nearest?x={x}&y={y}&radius=0.05").json()["source"]
        distance = np.hypot(*(own - [x, y]).T)
        if distance.min() > 0.05:
            assert told is None
        else:
            assert told["source_id"] == shelf.source_id(int(opened.pyramid.rows[distance.argmin()]))
            assert (told["x"], told["y"]) == tuple(own[distance.argmin()])


def test_where_many_sources_are_near_fewer_are_looked_at(
    client: TestClient, opened: OpenMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = positions(opened)
    asked = f"/v1/maps/vit/nearest?x={own[150, 0]}&y={own[150, 1]}&radius=0.5"
    plain = client.get(asked).json()
    monkeypatch.setattr(onmap, "LOOKED_AT", 3)
    assert client.get(asked).json() == plain and plain["source"]["x"] == own[150, 0]


def test_a_lasso_lists_what_is_inside_and_says_what_is_left_out(
    client: TestClient, shelf: OpenShelf, opened: OpenMap
) -> None:
    inside = np.flatnonzero(Outline(SQUARE).contains_points(positions(opened)))
    ids = [shelf.source_id(int(row)) for row in np.asarray(opened.pyramid.rows)[inside]]
    labelled = np.isfinite(np.asarray(shelf.columns["z_spec"])[np.asarray(opened.pyramid.rows)[inside]]).sum()
    told = client.post("/v1/maps/vit/select", json={"polygon": SQUARE, "n": 1000}).json()
    assert (told["n_within"], told["n_labelled"], told["left_out"]) == (len(ids), labelled, 0)
    assert [one["source_id"] for one in told["sources"]] == ids
    row = shelf.row(ids[0])
    first = told["sources"][0]
    assert first["magnitude"] == pytest.approx(float(shelf.columns["magnitudes"][row][2]))
    assert told["mag_band"] == "i" and first["ra_deg"] == float(shelf.columns["ra"][row])
    some = client.post("/v1/maps/vit/select", json={"polygon": SQUARE, "n": 7}).json()
    listed = [one["source_id"] for one in some["sources"]]
    assert len(listed) == 7 and some["left_out"] == len(ids) - 7 and set(listed) <= set(ids)


def test_a_lasso_is_a_table_in_every_format(client: TestClient) -> None:
    body = {"polygon": SQUARE, "n": 20}
    told = client.post("/v1/maps/vit/select", json=body).json()["sources"]
    table = pq.read_table(io.BytesIO(client.post("/v1/maps/vit/select?format=parquet", json=body).content))
    assert table["source_id"].to_pylist() == [one["source_id"] for one in told]
    assert table["x"].to_pylist() == [one["x"] for one in told]
    for name, kind in (("csv", "text/csv"), ("votable", "application/x-votable+xml"), ("fits", "application/fits")):
        answer = client.post(f"/v1/maps/vit/select?format={name}", json=body)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)


def test_an_answer_is_tagged_by_its_map_and_an_address_that_names_it_is_kept(own_shelf: Path) -> None:
    make(own_shelf, "vit")
    client = TestClient(create_app(load(environ={}, shelf=own_shelf)))
    plain = client.get("/v1/maps/vit/0/0/0.png")
    tag, digest = plain.headers["etag"], client.get("/v1/maps/vit").json()["map"]
    assert plain.headers["cache-control"] == "no-cache"
    assert client.get("/v1/maps/vit/0/0/0.png", headers={"if-none-match": tag}).status_code == 304
    named = f"/v1/maps/vit/0/0/0.png?map={digest}"
    assert "immutable" in client.get(named).headers["cache-control"]
    make(own_shelf, "vit")  # picked up at once, without a new generation
    fresh = client.get("/v1/maps/vit/0/0/0.png", headers={"if-none-match": tag})
    assert fresh.status_code == 200 and fresh.content == plain.content
    gone = client.get(named)
    assert gone.status_code == 410 and "was made anew" in gone.json()["detail"]


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/v1/maps/vti", 404, "no encoder 'vti' is published here; nearest: vit"),
        ("/v1/maps/photometry", 404, "no map of photometry yet: run `redshelf map --encoder photometry`"),
        ("/v1/maps/vit/17/0/0.png", 422, "z=17: expected 0 <= z <= 16"),
        ("/v1/maps/vit/2/4/0.png", 422, "x=4: expected 0 <= x < 4"),
        ("/v1/maps/vit/2/0/-1.png", 422, "y=-1: expected 0 <= y < 4"),
        ("/v1/maps/vit/a/0/0.png", 422, "z='a'"),
        ("/v1/maps/vit/99999999999999999999/0/0.png", 422, "z="),
        ("/v1/maps/vit/0/0/0.png?colour=red", 422, "colour='red'"),
        ("/v1/maps/vit/0/0/0.png?dot=2", 422, "dot=2: expected one of 1, 3, 5, 7"),
        ("/v1/maps/vit/0/0/0.png?color=z_phot", 422, "unknown query parameter 'color'; nearest: colour"),
        ("/v1/maps/vit/0/0/0.png?generation=7", 409, "generation=7 is not served yet"),
        ("/v1/maps/vit/points?n=200001", 422, "n=200001: expected 1 <= n <= 200000"),
        ("/v1/maps/vit/points?x_min=0.5&x_max=0.5", 422, "expected the first to be below the second"),
        ("/v1/maps/vit/points?x_min=2&x_max=3", 422, "the map lies between 0 and 1"),
        ("/v1/maps/vit/points?x_min=nan", 422, "x_min"),
        ("/v1/maps/vit/nearest?x=2&y=0", 422, "x="),
        ("/v1/maps/vit/nearest?x=0.5&y=0.5&radius=0", 422, "radius=0: expected 0 < radius <= 1"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(client: TestClient, address: str, status: int, words: str) -> None:
    answer = client.get(address)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ('{"polygon": [[0, 0], [1, 1]]}', "2 different corners: expected 3 or more"),
        ('{"polygon": [[0, 0], [1, 1], [1, 0], [0, 1]]}', "crosses itself"),
        ('{"polygon": [[0, 0], [1, NaN], [1, 0]]}', "polygon.1.1"),
        ('{"polygon": [[0, 0], [1, 5], [1, 0]]}', "corner at (1, 5)"),
        ('{"polygon": [[0, 0, 1], [1, 1], [1, 0]]}', "polygon.0"),
        ('{"polygon": "0,0"}', "polygon"),
        ('{"polygn": []}', "nearest: polygon"),
        ('{"polygon": [[0, 0], [1, 0], [1, 1]], "n": 1001}', "n=1001"),
        ("{", "not valid JSON"),
    ],
)
def test_what_is_no_polygon_is_refused(client: TestClient, body: str, words: str) -> None:
    answer = client.post("/v1/maps/vit/select", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and words in answer.json()["detail"], answer.text


def test_a_polygon_of_too_many_corners_is_refused(client: TestClient) -> None:
    ring = [[0.5 + 0.4 * math.cos(a / 80), 0.5 + 0.4 * math.sin(a / 80)] for a in range(501)]
    answer = client.post("/v1/maps/vit/select", json={"polygon": ring})
    assert answer.status_code == 422 and "List should have at most 500 items" in answer.json()["detail"]


def test_a_colouring_that_no_source_has_is_refused_with_those_there_are(own_bare: Path) -> None:
    make(own_bare)
    client = TestClient(create_app(load(environ={}, shelf=own_bare)))
    answer = client.get("/v1/maps/photometry/0/0/0.png?colour=z_spec")
    assert answer.status_code == 422
    assert "no source of the map of photometry has one; there is density, magnitude" in answer.json()["detail"]
    assert client.get("/v1/maps/photometry/0/0/0.png?colour=magnitude").status_code == 200

"""The page of the map as it is served: what it says, links that lead on without JavaScript, and where there is none."""

from __future__ import annotations

import json
import re
import shutil
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from redshelf.api import map_page
from redshelf.api.app import create_app
from redshelf.api.map_page import View, corner, first_view
from redshelf.service import maps, onmap
from redshelf.service.mapping import make
from redshelf.service.publish import publish
from redshelf.service.settings import load
from redshelf.service.shelf import open_shelf


def client_of(root: Path) -> TestClient:
    return TestClient(create_app(load(environ={}, shelf=root)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(mapped_shelf: Path) -> TestClient:
    return client_of(mapped_shelf)


def data(html: str) -> dict[str, Any]:
    """What the script is told."""
    found = re.search(r'data-map="([^"]*)"', html)
    assert found
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


def tiles(html: str) -> list[tuple[str, str, int]]:
    """Of each tile without JavaScript where it leads, its picture, and the sources that its words count."""
    found = re.findall(
        r'<a href="([^"]+)" title="Zoom in here"><img src="([^"]+)"[^>]*alt="([0-9\u202f]+) sources', html
    )
    return [(unescape(a), unescape(b), int(n.replace("\u202f", ""))) for a, b, n in found]


def test_the_page_says_what_the_map_is_and_tells_the_script_the_same(client: TestClient) -> None:
    answer = client.get("/map/vit?colour=z_phot&x=0.5&y=0.25&zoom=3&points=true&mark=s0003")
    assert answer.status_code == 200 and "300 sources, by the first two principal components" in answer.text
    told = data(answer.text)
    assert (told["encoder"], told["colour"], told["points"], told["sources"]) == ("vit", "z_phot", True, 300)
    assert told["view"] == {"x": 0.5, "y": 0.25, "zoom": 3} and told["mark"]["id"] == "s0003"
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert "script-src 'self'" in answer.headers["content-security-policy"]
    assert "unsafe" not in answer.headers["content-security-policy"]
    assert not re.search(r"<script(?![^>]*src=)|style=|onclick=", answer.text)


def test_a_map_begins_with_all_of_it_or_around_the_source_that_is_marked(
    client: TestClient, mapped_shelf: Path
) -> None:
    plain = data(client.get("/map/vit").text)
    assert plain["view"]["zoom"] == plain["first"] == 1
    marked = data(client.get("/map/vit?mark=s0003").text)
    shelf = open_shelf(mapped_shelf)
    x, y = onmap.locate(shelf, maps.find(shelf, "vit"), "s0003")
    assert marked["view"] == {"x": x, "y": y, "zoom": 3}


@pytest.mark.parametrize(("zoom", "sides"), [(0, 1), (1, 2), (4, 2)])
def test_tiles_without_a_script_count_their_sources_and_lead_into_themselves(
    client: TestClient, mapped_shelf: Path, zoom: int, sides: int
) -> None:
    html = client.get(f"/map/sky?zoom={zoom}&x=0.4&y=0.6&colour=magnitude").text
    shown = tiles(html)
    assert len(shown) == sides**2
    opened = maps.find(open_shelf(mapped_shelf), "sky")
    for closer, source, n in shown:
        z, x, y = (int(part) for part in re.findall(r"/sky/(\d+)/(\d+)/(\d+).png", source)[0])
        first, past = opened.pyramid.range_of(z, x, y)
        assert z == zoom and n == past - first and "colour=magnitude" in source
        assert client.get(source).status_code == 200
        inner = tiles(client.get(closer).text)
        assert sum(one[2] for one in inner) == n, "the next zoom shows this tile, and no other"


def test_links_without_a_script_move_by_half_a_window_and_stay_on_the_map(client: TestClient) -> None:
    html = client.get("/map/sky?zoom=2&x=0.5&y=0.5").text
    ways = {
        words: unescape(a)
        for a, words in re.findall(r'<a href="([^"]+)">(Left|Right|Up|Down|Zoom out|Whole map)</a>', html)
    }
    assert set(ways) == {"Left", "Right", "Up", "Down", "Zoom out", "Whole map"}
    left = [re.findall(r"/2/(\d)/(\d).png", one[1])[0] for one in tiles(client.get(ways["Left"]).text)]
    assert left == [("0", "1"), ("1", "1"), ("0", "2"), ("1", "2")]
    assert "Left</a>" not in client.get(ways["Left"]).text
    assert ways["Whole map"] == "/map/sky"


def test_the_first_view_holds_the_box_and_the_window_of_tiles_stays_on_the_map() -> None:
    for seed in range(200):
        rng = np.random.default_rng(seed)
        low, size = rng.random(2) * 0.5, rng.random(2) * 0.5 * 10.0 ** -rng.integers(0, 4)
        x0, y0, x1, y1 = (float(v) for v in (*low, *(low + size + 1e-5)))
        view = first_view((x0, y0, x1, y1))
        assert max(x1 - x0, y1 - y0) * 256 * 2**view.zoom <= map_page.WINDOW_PX
        assert view.zoom == 16 or max(x1 - x0, y1 - y0) * 512 * 2**view.zoom > map_page.WINDOW_PX
        column, row, side = corner(view)
        assert 0 <= column <= 2**view.zoom - side and 0 <= row <= 2**view.zoom - side
    assert corner(View(1.0, 0.0, 3)) == (6, 0, 2) and corner(View(0.9, 0.1, 0)) == (0, 0, 1)


def test_a_permalink_holds_view_colouring_and_generation(client: TestClient) -> None:
    html = client.get("/map/vit?colour=error&x=0.25&y=0.75&zoom=2&mark=s0004").text
    link = unescape(re.findall(r'id="permalink" href="([^"]+)"', html)[0])
    assert link == "/map/vit?x=0.25&y=0.75&zoom=2&colour=error&mark=s0004&generation=1"
    again = client.get(link)
    assert again.status_code == 200 and data(again.text)["view"] == {"x": 0.25, "y": 0.75, "zoom": 2}
    later = client.get(link.replace("generation=1", "generation=9"))
    assert later.status_code == 409 and "is not served yet" in later.text


def test_other_pages_lead_to_the_map(client: TestClient) -> None:
    assert client.get("/map", follow_redirects=False).headers["location"] == "/map/vit"
    assert 'href="/map/vit"' in client.get("/").text and 'href="/map/sky"' in client.get("/").text
    source = client.get("/source/s0003").text
    assert 'href="/map/vit?mark=s0003"' in source and 'href="/map/sky?mark=s0003"' in source
    assert "/map/photometry" not in source
    assert 'href="/map/vit?mark=s0003"' in client.get("/similar?like=s0003&encoder=vit&k=3").text
    assert "on the map" not in client.get("/similar?like=s0003&encoder=photometry&k=3").text


def test_where_there_is_no_map_the_page_says_which_command_makes_it(own_shelf: Path) -> None:
    client = client_of(own_shelf)
    assert "/map/" not in client.get("/").text
    html = client.get("/map").text
    assert "there is no map of vit yet" in html and "<code>redshelf map --encoder vit</code>" in html
    make(own_shelf, "sky")  # shown as soon as it is there
    assert 'There is a map of <a href="/map/sky">sky</a>' in client.get("/map/photometry").text
    assert client.get("/map", follow_redirects=False).headers["location"] == "/map/sky"
    assert data(client.get("/map/sky").text)["sources"] == 300
    publish(own_shelf)
    assert client.post("/admin/generation").status_code == 200
    html = client.get("/map/sky").text
    assert "the map of sky is of generation 1, and 2 is served" in html and "redshelf map --encoder sky" in html


def test_a_damaged_map_is_told_on_the_page_and_nothing_else_suffers(own_shelf: Path) -> None:
    folder = make(own_shelf, "vit").folder
    (folder / "keys.npy").write_bytes(b"nothing")
    client = client_of(own_shelf)
    html = client.get("/map/vit").text
    assert "keys.npy" in html and "redshelf map --encoder vit" in html
    assert client.get("/source/s0003").status_code == client.get("/").status_code == 200
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("address", "status", "words"),
    [
        ("/map/vti", 404, "no encoder &#39;vti&#39; is published here; nearest: vit"),
        ("/map/vit?zoom=17", 422, "zoom="),
        ("/map/vit?x=1.5", 422, "x="),
        ("/map/vit?colour=red", 422, "colour="),
        ("/map/vit?mark=nope", 404, "no source &#39;nope&#39;"),
        ("/map/vit?polygon=<script>", 422, "polygon="),
        ("/map/vit?zom=1", 422, "unknown query parameter &#39;zom&#39;"),
        ("/map/<script>alert(1)</script>", 404, ""),
    ],
)
def test_what_is_wrong_with_an_address_is_told_on_a_page(
    client: TestClient, address: str, status: int, words: str
) -> None:
    answer = client.get(address)
    assert answer.status_code == status and words in answer.text and "<script>alert" not in answer.text


def test_a_shelf_without_images_labels_or_redshifts_has_a_page(own_bare: Path) -> None:
    make(own_bare)
    told = data(client_of(own_bare).get("/map/photometry?colour=labelled").text)
    assert told["colour"] == "density" and not told["images"]
    assert [one["name"] for one in told["legends"]] == ["density", "magnitude"]


def test_the_numbers_beside_a_scale_are_where_their_colours_are() -> None:
    assert map_page.ticks("z_phot", 0.1, 2.1) == [(0.0, "0.10"), (0.5, "1.10"), (1.0, "2.10")]
    assert map_page.ticks("labelled", 0, 1)[0] == (0.0, "none") and map_page.ticks("labelled", 0, 1)[-1] == (
        1.0,
        "100%",
    )
    assert [words for _, words in map_page.density_ticks(5000)] == ["1", "10", "100", "1\u202f000", "5\u202f000"]
    assert map_page.density_ticks(1)[-1] == (1.0, "2")

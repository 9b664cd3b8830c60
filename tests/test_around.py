"""What lies around a source: the page, its policy, and the script that tells Aladin Lite what to draw."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from chromium import CHROMIUM, Page, serious_faults
from fastapi import FastAPI
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.models.errors import BadInput
from redshelf.service.settings import load

# stands for Aladin Lite: notes what it is told, and calls back as it does
STAND_IN = """
const told = { layers: [], markers: [] };
window.told = told;
export default {
  init: Promise.resolve(),
  aladin: (place, options) => {
    told.place = place;
    told.options = options;
    return {
      addCatalog: () => {}, on: (name, act) => { told[name] = act; },
      setOverlayImageLayer: (layer) => { told.layers.push(layer); setTimeout(layer.successCallback); },
    };
  },
  image: (url, options) => ({ url, ...options }),
  source: (ra, dec, data) => ({ ra, dec, data }),
  catalog: (options) => ({ addSources: (found) => told.markers.push([options.name, found]) }),
};
"""


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("aladin") / "aladin.js"
    path.write_text(STAND_IN)
    return path


@pytest.fixture(scope="module")
def app(tiny_shelf: Path, stand_in: Path) -> FastAPI:
    return create_app(load(environ={}, shelf=tiny_shelf, aladin=stand_in))


@pytest.fixture(scope="module")
def with_it(app: FastAPI) -> TestClient:
    return TestClient(app)


def drawn(html: str) -> dict[str, Any]:
    """What the page tells its script."""
    found = re.search(r'data-sky="([^"]*)"', html)
    assert found is not None
    told: dict[str, Any] = json.loads(unescape(found[1]))
    return told


def test_without_the_file_nothing_leads_there(client: TestClient) -> None:
    assert "/around" not in client.get("/source/s0003").text
    for address in ("/source/s0003/around", "/aladin.js"):
        answer = client.get(address)
        assert answer.status_code == 404 and "the setting aladin" in answer.text


def test_a_setting_that_names_no_file_is_refused(tiny_shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"aladin=.*nothing\.js.*: Path does not point to a file"):
        load(environ={}, shelf=tiny_shelf, aladin=tmp_path / "nothing.js")


def test_a_file_that_went_away_is_not_found(tiny_shelf: Path, tmp_path: Path) -> None:
    path = tmp_path / "aladin.js"
    path.write_text("")
    client = TestClient(create_app(load(environ={}, shelf=tiny_shelf, aladin=path)))
    assert client.get("/aladin.js").status_code == 200
    path.unlink()
    assert client.get("/aladin.js").status_code == 404 and client.get("/source/s0003/around").status_code == 404


def test_the_page_holds_the_sources_of_the_cone_nearest_first(with_it: TestClient) -> None:
    html = with_it.get("/source/s0003/around?radius_arcsec=300&band=r").text
    one = with_it.get("/v1/sources/s0003").json()
    cone = {"ra_deg": one["ra_deg"], "dec_deg": one["dec_deg"], "radius_arcsec": 300, "n": 60}
    expected = with_it.get("/v1/cone", params=cone).json()
    told = drawn(html)
    assert [s["id"] for s in told["sources"]] == [s["source_id"] for s in expected["sources"]]
    assert told["sources"][0]["id"] == "s0003" and len(told["sources"]) > 1
    assert [s["labelled"] for s in told["sources"]] == [s["z_spec"] is not None for s in expected["sources"]]
    for source in told["sources"]:
        assert with_it.get(source["cutout"]).headers["content-type"] == "application/fits"
        assert f'href="/source/{source["id"]}"' in html


def test_the_picture_begins_under_the_noise_and_ends_far_above_it(with_it: TestClient, tiny_shelf: Path) -> None:
    from redshelf.service.shelf import open_shelf

    noise = {band.name: band.noise_ujy for band in open_shelf(tiny_shelf, hashes=False).info.bands}
    for band in noise:
        told = drawn(with_it.get(f"/source/s0003/around?band={band}").text)
        assert told["cuts"] == pytest.approx([-3 * noise[band], 60 * noise[band]])


def test_only_this_page_may_compile_and_asks_nobody_else(with_it: TestClient) -> None:
    policy = with_it.get("/source/s0003/around").headers["content-security-policy"]
    assert "script-src 'self' 'wasm-unsafe-eval'" in policy and "'unsafe-eval'" not in policy
    hosts = {word for word in re.split(r"[ ;]+", policy) if "://" in word}
    assert hosts == {"http://localhost:21012"}  # the SAMP hub of the reader's machine, as on every page
    assert "wasm" not in with_it.get("/source/s0003").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("query", "words"),
    [("band=K", "band 'K'"), ("radius_arcsec=0", "greater than 0"), ("radius_arcsec=601", "less than or equal to 600")],
)
def test_what_cannot_be_shown_is_said(with_it: TestClient, query: str, words: str) -> None:
    answer = with_it.get(f"/source/s0003/around?{query}")
    assert answer.status_code in (400, 422) and words in unescape(answer.text)


def test_a_survey_without_images_has_markers_alone(bare_shelf: Path, stand_in: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=bare_shelf, aladin=stand_in)))
    told = drawn(client.get("/source/s0003/around").text)
    assert told["cuts"] is None and all(source["cutout"] is None for source in told["sources"])


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
class TestInABrowser:
    def test_each_cutout_is_a_layer_and_each_source_a_marker(self, page: Page, url: str) -> None:
        page.look()
        page.open(f"{url}/source/s0003/around?radius_arcsec=300")
        page.wait("document.getElementById('aladin').dataset.ready === 'true'")
        told = page.js("JSON.parse(document.getElementById('aladin').dataset.sky)")
        layers = page.js("told.layers.map((one) => [one.name, one.minCut])")
        assert layers == [[one["id"], told["cuts"][0]] for one in reversed(told["sources"])]
        markers = page.js("told.markers.map(([name, found]) => [name, found.map((one) => one.data.id)])")
        assert markers == [
            [name, [one["id"] for one in told["sources"] if one["labelled"] == labelled]]
            for name, labelled in (("measured redshift", True), ("no redshift", False))
        ]
        n = len(told["sources"])
        assert page.js("document.getElementById('aladin-says').textContent") == f"{n} of {n} cutouts"
        assert all(address.startswith(url) for address in page.requests)

    def test_a_click_on_a_marker_leads_to_its_source(self, page: Page, url: str) -> None:
        page.open(f"{url}/source/s0003/around")
        page.wait("window.told && told.objectClicked !== undefined")
        page.js("told.objectClicked({ data: { id: 's0007' } })")
        page.wait("location.pathname === '/source/s0007'")

    def test_nothing_serious_is_found_by_axe(self, page: Page, url: str) -> None:
        page.open(f"{url}/source/s0003/around?radius_arcsec=300")
        page.wait("document.getElementById('aladin').dataset.ready === 'true'")
        assert serious_faults(page) == []

    def test_a_file_that_is_not_aladin_is_said(self, page: Page, url: str, stand_in: Path) -> None:
        text = stand_in.read_text()
        stand_in.write_text("export default {};")
        try:
            page.open(f"{url}/source/s0003/around?radius_arcsec=30")
            page.tell("Network.setCacheDisabled", cacheDisabled=True)
            page.open(f"{url}/source/s0003/around?radius_arcsec=30")
            page.wait("/could not be started/.test(document.getElementById('aladin-says').textContent)")
            assert page.js("document.getElementById('aladin').hidden")
        finally:
            stand_in.write_text(text)
            page.tell("Network.setCacheDisabled", cacheDisabled=False)

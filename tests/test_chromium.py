"""The page in a real browser: what a person sees and does, with keys, without a script, and without another host."""

from __future__ import annotations

from base64 import b64decode
from io import BytesIO
from pathlib import Path

import pytest
from chromium import CHROMIUM, Page, serious_faults
from fastapi.testclient import TestClient

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
ROUTES = (
    "/",
    "/source/s0010",
    "/similar?like=s0010&against=photometry&encoder=vit&k=12&z_max=9",
    "/status",
    "/study",
    "/map",
)


@pytest.fixture(autouse=True)
def as_usual(page: Page) -> None:
    page.look()
    page.requests.clear()


def test_a_source_page_shows_its_redshift_and_a_grid_of_pictures(page: Page, url: str) -> None:
    page.open(f"{url}/source/s0010?k=12")
    assert page.js("document.querySelectorAll('.card').length") >= 10
    assert page.js("document.querySelector('svg.pz') !== null && document.body.innerText.includes('How far away')")
    broken = "[...document.images].filter((i) => i.complete && !i.naturalWidth).length"
    assert page.js(broken) == 0


def test_the_page_is_drawn(page: Page, url: str) -> None:
    from PIL import Image

    page.open(f"{url}/source/s0010?k=12")
    picture = b64decode(page.tell("Page.captureScreenshot", format="png")["data"])
    with Image.open(BytesIO(picture)) as image:
        assert image.size == (1280, 900)
        colours = set(image.convert("RGB").resize((160, 112)).get_flattened_data())
    assert len(colours) > 500, "photographs, not blank boxes"


def test_every_page_asks_its_own_server_alone_and_little_of_it(page: Page, url: str) -> None:
    for route in ROUTES:
        page.open(url + route)
    assert page.requests and all(one.startswith((url, "data:", "about:")) for one in page.requests)
    page.open(url)
    own = "[...performance.getEntriesByType('resource')].filter((r) => !r.name.includes('/cutout'))"
    first = page.js(
        f"{own}.concat(performance.getEntriesByType('navigation')).reduce((n, r) => n + r.decodedBodySize, 0)"
    )
    assert 10_000 < first < 150_000


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing_serious_on_any_page_in_both_themes(page: Page, url: str, dark: bool) -> None:
    page.look(dark=dark, width=1280 if dark else 390)
    for route in (*ROUTES, "/?q=nope", "/source/nobody"):
        page.open(url + route)
        background = "getComputedStyle(document.body).backgroundColor"
        assert (page.js(f"{background}.match(/[0-9]+/g).reduce((a, b) => +a + +b, 0)") < 380) == dark
        assert serious_faults(page) == [], route


def test_a_cutout_is_chosen_sent_and_answered(page: Page, url: str, client: TestClient, tmp_path: Path) -> None:
    file = tmp_path / "mine <b>.fits"
    file.write_bytes(client.get("/v1/sources/s0010/cutout?format=fits").content)
    page.open(url)
    page.choose("#upload input[type=file]", file)
    page.leave("document.getElementById('upload').submit()")
    assert page.js("document.querySelectorAll('.card').length") >= 10
    assert page.js("document.body.innerText.includes('mine <b>.fits')"), "its name is text"
    assert page.js("document.querySelector('.card').innerText.includes('s0010')"), "nearest is what was sent"
    page.leave("location.href = '/upload'")  # nothing was kept: back to the form
    assert page.js("location.pathname + location.hash") == "/#upload"


def test_no_page_is_wider_than_a_phone(page: Page, url: str) -> None:
    page.look(width=360)
    for route in (*ROUTES, "/?q=nope"):
        page.open(url + route)
        assert page.js("document.documentElement.scrollWidth") <= 360, route


def test_an_error_is_said_in_words_beside_the_box(page: Page, url: str) -> None:
    page.open(f"{url}/?q=nowhere")
    assert page.js("document.querySelector('[role=alert]').innerText.startsWith('no source')")
    assert page.js("document.getElementById('q').value") == "nowhere"


def test_a_person_gets_everywhere_by_keys_alone_and_back(page: Page, url: str) -> None:
    page.open(url)
    page.press("/")
    assert page.js("document.activeElement.id") == "q"
    for key in "s0010":
        page.press(key)
    page.press("Enter")
    page.wait("location.pathname === '/source/s0010' && document.readyState === 'complete'")
    page.press("?")
    assert page.js("document.querySelector('dialog').open")
    page.press("Escape")
    page.wait("!document.querySelector('dialog').open")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert page.js("document.activeElement === document.querySelectorAll('.grid .picture')[1]")
    page.press("ArrowDown")
    page.press("ArrowUp")
    assert page.js("document.activeElement === document.querySelectorAll('.grid .picture')[1]")
    page.press("+")
    page.wait("location.pathname === '/similar' && document.querySelectorAll('.pin.like').length === 2")
    page.js("history.back()")
    page.wait("location.pathname === '/source/s0010'")


def test_a_bookmark_is_kept_in_the_browser_and_shown_on_the_first_page(page: Page, url: str) -> None:
    page.open(f"{url}/source/s0011")
    page.press("b")
    page.open(url)
    assert page.js("[...document.querySelectorAll('#bookmarks .id')].map((one) => one.innerText)") == ["s0011"]


def test_the_form_of_a_grid_asks_without_a_script(page: Page, url: str) -> None:
    page.look(script=False)
    page.open(f"{url}/similar?like=s0010&encoder=photometry&k=12")
    assert page.js("document.getElementById('help').hidden")  # the script did not run
    page.js("document.querySelector('[name=mag_band]').value = 'i'")
    page.js("document.querySelector('[name=mag_max]').value = '23'")
    page.js("document.querySelector('.filters button').click()")
    page.wait("location.search.includes('mag_max=23') && document.readyState === 'complete'")
    assert page.js("document.querySelectorAll('.card').length") > 0 and page.js(
        "document.querySelector('.filters').open"
    )

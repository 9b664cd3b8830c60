"""The map in a real browser: moving it, what is under the pointer, the lasso, keys, permalinks, without a script."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from chromium import CHROMIUM, Page, serious_faults
from fastapi import FastAPI

from redshelf.service import maps, onmap
from redshelf.service.shelf import open_shelf

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
]
READY = "document.querySelector('.hud') !== null && / in view/.test(document.querySelector('.hud').textContent)"
BOX = "(({ x, y, width, height }) => [x, y, width, height])(document.querySelector('canvas').getBoundingClientRect())"
VIEW = "Object.fromEntries(new URLSearchParams(location.search))"


@pytest.fixture(scope="module")
def app(mapped_shelf: Path) -> FastAPI:
    from redshelf.api.app import create_app
    from redshelf.service.settings import load

    return create_app(load(environ={}, shelf=mapped_shelf))


@pytest.fixture(autouse=True)
def as_usual(page: Page) -> None:
    page.look()
    calm = [{"name": "prefers-reduced-motion", "value": "reduce"}, {"name": "prefers-color-scheme", "value": "light"}]
    page.tell("Emulation.setEmulatedMedia", features=calm)


def mouse(page: Page, kind: str, x: float, y: float, **told: object) -> None:
    page.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, **told)


def drag(page: Page, points: list[tuple[float, float]], *, modifiers: int = 0) -> None:
    held = {"button": "left", "buttons": 1, "clickCount": 1, "modifiers": modifiers}
    mouse(page, "mousePressed", *points[0], **held)
    for x, y in points[1:]:
        mouse(page, "mouseMoved", x, y, **held)
    mouse(page, "mouseReleased", *points[-1], **(held | {"buttons": 0}))


def shown(page: Page, url: str, address: str = "/map/vit") -> tuple[float, float, float, float]:
    """Open a map, and where its canvas is on the screen."""
    page.open(url + address)
    page.wait(READY)
    x, y, width, height = page.js(BOX)
    return x, y, width, height


def on_screen(mapped_shelf: Path, source_id: str) -> tuple[float, float]:
    shelf = open_shelf(mapped_shelf, hashes=False)
    return onmap.locate(shelf, maps.find(shelf, "vit"), source_id)


def test_the_map_is_drawn_and_says_how_many_sources_are_in_view(page: Page, url: str) -> None:
    shown(page, url)
    assert page.js("document.querySelector('.hud').textContent") == "300 sources in view"
    lit = """(() => { const c = document.querySelector('canvas');
      const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; let n = 0;
      for (let i = 0; i < d.length; i += 4) if (d[i] > 90) n++; return n; })()"""
    page.wait(f"{lit} > 500")


def test_buttons_wheel_and_keys_zoom_and_a_drag_moves(page: Page, url: str) -> None:
    x, y, width, height = shown(page, url)
    page.js("document.querySelector('[data-tool=in]').click()")
    page.wait(f"{VIEW}.zoom === '2'")
    before = page.js(VIEW)
    mouse(page, "mouseWheel", x + width / 2, y + height / 2, deltaX=0, deltaY=-120)
    page.wait(f"{VIEW}.zoom === '3'")
    drag(page, [(x + 300, y + 300), (x + 320, y + 310), (x + 428, y + 364)])
    page.wait(f"{VIEW}.x !== '{before['x']}'")
    after = page.js(VIEW)
    assert float(after["x"]) == pytest.approx(float(before["x"]) - 128 / 2048, abs=1 / 2048)
    assert float(after["y"]) == pytest.approx(float(before["y"]) - 64 / 2048, abs=1 / 2048)
    page.js("document.querySelector('canvas').focus()")
    page.press("-")
    page.wait(f"{VIEW}.zoom === '2'")
    page.press("ArrowRight")
    page.wait(f"Number({VIEW}.x) > {after['x']} + 0.05")
    page.press("0")
    page.wait(f"{VIEW}.zoom === '1'")


def test_the_wheel_zooms_into_what_is_under_the_pointer(page: Page, url: str) -> None:
    x, y, width, height = shown(page, url, "/map/vit?x=0.5&y=0.5&zoom=2")
    mouse(page, "mouseWheel", x + width / 2 + 100, y + height / 2 - 40, deltaX=0, deltaY=-120)
    page.wait(f"{VIEW}.zoom === '3'")
    told = page.js(VIEW)
    assert float(told["x"]) + 100 / 2048 == pytest.approx(0.5 + 100 / 1024, abs=1 / 2048)
    assert float(told["y"]) - 40 / 2048 == pytest.approx(0.5 - 40 / 1024, abs=1 / 2048)


def test_the_galaxy_under_the_pointer_is_shown_and_a_click_opens_it(page: Page, url: str, mapped_shelf: Path) -> None:
    at = on_screen(mapped_shelf, "s0010")
    x, y, width, height = shown(page, url, f"/map/vit?x={at[0]}&y={at[1]}&zoom=12")
    mouse(page, "mouseMoved", x + width / 2 - 3, y + height / 2 + 2)
    page.wait("document.querySelector('.under .id') && document.querySelector('.under .id').textContent === 's0010'")
    page.wait("document.querySelector('.under img').naturalWidth > 0")
    assert page.js("document.querySelector('.under img').alt").startswith("s0010, ")
    drag(page, [(x + width / 2 - 3, y + height / 2 + 2)])
    page.wait("location.pathname === '/source/s0010' && document.readyState === 'complete'")
    page.js("document.querySelector('a[href=\"/map/vit?mark=s0010\"]').click()")
    page.wait(f"location.pathname === '/map/vit' && {READY}")


def circle(x: float, y: float, radius: float, n: int = 40) -> list[tuple[float, float]]:
    turns = [2 * math.pi * i / n for i in range(n)]
    return [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns]


def test_a_lasso_lists_the_sources_inside_and_its_permalink_brings_them_back(page: Page, url: str) -> None:
    x, y, width, height = shown(page, url)
    drag(page, circle(x + width / 2, y + height / 2, 130), modifiers=8)  # Shift
    page.wait("!document.getElementById('selection').hidden")
    title = page.js("document.querySelector('#selection h2').textContent")
    assert title.endswith(" sources inside the lasso") and not title.startswith("0")
    ids = "[...document.querySelectorAll('#selection tbody a')].map((one) => one.textContent)"
    listed = page.js(ids)
    assert len(listed) == int(title.split()[0]) < 240 and len(set(listed)) == len(listed)
    assert page.js("document.querySelectorAll('#selection .card img').length") == min(len(listed), 60)
    page.open(page.js("document.getElementById('permalink').href"))
    page.wait("!document.getElementById('selection').hidden")
    # the corners are kept to 0.00001 of the map
    assert abs(len(page.js(ids)) - len(listed)) <= 1
    page.js("[...document.querySelectorAll('#selection button')].pop().click()")
    page.wait("document.getElementById('selection').hidden && !location.search.includes('polygon')")


def test_a_line_that_crosses_itself_is_closed_where_it_does(page: Page, url: str) -> None:
    x, y, width, height = shown(page, url)
    page.js("document.querySelector('[data-tool=lasso]').click()")
    loop = circle(x + width / 2, y + height / 2, 200)
    drag(page, [*loop, (x + width / 2 + 190, y + height / 2 + 40), (x + width / 2 + 260, y + height / 2 + 60)])
    page.wait("!document.getElementById('selection').hidden")
    assert page.js("document.querySelector('[data-tool=lasso]').getAttribute('aria-pressed')") == "false"
    assert "polygon" in page.js("location.search")


def test_everything_is_done_by_keys_alone(page: Page, url: str, mapped_shelf: Path) -> None:
    at = on_screen(mapped_shelf, "s0012")
    shown(page, url, f"/map/vit?x={at[0]}&y={at[1]}&zoom=11")
    page.js("document.querySelector('canvas').focus({ focusVisible: true })")
    page.press("ArrowRight")
    page.press("ArrowLeft")
    page.wait("document.querySelector('.under .id') && document.querySelector('.under .id').textContent === 's0012'")
    page.press("s")
    page.wait("!document.getElementById('selection').hidden")
    assert "s0012" in page.js("document.getElementById('selection').textContent")
    page.press("Escape")
    page.wait("document.getElementById('selection').hidden")
    page.press("Enter")
    page.wait("location.pathname === '/source/s0012'")


def test_another_colouring_is_drawn_at_once_and_stays_in_the_address(page: Page, url: str) -> None:
    shown(page, url)
    page.js("document.getElementById('colour').value = 'labelled'")
    page.js("document.getElementById('colour').dispatchEvent(new Event('change'))")
    page.wait("location.search.includes('colour=labelled')")
    assert page.js("document.getElementById('says').textContent").startswith(
        "Share of sources with a measured redshift"
    )
    assert page.js("document.getElementById('ticks').textContent").startswith("none")
    page.open(page.js("location.href"))
    assert page.js("document.getElementById('colour').value") == "labelled"


def test_two_fingers_zoom(page: Page, url: str) -> None:
    x, y, width, height = shown(page, url)
    middle = (x + width / 2, y + height / 2)

    def touch(kind: str, *reach: float) -> None:
        points = [{"x": middle[0] + sign * r, "y": middle[1], "id": i} for r in reach for i, sign in enumerate((-1, 1))]
        page.tell("Input.dispatchTouchEvent", type=kind, touchPoints=points)

    touch("touchStart", 40)
    for reach in (60, 80, 110, 150, 160):
        touch("touchMove", reach)
    touch("touchEnd")
    page.wait(f"{VIEW}.zoom === '3'")


def test_the_map_asks_its_own_server_alone_and_fits_a_phone_in_both_themes(page: Page, url: str) -> None:
    page.requests.clear()
    for width in (1280, 360):
        for dark in (False, True):
            page.look(width=width, dark=dark)
            shown(page, url, "/map/vit?colour=z_phot")
            assert serious_faults(page) == []
            assert page.js("document.documentElement.scrollWidth") <= width
    assert all(one.startswith((url, "data:", "about:")) for one in page.requests)
    nameless = """[...document.querySelectorAll('button, input, select, canvas, a')].filter((one) =>
      !one.textContent.trim() && !one.getAttribute('aria-label') && !(one.labels && one.labels.length)).length"""
    assert page.js(nameless) == 0, "everything that can be used has a name"


def test_without_a_script_a_click_on_a_tile_zooms_in(page: Page, url: str) -> None:
    page.look(script=False)
    page.open(f"{url}/map/vit?colour=z_spec")
    assert page.js("document.querySelectorAll('.tiles img').length") == 4
    assert page.js("[...document.images].every((one) => one.complete && one.naturalWidth === 256)")
    page.js("document.querySelectorAll('.tiles a')[3].click()")
    page.wait("location.search.includes('zoom=2') && document.readyState === 'complete'")
    assert "colour=z_spec" in page.js("location.search")
    assert page.js("document.querySelectorAll('.tiles img').length") == 4

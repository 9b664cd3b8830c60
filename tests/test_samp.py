"""A list goes from the page to the programs of the reader's machine, by a hub as TOPCAT has one: that of pyvo."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from astropy.table import Table
from chromium import CHROMIUM, PATIENCE_S, Page, browser
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.service.settings import load

BUTTONS = "document.querySelectorAll('[data-samp]')"
SAID = "[...document.querySelectorAll('[data-samp] + [role=status]')].map((one) => one.textContent).join('')"


def in_chromium(test: Any) -> Any:
    """A test that needs a browser."""
    for mark in (
        pytest.mark.browser,
        pytest.mark.slow,
        pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed"),
        pytest.mark.filterwarnings("ignore::pyvo.samp.SAMPWarning"),  # of a message that nobody takes
    ):
        test = mark(test)
    return test


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "waited for the hub"
        time.sleep(0.05)


class Consent:
    """The hub's question to its user, whether a page may register, answered `yes` or no."""

    def __init__(self, *, yes: bool) -> None:
        self.yes, self.asked, self._over = yes, 0, threading.Event()
        self.queue_request: Any = None
        self.queue_result: Any = None

    def answer(self) -> None:
        while not self._over.wait(0.05):
            if self.queue_request is not None and not self.queue_request.empty():
                self.queue_request.get()
                self.asked += 1
                self.queue_result.put(self.yes)

    def end(self) -> None:
        self._over.set()


class Hub:
    """A hub with the Web Profile, and a program at it that takes tables, once it `listens`."""

    def __init__(self, folder: Path, *, yes: bool = True) -> None:
        from pyvo import samp

        samp.conf.use_internet = False
        self.consent, lock = Consent(yes=yes), folder / "samp.lock"
        told: dict[str, Any] = {"lockfile": str(lock), "addr": "127.0.0.1", "mode": "single"}
        self._hub = samp.SAMPHubServer(web_profile=True, web_profile_dialog=self.consent, **told)
        self._hub.start()
        threading.Thread(target=self.consent.answer, daemon=True).start()
        self.received: list[dict[str, str]] = []
        self._program = samp.SAMPIntegratedClient(name="a program", addr="127.0.0.1")

    def listen(self) -> None:
        """The program registers, and says what it takes."""
        self._program.connect(hub=self._hub)
        self._program.bind_receive_notification("table.load.votable", self._take)

    def registered(self) -> list[str]:
        """The names of the web pages at the hub."""
        told = (self._hub._metadata[key].get("samp.name", "") for key in list(self._hub._private_keys))
        return [name for name in told if name == "redshelf"]

    def _take(self, private_key: str, sender: str, mtype: str, params: dict[str, str], extra: Any) -> None:
        self.received.append(params)

    def end(self) -> None:
        if self._program.is_connected:
            self._program.disconnect()
        self.consent.end()
        self._hub.stop()


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path) as opened:
        opened.look()
        yield opened


def click_and_wait(page: Page, words: str, *, button: int = 0) -> None:
    page.js(f"{BUTTONS}[{button}].click()")
    page.wait(f"{SAID}.includes({words!r})")


@in_chromium
@pytest.mark.parametrize("path", ["/similar?like=s0010&k=12&encoder=vit&mag_band=i&mag_max=25", "/source/s0010?k=12"])
def test_a_program_loads_the_votable_that_the_page_sends(page: Page, url: str, tmp_path: Path, path: str) -> None:
    hub = Hub(tmp_path)
    try:
        hub.listen()
        page.open(url + path)
        shown = page.js("[...document.querySelectorAll('.grid .id')].map((one) => one.textContent)")
        assert hub.consent.asked == 0 and hub.registered() == [] and len(shown) > 5  # nobody has clicked
        button = page.js(f"{BUTTONS}.length") - 1  # on the page of a source the first sends the source's own row
        click_and_wait(page, "Sent to 1 program.", button=button)
        wait_until(lambda: len(hub.received) == 1)
        table = Table.read(hub.received[0]["url"], format="votable")
        assert [one for one in table["source_id"] if one in shown] == shown and len(table) == 12
        assert hub.received[0]["name"] == "like s0010" and "generation=1" in hub.received[0]["url"]
        if button:
            click_and_wait(page, "Sent to 1 program.Sent to 1 program.")
            wait_until(lambda: len(hub.received) == 2)
            assert list(Table.read(hub.received[1]["url"], format="votable")["source_id"]) == ["s0010"]
        assert hub.consent.asked == 1 and hub.registered() == ["redshelf"]  # asked for once a page
        page.open(url)
        wait_until(lambda: hub.registered() == [])  # which has left the hub with its reader
    finally:
        hub.end()


@in_chromium
def test_a_hub_without_a_program_that_takes_tables_is_told_as_that(page: Page, url: str, tmp_path: Path) -> None:
    hub = Hub(tmp_path)
    try:
        page.open(f"{url}/similar?like=s0010")
        click_and_wait(page, "No program at the hub takes tables")
    finally:
        hub.end()
    click_and_wait(page, "No SAMP hub answers on this machine: start TOPCAT")


@in_chromium
def test_a_user_who_says_no_to_the_hub_is_told_so(page: Page, url: str, tmp_path: Path) -> None:
    hub = Hub(tmp_path, yes=False)
    try:
        page.open(f"{url}/similar?like=s0010")
        click_and_wait(page, "The hub has refused: ")
        assert "rejected by the user" in page.js(SAID)
    finally:
        hub.end()


@in_chromium
def test_without_a_hub_the_page_says_what_to_do_and_asks_for_nothing_before(page: Page, url: str) -> None:
    page.open(f"{url}/similar?like=s0010")
    assert not [one for one in page.requests if "21012" in one]
    click_and_wait(page, "No SAMP hub answers on this machine: start TOPCAT, and click again.")
    assert page.js(f"!{BUTTONS}[0].disabled")
    assert {one for one in page.requests if not one.startswith(url)} == {"http://localhost:21012/"}


def test_the_policy_lets_the_script_ask_the_hub_and_nobody_else(client: TestClient) -> None:
    policy = client.get("/similar?like=s0010").headers["content-security-policy"]
    assert [one for one in policy.split("; ") if one.startswith("connect-src")] == [
        "connect-src http://localhost:21012"
    ]


def test_where_programs_need_a_key_no_table_is_offered_to_them(tiny_shelf: Path, tmp_path: Path) -> None:
    from redshelf.service import keys

    key = keys.add(tmp_path, "alice", "read")
    app = create_app(load(environ={}, shelf=tiny_shelf, state_dir=tmp_path, require_key=True))
    page = TestClient(app, headers={"x-api-key": key}).get("/similar?like=s0010")
    assert page.status_code == 200 and "data-samp" not in page.text

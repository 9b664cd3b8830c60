"""Rates, requests at a time, deadlines: what is too much is turned away in the way the standard says, and no more."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from redshelf.api import limits, sources
from redshelf.api.app import create_app
from redshelf.service import keys
from redshelf.service.settings import load

AWAY = "192.0.2.7"


def app_of(shelf: Path, state: Path, **given: object) -> FastAPI:
    return create_app(load(environ={}, shelf=shelf, state_dir=state, **given))


def asks(app: FastAPI, address: str = AWAY) -> TestClient:
    return TestClient(app, client=(address, 50000))


@pytest.mark.parametrize(
    ("address", "caller"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("testclient", None),
        ("", None),
    ],
)
def test_who_is_counted_as_one(address: str, caller: str | None) -> None:
    assert limits.caller_of(address) == caller


def test_an_address_that_asks_too_often_waits_and_others_do_not(bare_shelf: Path, tmp_path: Path) -> None:
    app = app_of(bare_shelf, tmp_path, rate_per_address="3/minute")
    client = asks(app)
    assert [client.get("/v1/shelf").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    refused = client.get("/v1/shelf")
    assert (
        refused.headers["content-type"] == "application/problem+json"
        and 58 <= int(refused.headers["retry-after"]) <= 60
    )
    assert refused.json()["detail"] == f"address {AWAY} has asked 3/minute already"
    assert asks(app, "192.0.2.8").get("/v1/shelf").status_code == 200
    assert [asks(app, "127.0.0.1").get("/v1/shelf").status_code for _ in range(5)] == [200] * 5


def test_a_window_moves(bare_shelf: Path, tmp_path: Path) -> None:
    client = asks(app_of(bare_shelf, tmp_path, rate_per_address="2/second"))
    assert [client.get("/healthz").status_code for _ in range(3)] == [200, 200, 429]
    time.sleep(int(client.get("/healthz").headers["retry-after"]) + 0.05)
    assert client.get("/healthz").status_code == 200


def test_a_key_has_its_own_rate_wherever_it_is_used(bare_shelf: Path, tmp_path: Path) -> None:
    made = {name: {"x-api-key": keys.add(tmp_path, name, "read")} for name in ("alice", "bob")}
    app = app_of(bare_shelf, tmp_path, rate_per_key="2/minute", rate_per_address="")
    found = [asks(app, f"192.0.2.{i}").get("/v1/shelf", headers=made["alice"]).status_code for i in range(3)]
    assert found == [200, 200, 429]
    assert asks(app).get("/v1/shelf", headers=made["bob"]).status_code == 200
    assert (
        asks(app).get("/v1/shelf", headers=made["alice"]).json()["detail"] == "key 'alice' has asked 2/minute already"
    )
    assert asks(app).get("/v1/shelf").status_code == 200  # on loopback nobody needs one


def test_who_is_silent_is_forgotten(bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_CALLERS", 20)
    rates = limits.Rates(load(environ={}, rate_per_address="5/second"))
    for i in range(200):
        rates.count("address", f"10.0.0.{i}")
    time.sleep(1.1)
    for _ in range(3):
        rates.count("address", "10.0.1.1")
        time.sleep(0.05)  # `limits` looks for what has expired a moment after each
    assert len(rates._storage.events) <= 21


class Held:
    """A route that waits until it is let go, each time it is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.asked, counting = threading.Event(), 0, threading.Lock()
        usual = sources.service.describe

        def held(*given: Any) -> Any:
            if threading.current_thread().name == "redshelf-refresh":  # which asks by itself, to load what it takes
                return usual(*given)
            with counting:  # 64 threads that add 1 at a time lose some
                self.asked += 1
            assert self.go.wait(30)
            return usual(*given)

        monkeypatch.setattr(sources.service, "describe", held)


async def _until(condition: Any) -> None:
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited 10 s")


def test_beyond_what_may_be_in_flight_is_503_and_who_looks_after_it_still_sees_it(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, app = Held(monkeypatch), app_of(bare_shelf, tmp_path, max_concurrent=3)

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            waiting = [asyncio.create_task(client.get("/v1/shelf")) for _ in range(3)]
            await _until(lambda: held.asked == 3)
            refused = await client.get("/v1/sources/s0003")
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert refused.json()["detail"] == "this server answers 3 requests at a time, and is doing so: ask again"
            for path in ("/healthz", "/readyz", "/metrics"):
                assert (await client.get(path)).status_code == 200
            held.go.set()
            assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * 3
            assert (await client.get("/v1/sources/s0003")).status_code == 200

    asyncio.run(run())


def test_who_looks_after_a_server_is_answered_while_every_place_is_taken(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, app = Held(monkeypatch), app_of(bare_shelf, tmp_path)
    most = app.state.settings.max_concurrent
    assert most == 64, "more than AnyIO has threads by itself"

    async def run() -> None:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://localhost") as client,
        ):
            waiting = [asyncio.create_task(client.get("/v1/shelf")) for _ in range(most)]
            try:
                await _until(lambda: held.asked == most)
                assert (await client.get("/v1/sources/s0003")).status_code == 503
                for path in ("/healthz", "/readyz", "/metrics"):
                    assert (await asyncio.wait_for(client.get(path), 10)).status_code == 200
            finally:
                held.go.set()
            assert [answer.status_code for answer in await asyncio.gather(*waiting)] == [200] * most

    asyncio.run(run())


def test_a_request_past_its_deadline_is_answered_then_and_keeps_its_place_until_its_work_has_ended(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, app = Held(monkeypatch), app_of(bare_shelf, tmp_path, max_concurrent=1, deadline_seconds=0.1)

    async def run() -> None:
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "path": "/v1/shelf",
            "raw_path": b"/v1/shelf", "query_string": b"", "root_path": "", "headers": [], "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80), "scheme": "http",
        }  # fmt: skip
        began = time.monotonic()
        late = asyncio.create_task(app(scope, receive, send))
        await _until(lambda: len(sent) == 2)
        assert 0.1 <= time.monotonic() - began < 5 and not late.done()
        assert sent[0]["status"] == 503 and dict(sent[0]["headers"])[b"retry-after"] == b"1"
        assert "no answer within 0.1 s" in json.loads(sent[1]["body"])["detail"]
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as client:
            assert "at a time" in (await client.get("/v1/sources/s0003")).json()["detail"]
            held.go.set()
            await late
            assert len(sent) == 2, "what the route has answered since is dropped"
            assert (await client.get("/v1/sources/s0003")).status_code == 200

    asyncio.run(run())


def test_a_long_look_for_a_generation_has_no_deadline(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = app_of(bare_shelf, tmp_path, deadline_seconds=0.05)
    monkeypatch.setattr(app.state.serving, "refresh", lambda: bool(time.sleep(0.2)))
    assert TestClient(app).post("/admin/generation").status_code == 200


@pytest.mark.security
@pytest.mark.parametrize(
    ("length", "status"),
    [(b"9" * 5000, 413), (b"9" * 18, 413), (b"\xb2", 422), (b"-1", 422), (b"1e9", 422), (b"", 422)],
)
def test_a_length_that_is_no_number_is_none_and_an_endless_one_is_too_long(
    bare_shelf: Path, tmp_path: Path, length: bytes, status: int
) -> None:
    client = asks(app_of(bare_shelf, tmp_path), "127.0.0.1")
    told: Any = {"content-length": length, "content-type": "application/json"}
    assert client.post("/v1/redshifts", content=b"{}", headers=told).status_code == status


def test_the_limits_in_force_are_told(bare_shelf: Path, tmp_path: Path) -> None:
    given = {"max_concurrent": 7, "deadline_seconds": 2.5, "rate_per_key": "9/hour", "rate_per_address": ""}
    told = asks(app_of(bare_shelf, tmp_path, **given)).get("/v1/shelf").json()["limits"]
    assert {name: told[name] for name in given} == {**given, "rate_per_address": None}

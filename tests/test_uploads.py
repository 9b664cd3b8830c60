"""Uploads in a server: encoded together, turned away when too many wait, dropped when their client leaves."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from redshelf.api import uploads
from redshelf.api.app import create_app
from redshelf.service.settings import load
from redshelf.service.shelf import open_shelf
from redshelf.service.upload import Cutout

ROUTE = "/v1/cutouts/neighbours?k=1"


class Encoder:
    """Gives every cutout the same vector, when it is let to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.batches = threading.Event(), list[int]()
        monkeypatch.setattr(uploads.upload, "embed_all", self.embed)

    def embed(self, encoder: Any, info: Any, cutouts: list[Cutout], ebv: float) -> np.ndarray:
        self.batches.append(len(cutouts))
        assert self.go.wait(30)
        return np.zeros((len(cutouts), encoder.published.dim), np.float32)


@pytest.fixture(scope="module")
def cutout(tiny_shelf: Path) -> bytes:
    from redshelf.service import pictures

    return pictures.fits(open_shelf(tiny_shelf, hashes=False), 12)


def app_of(shelf: Path, state: Path, **given: object) -> FastAPI:
    return create_app(load(environ={}, shelf=shelf, state_dir=state, **given))


async def until(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("waited 30 s")


def waiting(app: FastAPI) -> int:
    return len(app.state.uploads._batcher._queue)


def test_uploads_are_encoded_together_and_beyond_the_queue_asked_to_come_again(
    tiny_shelf: Path, tmp_path: Path, cutout: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, app = Encoder(monkeypatch), app_of(tiny_shelf, tmp_path, max_encode_queue=3, max_encode_batch=2)

    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://[::1]", timeout=60) as client:

            def ask() -> asyncio.Task[httpx.Response]:
                return asyncio.create_task(client.post(ROUTE, files={"file": cutout}))

            asked = [ask()]
            await until(lambda: held.batches == [1])
            asked += [ask() for _ in range(3)]
            await until(lambda: waiting(app) == 3)
            assert "redshelf_encode_queue 3.0" in (await client.get("/metrics")).text
            refused = await ask()
            assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert "3 uploads wait to be encoded, which is as many as may" in refused.json()["detail"]
            held.go.set()
            answers = await asyncio.gather(*asked)
            assert [answer.status_code for answer in answers] == [200] * 4 and held.batches == [1, 2, 1]
            told = (await client.get("/metrics")).text
            assert "redshelf_encode_batch_sum 4.0" in told and "redshelf_encode_batch_count 3.0" in told
            assert 'redshelf_turned_away_total{reason="busy"} 1.0' in told

    asyncio.run(run())
    app.state.uploads.close()


def test_what_its_client_has_left_or_is_too_late_for_is_not_encoded(
    tiny_shelf: Path, tmp_path: Path, cutout: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, app = Encoder(monkeypatch), app_of(tiny_shelf, tmp_path)
    request = httpx.Request("POST", f"http://localhost{ROUTE}", files={"file": cutout})
    body, sent = request.read(), list[Any]()
    scope: dict[str, Any] = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "root_path": "",
        "path": "/v1/cutouts/neighbours", "raw_path": b"/v1/cutouts/neighbours", "query_string": b"k=1",
        "headers": [(name.lower(), value) for name, value in request.headers.raw], "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80), "scheme": "http",
    }  # fmt: skip

    async def run() -> None:
        def ask(left: asyncio.Event) -> asyncio.Task[None]:
            messages = [{"type": "http.request", "body": body, "more_body": False}]

            async def receive() -> Any:
                if messages:
                    return messages.pop()
                await left.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)

            return asyncio.create_task(app({**scope}, receive, send))

        stays, leaves = asyncio.Event(), asyncio.Event()
        first = ask(stays)
        await until(lambda: held.batches == [1])
        second = ask(leaves)
        await until(lambda: waiting(app) == 1)
        leaves.set()
        await second
        assert sent[0]["status"] == 400
        app.state.uploads._batcher._queue[0].until = 0.0
        third = ask(stays)
        await until(lambda: waiting(app) == 2)
        app.state.uploads._batcher._queue[1].until = 0.0
        held.go.set()
        await asyncio.gather(first, third)
        assert sorted(message["status"] for message in sent if "status" in message) == [200, 400, 503]
        assert held.batches == [1]

    asyncio.run(run())
    app.state.uploads.close()

"""HEAD answers wherever GET does, with the same headers and nothing behind them; a 405 names every method there is."""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from fastapi.routing import iter_route_contexts
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.service.settings import load

SOURCE = "s0010"
CONE = "ra_deg=150.1&dec_deg=2.2"
QUERIES = {  # of routes that answer nothing without
    "/v1/sources": f"{CONE}&radius_arcsec=60",
    "/v1/cone": f"{CONE}&radius_arcsec=60",
    "/v1/sources/{source_id}/compare": "encoders=vit,photometry",
    "/scs": "RA=150.1&DEC=2.2&SR=0.01",
    "/datalink": f"ID={SOURCE}",
    "/soda/sync": f"ID={SOURCE}",
    "/similar": f"like={SOURCE}",
    "/v1/recall": "n=10",
}
NAMED = {"source_id": SOURCE, "encoder": "vit", "z": 0, "x": 0, "y": 0}
OF_THE_MOMENT = {"x-request-id", "date"}
CHANGING = {"/metrics", "/status", "/random"}  # their answers are never twice the same, nor need be their lengths


@pytest.fixture(scope="module")
def asked(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[TestClient, str]]:
    """A client of an app that has a finished job, and the job's id."""
    settings = load(environ={}, shelf=tiny_shelf, state_dir=tmp_path_factory.mktemp("state"))
    with TestClient(create_app(settings), follow_redirects=False) as client:
        made = client.post("/v1/jobs", json={"what": "redshifts", "ids": [SOURCE], "format": "csv"})
        address = made.headers["location"]
        while client.get(address).json()["phase"] != "COMPLETED":
            time.sleep(0.02)
        yield client, address.rpartition("/")[2]


def methods_of(app: Any) -> dict[str, set[str]]:
    """The methods of each path of the app, those of the description and of the page."""
    found: dict[str, set[str]] = {"/static/page.css": {"GET"}}
    for route in iter_route_contexts(app.routes):
        if route.methods:
            found.setdefault(str(route.path), set()).update(route.methods - {"HEAD"})
    return found


def address(path: str, job_id: str) -> str:
    query = QUERIES.get(path)
    return path.format(**NAMED, job_id=job_id) + (f"?{query}" if query else "")


def test_head_has_the_status_and_the_headers_of_get_and_no_body_on_every_route(asked: tuple[TestClient, str]) -> None:
    client, job_id = asked
    paths = [path for path, methods in methods_of(client.app).items() if "GET" in methods]
    answered = 0
    for path in paths:
        get, head = client.get(address(path, job_id)), client.head(address(path, job_id))
        answered += get.status_code < 400
        assert (head.status_code, head.content) == (get.status_code, b""), path
        differing = OF_THE_MOMENT | ({"content-length", "location"} if path in CHANGING else set())
        told = [{name: v for name, v in one.headers.items() if name not in differing} for one in (get, head)]
        assert told[0] == told[1], path
    assert answered >= 30  # all but a study and a map that are not there


def test_a_405_names_every_method_of_the_path_and_no_other(asked: tuple[TestClient, str]) -> None:
    client, job_id = asked
    for path, methods in methods_of(client.app).items():
        expected = methods | ({"HEAD"} if "GET" in methods else set())
        for method in {"HEAD", "GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"} - expected:
            answer = client.request(method, address(path, job_id))
            assert answer.status_code == 405, f"{method} {path}"
            assert set(answer.headers["allow"].split(", ")) == expected, f"{method} {path}"


def test_an_error_to_a_head_has_no_body_either(asked: tuple[TestClient, str]) -> None:
    client, _ = asked
    for path, status in {"/v1/sources/nope": 404, "/nothing": 404, "/v1/shelf?x=1": 422, "/source/nope": 404}.items():
        get, head = client.get(path), client.head(path)
        assert (head.status_code, head.content) == (status, b"") and get.status_code == status
        assert head.headers["content-type"] == get.headers["content-type"]


def test_a_head_that_knows_the_tag_is_304(asked: tuple[TestClient, str]) -> None:
    client, _ = asked
    tag = client.get("/v1/shelf").headers["etag"]
    assert client.head("/v1/shelf").headers["etag"] == tag
    assert client.head("/v1/shelf", headers={"if-none-match": tag}).status_code == 304


def test_the_result_of_a_job_is_not_read_for_a_head(
    asked: tuple[TestClient, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import anyio

    client, job_id = asked
    expected = client.get(f"/v1/jobs/{job_id}/result")

    async def refused(*_: Any, **__: Any) -> Any:
        await asyncio.sleep(0)
        raise AssertionError("the file was opened")

    monkeypatch.setattr(anyio, "open_file", refused)
    head = client.head(f"/v1/jobs/{job_id}/result")
    assert (head.status_code, head.headers["content-length"]) == (200, str(len(expected.content)))
    with pytest.raises(AssertionError, match="opened"):  # which is what a GET does
        client.get(f"/v1/jobs/{job_id}/result")


def test_a_connection_goes_on_after_a_head(url: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
        for path in ("/v1/shelf", "/", "/static/page.css", "/v1/sources/nope", f"/v1/sources/{SOURCE}/cutout"):
            connection.request("HEAD", path)
            head = connection.getresponse()
            assert head.read() == b""
            connection.request("GET", path)
            get = connection.getresponse()
            assert len(get.read()) == int(head.headers["content-length"]), path

"""Answers by generation: tags, 304, permalinks, and what is said of a generation that is not served."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi import Request
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.api.operations import Health
from redshelf.api.tables import permalink
from redshelf.service.publish import publish
from redshelf.service.settings import load

PATHS = [
    "/v1/shelf",
    "/v1/sources/s0010",
    "/v1/sources/s0010/cutout",
    "/v1/sources/s0010/cutout?format=fits",
    "/v1/sources/s0010/neighbours?k=3",
    "/v1/sources/s0010/redshift",
    "/v1/sources/s0010/compare?encoders=vit,photometry",
    "/v1/cone?ra_deg=150.1&dec_deg=2.2&radius_arcsec=60",
    "/v1/outliers?format=csv",
    "/scs?RA=150.1&DEC=2.2&SR=0.01",
    "/datalink?ID=s0010",
]


@pytest.mark.parametrize("path", PATHS)
def test_who_has_the_answer_is_told_so(client: TestClient, path: str) -> None:
    first, second = client.get(path), client.get(path)
    tag = first.headers["etag"]
    assert first.status_code == 200 and tag.startswith('"') and len(tag) == 34
    assert second.headers["etag"] == tag and second.content == first.content
    assert first.headers["cache-control"] in ("no-cache", "private, max-age=300")
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = client.get(path, headers={"if-none-match": given})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag), given
    assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


def test_tags_differ_where_answers_do(client: TestClient, bare_shelf: Path) -> None:
    questions = [*PATHS, "/v1/sources/s0011", "/v1/sources/s0010/neighbours?k=4", "/v1/outliers?format=fits"]
    tags = [client.get(path).headers["etag"] for path in questions]
    tags.append(client.get("/v1/outliers", headers={"accept": "text/csv"}).headers["etag"])
    other = TestClient(create_app(load(environ={}, shelf=bare_shelf)))
    tags.append(other.get("/v1/shelf").headers["etag"])
    assert len(set(tags)) == len(tags)


def test_errors_and_live_answers_are_not_tagged(client: TestClient) -> None:
    for path in ("/v1/sources/nope", "/v1/sources/s0010/neighbours?k=0", "/v1/recall", "/healthz", "/readyz"):
        assert "etag" not in client.get(path).headers, path
    assert client.get("/v1/sources/nope", headers={"if-none-match": "*"}).status_code == 404
    assert "etag" not in client.post("/v1/neighbours", json={"source_id": "s0010"}).headers


def test_a_permalink_names_encoder_and_generation_and_may_be_kept(client: TestClient) -> None:
    first = client.get("/v1/sources/s0010/neighbours?k=3", headers={"accept": "text/csv"})
    link = first.headers["content-location"]
    assert link == "/v1/sources/s0010/neighbours?k=3&encoder=vit&generation=1&format=csv"
    again = client.get(link)
    assert again.content == first.content and again.headers["cache-control"] == "private, max-age=86400, immutable"
    assert again.headers["content-location"] == link
    redshift = client.get("/v1/sources/s0010/redshift?pdf=false").headers["content-location"]
    assert "encoder=" in redshift and "estimator=" in redshift and "generation=1" in redshift
    assert client.get(redshift).status_code == 200


def test_a_permalink_holds_whatever_stands_in_the_path() -> None:
    scope = {"type": "http", "raw_path": b'/v1/\xff"%2F', "query_string": b"k=1&x=%0A", "headers": [], "path": "/"}
    assert permalink(Request(scope), Health(status="ok")) == "/v1/%FF%22%2F?k=1&x=%0A"


def test_another_generation_than_the_served_one_is_refused_in_words(tiny_shelf: Path, tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(tiny_shelf, root)
    client = TestClient(create_app(load(environ={}, shelf=root)))
    tag = client.get("/v1/outliers").headers["etag"]
    publish(root)
    assert client.app.state.serving.refresh()  # type: ignore[attr-defined]
    for path in ("/v1/outliers?", "/v1/sources/s0010?", "/v1/sources/s0010/cutout?", "/v1/sources/s0010/redshift?"):
        gone, early = client.get(f"{path}generation=1"), client.get(f"{path}generation=3")
        assert (gone.status_code, early.status_code) == (410, 409)
        assert "generation=1 is no longer served; this server answers from generation 2" in gone.json()["detail"]
        assert "generation=3 is not served yet" in early.json()["detail"]
        assert client.get(f"{path}generation=2").status_code == 200
    posted = client.post("/v1/redshifts?generation=1", json={"ids": ["s0001"]})
    assert posted.status_code == 410
    changed = client.get("/v1/outliers", headers={"if-none-match": tag})
    assert changed.status_code == 200 and changed.headers["etag"] != tag


@pytest.mark.parametrize("number", ["0", "-1", "one", "1.5", "9" * 400])
def test_a_generation_that_is_no_number_is_refused(client: TestClient, number: str) -> None:
    response = client.get(f"/v1/outliers?generation={number}")
    assert response.status_code in (409, 422) and "generation=" in response.json()["detail"]

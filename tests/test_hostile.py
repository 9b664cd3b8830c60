"""Hostile ids, filters, names of encoders and files: each answer is the one that a few lines of Python expect."""

from __future__ import annotations

import itertools
import json
import math
import random
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
import torture
from fastapi.testclient import TestClient

from redshelf.service.shelf import OpenShelf

pytestmark = [pytest.mark.security, pytest.mark.slow, pytest.mark.timeout(3600)]
PIECES = (
    "s0003", "vit", "photometry", "galaxy", "i", "'", '"', "`", ";", "--", "/*", "*/", "\\", "%", "_", "*", "?", "#",
    "&", "=", "+", " ", "\t", "\n", "\r\n", "\0", "\x1b[2J", "\x7f", "..", "/", "../", "{}", "{0.__class__}",
    "{{7*7}}", "${x}", "$(id)", "`id`", "|", "<script>", "</title>", "\u202e", "\u2028", "\ufeff", "é", "e\u0301", "ﬀ",
    "𝔰", "٣", "💥", "\ud800", " or 1=1", "' or '1'='1", "repeat('a',2000000000)", "null", "None", "NaN", "true", "-1",
    "1e999", "0x10", "[]", "a" * 300, "%00", "%2e%2e", "%c0%ae", "\\u0000", "file:///etc/passwd", "http://127.0.0.1/",
    "s0003\0", "S0003",
)  # fmt: skip


def hostile() -> list[str]:
    """Each piece, and pieces put together: the same each time."""
    rng, wanted = random.Random(7), torture.count(120, 2000)
    made = [*PIECES, *("".join(rng.choices(PIECES, k=rng.randint(2, 4))) for _ in range(wanted - len(PIECES)))]
    return list(dict.fromkeys(made))


def in_url(text: str) -> str:
    """As UTF-8 in percents; half a surrogate as the three bytes that it would be, which are no UTF-8."""
    return quote(text.encode("utf-8", "surrogatepass"), safe="")


def as_read(text: str) -> str:
    """What a server reads of it: bytes that are no UTF-8 become the sign for them."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def check(answer: Any, status: int, words: str = "") -> None:
    assert answer.status_code == status, answer.text[:500]
    assert answer.headers["content-type"] == ("application/json" if status == 200 else "application/problem+json")
    if words:
        assert words in json.loads(answer.content.decode())["detail"], answer.text[:500]


def test_an_id_is_that_of_a_source_or_of_none(client: TestClient, shelf: OpenShelf) -> None:
    ids = {shelf.source_id(row) for row in range(len(shelf))}
    for text in hostile():
        for route in ("", "/neighbours", "/redshift", "/cutout", "/compare?encoders=vit,photometry"):
            answer = client.get(f"/v1/sources/{in_url(text)}{route}")
            if text in ids:
                assert answer.status_code == 200
            elif "/" in text or text == "..":  # parts of the address, which lead to another route or to none
                assert answer.status_code in (404, 405), (text, route)
            elif "%" in text:  # which the test's client takes for another escape
                check(answer, 404, "no source ")
            else:
                check(answer, 404, f"no source {as_read(text)!r} in small")


def test_an_id_in_a_body_is_that_of_a_source_or_of_none(client: TestClient, shelf: OpenShelf) -> None:
    ids = {shelf.source_id(row) for row in range(len(shelf))}
    for text in hostile():
        bodies = (
            ("neighbours", {"source_id": text}),
            ("redshifts", {"ids": [text]}),
            ("neighbours", {"positive": [text]}),
        )
        for route, body in bodies:
            answer = client.post(f"/v1/{route}", content=json.dumps(body), headers={"content-type": "application/json"})
            if text in ids:
                assert answer.status_code == 200
            else:
                check(answer, 404, f"no source {text!r} in small")


def test_an_encoder_or_an_estimator_is_published_or_not(client: TestClient) -> None:
    for text in hostile():
        neighbours = client.get(f"/v1/sources/s0003/neighbours?k=1&encoder={in_url(text)}")
        redshift = client.get(f"/v1/sources/s0003/redshift?pdf=false&estimator={in_url(text)}")
        fitted = client.get(f"/v1/sources/s0003/redshift?pdf=false&encoder={in_url(text)}")
        for answer in (neighbours, fitted):
            if text in ("vit", "photometry"):
                assert answer.status_code == 200
            else:
                assert answer.status_code == 404 and answer.json()["detail"].startswith("no "), answer.text
        check(redshift, 404, "no estimator")


def _matching(answer: Any) -> int:
    assert answer.status_code == 200, answer.text
    return int(answer.json()["n_matching"])


def test_a_filter_by_text_passes_what_equals_it_and_no_other(client: TestClient, shelf: OpenShelf) -> None:
    tiles = [bytes(tile).decode() for tile in shelf.columns["tile"]]
    names = shelf.info.band_names
    asked = "/v1/sources/s0003/neighbours?k=1000"
    tile = next(iter(set(tiles)))
    for text in [*hostile(), tile, f"{tile}\0", f"{tile} ", f" {tile}", tile.upper(), tile[:-1]]:
        same = sum(name == as_read(text) for name in tiles)
        mine = tiles[shelf.row("s0003")] == as_read(text)
        assert _matching(client.get(f"{asked}&tile={in_url(text)}")) == same - mine, repr(text)
        for name in ("observed_band", "mag_band"):
            answer = client.get(f"{asked}&{name}={in_url(text)}")
            if text in names:
                assert answer.status_code == 200
            else:
                check(answer, 422, f"band {as_read(text)!r} is not in this survey")
        answer = client.get(f"{asked}&object_class={in_url(text)}")
        if text == "galaxy":
            assert answer.status_code == 200
        else:
            check(answer, 422, f"object_class={as_read(text)!r}")


NUMBERS = (
    "0", "-0", "0.5", ".5", "5.", "1e-3", "1E0", "+0.4", " 0.4", "0.4 ", "1_0", "0x1", "0b1", "1,5", "0.4;", "0.4--",
    "nan", "NaN", "inf", "-inf", "Infinity", "1e308", "1e309", "-1e309", "1e-400", "٣", "０.５", "½", "", " ", "null",
    "none", "true", "[]", "0.4 or 1=1", "0.4\0", "0.4\n", "1" * 400, "0." + "3" * 400, "--1", "1e", "e1", "0.4f", "1d0",
    "−1",
)  # fmt: skip


def test_a_filter_by_number_is_that_number_or_refused(client: TestClient, shelf: OpenShelf) -> None:
    z, others = shelf.columns["z_phot"], np.arange(len(shelf)) != shelf.row("s0003")
    for text, name in itertools.product(NUMBERS, ("z_min", "z_max")):
        answer = client.get(f"/v1/sources/s0003/neighbours?k=1&{name}={in_url(text)}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if answer.status_code == 422:
            plain = text.isascii() and text.strip() and set(text) <= set("0123456789.eE+-")
            assert not (math.isfinite(value) and plain and len(text) < 100), f"{text!r} is a number"
        else:
            assert math.isfinite(value), f"{text!r} is none"
            with np.errstate(over="ignore"):
                passing = (z >= value) if name == "z_min" else (z <= value)
            assert _matching(answer) == int((passing & others).sum()), text


@pytest.mark.parametrize("name", ["k", "exact", "mutual", "labelled_only", "max_distance", "ra", "radius_arcsec"])
def test_no_value_of_a_parameter_is_an_error_of_the_server(client: TestClient, name: str) -> None:
    for text in (*hostile(), *NUMBERS):
        assert client.get(f"/v1/sources/s0003/neighbours?{name}={in_url(text)}").status_code in (200, 422), text
    twice = client.get("/v1/sources/s0003/neighbours?k=1&k=2")
    assert twice.status_code in (200, 422)


def test_an_unknown_parameter_or_field_is_refused_whatever_it_is_called(client: TestClient) -> None:
    for text in hostile():
        if text in ("k", ""):
            continue
        check(client.get(f"/v1/sources/s0003/neighbours?{in_url(text)}=1"), 422, "unknown query parameter")
        body = json.dumps({"source_id": "s0003", text: 1})
        answer = client.post("/v1/neighbours", content=body, headers={"content-type": "application/json"})
        check(answer, 422, "" if "\ud800" in text else "unknown field")  # no character: no name of a field either


def test_the_name_of_a_file_says_nothing(client: TestClient) -> None:
    cutout = client.get("/v1/sources/s0012/cutout?format=fits").content
    expected = client.post("/v1/cutouts/neighbours?k=3", files={"file": ("x.fits", cutout)}).json()
    for text in hostile():
        name = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        answer = client.post("/v1/cutouts/neighbours?k=3", files={"file": (name, cutout)})
        assert answer.status_code == 200 and answer.json() == expected, repr(text)


def test_what_is_typed_into_the_page_is_shown_as_text(client: TestClient) -> None:
    for text in hostile():
        for path in (f"/?q={in_url(text[:200])}", f"/source/{in_url(text)}"):
            page = client.get(path, follow_redirects=False)
            assert page.status_code in (200, 303, 404, 422), (text, page.status_code)
            if page.headers.get("content-type", "").startswith("text/html"):
                shown = page.text.replace('<script src="/static/page.js" defer></script>', "", 1)  # the page's own
                assert "<script" not in shown and "</title><" not in shown.partition("</title>")[2]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"source_id": "s0003", "source_id": "s0004"}',
        b'{"vector": [' + b"1," * 60_000 + b"1]}",
        b'{"vector": [1e400]}',
        b'{"vector": [' + b"9" * 5000 + b"]}",
        b'{"k": ' + b"9" * 5000 + b', "source_id": "s0003"}',
        b'{"source_id": {"$ne": 1}}',
        b'{"source_id": 3}',
        b"\xef\xbb\xbf{}",
        b'"s0003"',
        b"null",
        b"{'source_id': 's0003'}",
        b'{"source_id": "s0003"}' + b"\0" * 1000,
    ],
    ids=lambda body: repr(body[:16]),
)
def test_a_body_of_any_shape_is_answered_or_refused_in_words(client: TestClient, body: bytes) -> None:
    for content_type in (
        "application/json",
        "text/plain",
        "application/json; charset=utf-16",
        "multipart/form-data",
        "",
    ):
        answer = client.post("/v1/neighbours", content=body, headers={"content-type": content_type})
        assert answer.status_code in (200, 400, 422), answer.text[:300]
        assert len(answer.content) < 10_000, "an error repeats no long body"

"""Small uploads that ask for much, and damaged ones: refused in words, quickly; the server stays as it was."""

from __future__ import annotations

import gzip
import html
import json
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import bombs
import numpy as np
import pytest
import torture
from astropy.io import fits
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.api.uploads import Uploads
from redshelf.service.settings import load

pytestmark = [pytest.mark.security, pytest.mark.timeout(7200)]
CPU_S, GROWTH_MB = 1.0, 150
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def client(tiny_shelf: Path) -> Iterator[TestClient]:
    app = create_app(load(environ={}, shelf=tiny_shelf))
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


def refused(client: TestClient, blob: bytes, **form: str) -> Any:
    return client.post("/v1/cutouts/neighbours?k=1", files={"file": blob}, data=form)


def at_page(client: TestClient, blob: bytes, **form: str) -> Any:
    return client.post("/upload", files={"file": blob}, data={"k": "1", **form})


def _cpu(pid: int) -> float:
    """CPU seconds of a process so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS


def _resident_mb() -> float:
    return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def _peak_mb() -> float:
    """The most that this process has held at a time so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Spent:
    """CPU seconds of this process and of those that decode, apart from the start of new ones."""

    def __init__(self, client: TestClient) -> None:
        uploads: Uploads = client.app.state.uploads  # type: ignore[attr-defined]
        self._idle = uploads._sandbox._idle
        self._before = {child.process.pid: _cpu(child.process.pid) for child in self._idle}
        self._dead = self._of_the_dead()
        self._own = time.process_time()

    def _of_the_dead(self) -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def seconds(self) -> float:
        own = time.process_time() - self._own
        live = {child.process.pid for child in self._idle}
        spent = sum(_cpu(pid) - before for pid, before in self._before.items() if pid in live)
        gone = sum(before for pid, before in self._before.items() if pid not in live)
        return own + spent + self._of_the_dead() - self._dead - gone


def test_there_are_forty_of_them_and_none_is_large() -> None:
    assert len(bombs.BOMBS) >= 40
    for name, make in bombs.BOMBS.items():
        assert len(make()) < 32 << 20, name


@pytest.mark.parametrize("name", list(bombs.BOMBS))
def test_a_bomb_is_refused_within_a_second_of_cpu_and_leaves_nothing(client: TestClient, name: str) -> None:
    blob = bombs.BOMBS[name]()
    good = client.get("/v1/sources/s0012/cutout?format=fits").content
    expected = refused(client, good).json()["neighbours"]  # and a process that decodes has started
    before, spent = _resident_mb(), Spent(client)
    answer = refused(client, blob, bands="g")
    seconds = spent.seconds()
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.headers["content-type"] == "application/problem+json" and len(answer.content) < 3000
    assert seconds < CPU_S, f"{seconds:.2f} s of CPU"
    assert _resident_mb() < before + GROWTH_MB
    assert refused(client, good).json()["neighbours"] == expected
    print(f"{name}: {len(blob)} bytes, {seconds * 1000:.0f} ms of CPU: {answer.json()['detail'][:100]}")


@pytest.mark.parametrize("name", list(bombs.BOMBS))
def test_the_page_refuses_a_bomb_in_words_and_nothing_of_it_is_read_in_the_server(
    client: TestClient, name: str
) -> None:
    blob = bombs.BOMBS[name]()
    assert at_page(client, client.get("/v1/sources/s0012/cutout?format=fits").content).status_code == 200
    before, spent = _peak_mb(), Spent(client)
    answer = at_page(client, blob, bands="g")
    seconds = spent.seconds()
    assert 400 <= answer.status_code < 500, answer.text[:500]
    assert answer.headers["content-type"] == "text/html; charset=utf-8" and len(answer.content) < 10_000
    detail = refused(client, blob, bands="g").json()["detail"]
    assert html.escape(detail[:40], quote=False) in answer.text.replace("&#39;", "'").replace("&#34;", '"')
    assert seconds < CPU_S, f"{seconds:.2f} s of CPU"
    assert _peak_mb() < before + GROWTH_MB


def test_a_body_without_a_length_ends_at_the_limit(tiny_shelf: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=tiny_shelf, max_upload_bytes=1 << 20)))
    sent = Counter[str]()

    def endless() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nSIMPLE  ='
        while sent["pieces"] < 10_000:
            sent["pieces"] += 1
            yield bytes(1 << 16)

    told = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/cutouts/neighbours", content=endless(), headers=told)
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n" + b"a: b\r\n" * 100_000,
        b"--b\r\nContent-Disposition: form-data; name=" + b"a" * 1_000_000,
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n' * 20_000 + b"--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="bands"\r\n\r\n' + b"g," * 1_000_000 + b"\r\n--b--\r\n",
        b"\r\n" * 1_000_000,
    ],
    ids=["endless headers", "an endless name", "20,000 fields", "a million bands", "line ends"],
)
def test_a_form_that_is_none_is_refused(client: TestClient, body: bytes) -> None:
    spent = Spent(client)
    told = {"content-type": "multipart/form-data; boundary=b"}
    answer = client.post("/v1/cutouts/neighbours", content=body, headers=told)
    assert answer.status_code in (400, 413, 422) and len(answer.content) < 3000
    assert spent.seconds() < CPU_S


def _whole() -> list[bytes]:
    """FITS of every kind that is read, of the survey's size."""
    rng = np.random.default_rng(0)
    images = rng.normal(5, 1, (3, 38, 38)).astype(np.float32)
    wcs = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 150.0, "CRVAL2": 2.0, "CD1_1": -5e-5, "CD2_2": 5e-5}
    kinds: list[list[Any]] = [
        [fits.ImageHDU(image) for image in images],
        [fits.ImageHDU(image.astype(np.int16)) for image in images],
        *([fits.CompImageHDU(image, compression_type=kind) for image in images] for kind in ("RICE_1", "GZIP_2")),
        [fits.CompImageHDU(images[0], compression_type="HCOMPRESS_1", tile_shape=(38, 38))],
    ]
    made = []
    for hdus in kinds:
        for hdu, band in zip(hdus, "gri", strict=False):
            hdu.header.update({"BAND": band, "EBV": 0.1, **wcs})
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(stream := BytesIO())
        made.append(stream.getvalue())
    return [*made, gzip.compress(made[0])]


def _mutated(rng: np.random.Generator, blob: bytes) -> bytes:
    """Some bytes changed, most of them in the headers; or a card taken out, put twice or exchanged; or cut off."""
    damaged = bytearray(blob)
    kind, cards = rng.integers(5), rng.integers(0, len(blob) // 80, 2) * 80
    if kind == 0:
        for at in rng.integers(0, len(blob), rng.integers(1, 30)):
            damaged[at] = rng.integers(256)
    elif kind == 1:
        digits = [at for at in range(len(blob)) if blob[at : at + 1].isdigit()]
        for at in rng.choice(digits, min(len(digits), int(rng.integers(1, 5)))):
            damaged[at] = rng.choice(list(b"0123456789-.E "))
    elif kind == 2:
        damaged[cards[0] : cards[0] + 80], damaged[cards[1] : cards[1] + 80] = (
            damaged[cards[1] : cards[1] + 80],
            damaged[cards[0] : cards[0] + 80],
        )
    elif kind == 3:
        del damaged[int(rng.integers(len(blob))) :]
    else:
        at = int(rng.integers(0, 120)) * 80 + 10
        damaged[at : at + 20] = (
            str(rng.choice(["-1", "0", "1e400", "99999999999", "T", "'x'", "NaN", ""])).rjust(20).encode()
        )
    return bytes(damaged)


def test_damaged_fits_is_answered_or_refused_in_words(client: TestClient) -> None:
    rng, whole = np.random.default_rng(0), _whole()
    statuses, count = Counter[int](), torture.count(300, 10_000)
    for blob in whole:
        assert refused(client, blob).status_code == 200
    for i in range(count):
        answer = refused(client, _mutated(rng, whole[i % len(whole)]))
        statuses[answer.status_code] += 1
        assert answer.status_code in (200, 422), answer.text[:500]
        if answer.status_code == 200:
            assert np.isfinite([one["distance"] for one in json.loads(answer.content)["neighbours"]]).all()
    print(f"{count} damaged files: {dict(statuses)}")
    assert min(statuses[200], statuses[422]) > count / 20

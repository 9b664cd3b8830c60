"""The Python client against a server as a user starts it, and against one that is busy."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import server as servers

from redshelf.api import client as clients
from redshelf.api.ask import OverHttp, Question
from redshelf.api.client import AsyncClient, Client
from redshelf.models.errors import BadInput, Conflict, NotFound, RedshelfError
from redshelf.service.redshift import redshifts
from redshelf.service.search import neighbours
from redshelf.service.shelf import OpenShelf


@pytest.fixture(scope="module")
def url(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with servers.serve(tiny_shelf, tmp_path_factory.mktemp("client"), max_batch=7) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_a_source_a_position_a_vector_and_a_cutout_are_asked_about(url: str, shelf: OpenShelf, tmp_path: Path) -> None:
    expected = neighbours(shelf, "s0010", k=5, encoder="vit")
    ids = [one.source_id for one in expected.neighbours]
    with Client(url) as client:
        by_id = client.neighbours("s0010", k=5, encoder="vit")
        assert list(by_id["source_id"]) == ids and by_id["ra_deg"].unit == "deg"
        assert by_id["distance"].tolist() == [one.distance for one in expected.neighbours]
        assert by_id.meta["revision"] == expected.revision and by_id.meta["generation"] == "1"
        row = client.source("s0010")
        assert client.source_at(row.ra_deg, row.dec_deg) == row
        by_place = client.neighbours(position=(row.ra_deg, row.dec_deg), k=5, encoder="vit")
        assert list(by_place["source_id"]) == ids
        vector = shelf.encoder("vit").vectors(np.array([shelf.row("s0010")]))[0]
        assert list(client.neighbours(vector=vector, k=6, encoder="vit")["source_id"]) == ["s0010", *ids]
        with client.cutout("s0010") as hdus:
            assert [hdu.name for hdu in hdus] == ["PRIMARY", "G", "R", "I"]
            hdus.writeto(tmp_path / "cutout.fits")
        assert client.neighbours(cutout=tmp_path / "cutout.fits", k=1)["source_id"][0] == "s0010"
        blob = (tmp_path / "cutout.fits").read_bytes()
        assert client.redshift(cutout=blob, encoder="vit", pdf=False).z_median is not None
        like = client.neighbours(like=["s0010", "s0011"], unlike=["s0012"], k=3, labelled_only=True)
        assert len(like) == 3 and not set(like["source_id"]) & {"s0010", "s0011", "s0012"}


def test_lists_are_tables_and_answers_are_what_the_service_answers(url: str, shelf: OpenShelf) -> None:
    with Client(url) as client:
        assert client.shelf().n_sources == 300
        assert client.redshift("s0003", pdf=False) == redshifts(shelf, ["s0003"], pdf=False)[0]
        assert list(client.outliers(encoder="vit", n=4)["rank"]) == [1, 2, 3, 4]
        cone = client.cone(150.1, 2.2, 60.0, n=9)
        assert len(cone) == 9 and (np.diff(cone["separation_arcsec"]) >= 0).all()


def test_any_number_of_ids_is_asked_for_in_batches_that_the_server_takes(url: str, shelf: OpenShelf) -> None:
    ids = [f"s{i:04d}" for i in range(40, 70)]  # one of them a star
    expected = redshifts(shelf, ids, pdf=False)
    with Client(url) as client:
        table = client.redshifts(ids)
        assert list(table["source_id"]) == ids and "pdf_z" not in table.colnames
        assert [one.z_median for one in expected] == pytest.approx(
            [None if np.ma.is_masked(z) else z for z in table["z_median"]], abs=1e-6
        )
        assert bool(np.ma.is_masked(table["z_median"][9])) and "star" in table["reasons"][9]
        assert table.meta["estimator"] == expected[0].estimator
        with pytest.raises(NotFound, match="no source 'nope'"):
            client.redshifts([*ids, "nope"])
        for wrong in ([], "s0001"):
            with pytest.raises(BadInput, match="expected a list of at least one source id"):
                client.redshifts(wrong)


def test_densities_come_as_an_ensemble_of_qp(url: str, shelf: OpenShelf) -> None:
    pytest.importorskip("qp", reason="the `sim` extra is not installed")
    with Client(url) as client:
        ensemble = client.ensemble(["s0048", "s0049", "s0051"])
        assert list(ensemble.ancil["source_id"]) == ["s0048", "s0051"]  # the other one is a star
        expected = [one.z_median for one in redshifts(shelf, ["s0048", "s0051"])]
        np.testing.assert_allclose(ensemble.median().ravel(), expected, atol=2e-3)
        np.testing.assert_array_equal(ensemble.ancil["z_median"], expected)
        with pytest.raises(NotFound, match="none of these sources is given a redshift"):
            client.ensemble(["s0049"])


def test_the_client_that_is_awaited_answers_the_same(url: str) -> None:
    async def ask() -> tuple[Any, ...]:
        async with AsyncClient(url) as client:
            found = await asyncio.gather(
                client.neighbours("s0010", k=5), client.redshifts(["s0001", "s0002"]), client.source("s0003"),
                client.shelf(), client.redshift("s0003"), client.cone(150.1, 2.2, 30.0), client.outliers(n=2),
                client.source_at(150.1, 2.2, radius_arcsec=60),
            )  # fmt: skip
            with await client.cutout("s0010", bands="g") as hdus:
                assert len(hdus) == 2
            with pytest.raises(NotFound):
                await client.source("nope")
            return tuple(found)

    found = asyncio.run(ask())
    with Client(url) as client:
        assert found[0].as_array().tolist() == client.neighbours("s0010", k=5).as_array().tolist()
        assert list(found[1]["source_id"]) == ["s0001", "s0002"] and found[2] == client.source("s0003")
        assert found[3] == client.shelf() and found[4] == client.redshift("s0003")
        assert len(found[5]) and len(found[6]) == 2 and found[7].source_id


def test_what_the_server_refuses_is_the_error_of_the_service(url: str) -> None:
    with Client(url) as client:
        with pytest.raises(BadInput, match="unknown field 'kk'; nearest: k"):
            client.neighbours("s0010", kk=3)
        with pytest.raises(NotFound, match="nearest: vit"):
            client.neighbours("s0010", encoder="vitt")
        with pytest.raises(BadInput, match="got source_id and text"):
            client.neighbours("s0010", text="red")
        with pytest.raises(BadInput, match=r"expected one of a source id, .* got none"):
            client.neighbours()
        with pytest.raises(NotFound, match="cutout nowhere does not exist"):
            client.neighbours(cutout=Path("nowhere"))
        with pytest.raises(BadInput, match="expected a source id or a cutout"):
            client.redshift()
    with Client(f"http://127.0.0.1:{servers.free_port()}") as nobody, pytest.raises(RedshelfError, match="cannot ask"):
        nobody.shelf()


Answer = tuple[int, dict[str, str], bytes]


@contextmanager
def answering(reply: Callable[[int, BaseHTTPRequestHandler], Answer]) -> Iterator[str]:
    """A server that answers the n-th request by `reply(n, request)`."""
    count = iter(range(1000))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = reply(next(count), self)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a client wants to wait, which it does not."""
    seconds: list[float] = []
    monkeypatch.setattr(clients.time, "sleep", seconds.append)

    async def sleep(wait: float) -> None:
        seconds.append(wait)

    monkeypatch.setattr(clients.asyncio, "sleep", sleep)
    return seconds


def busy(n: int, *, told: str | None = None, status: int = 429) -> Callable[[int, Any], Answer]:
    """Busy n times, then a source."""
    row = {"source_id": "a", "iau_name": "J", "ra_deg": 1.0, "dec_deg": 2.0, "tile": "", "object_class": "galaxy"}
    row |= dict.fromkeys(("ebv", "z_spec", "z_error", "z_kind", "z_quality", "z_survey", "z_reference", "z_phot"))
    row |= {"flags": [], "photometry": [], "generation": 1, "links": {}}
    headers = {} if told is None else {"Retry-After": told}
    refusal = json.dumps({"detail": "too many requests"}).encode()
    return lambda number, _: (200, {}, json.dumps(row).encode()) if number >= n else (status, headers, refusal)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_is_asked_again_after_longer_and_longer_waits(waited: list[float], status: int) -> None:
    with answering(busy(3, status=status)) as url, Client(url) as client:
        assert client.source("a").source_id == "a"
    assert len(waited) == 3
    for number, wait in enumerate(waited):
        assert 0.75 <= wait / (0.5 * 2**number) <= 1.25


def test_a_server_that_says_when_is_asked_again_then(waited: list[float]) -> None:
    with answering(busy(2, told="7")) as url, Client(url) as client:
        client.source("a")
    assert waited == [7.0, 7.0]
    waited.clear()
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=20), usegmt=True)
    with answering(busy(1, told=date)) as url:

        async def ask() -> None:
            async with AsyncClient(url) as client:
                await client.source("a")

        asyncio.run(ask())
    assert len(waited) == 1 and 15 < waited[0] <= 20


def test_patience_ends(waited: list[float]) -> None:
    for tries, told, waits in ((3, None, 2), (1, None, 0), (5, "3600", 0)):
        waited.clear()
        refused = pytest.raises(RedshelfError, match="too many requests")
        with answering(busy(99, told=told)) as url, Client(url, tries=tries) as client, refused:
            client.source("a")
        assert len(waited) == waits
    with pytest.raises(BadInput, match="tries=0"):
        Client("http://127.0.0.1", tries=0)


def test_a_key_is_sent_as_a_bearer_and_none_without(waited: list[float]) -> None:
    seen: list[str | None] = []

    def reply(number: int, request: BaseHTTPRequestHandler) -> Answer:
        seen.append(request.headers.get("authorization"))
        return busy(0)(number, request)

    with answering(reply) as url:
        for key in (None, "secret"):
            with Client(url, api_key=key) as client:
                client.source("a")
        OverHttp(url, "other")._ask(clients.calls.source("a"))
    assert seen == [None, "Bearer secret", "Bearer other"]
    for wrong in ("", "a b", "a\r\nX-Other: 1", "é"):
        with pytest.raises(BadInput, match="api_key: expected printable ASCII"):
            Client("http://127.0.0.1", api_key=wrong)


def test_a_generation_that_changes_between_batches_is_told(url: str) -> None:
    import httpx

    asked: list[str] = []

    def reply(number: int, request: BaseHTTPRequestHandler) -> Answer:
        asked.append(request.path)
        if number:
            return 410, {}, b'{"detail": "generation=1 is no longer served"}'
        got = httpx.post(f"{url}/v1/redshifts?format=parquet", json={"ids": ["s0001"]})
        return 200, {}, got.content

    with answering(reply) as other, Client(other) as client, pytest.raises(Conflict, match="no longer served"):
        client.redshifts(["s0001", "s0002"], at_once=1)
    assert "generation=1" in asked[1] and "generation" not in asked[0]


@pytest.mark.parametrize("body", [b"<html>", b"{}", b"[]", b'{"detail": 3}'])
def test_what_is_no_answer_of_redshelf_is_told(body: bytes) -> None:
    for status in (200, 502):
        told = pytest.raises(RedshelfError, match=r"answered|^3$")
        with answering(lambda *_, status=status: (status, {}, body)) as url, Client(url) as client, told:
            client.source("a")


def test_the_search_of_the_command_line_uses_it(url: str, shelf: OpenShelf) -> None:
    asked = OverHttp(url)
    assert asked.neighbours(Question("s0010"), encoder=None, k=4) == neighbours(shelf, "s0010", k=4)


def test_a_long_list_is_a_job_that_is_waited_for(
    url: str, shelf: OpenShelf, capsys: pytest.CaptureFixture[str]
) -> None:
    ids = [f"s{i:04d}" for i in range(40, 70)]
    expected = redshifts(shelf, ids, pdf=False)
    with Client(url) as client:
        table = client.long_list("redshifts", ids, progress=True)
        assert list(table["source_id"]) == ids and "30/30" in capsys.readouterr().err
        for found, one in zip(table["z_median"], expected, strict=True):
            assert np.ma.is_masked(found) if one.z_median is None else found == pytest.approx(one.z_median, abs=1e-6)
        assert client.jobs() == []
        job_id = client.submit("neighbours", ids, k=2, encoder="vit", format="json")
        job = client.wait(job_id, timeout_s=60)
        assert (job.phase, job.n_done, client.job(job_id)) == ("COMPLETED", 30, job) and client.jobs("COMPLETED") == [
            job
        ]
        answers = json.loads(client.result_bytes(job_id))["answers"]
        assert answers[3] == json.loads(neighbours(shelf, ids[3], k=2, encoder="vit").model_dump_json())
        with pytest.raises(BadInput, match="is json: take result_bytes"):
            client.result(job_id)
        client.forget(job_id)
        with pytest.raises(NotFound, match="no job"):
            client.job(job_id)


def test_a_job_that_does_not_end_well_is_an_error_that_says_why(url: str) -> None:
    async def run() -> None:
        async with AsyncClient(url) as client:
            with pytest.raises(NotFound, match="no source 'nope'"):
                await client.submit("redshifts", ["nope"])
            with pytest.raises(BadInput, match="expected a list of source ids"):
                await client.submit("redshifts", "s0003")
            job_id = await client.submit("redshifts", ["s0003"], run=False)
            with pytest.raises(RedshelfError, match=r"is PENDING after 0\.2 s"):
                await client.wait(job_id, timeout_s=0.2)
            with pytest.raises(Conflict, match="there is a result once it is COMPLETED"):
                await client.result(job_id)
            await client.abort(job_id)
            with pytest.raises(Conflict, match="was aborted"):
                await client.wait(job_id)
            assert [job.phase for job in await client.jobs()] == ["ABORTED"]
            await client.forget(job_id)
            table = await client.long_list("neighbours", ["s0003", "s0004"], k=3)
            assert list(table["query"]) == ["s0003"] * 3 + ["s0004"] * 3 and await client.jobs() == []

    asyncio.run(run())

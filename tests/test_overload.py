"""A real server under hostile clients: slow, cut, too many. It answers the others, and is itself afterwards."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import server as servers
import torture

pytestmark = [pytest.mark.security, pytest.mark.slow]
DEADLINE_S = 1.0
NEIGHBOURS = "/v1/sources/s0003/neighbours?k=10"
KILLED = (ConnectionError, http.client.BadStatusLine, http.client.IncompleteRead)  # what a client of it meets


@pytest.fixture(scope="module")
def server(bare_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    folder = tmp_path_factory.mktemp("overload")
    told = {"deadline_seconds": DEADLINE_S, "max_concurrent": 4, "max_connections": 150}
    with servers.serve(bare_shelf, folder, **told) as running:
        yield running


@pytest.fixture(autouse=True)
def is_itself_afterwards(server: servers.Server) -> Iterator[None]:
    """After each test it answers, and nothing of the test is left in it."""
    yield
    servers.wait_for(lambda: len(sockets(server)) <= 4, "the connections to be closed")  # uvicorn's own, and one kept
    assert server.process.poll() is None
    servers.wait_for(lambda: numbers(server)["redshelf_in_flight"] == 1, "what was in flight")  # this one
    assert len(server.get(NEIGHBOURS)["neighbours"]) == 10
    assert "Traceback" not in server.log.read_text()


def sockets(server: servers.Server) -> list[str]:
    """The sockets that the server holds."""
    found = []
    for entry in Path(f"/proc/{server.process.pid}/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:"):
            found.append(target)
    return found


def numbers(server: servers.Server) -> dict[str, float]:
    connection = server.connect()
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    pairs = [line.rpartition(" ") for line in lines if line.startswith("redshelf_")]
    return {name: float(value) for name, _, value in pairs}


def resident_mb(server: servers.Server) -> float:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def raw(server: servers.Server, sent: bytes = b"") -> socket.socket:
    opened = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    if sent:
        opened.sendall(sent)
    return opened


def trickle(opened: socket.socket, text: bytes) -> tuple[bytes, float]:
    """Send a byte every tenth of a second, until there is an answer or the end; what came, and after how many s."""
    began = time.monotonic()
    opened.settimeout(0.1)
    for i in range(len(text)):
        try:
            opened.sendall(text[i : i + 1])
            return opened.recv(65536), time.monotonic() - began
        except TimeoutError:
            continue
        except ConnectionError:
            return b"", time.monotonic() - began
    raise AssertionError("the server has read all of it")


def test_a_head_that_comes_byte_by_byte_is_cut_off(server: servers.Server) -> None:
    for begun in (b"", b"GET /v1/shelf HTTP/1.1\r\nHost: localhost\r\n"):
        with raw(server, begun) as opened:
            came, seconds = trickle(opened, b"X-Slow: " + b"a" * 500)
        assert came == b"" and seconds < 5 * DEADLINE_S


def test_a_second_head_on_a_connection_is_no_slower(server: servers.Server) -> None:
    with raw(server, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n") as opened:
        first = opened.recv(65536)
        while not first.endswith(b"}"):  # the body may come by itself
            first += opened.recv(65536)
        assert first.startswith(b"HTTP/1.1 200")
        came, seconds = trickle(opened, b"GET /healthz HTTP/1.1\r\nX-Slow: " + b"a" * 500)
    assert came == b"" and seconds < 5 * DEADLINE_S


def test_a_body_that_comes_byte_by_byte_is_408(server: servers.Server) -> None:
    head = b"POST /v1/redshifts HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    head += b"Content-Type: application/json\r\n\r\n"
    with raw(server, head) as opened:
        came, seconds = trickle(opened, b'{"ids": ["' + b"a" * 500)
    assert came.startswith(b"HTTP/1.1 408 ") and b"application/problem+json" in came
    assert DEADLINE_S * 0.9 < seconds < 5 * DEADLINE_S


def test_a_chunked_body_without_an_end_is_408(server: servers.Server) -> None:
    head = b"POST /v1/neighbours HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with raw(server, head + b"Transfer-Encoding: chunked\r\n\r\n5\r\n     \r\n") as opened:
        assert opened.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_does_not_read_is_cut_off(server: servers.Server) -> None:
    opened = socket.socket()
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    opened.connect(("127.0.0.1", server.port))
    opened.settimeout(0.2)
    asked, began = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50, time.monotonic()
    try:
        while time.monotonic() - began < 30:
            try:
                opened.sendall(asked)  # without reading one of the answers
            except TimeoutError:
                continue
    except ConnectionError:
        pass
    assert time.monotonic() - began < 25, "the connection is still there"
    opened.close()


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/sources/s0003/neighbours HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/sources/s00",
        b"POST /v1/redshifts HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{",
        b"POST /v1/cutouts/neighbours HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b'Content-Length: 5000\r\n\r\n--b\r\nContent-Disposition: form-data; name="file"; filename="x"\r\n\r\nSIMPLE',
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # TLS to a port that speaks none
        b"\0" * 100_000,
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000,
    ],
)
def test_connections_that_are_cut_anywhere_leave_nothing(server: servers.Server, sent: bytes) -> None:
    for _ in range(torture.count(20, 500)):
        opened = raw(server)
        try:
            opened.sendall(sent)
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, not an end
        except ConnectionError:  # it was refused before all of it was sent
            pass
        opened.close()


def test_connections_beyond_the_limit_are_closed_and_those_within_are_answered(server: servers.Server) -> None:
    opened = [raw(server) for _ in range(140)]
    assert server.get("/healthz") == {"status": "ok"}
    more = [raw(server) for _ in range(60)]
    servers.wait_for(lambda: len(sockets(server)) <= 155, "those beyond to be closed")
    opened[0].sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert opened[0].recv(65536).startswith(b"HTTP/1.1 200")
    for one in (*opened, *more):
        one.close()


def test_under_ten_times_what_it_takes_it_answers_or_says_ask_again_and_then_is_itself(server: servers.Server) -> None:
    seconds, clients = torture.count(4, 60), 40  # ten for each place in flight
    for _ in range(50):
        server.get(NEIGHBOURS)
    statuses: Counter[int] = Counter()
    faults, stop, before = [], threading.Event(), resident_mb(server)

    def run(first: int) -> None:
        connection, mine = server.connect(), Counter[int]()
        try:
            while not stop.is_set():
                connection.request(
                    "GET", f"/v1/sources/s00{(first + mine.total()) % 60:02d}/neighbours?k=30&exact=true"
                )
                answer = connection.getresponse()
                body = answer.read()
                mine[answer.status] += 1
                if answer.status == 503:
                    assert answer.headers["retry-after"] == "1" and json.loads(body)["status"] == 503
        except (OSError, http.client.HTTPException, AssertionError) as error:
            faults.append(repr(error))
        finally:
            connection.close()
            statuses.update(mine)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    ends, highest = time.monotonic() + seconds, before
    while time.monotonic() < ends:
        time.sleep(0.2)
        highest = max(highest, resident_mb(server))
        assert server.get("/healthz") == {"status": "ok"}
    stop.set()
    for thread in threads:
        thread.join()
    assert faults == []
    assert set(statuses) <= {200, 429, 503} and statuses[200] > 0, statuses
    assert highest < 1.1 * before + 20, f"{before:.0f} MB before, {highest:.0f} MB at most"
    began = time.monotonic()
    assert len(server.get(NEIGHBOURS)["neighbours"]) == 10 and time.monotonic() - began < 5
    print(f"{statuses} in {seconds} s; {before:.0f} MB before, {highest:.0f} MB at most")


def test_a_worker_that_is_killed_under_load_costs_its_own_connections_and_no_others(
    bare_shelf: Path, tmp_path: Path
) -> None:
    kills, clients = torture.count(2, 20), 6
    statuses: Counter[int] = Counter()
    cut, faults, stop = Counter[int](), [], threading.Event()
    with servers.serve(bare_shelf, tmp_path, "--workers", "2") as several:
        servers.wait_for(lambda: numbers(several)["redshelf_workers"] == 2, "both to serve")

        def run(me: int) -> None:
            connection = several.connect()
            try:
                while not stop.is_set():
                    try:
                        connection.request("GET", NEIGHBOURS)
                        answer = connection.getresponse()
                        answer.read()
                        statuses[answer.status] += 1
                    except (
                        ConnectionError,
                        http.client.BadStatusLine,
                        http.client.IncompleteRead,
                    ):  # once a kill: the next is answered
                        cut[me] += 1
                        connection.close()
            except Exception as error:
                faults.append(repr(error))
            finally:
                connection.close()

        threads = [threading.Thread(target=run, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        try:
            for done in range(1, kills + 1):
                os.kill(several.workers()[done % 2], signal.SIGKILL)

                def again(started: int = 2 + done) -> bool:
                    return several.log.read_text().count("Application startup complete") == started

                servers.wait_for(again, "another one in its place")
                time.sleep(0.5)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
    assert faults == [] and set(statuses) == {200} and statuses[200] > 20
    assert all(times <= 2 * kills for times in cut.values()), cut
    print(f"{statuses[200]} answers and {cut.total()} cut connections during {kills} kills")

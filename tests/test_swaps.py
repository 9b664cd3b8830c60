"""Generation after generation is published under load, and no request fails."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest
import server as servers
import torture
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.service.delete import delete
from redshelf.service.publish import publish
from redshelf.service.settings import Settings
from redshelf.service.shelf import open_shelf

CLIENTS = 4
QUESTIONS = (
    "/v1/sources/s0003/neighbours?k=12",
    "/source/s0010?k=12",
    "/v1/sources/s0006/redshift",
    "/v1/sources/s0008/neighbours?k=30&mag_band=i&mag_max=25",
)


@dataclass
class Client:
    """What one connection was answered: {(question, generation): sha256 of the bodies}."""

    answers: dict[tuple[str, int], set[str]] = field(default_factory=dict)
    requests: int = 0
    fault: str | None = None

    def ask(self, connection: http.client.HTTPConnection, question: str, newest: int) -> int:
        """Ask once; the generation of the answer, which is `newest` or a later one."""
        connection.request("GET", question)
        response = connection.getresponse()
        here = f"{connection.host}:{connection.port}".encode()
        body = response.read().replace(here, b"127.0.0.1")  # which a page names in what it offers to copy
        self.requests += 1
        assert response.status == 200, f"{question}: {response.status}: {body[:500]!r}"
        if question.startswith("/v1"):
            generation = int(json.loads(body)["generation"])
        else:
            told = re.search(rb"generation (\d+)", body)
            assert told is not None, body
            generation = int(told[1])
        assert generation >= newest, f"{question}: generation {generation} after {newest}"
        self.answers.setdefault((question, generation), set()).add(hashlib.sha256(body).hexdigest())
        return generation

    def run(self, server: servers.Server, first: int, stop: threading.Event) -> None:
        connection, newest = server.connect(), 0
        connection.connect()
        socket = connection.sock
        try:
            while not stop.is_set():
                newest = self.ask(connection, QUESTIONS[(first + self.requests) % len(QUESTIONS)], newest)
                assert connection.sock is socket, "the server has closed the connection"
        except Exception as error:
            self.fault = f"{type(error).__name__}: {error}"
        finally:
            connection.close()


def _answered(clients: list[Client], number: int) -> bool:
    """Whether any client has had an answer from this generation, or failed."""
    return any(client.fault or any(n == number for _, n in list(client.answers)) for client in clients)


def _expected(root: Path, number: int) -> dict[str, str]:
    """{question: sha256 of the answer} from generation `number`, by an app that has no other."""
    app = create_app(Settings(shelf=root))
    app.state.serving = SimpleNamespace(current=open_shelf(root, number), refused=None)
    client = TestClient(app)
    return {question: hashlib.sha256(client.get(question).content).hexdigest() for question in QUESTIONS}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_no_request_fails_while_generations_are_swapped(
    tiny_shelf: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    root, swaps = tmp_path / "shelf", torture.count(6, 100)
    shutil.copytree(tiny_shelf, root)
    clients, stop = [Client() for _ in range(CLIENTS)], threading.Event()
    # sources without a label, so that the redshifts stay those that were fitted; none of them is asked about
    unlabelled = iter([f"s{i:04d}" for i in range(300) if i % 5 == 4 and i % 50 != 49])
    with servers.serve(root, tmp_path, refresh_seconds=0.05) as server:
        threads = [
            threading.Thread(target=client.run, args=(server, first, stop)) for first, client in enumerate(clients)
        ]
        for thread in threads:
            thread.start()
        try:
            # the first page of a process imports LightGBM, which takes seconds where others work too
            servers.wait_for(lambda: min(client.requests for client in clients) >= len(QUESTIONS), "first answers")
            for swap in range(swaps):
                if swap % 3 == 0 and (source_id := next(unlabelled, None)) is not None:
                    delete(root, [source_id])
                number = publish(root, default_encoder=("photometry", "vit")[swap % 2]).number
                servers.wait_for(lambda wanted=number: server.get("/readyz")["generation"] == wanted, "the swap")
                servers.wait_for(lambda wanted=number: _answered(clients, wanted), "an answer from it")
                assert not [client.fault for client in clients if client.fault]
            servers.wait_for(lambda: server.mapped() == {number}, "the generations before to be closed")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert server.get("/readyz")["refused"] is None
    requests = sum(client.requests for client in clients)
    told = f"{requests} requests on {CLIENTS} connections during {swaps} swaps"
    record_property("requests", requests)
    record_property("swaps", swaps)
    print(told)
    assert [client.fault for client in clients] == [None] * CLIENTS, told
    assert "Traceback" not in server.log.read_text(), told
    answered = {number for client in clients for _, number in client.answers}
    assert len(answered) >= swaps, f"{told}: answers of {len(answered)} generations"
    expected = {number: _expected(root, number) for number in sorted(answered)}
    for client in clients:
        for (question, number), bodies in client.answers.items():
            assert bodies == {expected[number][question]}, f"{question} of generation {number}; {told}"
    assert len({answers[QUESTIONS[0]] for answers in expected.values()}) == len(answered), "answers tell them apart"

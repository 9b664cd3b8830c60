"""Several worker processes on one port: each answers, one that is killed is replaced, all take up what is published."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
from itertools import pairwise
from pathlib import Path

import pytest
import server as servers
import uvicorn
from uvicorn.server import ServerState

from redshelf.api.cli import main
from redshelf.api.connections import Connection, Loop, options
from redshelf.service.publish import publish
from redshelf.service.settings import Settings


@pytest.mark.parametrize(
    ("number", "reason"), [("0", "greater than or equal to 1"), ("-3", "greater than"), ("1000", "less than")]
)
def test_a_number_of_workers_that_makes_no_sense_is_refused(
    bare_shelf: Path, capsys: pytest.CaptureFixture[str], number: str, reason: str
) -> None:
    assert main(["serve", "--shelf", str(bare_shelf), "--workers", number]) == 1
    err = capsys.readouterr().err
    assert f"command line: workers={number}: Input should be {reason}" in err and err.count("\n") == 1


def test_workers_that_are_no_number_are_wrong_usage(bare_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["serve", "--shelf", str(bare_shelf), "--workers", "many"])
    assert stop.value.code == 2
    assert "argument --workers: invalid int value: 'many'" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_port_that_is_taken_is_told_in_one_line_before_anything_starts(
    bare_shelf: Path, capfd: pytest.CaptureFixture[str], workers: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--shelf", str(bare_shelf), "--port", port, "--workers", workers]) == 1
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"redshelf serve: cannot listen on 127.0.0.1 port {port}: Address already in use\n")


def test_a_damaged_shelf_is_told_in_one_line_before_any_worker_starts(
    bare_shelf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)
    (root / "columns" / "1" / "ra.npy").write_bytes(b"")
    assert main(["serve", "--shelf", str(root), "--port", "0", "--workers", "2"]) == 1
    err = capfd.readouterr().err
    assert err.startswith("redshelf serve: generation 1 of ") and "columns/1/ra.npy" in err and err.count("\n") == 1


@pytest.mark.slow
def test_workers_answer_on_one_port_and_one_that_is_killed_is_replaced(bare_shelf: Path, tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)
    with servers.serve(root, tmp_path, "--workers", "2", refresh_seconds=0.1) as server:
        servers.wait_for(lambda: len(server.workers()) == 2, "two workers")
        servers.wait_for(lambda: server.log.read_text().count("Application startup complete") == 2, "both to serve")
        first = server.get("/v1/sources/s0003/neighbours")
        assert first["generation"] == 1 and len(first["neighbours"]) == 10
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        servers.wait_for(
            lambda: len(set(server.workers()) - set(before)) == 1, "a worker in the place of the killed one"
        )
        servers.wait_for(lambda: server.log.read_text().count("Application startup complete") == 3, "it to serve")
        assert before[1] in server.workers() and before[0] not in server.workers()
        for _ in range(10):
            assert server.get("/v1/sources/s0003/neighbours") == first
        publish(root)
        seen: list[int] = []

        def all_of_two() -> bool:
            seen.append(server.get("/readyz")["generation"])
            return seen[-20:] == [2] * 20

        servers.wait_for(all_of_two, "both workers to take up the generation")
        workers = server.workers()
        assert server.log.read_text().count("generation 2 is served") == 2
    assert server.process.returncode == 0
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


@pytest.mark.slow
def test_workers_end_with_the_process_that_has_started_them(bare_shelf: Path, tmp_path: Path) -> None:
    with servers.serve(bare_shelf, tmp_path, "--workers", "2") as server:
        servers.wait_for(lambda: server.log.read_text().count("Application startup complete") == 2, "both to serve")
        workers = server.workers()
        server.process.kill()
        server.process.wait()
        servers.wait_for(lambda: not any(_runs(pid) for pid in workers), "the workers to end")
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", server.port))


def _runs(pid: int) -> bool:
    """Whether the process is there, and no zombie that nobody waits for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_loop_takes_one_connection_a_turn_and_sends_without_delay() -> None:
    """Of several workers on one socket each has its share; their socket says no protocol, as uvicorn makes it."""
    loop, made = Loop(), list[asyncio.Transport]()
    config = uvicorn.Config(lambda: None, loop="none", **{k: v for k, v in options().items() if k != "loop"})
    config.load()

    class Seen(Connection):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            made.append(transport)

    def connection() -> Seen:
        return Seen(config=config, server_state=ServerState(), app_state={"settings": Settings()}, _loop=loop)

    with contextlib.ExitStack() as stack:
        stack.callback(loop.close)
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        assert listener.proto == 0
        listener.listen(16)
        for _ in range(5):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        server = loop.run_until_complete(loop.create_server(connection, sock=listener, backlog=16))
        seen = []
        for _ in range(60):
            loop.call_soon(loop.stop)
            loop.run_forever()
            seen.append(len(made))
        told = [one.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for one in made]
        server.close()
        for one in made:
            one.abort()
        loop.run_until_complete(asyncio.sleep(0.01))
    assert told == [1] * 5 and max(after - before for before, after in pairwise(seen)) <= 1

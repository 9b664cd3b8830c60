"""A server as a user starts it: `redshelf serve` in a process of its own, on a free port of loopback."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PATIENCE_S = 120  # of a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    """A running one, and what it writes to stderr."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def get(self, path: str) -> Any:
        """The JSON at `path`, by a connection of its own."""
        connection = self.connect()
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            body = response.read()
            assert response.status == 200, body
            return json.loads(body)
        finally:
            connection.close()

    def mapped(self) -> set[int]:
        """The generations whose columns the process has mapped."""
        maps = Path(f"/proc/{self.process.pid}/maps").read_text()
        return {int(number) for number in re.findall(r"/columns/(\d+)/", maps)}

    def workers(self) -> list[int]:
        """Process ids of the workers that uvicorn has started."""
        pids = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        found = []
        for pid in pids:
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
            except OSError:  # it has just ended
                continue
            if b"spawn_main" in command:
                found.append(int(pid))
        return found


def wait_for(condition: Any, what: str) -> None:
    """Until `condition()` holds; a refused connection counts as not yet."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if condition():
                return
        except (OSError, http.client.HTTPException):
            pass
        assert time.monotonic() < end, f"waited {PATIENCE_S} s for {what}"
        time.sleep(0.05)


@contextmanager
def serve(shelf: Path, folder: Path, *options: str, **settings: object) -> Iterator[Server]:
    """Serve `shelf` with options of the command line and `settings` in the environment, until the block ends."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "links"), "OMP_NUM_THREADS": "1"}
    environment |= {f"REDSHELF_{name.upper()}": str(value) for name, value in settings.items()}
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "redshelf.api.cli", "serve", "--shelf", str(shelf), "--port", str(port), *options]
    with (
        log.open("wb") as stream,
        subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT) as process,
    ):
        server = Server(process, port, log)
        try:

            def ready() -> bool:
                assert process.poll() is None, log.read_text()
                return bool(server.get("/readyz")["status"] == "ready")

            wait_for(ready, "the server")
            yield server
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            finally:
                process.kill()  # where it has not ended by itself

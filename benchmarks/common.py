"""What benchmarks share: where the real data is, rates in turn, a real server on loopback, a screenshot by Chromium."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import httpx


def peak_mb() -> float:
    """The most memory that this process has held, MB. (`ru_maxrss` would count that of the process which began it.)"""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def data_folder() -> Path | None:
    """The folder of the real files; None, with a line saying so, when it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("REDSHELF_DATA", beside))
    if not (folder / "README.md").is_file():
        print("not measured: the real data is absent (set REDSHELF_DATA to its folder)")
        return None
    os.environ["REDSHELF_DATA"] = str(folder)
    return folder


def in_turn(first: Callable[[], float], second: Callable[[], float], rounds: int) -> tuple[float, float, float]:
    """Medians of two rates that are measured in turn, and the median of the second over the first."""
    pairs = []
    for number in range(rounds):
        one, other = (first, second) if number % 2 == 0 else (second, first)
        found = (one(), other())
        pairs.append(found if number % 2 == 0 else found[::-1])
    bare, whole = zip(*pairs, strict=True)
    return statistics.median(bare), statistics.median(whole), statistics.median(w / b for b, w in pairs)


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """`redshelf serve` of one shelf as a process of its own, on a free port of loopback, ended with the block."""

    def __init__(self, shelf: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        command = [sys.executable, "-m", "redshelf.api.cli", "serve", "--shelf", str(shelf), "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)

    def __enter__(self) -> Server:
        for _ in range(600):
            if self._process.poll() is not None:
                self._log.seek(0)
                raise RuntimeError(f"the server ended:\n{self._log.read()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise RuntimeError("the server was not ready within 60 s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        self._process.wait(20)


def screenshot(url: str, picture: Path, *, width: int = 1280, height: int = 1600, dark: bool = False) -> bool:
    """Photograph a page with headless Chromium; False where there is none."""
    browser = shutil.which("chromium")
    if browser is None:
        return False
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        flags += ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if dark else []
        target = [
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--screenshot={picture.resolve()}",
            url,
        ]
        subprocess.run([browser, *flags, *target], check=True, capture_output=True, timeout=120)
    return picture.is_file()

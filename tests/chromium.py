"""Headless Chromium told what to do over a pipe (the DevTools protocol): a page as a person meets it, keys included.

No library is needed: messages are JSON, each ended by a null byte, on file descriptors 3 and 4 of the browser.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
PATIENCE_S = 90.0  # of a busy machine
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",  # it has names of its own to ask for
    "--remote-debugging-pipe",
)
CODES = {"ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "Enter": 13, "Escape": 27}


class Page:
    """One page; `requests` are the addresses that it has asked for since it was opened."""

    def __init__(self, out: int, back: int) -> None:
        self._out, self._back, self._number, self._buffer = out, back, 0, b""
        self._session: str | None = None
        self.requests: list[str] = []
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.tell(f"{domain}.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            piece = os.read(self._back, 1 << 16)
            assert piece, "the browser has ended"
            self._buffer += piece
        first, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if message.get("method") == "Network.requestWillBeSent":
            self.requests.append(message["params"]["request"]["url"])
        return message

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """Do something, and its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self._number:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        told = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true, in this page or in the one that it leads to."""
        end = time.monotonic() + PATIENCE_S
        while not self.js(expression):
            assert time.monotonic() < end, f"waited {PATIENCE_S:.0f} s for {expression}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        """Go to an address and wait until all of it is there."""
        self.js("window.__left = true")
        self.tell("Page.navigate", url=url)
        self.wait("!window.__left && document.readyState === 'complete'")

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file of this machine in an input, as by its dialogue."""
        found = self.tell("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        self.tell("DOM.setFileInputFiles", files=[str(path)], objectId=found["result"]["objectId"])

    def leave(self, expression: str) -> None:
        """Do what leads to another page, and wait until all of that is there."""
        self.js(f"window.__left = true; {expression}; 0")
        self.wait("!window.__left && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Press one key."""
        code: dict[str, Any] = {"windowsVirtualKeyCode": CODES[key]} if key in CODES else {"text": key}
        if key == "Enter":
            code["text"] = "\r"
        self.tell("Input.dispatchKeyEvent", type="keyDown", key=key, **code)
        self.tell("Input.dispatchKeyEvent", type="keyUp", key=key)

    def look(self, *, width: int = 1280, dark: bool = False, script: bool = True) -> None:
        """Choose the width of the window, the system's theme, and whether scripts run."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.tell("Emulation.setDeviceMetricsOverride", **size)
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.tell("Emulation.setEmulatedMedia", features=[theme])
        self.tell("Emulation.setScriptExecutionDisabled", value=not script)


def serious_faults(page: Page) -> list[tuple[str, str]]:
    """What axe-core finds serious or critical on a page: the rule, and the element that breaks it."""
    axe = (files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8")
    page.js(f"{axe};0")
    found = page.js("axe.run(document, {resultTypes: ['violations']}).then((r) => JSON.stringify(r.violations))")
    serious = [one for one in json.loads(found) if one["impact"] in ("serious", "critical")]
    return [(one["id"], node["html"][:200]) for one in serious for node in one["nodes"]]


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A browser with one page and a profile of its own in `folder`, ended with the block."""
    assert CHROMIUM is not None
    (theirs, out), (back, writes) = os.pipe(), os.pipe()
    command = [
        "bash",  # others know descriptors of one digit alone
        "-c",
        f'exec "$0" "$@" 3<&{theirs} 4>&{writes}',
        CHROMIUM,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
    ]
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(theirs, writes), **silent)  # type: ignore[call-overload]
    try:
        os.close(theirs)
        os.close(writes)
        yield Page(out, back)
    finally:
        os.close(out)
        os.close(back)  # with which it ends
        try:
            process.wait(20)
        finally:
            process.kill()

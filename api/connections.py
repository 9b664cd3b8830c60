"""What uvicorn does not limit: how many connections there are, and how long a client may take over a few bytes.

A client that sends its head byte by byte, or does not read what it has asked for, is cut off after `deadline_seconds`;
over the slow sending of a body `envelope` decides, which can still answer.

And what uvicorn leaves out with several workers: their socket says no protocol, so that asyncio does not recognise TCP
and leaves Nagle's algorithm on, which keeps the body behind the head for 40 ms, until the client has acknowledged that.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from redshelf.service.settings import Settings


class Loop(asyncio.SelectorEventLoop):
    """Takes one waiting connection a turn: of several workers that wait on one socket, the first to wake would else
    take all that there are, and the others would have nothing to do."""

    def _start_serving(
        self, protocol_factory: Any, sock: Any, sslcontext: Any = None, server: Any = None, backlog: int = 1, *how: Any
    ) -> None:
        super()._start_serving(protocol_factory, sock, sslcontext, server, 1, *how)  # type: ignore[misc]


class Connection(H11Protocol):
    """One connection; the settings come with the state that the app's lifespan gives."""

    _timer: asyncio.TimerHandle | None = None

    @property
    def _settings(self) -> Settings:
        settings: Settings = self.app_state["settings"]
        return settings

    def _wait(self) -> None:
        """Cut the connection off unless `_go_on` is called within the deadline."""
        if self._timer is None:
            self._timer = self.loop.call_later(self._settings.deadline_seconds, self.transport.abort)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().connection_made(transport)
        if len(self.connections) > self._settings.max_connections:
            transport.abort()
        else:
            self._wait()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # in the middle of a head, of what is no HTTP, or of a body that was answered before its end and is not read
        if self.conn.their_state is h11.IDLE or self.cycle is None or self.cycle.response_complete:
            self._wait()
        elif not self.flow.write_paused:
            self._go_on()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        self._wait()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        if self.transport.get_write_buffer_size():  # closing waits until that is read, for good if need be
            self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)


def options() -> dict[str, Any]:
    """For `uvicorn.run`."""
    return {
        "loop": "redshelf.api.connections:Loop",
        "http": Connection,
        "ws": "none",
        "server_header": False,
        "access_log": False,
    }

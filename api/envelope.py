"""Around every request, as plain ASGI since each costs: an id, who asks, limits, a deadline, headers, a line of log.

A request that is turned away is so before anything else is done for it. One whose deadline has passed is answered then,
and keeps its place among those in flight until its work has ended, which cannot be stopped: there is never more of it
than places.

HEAD is answered as GET is, by the same route, and nothing is sent after the headers.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redshelf.api import limits, observability, security, tracing
from redshelf.api.limits import Rates, Turnstile
from redshelf.api.observability import Metrics, Told
from redshelf.api.problems import problem
from redshelf.api.security import Guard
from redshelf.api.tracing import Trace, Tracing
from redshelf.service.settings import Settings

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
BODY_MARGIN_BYTES = 16 << 10  # the multipart headers and small fields around an upload, those of a job around its list
ID_BYTES = 64  # of an id in the list of a job, with its quotes and comma
# of any other body: the longest is a vector of 65,536 numbers in full; JSON is parsed on the event loop, as a whole,
# before a limit on a list is looked at: 2 MiB of `{},` take 50 ms and 50 MiB
OTHER_BODY_BYTES = 2 << 20
REASONS = {401: "key", 403: "key", 413: "size", 429: "rate", 503: "busy"}
Pair = tuple[bytes, bytes]
NO_DEADLINE = frozenset({"/admin/generation"})  # a large index takes minutes to read


def as_get(scope: Scope) -> Scope:
    """The GET that has the headers which a HEAD asks for. A file need not be read for them: its name is enough."""
    return {**scope, "method": "GET", "extensions": {**(scope.get("extensions") or {}), "http.response.pathsend": {}}}


def longest_body(path: str, settings: Settings) -> int:
    """The most bytes that an address takes."""
    if path == "/upload" or path.startswith("/v1/cutouts/"):
        return settings.max_upload_bytes + BODY_MARGIN_BYTES
    if path == "/v1/jobs":
        return max(settings.max_job_ids * ID_BYTES + BODY_MARGIN_BYTES, OTHER_BODY_BYTES)
    return OTHER_BODY_BYTES


class Answer:
    """What goes out: marked with our headers, its status remembered. Once `replaced`, what the app sends is dropped;
    to a HEAD (`bare`) every body is."""

    def __init__(self, send: Send, headers: list[Pair], *, bare: bool = False) -> None:
        self._send, self._headers, self._bare = send, headers, bare
        self.status, self.private, self.replaced = 0, False, False

    async def send(self, message: Message) -> None:
        """What the app answers."""
        if not self.replaced:
            await self.replace(message)

    async def replace(self, message: Message) -> None:
        """What is answered in its place."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            given = list(message.get("headers", ()))
            names = {name for name, _ in given}
            message["headers"] = given + [pair for pair in self._headers if pair[0] not in names]
            if self.private:  # a proxy must not give it to who has no key
                outgoing = MutableHeaders(scope=message)
                told = outgoing.get("cache-control", "")
                if "private" not in told and "no-store" not in told:
                    outgoing["cache-control"] = f"private, {told}" if told else "private"
        elif self._bare:
            if message.get("more_body", False):
                return
            message = {"type": "http.response.body"}
        await self._send(message)


class Envelope:
    """The one middleware; `log` is told a line a request and `tracing` makes a trace of it, unless they are None."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        settings: Settings,
        guard: Guard,
        metrics: Metrics,
        log: Any = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.app, self.guard, self.metrics, self.log, self.tracing = app, guard, metrics, log, tracing
        self.rates, self.turnstile = Rates(settings), Turnstile(settings)
        self.deadline_seconds = settings.deadline_seconds
        self.settings = settings
        told = [*security.HEADERS, *(() if settings.cors_origins else (security.SAME_ORIGIN,))]
        self.headers: list[Pair] = [(name.encode(), value.encode()) for name, value in told]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        method = scope["method"]
        answer = Answer(send, [(b"x-request-id", request_id.encode()), *self.headers], bare=method == "HEAD")
        if method == "HEAD":
            scope = as_get(scope)
        away, entered = None, False
        self.metrics.in_flight.inc()
        trace = None if self.tracing is None else self.tracing.begin(scope["path"], headers)
        tracing.listen(self.metrics, trace)
        state["trace"] = trace
        try:
            try:
                entered = self._enter(scope, headers, answer)
            except HTTPException as error:  # before the routes: nothing there would answer it
                away = REASONS[error.status_code]
                refused = problem(Request(scope), error.status_code, error.detail, error.headers)
                return await refused(scope, receive, answer.send)
            if await self._answer(scope, receive, answer):
                away = "late"
        finally:
            if entered:
                self.turnstile.leave()
            self.metrics.in_flight.dec()
            told = self._told(scope, method, answer.status or 500, time.perf_counter() - began, away)
            self._tell(told, trace)

    def _enter(self, scope: Scope, headers: Headers, answer: Answer) -> bool:
        """Whether the request has a place in flight, which it leaves again; `HTTPException` where it is turned away."""
        path, client = scope["path"], scope.get("client")
        address = limits.caller_of(client[0]) if client else None
        self.rates.count("address", address)
        key = self.guard.admit(scope["method"], path, headers, local=address is None)
        if key is not None:
            scope["state"]["key"], scope["state"]["owner"] = key.name, key.sha256
            answer.private = True
            self.rates.count("key", key.name)
        length = headers.get("content-length", "")
        self._check(path, int(length[:18]) if length.isdecimal() else 0)  # of a longer number that is too many, too
        if path in limits.NOT_COUNTED:
            return False
        self.turnstile.enter()
        return True

    async def _answer(self, scope: Scope, receive: Receive, answer: Answer) -> bool:
        """Let the app answer; whether its deadline passed before it did."""
        seen, reading, whole = 0, False, False
        late: asyncio.Task[None] | None = None

        async def limited() -> Message:
            nonlocal seen, reading, whole
            reading = not whole  # afterwards it waits for the client to leave
            message = await receive()
            reading, whole = False, whole or not message.get("more_body", False)
            seen += len(message.get("body", b""))
            self._check(scope["path"], seen)
            return message

        def expire() -> None:
            nonlocal late
            if not answer.status:  # else it is on its way: a client that does not read is the connection's business
                answer.replaced = True
                late = asyncio.ensure_future(self._late(scope, receive, answer, reading=reading))

        timer = None
        scope["state"]["until"] = time.monotonic() + self.deadline_seconds
        if scope["path"] not in NO_DEADLINE:
            timer = asyncio.get_running_loop().call_later(self.deadline_seconds, expire)
        try:
            await self.app(scope, limited, answer.send)
        finally:
            if timer is not None:
                timer.cancel()
            if late is not None:
                await late
        return late is not None

    async def _late(self, scope: Scope, receive: Receive, answer: Answer, *, reading: bool) -> None:
        told = f"{self.deadline_seconds:g} s, the deadline of this server"
        if reading:
            refused = problem(Request(scope), 408, f"the body has not arrived within {told}", {"connection": "close"})
        else:
            detail = f"there is no answer within {told}: ask again, or for less"
            refused = problem(Request(scope), 503, detail, {"retry-after": str(limits.BUSY_RETRY_S)})
        await refused(scope, receive, answer.replace)

    def _told(self, scope: Scope, method: str, status: int, seconds: float, away: str | None) -> Told:
        state, matched = scope["state"], scope.get("route")
        route = getattr(matched, "path", "/static" if scope.get("root_path") == "/static" else observability.UNMATCHED)
        return Told(
            request_id=state["request_id"],
            method=method,
            route=route,
            status=status,
            seconds=seconds,
            key=state.get("key"),
            generation=state.get("generation"),
            turned_away="size" if status == 413 else away or state.get("turned_away"),
        )

    def _tell(self, told: Told, trace: Trace | None) -> None:
        self.metrics.count(told)
        if trace is not None:
            trace.end(told)
        if self.log is not None:
            observability.line(self.log, told)

    def _check(self, path: str, n_bytes: int) -> None:
        most = longest_body(path, self.settings)
        if n_bytes > most:
            raise HTTPException(413, f"the body is longer than the {most} bytes that this address takes")

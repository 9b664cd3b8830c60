"""Errors over HTTP: every exception becomes one RFC 9457 answer here, and nowhere else.

Page addresses get the same words as a page, with the search box; everything else gets `application/problem+json`.
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redshelf.api import browse
from redshelf.models.errors import BadInput, Conflict, NotFound, RedshelfError, nearest
from redshelf.service.answers import Problem

STATUS: dict[type[RedshelfError], int] = {NotFound: 404, BadInput: 422, Conflict: 409}
REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
log = logging.getLogger("redshelf")


class Envelope:
    """Around every request: an id in and out (`X-Request-Id`), no content sniffing, and a limit to the body."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            self._check(seen)
            return message

        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                outgoing = MutableHeaders(scope=message)
                outgoing["x-request-id"] = request_id
                outgoing["x-content-type-options"] = "nosniff"
            await send(message)

        length = headers.get("content-length", "")
        try:
            self._check(int(length) if length.isdigit() else 0)
        except HTTPException as error:  # before the routes: nothing there would answer it
            answer = problem(Request(scope), error.status_code, error.detail)
            return await answer(scope, receive, marked)
        await self.app(scope, limited, marked)

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self.max_body_bytes:
            raise HTTPException(413, f"the body is longer than the {self.max_body_bytes} bytes that this server takes")


def problem(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """`detail` as problem+json, or as a page where the address is one of the page's."""
    if browse.is_page(request.url.path):
        return browse.failed(request, status, detail)
    title = HTTPStatus(status).phrase
    request_id = getattr(request.state, "request_id", "")
    document = Problem(title=title, status=status, detail=detail, request_id=request_id).model_dump()
    return JSONResponse(document, status, headers=headers, media_type="application/problem+json")


def _known_parameters(request: Request) -> list[str]:
    path = getattr(request.scope.get("route"), "path", None)
    operation = request.app.openapi()["paths"].get(path, {}).get(request.method.lower(), {})
    return [parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "query"]


def _known_fields(request: Request, inside: Sequence[str]) -> list[str]:
    """The fields of the route's body, or of the object at `inside` in it, from the application's own description."""
    description = request.app.openapi()
    path = getattr(request.scope.get("route"), "path", None)
    body = description["paths"].get(path, {}).get(request.method.lower(), {}).get("requestBody", {})
    found: dict[str, Any] = {}
    options = [content.get("schema", {}) for content in body.get("content", {}).values()]
    for step in [*inside, None]:
        named = [option["$ref"].rpartition("/")[2] for option in options if "$ref" in option]
        found = description["components"]["schemas"][named[0]].get("properties", {}) if named else {}
        if step is not None:
            field = found.get(step, {})
            options = [field, *field.get("anyOf", [])]
    return list(found)


def _sentence(request: Request, fault: Mapping[str, Any]) -> str:
    where, *path = [str(part) for part in fault["loc"]]
    name = ".".join(path)
    if fault["type"] == "extra_forbidden":
        if where == "query":
            return f"unknown query parameter {name!r}; {nearest(name, _known_parameters(request))}"
        return f"unknown field {name!r}; {nearest(path[-1], _known_fields(request, path[:-1]))}"
    if fault["type"] == "json_invalid":
        return f"the body is not valid JSON: {fault['ctx']['error']}"
    if fault["type"] == "missing":
        return f"{name or 'the body'} is missing"
    message = fault["msg"].removeprefix("Value error, ")
    shown = repr(fault["input"])
    if not name and not isinstance(fault["input"], dict):
        return f"the body is {shown[:80]}: expected a JSON object, sent as content-type: application/json"
    if not name or isinstance(fault["input"], dict):
        return str(message)
    return f"{name}={shown if len(shown) <= 80 else shown[:77] + '...'}: {message}"


def install(app: FastAPI) -> None:
    """Register the handlers on the app."""

    @app.exception_handler(RedshelfError)
    async def known(request: Request, error: RedshelfError) -> Response:
        return problem(request, next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500), str(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(request, 422, "; ".join(_sentence(request, fault) for fault in error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return problem(request, error.status_code, str(error.detail), error.headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        request_id = getattr(request.state, "request_id", "")
        log.error("request %s failed", request_id, exc_info=error)
        answer = problem(request, 500, "an unexpected error; the operator finds it in the log under this request_id")
        answer.headers["x-request-id"] = request_id  # this answer is made outside of Envelope
        return answer

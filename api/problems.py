"""Errors over HTTP: every exception becomes one RFC 9457 answer here, and nowhere else.

Page addresses get the same words as a page, with the search box, those of the Virtual Observatory as `dali` has them;
everything else gets `application/problem+json`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Mount

from redshelf.api import dali, pages, security
from redshelf.api.limits import BUSY_RETRY_S
from redshelf.models.errors import BadInput, Busy, Conflict, NotFound, RedshelfError, nearest
from redshelf.service.answers import Problem

PROBLEM = "application/problem+json"
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")
STATUS: dict[type[RedshelfError], int] = {NotFound: 404, BadInput: 422, Conflict: 409, Busy: 503}
log = logging.getLogger("redshelf")


def problem(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """`detail` as problem+json, or as a page, plain text or a VOTable where the address answers with that."""
    if pages.is_page(request.url.path):
        return pages.failed(request, status, detail, headers)
    if dali.media_of_errors(request.url.path) is not None:
        return dali.refused(request.url.path, status, detail, headers)
    title = HTTPStatus(status).phrase
    request_id = getattr(request.state, "request_id", "")
    document = Problem(title=title, status=status, detail=detail, request_id=request_id).model_dump()
    return JSONResponse(document, status, headers=headers, media_type=PROBLEM)


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


def allowed(request: Request) -> str:
    """The methods of the request's address, over all of its routes, as `Allow` names them."""
    scope = {**request.scope, "root_path": request.scope.get("app_root_path", request.scope.get("root_path", ""))}
    found: list[str] = []
    for method in METHODS:
        routes = [one for one in request.app.routes if one.matches({**scope, "method": method})[0] is Match.FULL]
        if any(method == "GET" or not isinstance(one, Mount) for one in routes):
            found += ["GET", "HEAD"] if method == "GET" else [method]  # see `envelope.as_get`
    return ", ".join(found)


def describe(app: FastAPI) -> None:
    """Say in the app's OpenAPI document that problems come as what they are, which FastAPI takes for plain JSON."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        document = plain()
        for path, operations in document["paths"].items():
            own = dali.media_of_errors(path)
            for answer in (answer for operation in operations.values() for answer in operation["responses"].values()):
                content = answer.get("content", {})
                if content.get("application/json", {}).get("schema") == {"$ref": "#/components/schemas/Problem"}:
                    told = content.pop("application/json")
                    content[own or PROBLEM] = {} if own else told
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def install(app: FastAPI) -> None:
    """Register the handlers on the app."""

    @app.exception_handler(RedshelfError)
    async def known(request: Request, error: RedshelfError) -> Response:
        status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
        if not isinstance(error, Busy):
            return problem(request, status, str(error))
        request.state.turned_away = "busy"
        return problem(request, status, str(error), {"retry-after": str(BUSY_RETRY_S)})

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(request, 422, "; ".join(_sentence(request, fault) for fault in error.errors()))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        headers = {"allow": allowed(request)} if error.status_code == 405 else error.headers
        return problem(request, error.status_code, str(error.detail), headers)

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> Response:
        request_id = getattr(request.state, "request_id", "")
        log.error("request %s failed", request_id, exc_info=error)
        answer = problem(request, 500, "an unexpected error; the operator finds it in the log under this request_id")
        for name, value in (*security.HEADERS, ("x-request-id", request_id)):  # it is made outside of the envelope
            answer.headers.setdefault(name, value)
        return answer

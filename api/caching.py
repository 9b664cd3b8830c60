"""Answers that depend on the generation alone: a strong ETag, and 304 to who has the answer already.

The tag is a hash of the question, the format, the settings that matter, and everything that was published, so that it
is known before the question is answered. A permalink, whose generation is named, may be kept for a day; anything else
is asked for again, which a 304 makes cheap.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import FastAPI, Request, Response

from redshelf.api.queries import serving_of
from redshelf.api.routes import Route
from redshelf.api.tables import accepted
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf

PINNED, ANEW = "private, max-age=86400, immutable", "no-cache"
WHERE = {"shelf", "host", "port", "workers", "threads", "refresh_seconds"}  # settings that change no answer


def _server(app: FastAPI) -> str:
    """A hash of what the answers of this server depend on beside the question and the generation, worked out once."""
    found: str | None = getattr(app.state, "answers_by", None)
    if found is None:
        settings: Settings = app.state.settings
        told = f"{app.version} {settings.model_dump_json(exclude=WHERE)}"
        found = app.state.answers_by = hashlib.sha256(told.encode()).hexdigest()
    return found


def etag(request: Request, shelf: OpenShelf, *beside: str) -> str:
    """The tag of the answer to this request from this generation, and from what is made `beside` it."""
    scope, host = request.scope, request.headers.get("host", "")  # which stands in what the VO is answered
    question = (scope["scheme"], host, scope["raw_path"], scope["query_string"], accepted(request))
    asked = (_server(request.app), shelf.identity, *question, *beside)
    return f'"{hashlib.sha256(repr(asked).encode()).hexdigest()[:32]}"'


def _has(request: Request, tag: str) -> bool:
    """Whether the client says that it has this answer: comparison is weak, as it is for GET."""
    given = request.headers.get("if-none-match", "")
    return tag in (one.strip().removeprefix("W/") for one in given.split(","))


def of_map(request: Request, shelf: OpenShelf, digest: str) -> tuple[dict[str, str], Response | None]:
    """The headers of an answer about a map, which may be made anew within a generation; and 304 to who has it already.
    An address that names the map may be kept for a day."""
    tag = etag(request, shelf, digest)
    headers = {"etag": tag, "cache-control": PINNED if request.query_params.get("map") else ANEW}
    return headers, Response(status_code=304, headers=headers) if _has(request, tag) else None


class ByGeneration(Route):
    """A route whose GET answers by the generation alone: `APIRouter(route_class=ByGeneration)`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        if self.methods != {"GET"}:
            return answer

        async def tagged(request: Request) -> Response:
            shelf = request.state.shelf = serving_of(request).current  # the one that the tag and the answer are of
            tag = etag(request, shelf)
            named = self.path.startswith("/v1/") and request.query_params.get("generation")
            keep = PINNED if named else ANEW
            headers = {"etag": tag, "cache-control": keep, "vary": "accept"}
            if _has(request, tag):
                return Response(status_code=304, headers=headers)
            response: Response = await answer(request)
            if response.status_code != 200:
                return response
            for name, value in headers.items():
                response.headers.setdefault(name, value)
            if request.headers.get("if-none-match", "").strip() == "*":  # whatever there is, and there is one
                return Response(status_code=304, headers=headers)
            return response

        return tagged

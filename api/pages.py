"""How a page is made: templates, headers, and errors in words beside the search box. Everything is escaped by Jinja2.

Pages work without JavaScript. The one script is ours: keys, copying, dropping a file; it draws nothing, and asks nobody
but the SAMP hub of the reader's machine, where a table is to be sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

from fastapi import Request
from fastapi.responses import HTMLResponse, Response

from redshelf.api import cards, words
from redshelf.api.queries import serving_of
from redshelf.indexing.layout import ShelfInfo
from redshelf.service import places
from redshelf.service.stages import timed

if TYPE_CHECKING:
    from jinja2 import Environment

HUB = "http://localhost:21012"  # where the Web Profile of SAMP has its hub
DIRECTIVES = {
    "default-src": "'none'",
    "img-src": "'self'",
    "style-src": "'self'",
    "script-src": "'self'",
    "form-action": "'self'",
    "connect-src": HUB,
    "base-uri": "'none'",
    "frame-ancestors": "'none'",
}


def policy(**more: str) -> str:
    """The policy that pages have, wider by the sources of some directives: `img="data:"` is one more for `img-src`."""
    sources = {name: own.split() for name, own in DIRECTIVES.items()}
    for name, own in more.items():
        sources.setdefault(f"{name}-src", []).extend(own.split())
    own_first = {name: sorted(own, key=lambda one: one != "'self'") for name, own in sources.items()}
    return "; ".join(f"{name} {' '.join(own)}" for name, own in own_first.items())


PAGE_HEADERS = {"content-security-policy": policy(), "referrer-policy": "no-referrer"}
PAGES = frozenset({"/", "/key", "/map", "/random", "/upload", "/similar", "/status", "/study"})


def is_page(path: str) -> bool:
    """Whether errors at this address are told as a page."""
    return path in PAGES or path.startswith(("/source/", "/map/"))


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["path"] = lambda text: quote(text, safe="")
    environment.filters |= {"count": words.count, "fixed": words.fixed, "significant": words.significant}
    environment.filters |= {"milliseconds": words.milliseconds, "measured": words.measured}
    environment.globals["query"] = lambda **parameters: urlencode(
        {k: v for k, v in parameters.items() if v is not None}
    )
    return environment


@timed("render")
def render(
    info: ShelfInfo | None,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """A page; `info` is None where nobody knows yet who asks, who is then told nothing of the survey."""
    shared = {
        "q": "",
        "error": None,
        "known": info is not None,
        "survey": info.survey if info else "",
        "has_images": info and info.has_images,
    }
    html = _templates().get_template(template).render(**(shared | context))
    return HTMLResponse(html, status, headers={**PAGE_HEADERS, **(headers or {})})


def _typed(request: Request) -> str:
    """What stands in the search box of a page that could not be made."""
    path = request.url.path
    if path.startswith("/source/"):
        return path.removeprefix("/source/")[:200]
    return request.query_params.get("q", "")[:200] if path == "/" else ""


def failed(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a page: the words beside the search box, which still holds what was typed, and sources to go on
    with. Where a key is missing, the form that takes one."""
    path = request.url.path
    if status == 401:
        back = path + (f"?{request.url.query}" if request.url.query else "")
        wrong = detail if path == "/key" else None
        return render(None, "key.html", status=status, headers=headers, error=wrong, back=back, held=False)
    text, shelf = _typed(request), serving_of(request).current  # whose survey is that of every generation
    told: dict[str, Any] = {"q": text, "error": detail, "title": HTTPStatus(status).phrase, "look": cards.Look()}
    told["offered"] = []
    if text.strip() and status == 404:  # ids alone: to look around a position takes longer than an error may
        told["offered"] = cards.of_ids(shelf, places.similar_ids(shelf, text.strip()))
    return render(shelf.info, "error.html", status=status, headers=headers, **told)

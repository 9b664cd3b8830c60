"""The form that takes a key, for who reads the pages: a browser sends no header of its own accord.

The key goes into a cookie that no script can read, that no other site's page can have sent, and that opens what reads
and nothing else. It is the key itself, so that a revoked one ends at once and workers have nothing to share.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import Field

from redshelf.api import pages, security
from redshelf.api.queries import NoQuery, Strict
from redshelf.api.security import COOKIE, KEY_PAGE, Guard

router = APIRouter()
KEPT_S = 30 * 86_400


class KeyForm(Strict):
    key: str = Field("", max_length=1000, description="empty to have the cookie forgotten")
    back: str = Field("/", max_length=2000, description="the page that was asked for")


@router.get(KEY_PAGE, response_class=HTMLResponse)
def form(query: Annotated[NoQuery, Query()], request: Request) -> Response:
    """The form, and whether this browser holds a key."""
    guard: Guard = request.app.state.guard
    given = security.key_in_cookie(request.headers)
    held = given is not None and guard.keys.find(given) is not None
    return pages.render(None, "key.html", back="/", held=held)


@router.post(KEY_PAGE, response_class=HTMLResponse)
def take(query: Annotated[NoQuery, Query()], given: Annotated[KeyForm, Form()], request: Request) -> Response:
    """Keep a key that is known in the browser, and go on to the page; forget the one there is where none is given."""
    guard: Guard = request.app.state.guard
    how = {"httponly": True, "samesite": "strict", "secure": request.url.scheme == "https", "path": "/"}
    key = given.key.strip()
    if not key:
        left = RedirectResponse(KEY_PAGE, 303, headers=pages.PAGE_HEADERS)
        left.delete_cookie(COOKIE, **how)  # type: ignore[arg-type]
        return left
    if guard.keys.find(key) is None:
        raise security.unknown()
    back = given.back if pages.is_page(given.back.partition("?")[0]) and given.back != KEY_PAGE else "/"
    entered = RedirectResponse(back, 303, headers=pages.PAGE_HEADERS)
    entered.set_cookie(COOKIE, key, max_age=KEPT_S, **how)  # type: ignore[arg-type]
    return entered

"""Who may ask what: keys in headers, or in the cookie of the page, against the scope that an address needs.

On loopback anybody may read, unless `require_key` says otherwise, and do the rest while no key has been made: the rest
only from this machine itself, not through a proxy on it that says for whom it asks (`X-Forwarded-For`). Anywhere else
everything needs a key, but for what says that the process lives and the form that takes a key.

Where no key is needed the Host that is asked must be a name of this machine or of `site_names`: a page in a browser
here could else read all of it, once the name that it came from is made to point to 127.0.0.1 (DNS rebinding).
"""

from __future__ import annotations

import re
from http.cookies import CookieError, SimpleCookie
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException

from redshelf.service.keys import Key, Keyring, Scope
from redshelf.service.settings import Settings

COOKIE = "redshelf_key"
KEY_PAGE = "/key"
OPEN = frozenset({"/healthz", "/readyz", KEY_PAGE})  # and the style sheet, which the form needs
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
HEADERS = (
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),  # the page has its own
)
SAME_ORIGIN = ("cross-origin-resource-policy", "same-origin")  # where no other page is let in


def is_open(path: str) -> bool:
    """Whether an address never needs a key."""
    return path in OPEN or path.startswith("/static/")


def scope_of(method: str, path: str) -> Scope:
    """What a request needs: asking is reading, whatever its method; what a server keeps is written."""
    if path.startswith("/admin/"):
        return "admin"
    return "write" if path.startswith("/v1/jobs") and method not in SAFE else "read"


def key_in_headers(headers: Headers) -> str | None:
    """The key that a client sends; another kind of `Authorization`, such as a proxy's, is none."""
    kind, _, given = headers.get("authorization", "").partition(" ")
    return given.strip() if kind.lower() == "bearer" else headers.get("x-api-key")


def key_in_cookie(headers: Headers) -> str | None:
    """The key that a browser was given at `KEY_PAGE`."""
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return found.value if found else None


def unknown() -> HTTPException:
    """The answer to a key that is none."""
    return HTTPException(
        401,
        "the key is unknown here, or was revoked",
        {"www-authenticate": 'Bearer realm="redshelf", error="invalid_token"'},
    )


class Guard:
    """Lets requests in, and names the key that they came with."""

    def __init__(self, settings: Settings) -> None:
        self.keys = Keyring(settings.state_dir, refresh_seconds=settings.refresh_seconds)
        self.reading_is_free = settings.on_loopback and not settings.require_key
        self.cors_origins = settings.cors_origins
        here = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.names = frozenset(name.lower() for name in ("localhost", "127.0.0.1", "[::1]", here, *settings.site_names))

    def free(self, scope: Scope, *, local: bool = True) -> bool:
        """Whether this scope needs no key; `local`: asked from this machine."""
        return self.reading_is_free and (scope == "read" or (local and not self.keys.exist))

    def admit(self, method: str, path: str, headers: Headers, *, local: bool) -> Key | None:
        """The key of a request that may be answered, None without one. `HTTPException` 401 or 403 where it may not."""
        if is_open(path):
            self._same_site(method, headers)
            return None
        wanted, given = scope_of(method, path), key_in_headers(headers)
        if given is not None:
            key = self.keys.find(given)
            if key is None:
                raise unknown()
            if not key.may(wanted):
                challenge = f'Bearer realm="redshelf", error="insufficient_scope", scope="{wanted}"'
                detail = f"key {key.name!r} has scope {key.scope}, and this needs {wanted}"
                raise HTTPException(403, detail, {"www-authenticate": challenge})
            return key
        if self.free(wanted, local=local):
            self._of_this_site(headers)
            self._same_site(method, headers)
            return None
        cookie = key_in_cookie(headers) if wanted == "read" else None  # the page reads, and no more
        key = None if cookie is None else self.keys.find(cookie)
        if key is None:
            detail = f"a key with scope {wanted} is needed: send it as `Authorization: Bearer KEY` or `X-API-Key: KEY`"
            raise HTTPException(401, detail, {"www-authenticate": 'Bearer realm="redshelf"'})
        self._same_site(method, headers)
        return key

    def _of_this_site(self, headers: Headers) -> None:
        """A browser says by which name it has come here; a client that says none is no browser."""
        host = headers.get("host", "")
        if host and re.sub(r":\d*$", "", host).lower() not in self.names:
            known = ", ".join(sorted(self.names))
            raise HTTPException(403, f"Host {host[:80]!r}: without a key expected one of {known} (setting site_names)")

    def _same_site(self, method: str, headers: Headers) -> None:
        """A browser sends what any page tells it to; what does not only read comes from ours, or from one let in."""
        if method in SAFE or headers.get("sec-fetch-site") != "cross-site":
            return
        if headers.get("origin") not in self.cors_origins:
            raise HTTPException(403, f"{method} from a page of another site is not taken without a key in its headers")


def describe(app: FastAPI, guard: Guard) -> None:
    """Say in the app's OpenAPI document how a key is sent, and whether reading needs one."""
    plain = app.openapi
    kinds = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "a key of `redshelf keys add`"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "the same"},
    }

    def openapi() -> dict[str, Any]:
        document = plain()
        document["components"]["securitySchemes"] = kinds
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                free = is_open(path) or guard.free(scope_of(method.upper(), path))
                operation["security"] = [*([{}] if free else []), *({kind: []} for kind in kinds)]
        return document

    app.openapi = openapi  # type: ignore[method-assign]

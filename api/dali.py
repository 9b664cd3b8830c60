"""What the services of the Virtual Observatory have in common (DALI 1.1): parameters, formats, errors.

Names of parameters are read in any case, one that is given twice where one is expected is an error, and those that are
unknown are ignored, unlike everywhere else. So are errors: in plain text by the words of SODA, and in a VOTable where
the answer would have been one, whoever refuses the request.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response

from redshelf.indexing import tabular, votable
from redshelf.models.errors import BadInput

NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
INFINITE = re.compile(r"[+-]?inf(inity)?", re.IGNORECASE)
TEXT_XML = "text/xml"
VOTABLE = tabular.FORMATS["votable"].media


class Repeated(BadInput):
    """A parameter that was given more than once."""


@dataclass(frozen=True)
class Parameters:
    """The parameters of a request, by their names in capitals."""

    given: dict[str, list[str]]

    @classmethod
    def of(cls, request: Request) -> Parameters:
        given: dict[str, list[str]] = {}
        for name, value in request.query_params.multi_items():
            given.setdefault(name.upper(), []).append(value.strip())
        return cls(given)

    def all(self, name: str) -> list[str]:
        """Every value of a parameter that may be repeated; empty ones are none."""
        return [value for value in self.given.get(name, []) if value]

    def one(self, name: str) -> str | None:
        """The value of a parameter, None without one; `Repeated` for several."""
        if len(self.given.get(name, [])) > 1:
            raise Repeated(f"{name} is given {len(self.given[name])} times: expected once")
        return next(iter(self.all(name)), None)

    def number(self, name: str) -> float | None:
        value = self.one(name)
        return None if value is None else _number(name, value)

    def count(self, name: str) -> int | None:
        """A whole number that is not negative."""
        value = self.one(name)
        if value is not None and not re.fullmatch(r"\d{1,18}", value, re.ASCII):
            raise BadInput(f"{name}={value[:80]}: expected a whole number that is not negative")
        return None if value is None else int(value)

    def numbers(self, name: str, n: int, *, infinite: bool = False) -> tuple[float, ...] | None:
        """Numbers with spaces between them, as DALI writes intervals and circles."""
        value = self.one(name)
        if value is None:
            return None
        words = value.split()
        if len(words) != n:
            raise BadInput(f"{name}={value[:80]}: expected {n} numbers with spaces between them")
        return tuple(_number(name, word, infinite=infinite) for word in words)


def _number(name: str, word: str, *, infinite: bool = False) -> float:
    known = NUMBER.fullmatch(word) or (infinite and INFINITE.fullmatch(word))
    value = float(word) if known and word.isascii() else math.nan
    if math.isnan(value) or (math.isinf(value) and not infinite):
        raise BadInput(f"{name}={word[:80]}: expected a number")
    return value


@dataclass(frozen=True)
class ResponseFormat:
    """What RESPONSEFORMAT asks for: the media type of the answer, one of `tabular.FORMATS`, and for a VOTable how its
    rows are written."""

    media: str
    name: str = "votable"
    serialization: votable.Serialization = "tabledata"


FORMATS = {
    "votable": ResponseFormat(VOTABLE),
    VOTABLE: ResponseFormat(VOTABLE),
    TEXT_XML: ResponseFormat(TEXT_XML),
    "votable/td": ResponseFormat(f"{VOTABLE};serialization=tabledata"),
    f"{VOTABLE};serialization=tabledata": ResponseFormat(f"{VOTABLE};serialization=tabledata"),
    "votable/b2": ResponseFormat(f"{VOTABLE};serialization=binary2", serialization="binary2"),
    f"{VOTABLE};serialization=binary2": ResponseFormat(f"{VOTABLE};serialization=binary2", serialization="binary2"),
}
for _name in ("csv", "fits", "parquet"):
    _media = tabular.FORMATS[_name].media
    FORMATS |= {_name: ResponseFormat(_media, _name), _media: ResponseFormat(_media, _name)}


def response_format(parameters: Parameters) -> ResponseFormat:
    """The format asked for, text/xml with TABLEDATA by default; `BadInput` naming those there are."""
    asked = parameters.one("RESPONSEFORMAT")
    if asked is None:
        return FORMATS[TEXT_XML]
    found = FORMATS.get(re.sub(r"\s*;\s*", ";", asked.lower()))
    if found is None:
        raise BadInput(f"RESPONSEFORMAT={asked[:80]}: expected one of {', '.join(FORMATS)}")
    return found


SODA = "/soda/sync"  # errors in plain text, each with one of the words of SODA 1.0
VOTABLES = frozenset({"/scs", "/datalink"})  # errors in a VOTable; those of links with one of the words of DataLink 1.1
SODA_WORDS = {401: "AuthenticationError", 403: "AuthorizationError", 500: "Error"}
LINK_WORDS = {401: "DefaultFault", 403: "DefaultFault", 404: "NotFoundFault", 500: "FatalFault"}
PASSING = frozenset({408, 429, 503})  # what may go well the next time
PLAIN = "text/plain"


def failed(path: str, error: Exception) -> Response:
    """What was wrong with the parameters, as a VOTable, and with HTTP 200: clients such as stilts hide the reason of
    any other status."""
    return Response(votable.error(_worded(path, 400, str(error))), media_type=TEXT_XML)


def media_of_errors(path: str) -> str | None:
    """The media type of errors at an address of the Virtual Observatory; None of any other."""
    return PLAIN if path == SODA else TEXT_XML if path in VOTABLES else None


def refused(path: str, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error at one of these addresses with the `status` that it has in HTTP: no key, too much asked, a fault."""
    told = _worded(path, status, detail)
    content = f"{told}\n".encode() if path == SODA else votable.error(told)
    return Response(content, status, headers=headers, media_type=media_of_errors(path))


def _worded(path: str, status: int, detail: str) -> str:
    """`detail` behind the word that the protocol of the address has for it; Simple Cone Search has none."""
    if path == SODA:
        word = "ServiceUnavailable" if status in PASSING else SODA_WORDS.get(status, "UsageError")
    elif path == "/datalink":
        word = "TransientFault" if status in PASSING else LINK_WORDS.get(status, "UsageFault")
    else:
        return detail
    return f"{word}: {detail}"


def documented(**parameters: str) -> dict[str, Any]:
    """The `openapi_extra` of a route that reads its parameters itself: name -> what it is."""
    told = [
        {"name": name, "in": "query", "required": False, "description": says, "schema": {"type": "string"}}
        for name, says in parameters.items()
    ]
    return {"parameters": told}

"""An answer in the format that was asked for: JSON, or its list as VOTable, CSV, Parquet or FITS.

`format=` names it; without, the Accept header chooses. `Content-Location` is the permalink of an answer to a GET: the
same question with the encoder, the estimator and the generation that it was answered by.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated, Any, get_args
from urllib.parse import quote, urlencode

from fastapi import Depends, HTTPException, Request, Response
from pydantic import BaseModel

from redshelf.api.queries import Format
from redshelf.indexing import tabular
from redshelf.models.errors import BadInput
from redshelf.service import tables
from redshelf.service.answers import Problem
from redshelf.service.shelf import OpenShelf

JSON = "application/json"
MEDIA: dict[Format, tuple[str, ...]] = {
    "json": (JSON,),
    "votable": (tabular.FORMATS["votable"].media,),
    "csv": (tabular.FORMATS["csv"].media,),
    "parquet": (tabular.FORMATS["parquet"].media, "application/x-parquet"),
    "fits": (tabular.FORMATS["fits"].media, "image/fits"),
}
PINNED = ("encoder", "estimator")  # what a permalink says beside the generation, where the answer has it

# for the routes' `responses=`: what else a 200 may be, and that nothing else can be had
TABLES: dict[int | str, dict[str, Any]] = {
    200: {"content": {one.media: {} for one in tabular.FORMATS.values()}, "description": "As JSON, or its list"},
    406: {"model": Problem, "description": "The Accept header names no format that the list is written in"},
}


def _quality(accept: str) -> dict[str, float]:
    """Media ranges of an Accept header and how much each is wanted; one that cannot be read is wanted in full."""
    found = {}
    for part in accept.lower().split(","):
        media, *parameters = (word.strip() for word in part.split(";"))
        quality = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        found[media] = float(quality) if re.fullmatch(r"[01](\.\d{0,3})?", quality) else 1.0
    return found


def accepted(request: Request) -> Format | None:
    """The format that the Accept header prefers, JSON where it does not care; None where it takes none of them."""
    return _preferred(request.headers.get("accept") or "*/*")


@lru_cache(256)
def _preferred(header: str) -> Format | None:
    ranges = _quality(header)

    def wanted(media: str) -> float:
        near = (media, f"{media.partition('/')[0]}/*", "*/*")  # the most precise range counts
        return next((ranges[one] for one in near if one in ranges), 0.0)

    best = max(MEDIA, key=lambda format: max(map(wanted, MEDIA[format])))  # the first of equals
    return best if max(map(wanted, MEDIA[best])) > 0 else None


async def _format(request: Request) -> Format:
    named = request.query_params.get("format")
    if named is not None:  # one that is none of ours is refused with the other parameters
        return next((one for one in get_args(Format) if one == named), "json")
    chosen = accepted(request)
    if chosen is None:
        known = ", ".join(names[0] for names in MEDIA.values())
        raise HTTPException(406, f"Accept: {request.headers['accept'][:200]}: this is answered as one of {known}")
    return chosen


Wanted = Annotated[Format, Depends(_format)]


def permalink(request: Request, answer: BaseModel, format: Format | None = None) -> str:
    """The address of this very answer, for as long as its generation is served."""
    pinned = {name: value for name in PINNED if (value := getattr(answer, name, None)) is not None}
    generation = getattr(answer, "generation", None)
    given = {**dict(request.query_params), **pinned, "generation": generation}
    if format is not None:
        given["format"] = format
    path = quote(request.scope["raw_path"], safe="/%:@!$&'()*+,;=~")  # which may hold any byte
    return f"{path}?{urlencode({name: value for name, value in given.items() if value is not None})}"


def file_name(*words: object) -> str:
    """A name for what is downloaded, of letters that every file system takes."""
    told = (re.sub(r"[^A-Za-z0-9.+-]+", "_", str(word)) for word in words if word)
    return "-".join(("redshelf", *told))


def respond(
    request: Request,
    shelf: OpenShelf,
    answer: BaseModel,
    format: Format | None = None,
    *,
    what: str = "",
    of: str | None = None,
    pdf: bool = False,
) -> Response:
    """The response to a question; `format` is None where it has no list. `what` and `of` name the file; `pdf`: with
    densities, which a CSV cannot hold."""
    headers = {"content-location": permalink(request, answer, format)} if request.method == "GET" else {}
    if format is not None:
        headers["vary"] = "accept"
    if format is None or format == "json":
        return Response(answer.model_dump_json(), media_type=JSON, headers=headers)
    written = tabular.FORMATS[format]
    assert isinstance(answer, tables.Lists)
    table = tables.table_of(answer, survey=shelf.info.survey, pdf=pdf)
    name = file_name(shelf.info.survey, what, of, f"generation{shelf.generation.number}")
    headers["content-disposition"] = f'attachment; filename="{name}.{written.ending}"'
    return Response(written.write(table), media_type=written.media, headers=headers)


def with_densities(format: Format, asked: bool, *, said: bool) -> bool:
    """Whether redshifts carry their densities: as asked, and where nothing was said, not in a CSV, which has no place
    for them. `BadInput` where they were asked for in one."""
    if format != "csv" or not asked:
        return asked
    if said:
        raise BadInput("pdf=true: a density is a list, which CSV cannot hold: take votable, parquet or fits")
    return False

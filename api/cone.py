"""The Virtual Observatory: Simple Cone Search 1.03, and the descriptions of this service that VOSI wants."""

from __future__ import annotations

import time

from fastapi import APIRouter, Request, Response

from redshelf.api import dali
from redshelf.api.caching import ByGeneration
from redshelf.api.queries import Served
from redshelf.api.routes import Route
from redshelf.indexing import tabular, votable
from redshelf.indexing.votable import element, param, text
from redshelf.models.errors import BadInput, RedshelfError
from redshelf.service import cone
from redshelf.service.shelf import OpenShelf

router = APIRouter(tags=["virtual observatory"], route_class=ByGeneration)
live = APIRouter(route_class=Route)  # of a GET that says how the process is now

UCD1 = {"source_id": "ID_MAIN", "ra_deg": "POS_EQ_RA_MAIN", "dec_deg": "POS_EQ_DEC_MAIN"}  # as the protocol wants
STARTED = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
XML = "application/xml"
STANDARDS = {
    "/capabilities": "ivo://ivoa.net/std/VOSI#capabilities",
    "/availability": "ivo://ivoa.net/std/VOSI#availability",
    "/scs": "ivo://ivoa.net/std/ConeSearch",
    "/datalink": "ivo://ivoa.net/std/DataLink#links-1.1",
    "/soda/sync": "ivo://ivoa.net/std/SODA#sync-1.0",
}
PARAMETERS = {
    "RA": "right ascension of the axis, ICRS, degrees",
    "DEC": "declination of the axis, ICRS, degrees",
    "SR": f"radius in degrees, at most {cone.MAX_RADIUS_DEG:g}; 0: the columns without any source",
    "VERB": "how many columns: 1, 2 (by default) or 3",
    "MAXREC": f"how many sources at most; by default {cone.MAXREC}, never above {cone.MOST_RECORDS}; 0: the columns",
    "RESPONSEFORMAT": "votable, votable/td, votable/b2, csv, fits, parquet, or the media type",
}


def site(request: Request, path: str = "") -> str:
    """The address of a path of this server, as the client calls it."""
    return f"{str(request.base_url).rstrip('/')}{path}"


def descriptor(request: Request) -> str:
    """Where the data of a source of the list are: the DataLink service, by the id in the column."""
    inputs = element("GROUP", param("ID", "", ref="source_id"), name="inputParams")
    told = param("standardID", STANDARDS["/datalink"]) + param("accessURL", site(request, "/datalink"))
    return element("RESOURCE", "\n" + told + inputs, type="meta", utype="adhoc:service", name="links")


def _position(given: dali.Parameters, *, needed: bool) -> tuple[float, float, float]:
    """RA, Dec and SR; any place where they are not `needed` and not given."""
    found = {name: given.number(name) for name in ("RA", "DEC", "SR")}
    for name, value in found.items():
        if value is None and needed:
            raise BadInput(f"{name} is missing: expected RA, DEC and SR in degrees")
    ra, dec, radius = (value or 0.0 for value in found.values())
    if not 0 <= ra <= 360:
        raise BadInput(f"RA={ra}: expected 0 <= RA <= 360 degrees")
    if not -90 <= dec <= 90:
        raise BadInput(f"DEC={dec}: expected -90 <= DEC <= 90 degrees")
    return ra % 360, dec, radius


def _search(request: Request, shelf: OpenShelf) -> Response:
    given = dali.Parameters.of(request)
    format, maxrec, verb = dali.response_format(given), given.count("MAXREC"), given.count("VERB")
    maxrec, verb = (cone.MAXREC if maxrec is None else maxrec), (2 if verb is None else verb)
    found = cone.table(shelf, *_position(given, needed=maxrec > 0), verb=verb, maxrec=maxrec)
    if format.name != "votable":
        return Response(tabular.FORMATS[format.name].write(found.table), media_type=format.media)
    table = votable.table(found.table, serialization=format.serialization, ucds=UCD1)
    resource = votable.answered(table, overflow=found.overflow)
    return Response(votable.document(resource + descriptor(request)), media_type=format.media)


@router.get(
    "/scs",
    response_class=Response,
    responses={
        200: {
            "content": {one.media: {} for one in dali.FORMATS.values()},
            "description": "The sources, or INFO elements that say what is wrong",
        }
    },
    openapi_extra=dali.documented(**PARAMETERS),
)
def scs(request: Request, shelf: Served) -> Response:
    """Simple Cone Search 1.03: the sources of a cone as VOTable, nearest to its axis first. Errors come with status
    200, as clients of the protocol want it."""
    try:
        return _search(request, shelf)
    except RedshelfError as error:
        return dali.failed("/scs", error)


def _capability(
    request: Request, path: str, result: str | None = None, *, kind: str | None = None, inside: str = ""
) -> str:
    """One thing that can be asked at `path`; with a `result`, its media type, by parameters after a question mark."""
    url = element("accessURL", text(site(request, path) + ("?" if result else "")), use="base" if result else "full")
    told = element("queryType", "GET") + element("resultType", text(result)) if result else ""
    way = element("interface", "\n" + url + told, **{"xsi:type": "vs:ParamHTTP", "role": "std"})
    return element("capability", "\n" + way + inside, standardID=STANDARDS[path], **{"xsi:type": kind})


@router.get("/capabilities", response_class=Response, responses={200: {"content": {XML: {}}}})
def capabilities(request: Request, shelf: Served) -> Response:
    """What the Virtual Observatory can ask here (VOSI 1.1)."""
    place = (shelf.columns["ra"], shelf.columns["dec"])
    row = int(shelf.columns["ids_order"][0]) if shelf.n_sources else None
    ra, dec = (0.0, 0.0) if row is None else (float(values[row]) for values in place)
    query = element("testQuery", element("ra", repr(ra)) + element("dec", repr(dec)) + element("sr", "0.01"))
    limits = element("maxSR", f"{cone.MAX_RADIUS_DEG:g}") + element("maxRecords", str(cone.MOST_RECORDS))
    cones = limits + element("verbosity", "true") + query
    content = (
        _capability(request, "/capabilities")
        + _capability(request, "/availability")
        + _capability(request, "/scs", dali.TEXT_XML, kind="cs:ConeSearch", inside=cones)
        + _capability(request, "/datalink", f"{dali.VOTABLE};content=datalink")
    )
    if shelf.info.has_images:
        content += _capability(request, "/soda/sync", "application/fits")
    spaces = {
        "vosi": "http://www.ivoa.net/xml/VOSICapabilities/v1.0",
        "vs": "http://www.ivoa.net/xml/VODataService/v1.1",
        "cs": "http://www.ivoa.net/xml/ConeSearch/v1.0",
        "xsi": "http://www.w3.org/2001/XMLSchema-instance",
    }
    root = element("vosi:capabilities", "\n" + content, **{f"xmlns:{name}": uri for name, uri in spaces.items()})
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>\n{root}', media_type=XML)


@live.get("/availability", response_class=Response, responses={200: {"content": {XML: {}}}})
def availability(shelf: Served) -> Response:
    """Whether the service answers, and since when (VOSI 1.1)."""
    note = f"generation {shelf.generation.number} of {shelf.info.survey}, {shelf.n_sources} sources"
    content = element("available", "true") + element("upSince", STARTED) + element("note", text(note))
    root = element("availability", "\n" + content, xmlns="http://www.ivoa.net/xml/VOSIAvailability/v1.0")
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>\n{root}', media_type=XML)


router.include_router(live)

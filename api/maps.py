"""Maps of embeddings and of the sky: tiles as pictures, points, what is under a pointer, what a lasso holds."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from pydantic import Field

from redshelf.api import caching
from redshelf.api.queries import N_TEXT, Format, InForce, N, OfGeneration, Shelf, Strict, how_many
from redshelf.api.routes import Route
from redshelf.api.tables import TABLES, Wanted, respond
from redshelf.indexing.polygon import MAX_VERTICES
from redshelf.service import maps, onmap, tiles
from redshelf.service.map_answers import MapAnswer, NearestAnswer, PointsAnswer, SelectAnswer
from redshelf.service.maps import OpenMap

router = APIRouter(prefix="/v1/maps", tags=["maps"], route_class=Route)

Colour = Literal["density", "z_phot", "z_spec", "magnitude", "support", "error", "labelled"]
CHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has this answer already"}}


class MapQuery(OfGeneration):
    map: str | None = Field(
        None, max_length=12, description="answer from this map or not at all: 410 where it was made anew"
    )


class TileQuery(MapQuery):
    colour: Colour = Field("density", description="what is drawn: one of `colours` of /v1/maps/ENCODER")
    dot: int = Field(
        1, description="pixels across that a source is drawn with: 1, 3, 5 or 7; where there are many sources, 1"
    )


class PointsQuery(MapQuery):
    x_min: float = Field(0.0, description="the box, on the unit square: x to the right, y downwards")
    y_min: float = 0.0
    x_max: float = 1.0
    y_max: float = 1.0
    n: int = Field(onmap.MAX_POINTS, description=f"at most {onmap.MAX_POINTS}")
    colour: Colour = Field("density", description="what is drawn: one of `colours` of /v1/maps/ENCODER")


class NearestQuery(MapQuery):
    x: float = Field(ge=0, le=1)
    y: float = Field(ge=0, le=1)
    radius: float = Field(0.01, description="how far the source may lie, of the width of the map")


class SelectQuery(OfGeneration):
    format: Format | None = Field(None, description="of the list; by default what the Accept header prefers, else json")


class SelectBody(Strict):
    polygon: list[tuple[float, float]] = Field(
        max_length=MAX_VERTICES,
        description=f"corners (x, y) on the unit square, 3 to {MAX_VERTICES} of them; its sides may not cross",
    )
    n: int | None = Field(None, ge=1, le=1000, description=N_TEXT)


def _open(request: Request, encoder: str, shelf: Shelf) -> OpenMap:
    """The map of this generation; where the request names another one it is refused. In a thread: the folder is looked
    through, and the first time every file of the map is hashed, while others are answered."""
    found = maps.find(shelf, encoder)
    named = request.query_params.get("map")
    if named is not None and named != found.digest:
        raise HTTPException(
            410, f"map={named[:80]} is no longer there, the map of {encoder} was made anew: leave it out"
        )
    return found


Map = Annotated[OpenMap, Depends(_open)]


@router.get("/{encoder}", response_model=MapAnswer, responses=CHANGED)
def described(request: Request, query: Annotated[MapQuery, Query()], shelf: Shelf, opened: Map) -> Response:
    """What the map of an encoder is, or that of the `sky`, how it was made, and its colourings."""
    headers, known = caching.of_map(request, shelf, opened.digest)
    return known or _with(headers, respond(request, shelf, onmap.describe(shelf, opened)))


@router.get(
    "/{encoder}/{z}/{x}/{y}.png",
    response_class=Response,
    responses={200: {"content": {"image/png": {}}, "description": "256 x 256 pixels, with a palette"}, **CHANGED},
)
def tile(
    request: Request, z: int, x: int, y: int, query: Annotated[TileQuery, Query()], shelf: Shelf, opened: Map
) -> Response:
    """A tile of the map: of 2^z x 2^z, x to the right and y downwards. Empty pixels are transparent, and the colours
    are for a dark ground."""
    headers, known = caching.of_map(request, shelf, opened.digest)
    if known is not None:
        return known
    picture = tiles.png(shelf, opened, z, x, y, colour=query.colour, dot=query.dot)
    return Response(picture, media_type="image/png", headers=headers)


@router.get("/{encoder}/points", response_model=PointsAnswer, responses=CHANGED)
def points(request: Request, query: Annotated[PointsQuery, Query()], shelf: Shelf, opened: Map) -> Response:
    """The sources of a box as points to draw, at most `n`, spread evenly over all that are in it."""
    headers, known = caching.of_map(request, shelf, opened.digest)
    if known is not None:
        return known
    box = (query.x_min, query.y_min, query.x_max, query.y_max)
    return _with(headers, respond(request, shelf, onmap.points(shelf, opened, box, n=query.n, colour=query.colour)))


@router.get("/{encoder}/nearest", response_model=NearestAnswer, responses=CHANGED)
def nearest(request: Request, query: Annotated[NearestQuery, Query()], shelf: Shelf, opened: Map) -> Response:
    """The source nearest to a position on the map."""
    headers, known = caching.of_map(request, shelf, opened.digest)
    if known is not None:
        return known
    return _with(headers, respond(request, shelf, onmap.nearest(shelf, opened, query.x, query.y, radius=query.radius)))


@router.post("/{encoder}/select", response_model=SelectAnswer, responses=TABLES)
def select(
    request: Request,
    encoder: str,
    body: SelectBody,
    query: Annotated[SelectQuery, Query()],
    shelf: Shelf,
    settings: InForce,
    format: Wanted,
) -> Response:
    """The sources inside a polygon on the map, at most `n` of them listed, spread evenly over all inside."""
    n = how_many(body.n, settings, usual=N, name="n")
    found = onmap.select(shelf, maps.find(shelf, encoder), body.polygon, n=n)
    return respond(request, shelf, found, format, what="map", of=encoder)


def _with(headers: dict[str, Any], response: Response) -> Response:
    response.headers.update(headers)
    return response

"""The map as a page: tiles and points on a canvas, or without JavaScript four tiles that lead on.

All of a view is in its address. The script asks this server alone, for tiles, points, what is under the pointer and
what a lasso holds; `static/map.js` says how.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import Field

from redshelf.api.maps import Colour
from redshelf.api.pages import PAGE_HEADERS, policy, render
from redshelf.api.queries import NoQuery, Shelf
from redshelf.api.similar import Blank
from redshelf.api.words import count, significant
from redshelf.indexing.morton import MAX_ZOOM, TILE_PX
from redshelf.models.errors import Conflict, NotFound
from redshelf.service import maps, onmap
from redshelf.service.map_answers import MapAnswer
from redshelf.service.maps import DENSITY, OpenMap
from redshelf.service.shelf import OpenShelf
from redshelf.service.tiles import HUES, stretched

router = APIRouter()
MAP_POLICY = policy(connect="'self'")
WINDOW_PX = 656  # of the canvas, which the first view fills as far as whole zooms let it
CLOSER = 2  # zooms from the first view to that of one source
DOT = 5  # pixels across, of a source without JavaScript
STOPS = 16  # of the legend's colours
WORDS = {
    DENSITY: "Density",
    "z_phot": "Estimated redshift",
    "z_spec": "Measured redshift",
    "magnitude": "Magnitude",
    "support": "Support by labels",
    "error": "Error of the redshift",
    "labelled": "Labels: the desert",
}
METHODS = {
    "pca": "the first two principal components, which hold {share} of what vectors vary, each stretched to the map",
    "umap": "UMAP, fitted on {sample} of them",
    "sky": "right ascension to the left and declination upwards",
}


class MapPageQuery(Blank):
    """A view of a map."""

    x: float | None = Field(None, ge=0, le=1, description="middle of the view, from the left of the map")
    y: float | None = Field(None, ge=0, le=1, description="middle of the view, from its top")
    zoom: int | None = Field(None, ge=0, le=MAX_ZOOM)
    colour: Colour = DENSITY  # type: ignore[assignment]
    points: bool = Field(False, description="points at every zoom, and not only where they are few")
    mark: str | None = Field(None, max_length=64, description="a source to ring")
    polygon: str | None = Field(None, max_length=10_000, pattern=r"^[0-9.,;]+$", description="a lasso, x,y;x,y;...")


@dataclass(frozen=True)
class View:
    """The middle of a view, and its zoom."""

    x: float
    y: float
    zoom: int


@dataclass(frozen=True)
class Tile:
    """One of the tiles without JavaScript, at a column and a row of those shown, with its sources."""

    source: str
    leads_to: str
    sources: int


def first_view(home: tuple[float, float, float, float]) -> View:
    """All of a box in a window, at a whole zoom."""
    side = max(home[2] - home[0], home[3] - home[1])
    zoom = math.floor(math.log2(WINDOW_PX / (TILE_PX * side)))
    return View((home[0] + home[2]) / 2, (home[1] + home[3]) / 2, min(max(zoom, 0), MAX_ZOOM))


def corner(view: View) -> tuple[int, int, int]:
    """Of the tiles without JavaScript the column and row of the first, and how many there are along each side."""
    side = min(2, 1 << view.zoom)
    last = (1 << view.zoom) - side
    column, row = (min(max(round(value * (1 << view.zoom)) - 1, 0), last) for value in (view.x, view.y))
    return column, row, side


def ticks(colour: str, low: float, high: float) -> list[tuple[float, str]]:
    """Numbers beside the colours of a scale, at places from 0 to 1."""
    if colour == "labelled":
        shares = ((0.05, "5%"), (0.25, "25%"), (1.0, "100%"))
        return [(0.0, "none"), *(((1 + (HUES - 2) * math.sqrt(share)) / (HUES - 1), words) for share, words in shares)]
    if colour == "support":
        return [(0.0, "0%"), (0.5, "50%"), (1.0, "100%")]
    digits = 1 if colour == "magnitude" else 2
    return [(part, f"{low + part * (high - low):.{digits}f}") for part in (0.0, 0.5, 1.0)]


def density_ticks(peak: int) -> list[tuple[float, str]]:
    """The same of numbers of sources in a pixel, at a zoom whose fuller pixels hold `peak`."""
    peak = max(peak, 2)
    powers = [10**power for power in range(1, 9) if 10**power < 0.6 * peak]
    return [(float(stretched([n], peak)[0]), count(n)) for n in (1, *powers, peak)]  # type: ignore[arg-type]


def _address(name: str, query: MapPageQuery, **changes: Any) -> str:
    """The address of a view with some fields changed, None leaving one out."""
    told = query.model_dump(exclude={"generation"}) | changes
    fields = MapPageQuery.model_fields
    kept = {
        key: value
        for key, value in told.items()
        if value is not None and value != getattr(fields.get(key), "default", None)
    }
    words = {key: str(value).lower() if isinstance(value, bool) else value for key, value in kept.items()}
    return f"/map/{quote(name, safe='')}" + (f"?{urlencode(words)}" if words else "")


def _tiles(opened: OpenMap, query: MapPageQuery, view: View) -> list[Tile]:
    """The tiles without JavaScript, row by row; each leads to the same at the next zoom."""
    column, row, side = corner(view)
    found = []
    for y in range(row, row + side):
        for x in range(column, column + side):
            first, past = opened.pyramid.range_of(view.zoom, x, y)
            asked = urlencode({"colour": query.colour, "dot": DOT, "map": opened.digest})
            middle = {"x": (x + 0.5) / (1 << view.zoom), "y": (y + 0.5) / (1 << view.zoom)}
            closer = _address(opened.name, query, **middle, zoom=min(view.zoom + 1, MAX_ZOOM))
            picture = f"/v1/maps/{quote(opened.name, safe='')}/{view.zoom}/{x}/{y}.png?{asked}"
            found.append(Tile(picture, closer, past - first))
    return found


def _ways(name: str, query: MapPageQuery, view: View) -> dict[str, str]:
    """Where the links without JavaScript lead: out, and half a window to each side."""
    column, row, side = corner(view)
    step = 1 / (1 << view.zoom)
    x, y = (column + side / 2) * step, (row + side / 2) * step
    found = {"Whole map": _address(name, query, x=None, y=None, zoom=None)}
    if view.zoom > 0:
        found["Zoom out"] = _address(name, query, x=x, y=y, zoom=view.zoom - 1)
    for words, dx, dy in (("Left", -step, 0), ("Right", step, 0), ("Up", 0, -step), ("Down", 0, step)):
        if side * step / 2 <= x + dx <= 1 - side * step / 2 and side * step / 2 <= y + dy <= 1 - side * step / 2:
            found[words] = _address(name, query, x=x + dx, y=y + dy, zoom=view.zoom)
    return found


def _legends(told: MapAnswer) -> list[dict[str, Any]]:
    """Of each colouring its name, words, colours and ticks, which density has for every zoom."""
    found = []
    for one in told.colours:
        steps = [one.colours[round(i * (len(one.colours) - 1) / (STOPS - 1))] for i in range(STOPS)]
        legend = {
            "name": one.name,
            "words": WORDS[one.name],
            "says": one.says[0].upper() + one.says[1:],
            "known": one.known,
        }
        if one.low is None or one.high is None:
            scale = [density_ticks(peak) for peak in told.peaks]
        else:
            scale = [ticks(one.name, one.low, one.high)]
        found.append(legend | {"stops": steps, "palette": one.colours, "ticks": scale})
    return found


def _mark(shelf: OpenShelf, opened: OpenMap, mark: str | None) -> dict[str, Any] | None:
    if mark is None:
        return None
    x, y = onmap.locate(shelf, opened, mark)
    return {"id": mark, "x": x, "y": y}


def _missing(shelf: OpenShelf, name: str, why: str) -> Response:
    """The page where there is no map to show: which command makes it, and which maps there are."""
    told: dict[str, Any] = {
        "encoder": name,
        "why": why,
        "made": maps.made(shelf),
        "command": f"redshelf map --encoder {name}",
    }
    return render(shelf.info, "map_missing.html", headers={"cache-control": "no-store"}, **told)


@router.get("/map")
def default_map(query: Annotated[NoQuery, Query()], shelf: Shelf) -> Response:
    """On to the map of the default encoder, or to one that there is."""
    there = maps.made(shelf)
    name = there[0] if there else shelf.generation.default_encoder
    return RedirectResponse(f"/map/{quote(name, safe='')}", status_code=303, headers=PAGE_HEADERS)


@router.get("/map/{encoder}", response_class=HTMLResponse)
def page(encoder: str, query: Annotated[MapPageQuery, Query()], shelf: Shelf) -> Response:
    """The map of an encoder's space, or of the sky."""
    known = encoder in maps.names(shelf)
    try:
        opened = maps.find(shelf, encoder)
    except (NotFound, Conflict) as error:
        if not known:
            raise
        return _missing(shelf, encoder, str(error))
    told, mark = onmap.describe(shelf, opened), _mark(shelf, opened, query.mark)
    view = first_view(opened.manifest.home)
    if query.x is not None and query.y is not None:
        view = View(query.x, query.y, view.zoom if query.zoom is None else query.zoom)
    elif mark is not None:
        view = View(mark["x"], mark["y"], min(view.zoom + CLOSER, MAX_ZOOM) if query.zoom is None else query.zoom)
    elif query.zoom is not None:
        view = View(view.x, view.y, query.zoom)
    legends = _legends(told)
    legend = next((one for one in legends if one["name"] == query.colour), legends[0])
    shown = query.model_copy(update={"colour": legend["name"]})
    data = {
        "encoder": encoder,
        "map": told.map,
        "generation": told.generation,
        "home": told.home,
        "first": first_view(opened.manifest.home).zoom,
        "maxZoom": told.max_zoom,
        "maxPoints": told.max_points,
        "sources": told.n_sources,
        "view": {"x": view.x, "y": view.y, "zoom": view.zoom},
        "colour": legend["name"],
        "points": query.points,
        "mark": mark,
        "polygon": query.polygon,
        "images": shelf.info.has_images,
        "legends": legends,
    }
    share = f"{significant(100 * sum(told.shares), 2)}%"
    column, row, side = corner(view)
    ring = None
    if mark is not None:
        x, y = (TILE_PX * (mark[axis] * (1 << view.zoom) - first) for axis, first in (("x", column), ("y", row)))
        ring = (x, y) if 0 <= x <= side * TILE_PX and 0 <= y <= side * TILE_PX else None
    return render(
        shelf.info,
        "map.html",
        headers={"content-security-policy": MAP_POLICY, "cache-control": "no-cache"},
        encoder=encoder,
        facts=told,
        how=METHODS[told.method].format(share=share, sample=count(told.sample)),
        data=json.dumps(data, allow_nan=False),
        legend=legend,
        legends=legends,
        ticks=legend["ticks"][min(view.zoom, len(legend["ticks"]) - 1)],
        asked=shown,
        others=[(name, _address(name, shown, x=None, y=None, zoom=None, polygon=None)) for name in maps.made(shelf)],
        permalink=_address(encoder, shown, x=view.x, y=view.y, zoom=view.zoom, generation=told.generation),
        tiles=_tiles(opened, shown, view),
        side=side,
        ways=_ways(encoder, shown, view),
        view=view,
        ring=ring,
        tile_px=TILE_PX,
    )

"""Questions about a map: what it is, its points, what is under a pointer, what lies inside a lasso."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from redshelf.indexing import morton, polygon
from redshelf.indexing.colours import hexes, ramp
from redshelf.indexing.morton import MAX_ZOOM, TILE_PX, Ints
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.listing import listed
from redshelf.service.map_answers import MapAnswer, MapColour, MapSource, NearestAnswer, PointsAnswer, SelectAnswer
from redshelf.service.maps import DENSITY, OpenMap, values_of
from redshelf.service.shelf import OpenShelf
from redshelf.service.stages import timed
from redshelf.service.tiles import HUES, STYLES, check_colour, hues, scaled

MAX_POINTS = 200_000
LOOKED_AT = 20_000  # sources around a pointer, of which the nearest is looked for
COUNTED = 1_000_000  # sources of a lasso whose labels are counted

Box = tuple[float, float, float, float]


def describe(shelf: OpenShelf, opened: OpenMap) -> MapAnswer:
    """What a map is, and its colourings."""
    told, style = opened.manifest, STYLES[DENSITY]
    shades = hexes(ramp(style.ramp, HUES, start=style.start))
    colours = [MapColour(name=DENSITY, says=style.says, low=None, high=None, known=told.sources, colours=shades)]
    for name, (low, high) in told.colours.items():
        says = f"{STYLES[name].says}, {told.magnitude_band} band" if name == "magnitude" else STYLES[name].says
        known, shown = told.known[name], hexes(hues(name))
        colours.append(MapColour(name=name, says=says, low=low, high=high, known=known, colours=shown))
    return MapAnswer(
        encoder=told.name,
        revision=told.revision,
        generation=told.generation,
        map=opened.digest,
        method=told.method,
        sample=told.sample,
        shares=told.shares,
        n_sources=told.sources,
        n_without_vector=told.without_vector,
        home=list(told.home),
        tile_px=TILE_PX,
        max_zoom=MAX_ZOOM,
        peaks=told.peaks,
        max_points=MAX_POINTS,
        ra_deg=None if told.sky is None else told.sky.ra_deg,
        dec_deg=None if told.sky is None else told.sky.dec_deg,
        side_deg=None if told.sky is None else told.sky.side_deg,
        colours=colours,
    )


def _encoded(values: npt.NDArray[np.unsignedinteger]) -> str:
    return b64encode(values.astype(values.dtype.newbyteorder("<")).tobytes()).decode()


@timed("render")
def points(shelf: OpenShelf, opened: OpenMap, box: Box, *, n: int = MAX_POINTS, colour: str = DENSITY) -> PointsAnswer:
    """At most `n` sources of a box (x_min, y_min, x_max, y_max), spread evenly over those in it."""
    check_colour(opened, colour)
    if not 1 <= n <= MAX_POINTS:
        raise BadInput(f"n={n}: expected 1 <= n <= {MAX_POINTS}")
    area = polygon.box(*box)
    chosen = polygon.choose(opened.pyramid.keys, area)
    at = chosen.spread(n)
    low, high = area.corners.min(axis=0), area.corners.max(axis=0)
    inside = (morton.positions_of(opened.pyramid.keys[at]) - low) / (high - low)
    steps = np.clip(inside * 65536, 0, 65535).astype(np.uint16)
    if colour == DENSITY:
        value = np.full(len(at), 255, dtype=np.uint8)
    else:
        values = values_of(shelf, colour, opened.pyramid.rows[at], opened.support[at])
        value = (scaled(colour, values, opened.manifest.colours[colour]) % 256).astype(np.uint8)
    return PointsAnswer(
        encoder=opened.name,
        generation=opened.manifest.generation,
        map=opened.digest,
        colour=colour,
        box=[*low.tolist(), *high.tolist()],
        n=len(at),
        n_within=chosen.total,
        x=_encoded(steps[:, 0]),
        y=_encoded(steps[:, 1]),
        value=_encoded(value),
    )


@timed("hydrate")
def _sources(shelf: OpenShelf, opened: OpenMap, at: Ints) -> list[MapSource]:
    """The sources at some places of a map."""
    rows = np.asarray(opened.pyramid.rows)[at].astype(np.int64)
    where = morton.positions_of(opened.pyramid.keys[at]).tolist()
    magnitudes = values_of(shelf, "magnitude", rows).tolist()
    return [
        MapSource(x=x, y=y, magnitude=magnitude if np.isfinite(magnitude) else None, **one)
        for one, (x, y), magnitude in zip(listed(shelf, rows), where, magnitudes, strict=True)
    ]


def nearest(shelf: OpenShelf, opened: OpenMap, x: float, y: float, *, radius: float) -> NearestAnswer:
    """The source nearest to a position on a map, within `radius`."""
    if not 0 < radius <= 1:
        raise BadInput(f"radius={radius:g}: expected 0 < radius <= 1")
    keys, place = opened.pyramid.keys, np.array([x, y])
    found = None
    while (x + radius > 0 and x - radius < 1) and (y + radius > 0 and y - radius < 1):
        at = polygon.choose(keys, polygon.box(x - radius, y - radius, x + radius, y + radius))
        if at.total > LOOKED_AT and radius > 1 / (1 << morton.BITS):
            radius /= 2  # the nearest is among fewer
            continue
        some = at.spread(at.total)
        distance = np.hypot(*(morton.positions_of(keys[some]) - place).T)
        if len(some) and distance.min() <= radius:
            found = _sources(shelf, opened, some[[int(distance.argmin())]])[0]
        break
    return NearestAnswer(
        encoder=opened.name,
        generation=opened.manifest.generation,
        map=opened.digest,
        mag_band=opened.manifest.magnitude_band,
        source=found,
    )


@timed("search")
def select(shelf: OpenShelf, opened: OpenMap, corners: Sequence[tuple[float, float]], *, n: int = 100) -> SelectAnswer:
    """The sources inside a polygon, of which at most `n` are listed; `BadInput` for what is no simple polygon."""
    chosen = polygon.choose(opened.pyramid.keys, polygon.polygon(corners))
    labelled = None
    if chosen.total <= COUNTED:
        rows = opened.pyramid.rows[chosen.spread(chosen.total)]
        labelled = int(values_of(shelf, "labelled", rows).sum())
    at = chosen.spread(n)
    return SelectAnswer(
        encoder=opened.name,
        generation=opened.manifest.generation,
        map=opened.digest,
        mag_band=opened.manifest.magnitude_band,
        n_within=chosen.total,
        n_labelled=labelled,
        left_out=chosen.total - len(at),
        sources=_sources(shelf, opened, at),
    )


def locate(shelf: OpenShelf, opened: OpenMap, source_id: str) -> tuple[float, float]:
    """The position of a source on a map; `NotFound` where it has none."""
    place = int(opened.place[shelf.row(source_id)])
    if place < 0:
        raise NotFound(f"source {source_id!r} is not on the map of {opened.name}, which has no vector of it")
    x, y = morton.positions_of(opened.pyramid.keys[[place]])[0].tolist()
    return x, y

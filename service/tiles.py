"""Tiles of a map as pictures: how many sources lie in each pixel, or what they are like.

A picture has a palette of 256 colours. Density is stretched by a logarithm, up to what the fuller pixels of that zoom
hold; of any other colouring the hue is the value and the brightness, in four steps, how many sources there are. Pixels
without a source are transparent.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO

import numpy as np
import numpy.typing as npt

from redshelf.indexing import morton, pyramid
from redshelf.indexing.colours import UNKNOWN, ramp
from redshelf.indexing.morton import TILE_PX, Floats, Ints
from redshelf.indexing.pyramid import Pixels, Values
from redshelf.models.errors import BadInput, nearest
from redshelf.service.maps import COLOURS, DENSITY, OpenMap, values_of
from redshelf.service.shelf import OpenShelf
from redshelf.service.stages import timed

HUES, STEPS = 62, (110, 155, 205, 255)  # colours of a value, and how opaque a pixel is by its number of sources
SHADES = 255  # of density
DOTS = (1, 3, 5, 7)  # pixels across
DOTTED = 20_000  # sources of a tile and its neighbours that are drawn as dots; more would cover one another

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Style:
    """How a colouring is drawn and named."""

    says: str
    ramp: str
    start: float = 0.0


STYLES = {
    DENSITY: Style("how many sources there are", "inferno", 0.3),
    "z_phot": Style("median estimated redshift", "viridis", 0.12),
    "z_spec": Style("median measured redshift, where there is one", "viridis", 0.12),
    "magnitude": Style("median magnitude", "cividis", 0.12),
    "support": Style("share of sources that labels stand behind", "cividis", 0.12),
    "error": Style("median |z_phot − z_spec| / (1 + z_spec)", "plasma", 0.15),
    "labelled": Style("share of sources with a measured redshift", "desert"),
}


def hues(colour: str) -> Bytes:
    """The colours (62, 3) of the values of a colouring."""
    return ramp(STYLES[colour].ramp, HUES, start=STYLES[colour].start)


def check_colour(opened: OpenMap, colour: str) -> str:
    """`colour`, or `BadInput` where there is none such, or nothing on this map has a value of it."""
    if colour != DENSITY and colour not in COLOURS:
        raise BadInput(f"colour={colour!r}; {nearest(colour, STYLES)}")
    if colour != DENSITY and colour not in opened.manifest.colours:
        known = ", ".join([DENSITY, *opened.manifest.colours])
        raise BadInput(f"colour={colour!r}: no source of the map of {opened.name} has one; there is {known}")
    return colour


def scaled(colour: str, values: Values, ends: tuple[float, float]) -> Ints:
    """Which of the 62 colours values (n,) have, -1 for NaN. The share of labels goes by its root, and 0 is apart."""
    part = np.clip((values - ends[0]) / (ends[1] - ends[0]), 0, 1)
    if colour == "labelled":
        place = np.where(part > 0, 1 + np.round((HUES - 2) * np.sqrt(part)), 0)
    else:
        place = np.round((HUES - 1) * part)
    return np.where(np.isfinite(values), np.nan_to_num(place), -1).astype(np.int64)


def stretched(counts: Ints, peak: int) -> Floats:
    """Numbers of sources (n,) on a logarithmic scale, from 0 for none to 1 for `peak` and more."""
    return np.asarray(np.minimum(np.log1p(counts) / np.log1p(max(peak, 2)), 1))


@cache
def _palette(colour: str) -> tuple[bytes, bytes]:
    """Colours and opacities of the 256 numbers that a picture is made of; 0 is a pixel without a source."""
    if colour == DENSITY:
        style = STYLES[DENSITY]
        colours, opaque = ramp(style.ramp, SHADES, start=style.start), np.full(SHADES, 255, dtype=np.uint8)
    else:
        of_step = np.vstack([hues(colour), [UNKNOWN]]).astype(np.uint8)  # (63, 3)
        colours, opaque = np.tile(of_step, (len(STEPS), 1)), np.repeat(np.array(STEPS, np.uint8), len(of_step))
    whole = np.zeros((256, 3), dtype=np.uint8)
    whole[1 : 1 + len(colours)] = colours
    opacity = np.zeros(256, dtype=np.uint8)
    opacity[1 : 1 + len(opaque)] = opaque
    return whole.tobytes(), opacity.tobytes()


def numbers(pixels: Pixels, colour: str, *, peak: int, ends: tuple[float, float]) -> Bytes:
    """The picture (256, 256) of a tile as numbers of its palette."""
    light = stretched(pixels.counts, peak)
    if pixels.values is None:
        number = 1 + np.round((SHADES - 1) * light)
    else:
        hue = scaled(colour, pixels.values, ends)
        step = np.minimum((light * len(STEPS)).astype(np.int64), len(STEPS) - 1)
        if colour == "labelled":  # the few labels there are stand out, however few sources are beside them
            step[hue > 0] = len(STEPS) - 1
        number = 1 + step * (HUES + 1) + np.where(hue < 0, HUES, hue)
    picture = np.zeros(TILE_PX * TILE_PX, dtype=np.uint8)
    picture[pixels.at] = number.astype(np.uint8)
    return picture.reshape(TILE_PX, TILE_PX)


def _disc(dot: int) -> tuple[Ints, Ints]:
    """Where the pixels of a dot are from its middle, along x and y."""
    reach = dot // 2
    x, y = (axis.ravel() for axis in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    inside = x**2 + y**2 <= (reach + 0.3) ** 2
    return x[inside], y[inside]


def _dotted(
    shelf: OpenShelf, opened: OpenMap, zoom: int, x: int, y: int, colour: str | None, dot: int
) -> Pixels | None:
    """The pixels of a tile whose sources are dots, those of its neighbours that reach into it too; None where there are
    too many."""
    last = (1 << zoom) - 1
    around = [(i, j) for i in (x - 1, x, x + 1) for j in (y - 1, y, y + 1) if 0 <= i <= last and 0 <= j <= last]
    ends = [opened.pyramid.range_of(zoom, *tile) for tile in around]
    if sum(past - first for first, past in ends) > DOTTED:
        return None
    at = np.concatenate([np.arange(*one) for one in ends])
    column, row = morton.split(morton.cells_of(opened.pyramid.keys[at], zoom))
    along, down = _disc(dot)
    column = (column[:, None] - x * TILE_PX + along).ravel()
    row = (row[:, None] - y * TILE_PX + down).ravel()
    inside = (column >= 0) & (column < TILE_PX) & (row >= 0) & (row < TILE_PX)
    pixel = (row * TILE_PX + column)[inside]
    order = np.argsort(pixel, kind="stable")
    begins, counts = pyramid.runs(pixel[order])
    summed = None
    if colour is not None:
        whose = np.repeat(at, len(along))[inside][order]
        values = values_of(shelf, colour, opened.pyramid.rows[whose], opened.support[whose])
        group = np.repeat(np.arange(len(begins)), counts)
        summed = pyramid.summarise(group, len(begins), values, COLOURS[colour])
    return Pixels(pixel[order][begins], counts, summed)


def pixels(shelf: OpenShelf, opened: OpenMap, zoom: int, x: int, y: int, *, colour: str, dot: int = 1) -> Pixels:
    """What stands in the pixels of a tile; `dot` as in `png`."""
    chosen = None if colour == DENSITY else colour
    if dot > 1 and (found := _dotted(shelf, opened, zoom, x, y, chosen, dot)) is not None:
        return found

    def values(name: str, at: slice) -> Values:
        return values_of(shelf, name, opened.pyramid.rows[at], opened.support[at])

    return opened.pyramid.tile(zoom, x, y, values, colour=chosen, how="median" if chosen is None else COLOURS[chosen])


@timed("render")
def png(shelf: OpenShelf, opened: OpenMap, zoom: int, x: int, y: int, *, colour: str = DENSITY, dot: int = 1) -> bytes:
    """A tile of a map as a picture of 256 x 256 pixels.

    `dot`: the pixels across that a source is drawn with, where a tile and its neighbours hold at most `DOTTED`
    sources; else 1. `BadInput` for a tile, a colouring or a dot that there is not.
    """
    from PIL import Image

    morton.check_tile(zoom, x, y)
    check_colour(opened, colour)
    if dot not in DOTS:
        raise BadInput(f"dot={dot}: expected one of {', '.join(map(str, DOTS))}")
    found = pixels(shelf, opened, zoom, x, y, colour=colour, dot=dot)
    ends = opened.manifest.colours.get(colour, (0.0, 1.0))
    picture = Image.fromarray(numbers(found, colour, peak=opened.manifest.peaks[zoom], ends=ends), mode=None)
    colours, opacity = _palette(colour)
    picture.putpalette(colours)
    stream = BytesIO()
    picture.save(stream, format="PNG", transparency=opacity, compress_level=3)
    return stream.getvalue()

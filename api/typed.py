"""What a person types into the search box: the id of a source, an IAU name, or a position."""

from __future__ import annotations

import re
from math import hypot
from urllib.parse import quote

from redshelf.indexing.columns import row_of
from redshelf.models.errors import BadInput, NotFound
from redshelf.service import places, search
from redshelf.service.shelf import OpenShelf

RADIUS_ARCSEC = 5.0  # how far a source may lie from a position
SEXAGESIMAL = re.compile(
    r"(\d{1,2})[:h\s]\s*(\d{1,2})[:m\s]\s*(\d{1,2}(?:\.\d*)?)s?[\s,]+([+-]?)(\d{1,2})[:d°\s]\s*(\d{1,2})[:m'\s]\s*(\d{1,2}(?:\.\d*)?)[s\"]?"
)
IAU = re.compile(
    r"(?:[A-Za-z][\w-]*\s+)?J(\d{2})(\d{2})(\d{2})(\.\d{1,6})?([+-])(\d{2})(\d{2})(\d{2})(\.\d{1,6})?", re.ASCII
)


def position(text: str) -> tuple[float, float] | None:
    """RA and Dec in degrees from "150.1 2.2", "10:00:28.6 +02:12:21" or "10h00m28.6s +02d12m21s" (RA in hours);
    None for anything else, which is then an id. Raises `BadInput` where it is a position out of range."""
    parts = [part for part in re.split(r"[\s,]+", text.strip()) if part]
    if len(parts) == 2:
        try:
            ra, dec = float(parts[0]), float(parts[1])
        except ValueError:
            pass
        else:
            return _in_range(ra, dec, text)
    match = SEXAGESIMAL.fullmatch(text.strip())
    if match is None:
        return None
    hours, minutes, seconds, sign, degrees, arcmin, arcsec = match.groups()
    place = _degrees((hours, minutes, seconds), sign, (degrees, arcmin, arcsec), text)
    return _in_range(*place, text)


def iau_position(text: str) -> tuple[float, float, float] | None:
    """RA and Dec in degrees that an IAU name such as "J100028.60+021221.5" stands for, and how far from there [arcsec]
    its source may lie, since its digits are truncated; None for any other text. `BadInput` for one out of range."""
    match = IAU.fullmatch(text.strip())
    if match is None:
        return None
    hours, minutes, seconds, part, sign, degrees, arcmin, arcsec, fraction = match.groups()
    units = [0.1 ** (len(digits) - 1) if digits else 1.0 for digits in (part, fraction)]  # s and arcsec
    middle = (str(float(seconds + (part or "")) + units[0] / 2), str(float(arcsec + (fraction or "")) + units[1] / 2))
    ra, dec = _degrees((hours, minutes, middle[0]), sign, (degrees, arcmin, middle[1]), text)
    return *_in_range(ra % 360, dec, text), max(RADIUS_ARCSEC, hypot(7.5 * units[0], units[1] / 2))


def _degrees(time: tuple[str, str, str], sign: str, angle: tuple[str, str, str], text: str) -> tuple[float, float]:
    hours, minutes, seconds = map(float, time)
    degrees, arcmin, arcsec = map(float, angle)
    if max(minutes, int(seconds), arcmin, int(arcsec)) >= 60:
        raise BadInput(f"position {text!r}: minutes and seconds must be below 60")
    ra, dec = 15 * (hours + minutes / 60 + seconds / 3600), degrees + arcmin / 60 + arcsec / 3600
    return ra, -dec if sign == "-" else dec


def _in_range(ra: float, dec: float, text: str) -> tuple[float, float]:
    if not (0 <= ra < 360 and -90 <= dec <= 90):
        raise BadInput(f"position {text!r}: expected 0 <= RA < 360 and -90 <= Dec <= 90 degrees")
    return ra, dec


def find(shelf: OpenShelf, text: str) -> str:
    """The id of the source that was typed. `BadInput` for a position out of range; `NotFound` where nothing is there,
    saying where the survey is, and for an id that nobody has."""
    row = row_of(shelf.columns, text)
    if row is not None:  # an id may look like a name
        return shelf.source_id(row)
    at, radius = position(text), RADIUS_ARCSEC
    named = iau_position(text) if at is None else None
    if named is not None:
        at, radius = named[:2], named[2]
    if at is None:
        return shelf.source_id(shelf.row(text))
    try:
        return search.nearest_source(shelf, *at, radius_arcsec=radius)
    except NotFound as error:
        raise NotFound(f"{error}. The survey {places.footprint(shelf)}") from error


def offered(shelf: OpenShelf, text: str) -> list[str]:
    """Ids to go on with from what was not found: the nearest on the sky, or those that sort near it."""
    try:
        at = position(text) or iau_position(text)
    except BadInput:
        return []
    return places.nearest_ids(shelf, at[0], at[1]) if at else places.similar_ids(shelf, text)


def source_path(source_id: str) -> str:
    """The address of a source's page."""
    return f"/source/{quote(source_id, safe='')}"

"""The page: one search box, similar galaxies as thumbnails, and p(z). Works without JavaScript; there is none.

`plot` does the arithmetic of the p(z) drawing; the template draws it as inline SVG. Everything is escaped by Jinja2.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

import numpy as np
from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import Field

from redshelf.api.queries import InForce, Shelf, Strict, how_many, serving_of
from redshelf.indexing.columns import CLASSES
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.errors import BadInput
from redshelf.service import redshift, search, sources
from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer
from redshelf.service.shelf import OpenShelf
from redshelf.service.stages import timed

if TYPE_CHECKING:
    from jinja2 import Environment

router = APIRouter()
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 250.0, 44.0, 12.0, 26.0, 40.0  # of the drawing, in its own units
GRID = 24  # similar galaxies on the page
EXAMPLES = 12
SEXAGESIMAL = re.compile(
    r"(\d{1,2})[:h\s]\s*(\d{1,2})[:m\s]\s*(\d{1,2}(?:\.\d*)?)s?[\s,]+([+-]?)(\d{1,2})[:d°\s]\s*(\d{1,2})[:m'\s]\s*(\d{1,2}(?:\.\d*)?)[s\"]?"
)


class HomeQuery(Strict):
    q: str | None = Field(None, max_length=200)


class SourceQuery(Strict):
    encoder: str | None = None
    k: int | None = Field(None, ge=1, le=1000)


def is_page(path: str) -> bool:
    """Whether errors at this address are told as a page."""
    return path in ("/", "/key") or path.startswith("/source/")


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
    if max(float(minutes), float(seconds), float(arcmin), float(arcsec)) >= 60:
        raise BadInput(f"position {text!r}: minutes and seconds must be below 60")
    ra = 15 * (float(hours) + float(minutes) / 60 + float(seconds) / 3600)
    dec = float(degrees) + float(arcmin) / 60 + float(arcsec) / 3600
    return _in_range(ra, -dec if sign == "-" else dec, text)


def _in_range(ra: float, dec: float, text: str) -> tuple[float, float]:
    if not (0 <= ra < 360 and -90 <= dec <= 90):
        raise BadInput(f"position {text!r}: expected 0 <= RA < 360 and -90 <= Dec <= 90 degrees")
    return ra, dec


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A drawing of p(z) in its own units: `curve` and `band` are SVG paths, the others x or y positions."""

    curve: str
    band: str
    median: float | None
    z_spec: float | None
    neighbours: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    base: float = HEIGHT - BOTTOM


def _ticks(low: float, high: float, wanted: int) -> list[float]:
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(answer: RedshiftAnswer, *, z_spec: float | None, neighbours: list[float]) -> Plot | None:
    """The drawing of an answer's p(z); None where it has none. `neighbours`: their spectroscopic redshifts."""
    if answer.pdf is None:
        return None
    edges, density = np.array(answer.pdf.z), np.array(answer.pdf.density)
    cumulative = np.concatenate([[0], np.cumsum(density * np.diff(edges))])
    inside = np.flatnonzero((cumulative[1:] > 5e-4) & (cumulative[:-1] < cumulative[-1] - 5e-4))
    low, high = edges[inside[0]], edges[inside[-1] + 1]
    if z_spec is not None:
        low, high = min(low, z_spec), max(high, z_spec)
    margin = max(0.08 * (high - low), 0.02)
    low, high = max(0.0, low - margin), high + margin
    peak = float(density.max()) * 1.08

    def x(z: float) -> float:
        return float(LEFT + (z - low) / (high - low) * (WIDTH - LEFT - RIGHT))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / peak * (HEIGHT - TOP - BOTTOM)

    def outline(z_from: float, z_to: float) -> str:
        keep = np.flatnonzero((edges[1:] > z_from) & (edges[:-1] < z_to))
        points = [f"M{x(max(z_from, edges[keep[0]])):.1f},{y(0):.1f}"]
        for i in keep:
            points.append(f"V{y(density[i]):.1f}H{x(min(z_to, edges[i + 1])):.1f}")
        return "".join(points) + f"V{y(0):.1f}"

    median, q16, q84 = answer.z_median, answer.z_q16, answer.z_q84
    x_step = _ticks(low, high, 7)
    digits = max(0, -math.floor(math.log10(x_step[1] - x_step[0]) + 1e-9)) if len(x_step) > 1 else 2
    return Plot(
        curve=outline(low, high),
        band=outline(q16, q84) + "Z" if q16 is not None and q84 is not None and q84 > q16 else "",
        median=None if median is None else x(median),
        z_spec=None if z_spec is None else x(z_spec),
        neighbours=tuple(x(z) for z in neighbours if low <= z <= high),
        x_ticks=tuple(Tick(x(z), f"{z:.{digits}f}") for z in x_step),
        y_ticks=tuple(Tick(y(v), f"{v:g}") for v in _ticks(0, peak, 4)),
    )


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["path"] = lambda text: quote(text, safe="")
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")  # thin space: 12 345
    environment.filters["fixed"] = lambda number, digits: "\u2013" if number is None else f"{number:.{digits}f}"
    environment.globals["query"] = lambda **parameters: urlencode(
        {k: v for k, v in parameters.items() if v is not None}
    )
    return environment


@timed("render")
def render(
    info: ShelfInfo | None,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **context: Any,
) -> HTMLResponse:
    """A page; `info` is None where nobody knows yet who asks, who is then told nothing of the survey."""
    shared = {"q": "", "error": None, "survey": info.survey if info else "", "has_images": info and info.has_images}
    html = _templates().get_template(template).render(**(shared | context))
    return HTMLResponse(html, status, headers={**PAGE_HEADERS, **(headers or {})})


def failed(request: Request, status: int, detail: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error as a page: the words beside the search box, which still holds what was typed. Where a key is missing,
    the form that takes one."""
    path = request.url.path
    if status == 401:
        back = path + (f"?{request.url.query}" if request.url.query else "")
        wrong = detail if path == "/key" else None
        return render(None, "key.html", status=status, headers=headers, error=wrong, back=back, held=False)
    typed = request.query_params.get("q", "") if path == "/" else path.removeprefix("/source/")
    title = HTTPStatus(status).phrase
    info = serving_of(request).current.info  # whose survey is that of every generation
    return render(info, "error.html", status=status, headers=headers, q=typed[:200], error=detail, title=title)


def _examples(shelf: OpenShelf) -> list[dict[str, Any]]:
    """A few sources to begin with: galaxies with a label, spread over redshift; else any, spread over the shelf."""
    z = shelf.columns["z_spec"]
    galaxy = np.isin(shelf.columns["object_class"], [CLASSES.index("galaxy"), CLASSES.index("unknown")])
    rows = np.flatnonzero(np.isfinite(z) & (z > 0) & galaxy)
    if len(rows) >= EXAMPLES:
        rows = rows[np.argsort(z[rows], kind="stable")]
    else:
        rows = np.flatnonzero(~shelf.columns["deleted"])
    if not len(rows):
        return []
    spread = rows[np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))]
    return [{"source_id": shelf.source_id(r), "z_spec": float(z[r]) if np.isfinite(z[r]) else None} for r in spread]


def _place(shelf: OpenShelf, source_id: str) -> tuple[str, str]:
    """The position of a source as a person may type it: in degrees, and in hours and degrees."""
    row = shelf.row(source_id)
    ra, dec = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
    j = sources.iau_name(ra, dec)
    return f"{ra:.4f} {dec:+.4f}", f"{j[1:3]}:{j[3:5]}:{j[5:10]} {j[10:13]}:{j[13:15]}:{j[15:]}"


@router.get("/", response_class=HTMLResponse)
def home(query: Annotated[HomeQuery, Query()], shelf: Shelf, settings: InForce) -> Response:
    """The search box; with `q`, on to the source it names."""
    text = (query.q or "").strip()
    if text:
        at = position(text)
        source_id = search.nearest_source(shelf, *at) if at else shelf.source_id(shelf.row(text))
        return RedirectResponse(f"/source/{quote(source_id, safe='')}", status_code=303, headers=PAGE_HEADERS)
    examples = _examples(shelf)
    place = _place(shelf, examples[0]["source_id"]) if examples else None
    described = sources.describe(shelf, settings)
    return render(shelf.info, "home.html", shelf=described, examples=examples, place=place)


def _redshift(shelf: OpenShelf, source_id: str) -> RedshiftAnswer | None:
    """By the default fit, the best validated one, whatever encoder finds the neighbours; None without one to read."""
    fit = shelf.generation.default_redshift
    return redshift.redshifts(shelf, [source_id])[0] if fit in shelf.redshifts else None


def _label_redshifts(answer: NeighboursAnswer | None) -> list[float]:
    neighbours = answer.neighbours if answer else []
    return [n.z_spec for n in neighbours if n.z_spec is not None and n.object_class == "galaxy"]


@router.get("/source/{source_id}", response_class=HTMLResponse)
def source(source_id: str, query: Annotated[SourceQuery, Query()], shelf: Shelf, settings: InForce) -> Response:
    """One source: its picture and facts, p(z), and what looks like it, by an encoder that has seen it."""
    k = how_many(query.k, settings, usual=GRID)
    facts, row, asked = sources.source(shelf, source_id), shelf.row(source_id), shelf.encoder(query.encoder).name
    seen_by = [name for name in sorted(shelf.encoders) if shelf.encoder(name).index.known[row]]
    similar = search.neighbours(shelf, source_id, encoder=asked, k=k) if asked in seen_by else None
    distance = _redshift(shelf, source_id)
    drawing = distance and plot(distance, z_spec=facts.z_spec, neighbours=_label_redshifts(similar))
    return render(
        shelf.info,
        "source.html",
        q=source_id,
        source=facts,
        similar=similar,
        redshift=distance,
        fault=shelf.unreadable.get(shelf.generation.default_redshift or ""),
        plot=drawing,
        asked=asked,
        encoders=seen_by,
        k=k,
        counts=[n for n in sorted({12, GRID, 48, 96, k}) if n <= settings.max_k],
        chosen=query.encoder,
    )

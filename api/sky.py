"""How a cutout and photometry are drawn: scale bar and orientation, and the SED in AB magnitudes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from redshelf.api.drawing import Tick, ticks
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import DETECTION_SNR, flux_to_ab
from redshelf.service.answers import Photometry

BARS_ARCSEC = (0.5, 1, 2, 5, 10, 20, 30, 60, 120)
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 230.0, 44.0, 24.0, 26.0, 40.0  # of the SED
UNSEEN = 12.0  # above the axis, where bands that were not observed are marked


@dataclass(frozen=True)
class Frame:
    """What is drawn over a cutout of `size` pixels: a bar of `bar` pixels, which is so many arcsec long."""

    size: int
    bar: float
    arcsec: float


def frame(info: ShelfInfo) -> Frame | None:
    """The frame of a survey's cutouts, its bar at most 40% of their width; None where their scale is not known."""
    size, scale = info.cutout_px, info.pixel_scale_arcsec
    if not info.has_images or not math.isfinite(scale):
        return None
    arcsec = max((one for one in BARS_ARCSEC if one <= 0.4 * size * scale), default=0.4 * size * scale)
    return Frame(size, arcsec / scale, arcsec)


@dataclass(frozen=True)
class Point:
    """One band. `kind`: measured and saturated have `low` and `high`, the ends of the error bar; a limit has none."""

    band: str
    kind: Literal["measured", "saturated", "limit", "unseen"]
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True)
class Sed:
    """Magnitude against wavelength in the units of the drawing."""

    points: tuple[Point, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    base: float = HEIGHT - BOTTOM


def _magnitudes(one: Photometry) -> tuple[str, float, float, float] | None:
    """(kind, magnitude, faint end, bright end); None where there is nothing to draw."""
    flux, error = one.flux_ujy, one.flux_error_ujy
    if one.state == "not_observed" or flux is None:
        return None
    if one.state == "not_detected" or flux <= 0:
        if error is None or error <= 0:
            return None
        limit = float(flux_to_ab(DETECTION_SNR * error))
        return "limit", limit, limit, limit
    error = error or 0.0
    faint, bright = (float(flux_to_ab(max(flux + sign * error, 0.3 * flux))) for sign in (-1, 1))
    return ("saturated" if one.state == "saturated" else "measured"), float(flux_to_ab(flux)), faint, bright


def limits(photometry: Sequence[Photometry]) -> dict[str, float | None]:
    """The 3-sigma limit of each band in AB magnitudes, None where its error is not known."""
    known = {one.band: one.flux_error_ujy for one in photometry}
    return {band: float(flux_to_ab(DETECTION_SNR * error)) if error else None for band, error in known.items()}


def sed(photometry: Sequence[Photometry], wavelengths_nm: Sequence[float]) -> Sed | None:
    """The drawing of a source's photometry, its bands in the order of `wavelengths_nm`; None without any to draw.

    Brighter is higher; a band that was not detected is an arrow at its 3-sigma limit.
    """
    found = [_magnitudes(one) for one in photometry]
    shown = [one for one in found if one is not None]
    if not shown:
        return None
    brightest, faintest = min(one[3] for one in shown), max(one[2] for one in shown)
    margin = max(0.15 * (faintest - brightest), 0.3)
    low, high = brightest - margin, faintest + margin
    logs = [math.log(nm) for nm in wavelengths_nm]
    first, last = min(logs), max(logs)
    span = max(last - first, 0.1)

    def x(log_nm: float) -> float:
        return LEFT + 24 + (log_nm - first) / span * (WIDTH - LEFT - RIGHT - 48)

    def y(magnitude: float) -> float:
        return TOP + (magnitude - low) / (high - low) * (HEIGHT - BOTTOM - UNSEEN * 2 - TOP)

    points = []
    for one, told, log_nm in zip(photometry, found, logs, strict=True):
        kind, middle, faint, bright = told or ("unseen", 0.0, 0.0, 0.0)
        place = (y(middle), y(faint), y(bright)) if told else (HEIGHT - BOTTOM - UNSEEN,) * 3
        points.append(Point(one.band, kind, x(log_nm), *place))  # type: ignore[arg-type]  # the kinds above
    steps = ticks(low, high, 4)
    digits = 0 if len(steps) > 1 and steps[1] - steps[0] >= 1 else 1
    named = zip(photometry, logs, strict=True)
    return Sed(
        points=tuple(points),
        x_ticks=tuple(Tick(x(log_nm), one.band) for one, log_nm in named),
        y_ticks=tuple(Tick(y(m), f"{m:.{digits}f}") for m in steps),
    )

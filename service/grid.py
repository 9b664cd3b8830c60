"""The pixel grid of an uploaded image, from the cards of its WCS, and the way from there to the survey's grid.

Resampling keeps flux: each pixel is taken as even and its flux is shared out by the area that it has in common with the
pixels of the survey, which lie north up and east left. Turns by 90 degrees, reflections and other scales are exact to
rounding; at any other angle a pixel is looked up at some dozens of places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

ARCSEC = {"": 3600.0, "deg": 3600.0, "degree": 3600.0, "arcmin": 60.0, "arcsec": 1.0, "rad": 180 / math.pi * 3600}
MAX_RATIO = 10.0  # of the pixel scales, either way
SAME, STRAIGHT, ON_GRID = 1e-3, 8e-3, 0.05  # of a pixel; tan of half a degree; of a pixel
FEWEST_SAMPLES, MOST_SAMPLES = 6, 16  # along each side of a pixel of the survey, where the grids are turned
NEEDED = 0.5  # of a pixel of the survey must be known

Floats = npt.NDArray[np.float64]
Cards = Mapping[str, str | float]


@dataclass(frozen=True)
class Grid:
    """`matrix` (2, 2): arcsec to the east and to the north for a step along x and along y. With `at`, the RA and Dec in
    degrees of the 0-based pixel `origin` and the point of tangency of a TAN projection."""

    matrix: Floats
    at: tuple[float, float] | None = None
    origin: tuple[float, float] = (0.0, 0.0)

    @property
    def scale_arcsec(self) -> float:
        """The side of a square as large as a pixel."""
        return math.sqrt(abs(float(np.linalg.det(self.matrix))))

    def sky(self, x: float, y: float) -> tuple[float, float]:
        """RA and Dec in radians of a 0-based pixel; of a grid that has `at`."""
        assert self.at is not None
        east, north = np.radians(self.matrix @ (x - self.origin[0], y - self.origin[1]) / 3600)
        ra, dec = np.radians(self.at)
        down = math.cos(dec) - north * math.sin(dec)
        return ra + math.atan2(east, down), math.atan2(math.sin(dec) + north * math.cos(dec), math.hypot(east, down))

    def pixel(self, ra: float, dec: float) -> tuple[float, float]:
        """The 0-based pixel at RA and Dec in radians, NaN for the other half of the sky; of a grid that has `at`."""
        assert self.at is not None
        ra0, dec0 = np.radians(self.at)
        depth = math.sin(dec0) * math.sin(dec) + math.cos(dec0) * math.cos(dec) * math.cos(ra - ra0)
        if depth <= 0:
            return math.nan, math.nan
        east = math.cos(dec) * math.sin(ra - ra0) / depth
        north = (math.cos(dec0) * math.sin(dec) - math.sin(dec0) * math.cos(dec) * math.cos(ra - ra0)) / depth
        x, y = np.linalg.solve(self.matrix, np.degrees((east, north)) * 3600) + self.origin
        return float(x), float(y)


def plain(scale_arcsec: float) -> Grid:
    """North up, east left."""
    return Grid(np.diag([-scale_arcsec, scale_arcsec]))


def _number(cards: Cards, name: str, usual: float) -> float:
    found = cards.get(name, usual)
    if isinstance(found, str) or not math.isfinite(found):
        raise BadInput(f"{name}={found!r}: expected a number")
    return float(found)


def _matrix(cards: Cards) -> Floats | None:
    """In units of CUNIT; None where nothing tells a scale."""
    names = [(i, j) for i in (1, 2) for j in (1, 2)]
    if any(f"CD{i}_{j}" in cards for i, j in names):
        return np.array([_number(cards, f"CD{i}_{j}", 0.0) for i, j in names]).reshape(2, 2)
    if "CDELT1" not in cards or "CDELT2" not in cards or "CTYPE1" not in cards:
        return None
    steps = np.array([_number(cards, "CDELT1", 1.0), _number(cards, "CDELT2", 1.0)])
    if any(f"PC{i}_{j}" in cards for i, j in names):
        turn = np.array([_number(cards, f"PC{i}_{j}", float(i == j)) for i, j in names]).reshape(2, 2)
        return np.asarray(steps[:, None] * turn)
    angle = math.radians(_number(cards, "CROTA2", 0.0) % 360)
    cos, sin = math.cos(angle), math.sin(angle)
    return np.array([[steps[0] * cos, -steps[1] * sin], [steps[0] * sin, steps[1] * cos]])


def from_cards(cards: Cards) -> Grid | None:
    """The grid that a FITS header tells of, None where it has no celestial WCS; `BadInput` for one that is none."""
    kinds = [str(cards.get(f"CTYPE{i}", "")).upper() for i in (1, 2)]
    known = [any(word in kind[:5] for word in ("RA", "DEC", "LON", "LAT")) for kind in kinds]
    matrix = _matrix(cards) if all(known) or not any(kinds) else None
    if matrix is None:
        return None
    units = [str(cards.get(f"CUNIT{i}", "")).strip().lower() for i in (1, 2)]
    if any(unit not in ARCSEC for unit in units):
        raise BadInput(f"CUNIT={' and '.join(map(repr, units))}: expected deg, arcmin, arcsec or rad")
    matrix = matrix * np.array([[ARCSEC[units[0]]], [ARCSEC[units[1]]]])
    swapped = any(word in kinds[0][:5] for word in ("DEC", "LAT"))
    sides = np.hypot(*matrix)  # arcsec that a step along x, along y makes
    if not (sides.min() > 1e-6 and sides.max() < 1e6) or abs(np.linalg.det(matrix)) < 0.1 * sides.prod():
        raise BadInput(
            f"the WCS has pixels of {sides[0]:g} x {sides[1]:g} arcsec, or no area: expected those of an image"
        )
    if swapped:
        return Grid(matrix[::-1].copy())
    if not all(kind.endswith("-TAN") for kind in kinds) or "CRVAL1" not in cards or "CRVAL2" not in cards:
        return Grid(matrix)
    at = (
        _number(cards, "CRVAL1", 0.0) * ARCSEC[units[0]] / 3600,
        _number(cards, "CRVAL2", 0.0) * ARCSEC[units[1]] / 3600,
    )
    origin = _number(cards, "CRPIX1", 0.0) - 1, _number(cards, "CRPIX2", 0.0) - 1
    return Grid(matrix, at, origin)


def shared(edges: Floats, size: int) -> Floats:
    """(n, size) length that each of n intervals (n, 2) has in common with each pixel, which reaches half to each side
    of its number."""
    low, high = edges.min(axis=1)[:, None], edges.max(axis=1)[:, None]
    pixel = np.arange(size)
    return np.asarray(np.clip(np.minimum(high, pixel + 0.5) - np.maximum(low, pixel - 0.5), 0, None))


@dataclass(frozen=True)
class Resampling:
    """From an image to `size` x `size` pixels of the survey: `step` (2, 2) pixels of the image along x and y for one of
    the survey's along x and y, `centre` the 0-based place in the image that comes to the pixel size // 2."""

    step: Floats
    centre: tuple[float, float]
    size: int

    @property
    def same(self) -> bool:
        """Whether the grids are one, so that pixels are copied."""
        off = max(abs(place - round(place)) for place in self.centre)
        return bool(np.abs(self.step - np.eye(2)).max() < SAME and off < ON_GRID)

    @property
    def reach(self) -> int:
        """Pixels of the image to each side of the centre that can matter."""
        return math.ceil(float(np.abs(self.step).sum(axis=1).max()) * (self.size // 2 + 1)) + 1

    def _places(self, offsets: Floats) -> tuple[Floats, Floats]:
        """Numbers of the image's columns and rows at `offsets` (n,) along x and along y, each (n, n) by y and x."""
        x, y = (self.step[axis, 0] * offsets[None, :] + self.step[axis, 1] * offsets[:, None] for axis in (0, 1))
        return x + self.centre[0], y + self.centre[1]

    def apply(self, image: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(size, size) of an image (H, W), NaN where it is not finite or does not reach. Where a part of a pixel is
        known, its flux is that of the known part times the whole area."""
        good = np.isfinite(image)
        flux = np.where(good, image, np.float32(0)).astype(np.float64)
        steps, offsets = np.abs(self.step), np.arange(self.size) - self.size // 2
        cross = max(steps[0, 1], steps[1, 0]), max(steps[0, 0], steps[1, 1])  # of grids along and across one another
        if min(cross) < STRAIGHT * max(cross):
            turned = cross[0] > cross[1]
            edges = offsets[:, None] + [-0.5, 0.5]
            (along_x, along_y) = (self.step[0, 1], self.step[1, 0]) if turned else (self.step[0, 0], self.step[1, 1])
            columns = shared(along_x * edges + self.centre[0], image.shape[1])
            rows = shared(along_y * edges + self.centre[1], image.shape[0])
            total, known = (rows @ part @ columns.T for part in (flux, good.astype(np.float64)))
            total, known = (total.T, known.T) if turned else (total, known)
        else:
            per_side = int(np.clip(math.ceil(4 * steps.max()), FEWEST_SAMPLES, MOST_SAMPLES))
            fine = (np.arange(self.size * per_side) + 0.5) / per_side - 0.5 - self.size // 2
            x, y = (np.floor(place + 0.5).astype(np.int64) for place in self._places(fine))
            inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
            at = np.where(inside, y, 0), np.where(inside, x, 0)
            area = self._area / per_side**2
            blocks = (self.size, per_side, self.size, per_side)
            total, known = (
                (np.where(inside, part[at], 0).reshape(blocks).sum(axis=(1, 3)) * area) for part in (flux, good)
            )
        share = known / self._area
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return np.where(share >= NEEDED, total / share, np.nan).astype(np.float32)

    @property
    def _area(self) -> float:
        return abs(float(np.linalg.det(self.step)))


def resampling(grid: Grid, centre: tuple[float, float], size: int, scale_arcsec: float) -> Resampling:
    """The way to the survey's grid, north up at `scale_arcsec`; `BadInput` for scales too far apart."""
    ratio = grid.scale_arcsec / scale_arcsec
    if not 1 / MAX_RATIO <= ratio <= MAX_RATIO:
        raise BadInput(
            f"pixels of {grid.scale_arcsec:g} arcsec: expected {scale_arcsec / MAX_RATIO:g} to "
            f"{scale_arcsec * MAX_RATIO:g}, since the survey's are of {scale_arcsec:g}"
        )
    step = np.linalg.solve(grid.matrix, plain(scale_arcsec).matrix)
    return Resampling(np.asarray(step, dtype=np.float64), centre, size)

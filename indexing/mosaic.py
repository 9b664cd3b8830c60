"""Mosaics: one FITS image a band and tile, found by the patterns of the survey file and checked by their headers alone.

`find_tiles` lists files, `open_tile` reads headers, `assign` gives each source the tile in which it lies furthest
inside, `stripes` reads pixels in microjansky, each once. Pixel positions are 0-based, x along columns, everywhere.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from glob import escape, glob
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.catalogue import unit_vectors
from redshelf.indexing.images import open_image, rows_of
from redshelf.indexing.survey import BandSection, Survey
from redshelf.models.bands import ab_to_flux
from redshelf.models.errors import BadInput

Floats = npt.NDArray[np.float64]
Images = npt.NDArray[np.float32]

ONLY_TILE = "mosaic"  # the tile of a pattern without {tile}
SCALE_TOLERANCE = 0.01
TILE_NAME = re.compile(r"[A-Za-z0-9._+-]{1,64}")
STRIPE_PIXELS = 2**20  # read at a time: what is done to them then happens in the processor's cache
NOISE_BOXES, NOISE_BOX_PX = 4, 128  # pixel noise is measured in 4 x 4 boxes of 128 px a mosaic


@dataclass(frozen=True)
class Mosaic:
    """The image of one band in one tile, as its header describes it; no pixel has been read."""

    path: Path
    hdu: int
    shape: tuple[int, int]  # (ny, nx)
    wcs: Any  # astropy.wcs.WCS
    grid: str  # equal for mosaics with the same pixel grid
    ujy_per_unit: float
    saturation_ujy: float | None
    weight: Path | None
    mask: Path | None


@dataclass(frozen=True)
class Tile:
    """A tile and its mosaic in each of the survey's bands, None where the band is absent."""

    name: str
    mosaics: tuple[Mosaic | None, ...]


@dataclass(frozen=True)
class Stripe:
    """Whole pixel rows of a mosaic, from row `first`: each (rows, nx)."""

    first: int
    image: Images  # uJy
    weight: Images | None  # 1/uJy^2
    mask: npt.NDArray[np.bool_] | None  # True = bad

    def columns(self, first: int, past: int) -> Stripe:
        """The same without the columns before `first` and from `past` on."""
        chosen = (slice(None), slice(first, past))
        weight = None if self.weight is None else self.weight[chosen]
        mask = None if self.mask is None else self.mask[chosen]
        return Stripe(self.first, self.image[chosen], weight, mask)


def _pieces(survey: Survey, band: BandSection, pattern: str) -> list[str]:
    """The absolute path pattern cut at each {tile}."""
    return str(survey.resolve(pattern.replace("{band}", band.name))).split("{tile}")


def _path(survey: Survey, band: BandSection, pattern: str, tile: str) -> Path:
    return Path(tile.join(_pieces(survey, band, pattern)))


def companions(survey: Survey, band: BandSection, tile: str) -> dict[str, Path]:
    """{"weight": path, "mask": path} beside the image of a band and tile, without those that the band has not."""
    patterns = {"weight": band.weight, "mask": band.mask}
    return {what: _path(survey, band, pattern, tile) for what, pattern in patterns.items() if pattern is not None}


def matcher(pieces: list[str]) -> re.Pattern[str]:
    first, *rest = [re.escape(piece) for piece in pieces]
    return re.compile(first + "".join(("([^/]+)" if n == 0 else r"\1") + piece for n, piece in enumerate(rest)))


def find_tiles(survey: Survey) -> dict[str, dict[str, Path]]:
    """{tile: {band: image}} of every image that the patterns find, or of `tiles.names`; sorted by tile.

    `BadInput` for a band of whose images there is none, and for a named tile that no band has.
    """
    found: dict[str, dict[str, Path]] = {}
    with_image = [band for band in survey.bands if band.image is not None]
    # "{tile}.fits" also finds the weights "{tile}.weight.fits": what is a weight or a mask of some band is no image
    others = [matcher(_pieces(survey, b, p)) for b in with_image for p in (b.weight, b.mask) if p and p != b.image]
    for band in with_image:
        pieces = _pieces(survey, band, band.image or "")
        expression = matcher(pieces)
        count = 0
        for name in sorted(glob("*".join(escape(piece) for piece in pieces))):  # noqa: PTH207 (an absolute pattern)
            match = expression.fullmatch(name)
            if match is None or any(other.fullmatch(name) for other in others):
                continue
            tile = match[1] if match.groups() else ONLY_TILE
            if not TILE_NAME.fullmatch(tile):
                raise BadInput(f"band {band.name}: tile name {tile!r} of {name}: expected {TILE_NAME.pattern}")
            if survey.tiles.names is None or tile in survey.tiles.names:
                found.setdefault(tile, {})[band.name] = Path(name)
                count += 1
        if not count:
            among = "" if survey.tiles.names is None else f" among the tiles {', '.join(survey.tiles.names)}"
            raise BadInput(
                f"band {band.name}: no image matches {band.image!r} (that is {'{tile}'.join(pieces)}){among}"
            )
    absent = sorted(set(survey.tiles.names or ()) - found.keys())
    if absent:
        raise BadInput(f"tiles.names: no band has an image of tile {absent[0]!r}")
    return dict(sorted(found.items()))


def open_mosaic(survey: Survey, band: BandSection, tile: str, path: Path) -> Mosaic:
    """Header facts of one image, with weight and mask beside it. Raises `BadInput` naming the file for a missing or
    non-celestial WCS, a pixel scale more than 1% off the survey's, a truncated file, a weight of another shape."""
    from astropy.wcs import WCS
    from astropy.wcs.utils import proj_plane_pixel_scales

    with open_image(path, band.image_hdu) as (unit, number, units):
        shape = (int(unit.shape[0]), int(unit.shape[1]))
        wcs = WCS(unit.header, units)
    if not wcs.has_celestial or wcs.naxis != 2:
        raise BadInput(f"{path} HDU {number} has no celestial WCS: expected CTYPE1/2 such as RA---TAN, DEC--TAN")
    wanted = survey.survey.pixel_scale_arcsec or 0.0
    scales = proj_plane_pixel_scales(wcs) * 3600
    if not (np.abs(scales / wanted - 1) <= SCALE_TOLERANCE).all():
        shown = " x ".join(f"{scale:.5g}" for scale in scales)
        raise BadInput(f"{path}: pixel scale {shown} arcsec, expected pixel_scale_arcsec={wanted:g} to 1%")
    beside = companions(survey, band, tile)
    for what, companion in beside.items():
        with open_image(companion, None) as (other, _, _):
            if tuple(other.shape) != shape:
                raise BadInput(f"{companion}: the {what} has shape {other.shape}, its image {path.name} {shape}")
    zero_points = (band.image_zero_point, band.zero_point)
    zero_point = next((z for z in zero_points if z is not None), None)
    factor = 1.0 if zero_point is None else float(ab_to_flux(zero_point))
    return Mosaic(
        path=path,
        hdu=number,
        shape=shape,
        wcs=wcs,
        grid=f"{shape} {wcs.to_header_string(relax=True)}",
        ujy_per_unit=factor,
        saturation_ujy=None if band.saturation is None else band.saturation * factor,
        weight=beside.get("weight"),
        mask=beside.get("mask"),
    )


def open_tile(survey: Survey, name: str, paths: dict[str, Path]) -> Tile:
    """The headers of all bands of a tile."""
    opened = (
        open_mosaic(survey, band, name, paths[band.name]) if band.name in paths else None for band in survey.bands
    )
    return Tile(name, tuple(opened))


def stripes(mosaic: Mosaic, rows: tuple[int, int]) -> Iterator[Stripe]:
    """The pixel rows [first, past) of a mosaic, a few at a time: every file is opened once and read once, in order.

    Compressed images (fpack) are unpacked whole within `rows`; others take a few megabytes at a time.
    """
    with ExitStack() as stack:
        image_rows = stack.enter_context(rows_of(mosaic.path, mosaic.hdu, rows))
        weight_rows, mask_rows = (
            None if path is None else stack.enter_context(rows_of(path, None, rows))
            for path in (mosaic.weight, mosaic.mask)
        )
        step = max(1, STRIPE_PIXELS // mosaic.shape[1])
        for first in range(*rows, step):
            span = first, min(first + step, rows[1])
            image = image_rows(*span).astype(np.float32)
            image *= np.float32(mosaic.ujy_per_unit)
            weight = mask = None
            if weight_rows is not None:
                weight = weight_rows(*span).astype(np.float32)
                weight /= np.float32(mosaic.ujy_per_unit**2)
            if mask_rows is not None:
                mask = mask_rows(*span) != 0
            yield Stripe(first, image, weight, mask)


def pixel_positions(mosaic: Mosaic, ra_deg: Floats, dec_deg: Floats) -> tuple[Floats, Floats]:
    """0-based (x, y) of sky positions, in one call; NaN where the projection does not reach."""
    from astropy import units as u
    from astropy.coordinates import SkyCoord

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a distortion that does not converge far outside the image is no news
        x, y = mosaic.wcs.world_to_pixel(SkyCoord(ra_deg * u.deg, dec_deg * u.deg))
    return np.atleast_1d(x), np.atleast_1d(y)


def circle(mosaic: Mosaic) -> tuple[float, float, float]:
    """RA and Dec of the mosaic's centre and the radius to its furthest corner, in degrees."""
    ny, nx = mosaic.shape
    x = np.array([(nx - 1) / 2, -0.5, nx - 0.5, -0.5, nx - 0.5])
    y = np.array([(ny - 1) / 2, -0.5, -0.5, ny - 0.5, ny - 0.5])
    sky = mosaic.wcs.pixel_to_world(x, y).icrs
    return float(sky.ra.deg[0]), float(sky.dec.deg[0]), float(sky[0].separation(sky).deg.max())


def assign(tiles: Sequence[Tile], ra_deg: Floats, dec_deg: Floats) -> npt.NDArray[np.int64]:
    """(N,) number of the tile for each source, -1 where none covers it: the tile in which most bands cover the source,
    and among those the one in which it is furthest from an edge; the first where that is equal. Headers only."""
    from scipy.spatial import cKDTree

    tree = cKDTree(unit_vectors(ra_deg, dec_deg))
    chosen = np.full(len(ra_deg), -1, dtype=np.int64)
    best_bands, best_edge = np.zeros(len(ra_deg), dtype=np.int64), np.full(len(ra_deg), -np.inf)
    for number, tile in enumerate(tiles):
        grids: dict[str, list[Mosaic]] = {}
        for mosaic in tile.mosaics:
            if mosaic is not None:
                grids.setdefault(mosaic.grid, []).append(mosaic)
        near: set[int] = set()
        for same in grids.values():
            ra, dec, radius = circle(same[0])
            chord = 2 * np.sin(np.deg2rad(min(radius * 1.01, 180.0)) / 2)
            near.update(tree.query_ball_point(unit_vectors(np.array([ra]), np.array([dec]))[0], chord))
        rows = np.array(sorted(near), dtype=np.int64)
        if not len(rows):
            continue
        bands, edge = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), np.inf)
        for same in grids.values():
            x, y = pixel_positions(same[0], ra_deg[rows], dec_deg[rows])
            ny, nx = same[0].shape
            inside = np.minimum(np.minimum(x + 0.5, nx - 0.5 - x), np.minimum(y + 0.5, ny - 0.5 - y))
            covered = inside > 0  # False for NaN
            bands += covered * len(same)
            edge = np.where(covered, np.minimum(edge, inside), edge)
        better = (bands > best_bands[rows]) | ((bands == best_bands[rows]) & (bands > 0) & (edge > best_edge[rows]))
        chosen[rows[better]] = number
        best_bands[rows[better]], best_edge[rows[better]] = bands[better], edge[better]
    return chosen


def sky_rms(pixels: Images) -> float:
    """1.4826 times the median absolute deviation; where that is 0, as half of the pixels hold one value (a filling, a
    count), the standard deviation of the other pixels, clipped at 3 sigma. 0 if that is 0 too."""
    from astropy.stats import sigma_clipped_stats

    middle = np.median(pixels)
    rms = 1.4826 * np.median(np.abs(pixels - middle))
    others = pixels[pixels != middle]
    if rms == 0 and len(others):
        rms = sigma_clipped_stats(others.astype(np.float64), sigma=3)[2]
    return float(rms)


def pixel_noise(mosaics: Sequence[Mosaic]) -> float:
    """Median pixel rms [uJy] of some mosaics of one band: 1/sqrt of the median positive weight, else the rms of the sky
    (pixels that are exactly zero are taken as uncovered). Mosaics on which that is 0 do not count.

    NaN if all are bad, 0 if none of the others has an rms: nothing can be divided by it.
    """
    found = []
    for mosaic in mosaics:
        ny, nx = mosaic.shape
        images, weights = [], []
        for row in range(NOISE_BOXES):
            low = (2 * row + 1) * ny // (2 * NOISE_BOXES) - NOISE_BOX_PX // 2
            rows = max(0, low), min(ny, low + NOISE_BOX_PX)
            centres = (2 * np.arange(NOISE_BOXES) + 1) * nx // (2 * NOISE_BOXES)
            use = (np.abs(np.arange(nx)[:, None] - centres) < NOISE_BOX_PX // 2).any(axis=1)
            for stripe in stripes(mosaic, rows):
                image, weight = stripe.image, stripe.weight
                good = np.isfinite(image) & use & (True if stripe.mask is None else ~stripe.mask)
                images.append(image[good & (image != 0)])
                if weight is not None:
                    weights.append(weight[good & np.isfinite(weight) & (weight > 0)])
        pixels = np.concatenate(weights or images)
        if not len(pixels):
            continue
        found.append(float(1 / np.sqrt(np.median(pixels))) if weights else sky_rms(pixels))
    positive = [rms for rms in found if rms > 0]
    return float(np.median(positive)) if positive else 0.0 if found else float("nan")

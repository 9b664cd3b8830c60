"""Square cutouts of many sources from one mosaic at a time: padded and masked at edges, weights honoured, never NaN.

Centre convention: the source at 0-based (x, y) lies in the pixel (round(x), round(y)), and that pixel is at index
cutout_px // 2 of the cutout in both directions. Nothing is resampled: flux per pixel stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import store
from redshelf.indexing.layout import ShelfInfo
from redshelf.indexing.mosaic import Mosaic, Tile, pixel_positions, read_box
from redshelf.models.bands import DETECTION_SNR, State

Floats = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]

CLIP = 6e4  # noise units; float16 ends at 65,504
ROWS_PER_BATCH = 256
APERTURE_RADIUS_ARCSEC = 1.0  # the central region that decides a band's state


@dataclass(frozen=True)
class BandCutouts:
    """Cutouts of N sources in one band."""

    pixels: npt.NDArray[np.float16]  # (N, H, W) in units of the band's noise, 0 where bad
    bad: Bools  # (N, H, W)
    state: npt.NDArray[np.int8]  # (N,) models.bands.State of the pixels


def _corners(position: Floats, size: int, length: int) -> npt.NDArray[np.int64]:
    """First index of each window along one axis, at most one window off the image; a NaN position is off it."""
    first = np.floor(np.where(np.isfinite(position), position, -1e9) + 0.5) - size // 2
    return np.asarray(np.clip(first, -size, length), dtype=np.int64)


def _windows(image: npt.NDArray[Any], x: Floats, y: Floats, size: int, fill: float) -> npt.NDArray[Any]:
    """(N, size, size) copies around each position, `fill` outside the image."""
    if not len(x):
        return np.empty((0, size, size), dtype=image.dtype)
    ny, nx = image.shape
    first_x, first_y = _corners(x, size, nx), _corners(y, size, ny)
    low_x, low_y = max(0, -int(first_x.min())), max(0, -int(first_y.min()))
    high_x, high_y = max(0, int(first_x.max()) + size - nx), max(0, int(first_y.max()) + size - ny)
    if low_x or low_y or high_x or high_y:
        image = np.pad(image, ((low_y, high_y), (low_x, high_x)), constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(image, (size, size))
    return np.asarray(view[first_y + low_y, first_x + low_x])


def bad_pixels(image: Floats, weight: Floats | None, mask: npt.NDArray[Any] | None) -> Bools:
    """Pixels that hold no measurement: not finite, weight zero, negative or not finite, mask set. Same shape."""
    bad = ~np.isfinite(image)
    if weight is not None:
        bad |= ~(np.isfinite(weight) & (weight > 0))
    if mask is not None:
        bad |= np.asarray(mask, dtype=bool)
    return bad


def cut(
    image: Floats, weight: Floats | None, mask: npt.NDArray[Any] | None, x: Floats, y: Floats, cutout_px: int
) -> tuple[npt.NDArray[np.float32], Bools]:
    """(pixels, bad), each (N, cutout_px, cutout_px), of the sources at 0-based x, y (N,) of one image (ny, nx).

    Pixels keep the image's unit and are 0 where bad; whatever lies outside the image is bad.
    """
    bad = bad_pixels(image, weight, mask)
    clean = np.where(bad, np.float32(0), image).astype(np.float32, copy=False)
    return _windows(clean, x, y, cutout_px, 0), _windows(bad, x, y, cutout_px, True)


def in_noise_units(pixels_ujy: npt.NDArray[np.float32], noise_ujy: float) -> npt.NDArray[np.float16]:
    """Pixels as the shelf stores them: divided by the band's noise, clipped at +-60,000, float16."""
    scaled = pixels_ujy * np.float32(1 / noise_ujy)
    return np.clip(scaled, -CLIP, CLIP, out=scaled).astype(np.float16)


def aperture(cutout_px: int, pixel_scale_arcsec: float) -> Bools:
    """(cutout_px, cutout_px) True within 1 arcsec of the central pixel, at least that pixel, at most what fits."""
    offset = np.arange(cutout_px) - cutout_px // 2
    radius_px = min(APERTURE_RADIUS_ARCSEC / pixel_scale_arcsec, cutout_px // 2 - 1)
    return np.asarray(np.hypot(offset[:, None], offset) <= radius_px)


def pixel_states(
    pixels_ujy: npt.NDArray[np.float32], bad: Bools, saturated: Bools, *, noise_ujy: float, inside: Bools
) -> npt.NDArray[np.int8]:
    """(N,) state of one band from its pixels (N, H, W), by the aperture `inside` (H, W).

    Saturated if `saturated` (N,); else not observed where more than half of the aperture is bad; else measured or not
    detected by the aperture's flux against 3 sigma of white noise in its good pixels.
    """
    centre, good = pixels_ujy[:, inside], ~bad[:, inside]  # (N, pixels in the aperture)
    count = good.sum(axis=1)
    detected = centre.sum(axis=1, dtype=np.float64) >= DETECTION_SNR * noise_ujy * np.sqrt(count)
    state = np.where(detected, State.MEASURED, State.NOT_DETECTED)
    state = np.where(2 * count < inside.sum(), State.NOT_OBSERVED, state)
    return np.where(saturated, State.SATURATED, state).astype(np.int8)


def unobserved(count: int, cutout_px: int) -> BandCutouts:
    """What a band without pixels looks like: zero, all bad, not observed."""
    shape = (count, cutout_px, cutout_px)
    return BandCutouts(np.zeros(shape, np.float16), np.ones(shape, bool), np.zeros(count, np.int8))


def band_cutouts(
    mosaic: Mosaic, ra_deg: Floats, dec_deg: Floats, *, cutout_px: int, pixel_scale_arcsec: float, noise_ujy: float
) -> BandCutouts:
    """Cutouts of N sources from one mosaic, of which only the rows of pixels that they touch are read, once.

    A pixel at or above the survey's saturation level, or clipped, within 1 arcsec of the centre makes the state
    saturated; further out it belongs to a neighbour.
    """
    x, y = pixel_positions(mosaic, np.asarray(ra_deg, np.float64), np.asarray(dec_deg, np.float64))
    ny, nx = mosaic.shape
    first_x, first_y = _corners(x, cutout_px, nx), _corners(y, cutout_px, ny)
    on_image = (first_x > -cutout_px) & (first_x < nx) & (first_y > -cutout_px) & (first_y < ny)
    if not on_image.any() or not np.isfinite(noise_ujy):
        return unobserved(len(x), cutout_px)
    low_x, low_y = max(0, int(first_x[on_image].min())), max(0, int(first_y[on_image].min()))
    high_x = min(nx, int(first_x[on_image].max()) + cutout_px)
    high_y = min(ny, int(first_y[on_image].max()) + cutout_px)
    image, weight, mask = read_box(mosaic, (low_y, high_y), (low_x, high_x))
    x, y = np.where(on_image, x - low_x, np.nan), np.where(on_image, y - low_y, np.nan)
    pixels, bad = cut(image, weight, mask, x, y, cutout_px)
    inside = aperture(cutout_px, pixel_scale_arcsec)
    level = CLIP * noise_ujy if mosaic.saturation_ujy is None else min(mosaic.saturation_ujy, CLIP * noise_ujy)
    # on the image itself: saturated pixels often have no weight, and would be zero in the cutout
    reach = int(np.abs(np.argwhere(inside) - cutout_px // 2).max())
    core = slice(cutout_px // 2 - reach, cutout_px // 2 + reach + 1)
    with np.errstate(invalid="ignore"):
        over = _windows(np.asarray(image >= level), x, y, 2 * reach + 1, False)
    saturated = np.asarray((over & inside[core, core]).any(axis=(1, 2)))
    state = pixel_states(pixels, bad, saturated, noise_ujy=noise_ujy, inside=inside)
    return BandCutouts(in_noise_units(pixels, noise_ujy), bad, state)


def batches(
    info: ShelfInfo, tile: Tile | None, ra_deg: Floats, dec_deg: Floats, *, first_row: int
) -> Iterator[pa.RecordBatch]:
    """Rows of store.cutouts_schema for N sources of one tile (None: of no tile), numbered from `first_row`.

    All N are held in memory, and of the tile one mosaic at a time.
    """
    count, size = len(ra_deg), info.cutout_px
    pixels = np.zeros((count, len(info.bands), size, size), dtype=np.float16)
    bad = np.ones(pixels.shape, dtype=bool)
    state = np.zeros(pixels.shape[:2], dtype=np.int8)
    for b, band in enumerate(info.bands):
        mosaic = tile.mosaics[b] if tile is not None else None
        if mosaic is None:
            continue
        scale = info.pixel_scale_arcsec
        found = band_cutouts(
            mosaic, ra_deg, dec_deg, cutout_px=size, pixel_scale_arcsec=scale, noise_ujy=band.noise_ujy
        )
        pixels[:, b], bad[:, b], state[:, b] = found.pixels, found.bad, found.state
    schema = store.cutouts_schema(len(info.bands), size)
    for start in range(0, count, ROWS_PER_BATCH):
        here = slice(start, min(start + ROWS_PER_BATCH, count))
        flat = bad[here].reshape(here.stop - here.start, -1)
        columns = [
            pa.array(np.arange(first_row + here.start, first_row + here.stop)),
            store.fixed_list(pixels[here].reshape(len(flat), -1)),
            store.fixed_list(np.packbits(flat, axis=1)),
            store.fixed_list(state[here]),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)

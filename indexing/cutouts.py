"""Square cutouts of many sources from the mosaics of a tile: masked at bad pixels and beyond edges, never NaN.

`band_image` reads a mosaic once and makes of each pixel what the shelf stores; a cutout is then a copy of a window.
Centre convention: the source at 0-based (x, y) lies in the pixel (round(x), round(y)), and that pixel is at index
cutout_px // 2 of the cutout in both directions. Nothing is resampled: flux per pixel stays as it was.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import store
from redshelf.indexing.batches import converted
from redshelf.indexing.layout import ShelfInfo
from redshelf.indexing.mosaic import Images, Mosaic, Tile, pixel_positions, stripes
from redshelf.models.bands import DETECTION_SNR, State

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

CLIP = 6e4  # noise units; float16 ends at 65,504
ROWS_PER_BATCH, BATCH_BYTES = 256, 2**24  # at most, whichever is less; of pixels
HELD_BYTES = 2 * 2**30  # of a tile's mosaics; rows of a shelf follow from it, so it does not go by the machine
HELD_BYTES_A_PIXEL = 3  # a float16 and a bool
SOURCES_AT_ONCE = 16_384  # whose apertures are looked at
APERTURE_RADIUS_ARCSEC = 1.0  # the central region that decides a band's state


@dataclass(frozen=True)
class BandImage:
    """One band of a tile, as far as N sources touch it, in a frame of bad pixels that holds every window."""

    pixels: npt.NDArray[np.float16]  # (ny, nx) in units of the band's noise, 0 where bad
    bad: Bools  # (ny, nx)
    first_x: Ints  # (N,) of each source's window
    first_y: Ints
    state: npt.NDArray[np.int8]  # (N,) models.bands.State of the pixels

    def cut(self, rows: slice, cutout_px: int) -> tuple[npt.NDArray[np.float16], Bools]:
        """Pixels and bad, each (M, cutout_px, cutout_px), of the sources at `rows`."""
        at = self.first_y[rows], self.first_x[rows]
        windows, size = np.lib.stride_tricks.sliding_window_view, (cutout_px, cutout_px)
        return windows(self.pixels, size)[at], windows(self.bad, size)[at]


def _corners(position: Floats, size: int, length: int) -> Ints:
    """First index of each window along one axis, at most one window off the image; a NaN position is off it."""
    first = np.floor(np.where(np.isfinite(position), position, -1e9) + 0.5) - size // 2
    return np.asarray(np.clip(first, -size, length), dtype=np.int64)


def bad_pixels(image: Images, weight: Images | None, mask: npt.NDArray[Any] | None) -> Bools:
    """Pixels that hold no measurement: not finite, weight zero, negative or not finite, mask set. Same shape."""
    bad = ~np.isfinite(image)
    if weight is not None:
        bad |= ~(np.isfinite(weight) & (weight > 0))
    if mask is not None:
        bad |= np.asarray(mask, dtype=bool)
    return bad


def in_noise_units(pixels_ujy: npt.NDArray[np.float32], noise_ujy: float) -> npt.NDArray[np.float16]:
    """Pixels as the shelf stores them: divided by the band's noise, clipped at +-60,000, float16."""
    scaled = pixels_ujy * np.float32(1 / noise_ujy)
    np.clip(scaled, -CLIP, CLIP, out=scaled)
    torch: Any = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):  # another thread is importing it
        return scaled.astype(np.float16)
    return np.asarray(converted(torch.from_numpy(scaled), torch.float16).numpy())  # 30 times as fast, the same bits


def aperture(cutout_px: int, pixel_scale_arcsec: float) -> Bools:
    """(cutout_px, cutout_px) True within 1 arcsec of the central pixel, at least that pixel, at most what fits."""
    offset = np.arange(cutout_px) - cutout_px // 2
    radius_px = min(APERTURE_RADIUS_ARCSEC / pixel_scale_arcsec, cutout_px // 2 - 1)
    return np.asarray(np.hypot(offset[:, None], offset) <= radius_px)


def pixel_states(
    pixels_ujy: npt.NDArray[np.float32], bad: Bools, saturated: Bools, *, noise_ujy: float, inside: Bools
) -> npt.NDArray[np.int8]:
    """(N,) state of one band from its pixels (N, H, W), by the aperture `inside` (H, W); `aperture_states` says how."""
    return aperture_states(pixels_ujy[:, inside], bad[:, inside], saturated, noise_ujy=noise_ujy)


def aperture_states(
    pixels_ujy: npt.NDArray[np.float32], bad: Bools, saturated: Bools, *, noise_ujy: float
) -> npt.NDArray[np.int8]:
    """(N,) state of one band from the pixels (N, P) of the aperture, 0 where bad.

    Saturated if `saturated` (N,); else not observed where more than half of the aperture is bad; else measured or not
    detected by the aperture's flux against 3 sigma of white noise in its good pixels.
    """
    count = (~bad).sum(axis=1)
    detected = pixels_ujy.sum(axis=1, dtype=np.float64) >= DETECTION_SNR * noise_ujy * np.sqrt(count)
    state = np.where(detected, State.MEASURED, State.NOT_DETECTED)
    state = np.where(2 * count < bad.shape[1], State.NOT_OBSERVED, state)
    return np.where(saturated, State.SATURATED, state).astype(np.int8)


def _states(
    image: Images, bad: Bools, first_x: Ints, first_y: Ints, *, inside: Bools, noise_ujy: float, level: float
) -> npt.NDArray[np.int8]:
    """(N,) states of sources whose windows begin at `first_x`, `first_y` in an image [uJy], saturated at `level`."""
    out = np.empty(len(first_x), dtype=np.int8)
    rows, columns = (offset[:, None] for offset in np.nonzero(inside))
    for start in range(0, len(out), SOURCES_AT_ONCE):
        some = slice(start, start + SOURCES_AT_ONCE)
        at = first_y[some] + rows, first_x[some] + columns  # (P, M)
        pixels, without = image[at].T, bad[at].T
        # by the image itself: saturated pixels often have no weight, and count as zero in the cutout
        with np.errstate(invalid="ignore"):
            saturated = (pixels >= level).any(axis=1)
        clean = np.where(without, np.float32(0), pixels)
        out[some] = aperture_states(clean, without, saturated, noise_ujy=noise_ujy)
    return out


def band_image(
    mosaic: Mosaic, x: Floats, y: Floats, *, cutout_px: int, pixel_scale_arcsec: float, noise_ujy: float
) -> BandImage | None:
    """The part of a mosaic that sources at 0-based x, y (N,) touch, None if none does; its pixel rows are read once.

    A pixel at or above the survey's saturation level, or clipped, within 1 arcsec of the centre makes the state
    saturated; further out it belongs to a neighbour.
    """
    size, (ny, nx) = cutout_px, mosaic.shape
    first_x, first_y = _corners(x, size, nx), _corners(y, size, ny)
    on_image = (first_x > -size) & (first_x < nx) & (first_y > -size) & (first_y < ny)
    if not on_image.any() or not np.isfinite(noise_ujy):
        return None
    low_x, low_y = max(0, int(first_x[on_image].min())), max(0, int(first_y[on_image].min()))
    high_x = min(nx, int(first_x[on_image].max()) + size)
    high_y = min(ny, int(first_y[on_image].max()) + size)
    shape = high_y - low_y + 2 * size, high_x - low_x + 2 * size
    pixels, bad = np.zeros(shape, dtype=np.float16), np.ones(shape, dtype=bool)
    image = np.full(shape, np.nan, dtype=np.float32)
    for stripe in stripes(mosaic, (low_y, high_y)):
        begin, part = stripe.first - low_y + size, stripe.columns(low_x, high_x)
        here = slice(begin, begin + len(part.image)), slice(size, -size)
        image[here], bad[here] = part.image, bad_pixels(part.image, part.weight, part.mask)
        pixels[here] = in_noise_units(np.where(bad[here], np.float32(0), part.image), noise_ujy)
    # the window of a source that is off the image lies in the frame
    first_x = np.where(on_image, first_x - low_x + size, 0)
    first_y = np.where(on_image, first_y - low_y + size, 0)
    inside = aperture(size, pixel_scale_arcsec)
    level = CLIP * noise_ujy if mosaic.saturation_ujy is None else min(mosaic.saturation_ujy, CLIP * noise_ujy)
    state = _states(image, bad, first_x, first_y, inside=inside, noise_ujy=noise_ujy, level=level)
    return BandImage(pixels, bad, first_x, first_y, state)


def strips(tile: Tile, ra_deg: Floats, dec_deg: Floats) -> Ints:
    """(N,) number of the strip of pixel rows that each source of a tile lies in: strips are so low that `band_images`
    of each stays within HELD_BYTES. All 0 where that holds for the tile as a whole."""
    mosaics = [mosaic for mosaic in tile.mosaics if mosaic is not None]
    row_bytes = sum(HELD_BYTES_A_PIXEL * mosaic.shape[1] for mosaic in mosaics)
    rows = max(1, HELD_BYTES // row_bytes)
    if rows >= max(mosaic.shape[0] for mosaic in mosaics):
        return np.zeros(len(ra_deg), dtype=np.int64)
    _, y = pixel_positions(mosaics[0], ra_deg, dec_deg)
    return np.asarray(np.nan_to_num(np.clip(y, 0, mosaics[0].shape[0] - 1)) // rows, dtype=np.int64)


def band_images(info: ShelfInfo, tile: Tile | None, ra_deg: Floats, dec_deg: Floats) -> list[BandImage | None]:
    """Each band of a tile for N sources, None where it has no pixels of any of them. All are held in memory at once, at
    HELD_BYTES_A_PIXEL, and 4 bytes a pixel more of the one that is being read (8 more if it is compressed)."""
    positions: dict[str, tuple[Floats, Floats]] = {}
    images: list[BandImage | None] = []
    for band, mosaic in zip(info.bands, (None,) * len(info.bands) if tile is None else tile.mosaics, strict=True):
        if mosaic is None:
            images.append(None)
            continue
        if mosaic.grid not in positions:
            positions[mosaic.grid] = pixel_positions(mosaic, ra_deg, dec_deg)
        scale, noise = info.pixel_scale_arcsec, band.noise_ujy
        x, y = positions[mosaic.grid]
        image = band_image(mosaic, x, y, cutout_px=info.cutout_px, pixel_scale_arcsec=scale, noise_ujy=noise)
        images.append(image)
    return images


def batches(
    images: Sequence[BandImage | None], rows: slice, *, cutout_px: int, first_row: int
) -> Iterator[pa.RecordBatch]:
    """Record batches of store.cutouts_schema for the sources at `rows` of `band_images`, numbered from `first_row`."""
    schema = store.cutouts_schema(len(images), cutout_px)
    size = max(1, min(ROWS_PER_BATCH, BATCH_BYTES // (2 * len(images) * cutout_px**2)))
    for start in range(rows.start, rows.stop, size):
        here = slice(start, min(start + size, rows.stop))
        count, row = here.stop - start, first_row + start - rows.start
        pixels = np.zeros((count, len(images), cutout_px, cutout_px), dtype=np.float16)
        bad = np.ones(pixels.shape, dtype=bool)
        state = np.zeros(pixels.shape[:2], dtype=np.int8)  # not observed
        for b, image in enumerate(images):
            if image is not None:
                (pixels[:, b], bad[:, b]), state[:, b] = image.cut(here, cutout_px), image.state[here]
        columns = [
            pa.array(np.arange(row, row + count)),
            store.fixed_list(pixels.reshape(count, -1)),
            store.fixed_list(np.packbits(bad.reshape(count, -1), axis=1)),
            store.fixed_list(state),
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)

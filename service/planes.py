"""Uploaded bytes as images on the survey's pixels: what the process that decodes uploads does (`service/sandbox`).

FITS (an HDU a band, or a cube), plain, gzipped or compressed by tiles, `.npy` and `.npz`. Each image is cut or
resampled around its pixel n // 2, where the source is; of several HDUs with a TAN projection, around where that pixel
of the first lies on the sky. Imports little: numpy, and astropy for compressed tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput, nearest
from redshelf.service import formats, grid, packed
from redshelf.service.formats import Hdu
from redshelf.service.grid import Grid

MAX_EBV = 10.0  # mag
MICROJANSKY = ("ujy", "microjansky", "ujy/pix", "ujy/pixel")
Floats = npt.NDArray[np.float32]
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Frame:
    """What an upload is decoded for: the survey, its bands, and its cutouts of `size` x `size` pixels."""

    survey: str
    band_names: tuple[str, ...]
    size: int
    scale_arcsec: float


@dataclass(frozen=True)
class Said:
    """What the form says of the upload: the bands of its planes, the unit of the pixels, how large they are, and E(B-V)
    in mag; None: nothing, and the file's own words count."""

    bands: tuple[str, ...] | None = None
    unit: str = "uJy"
    scale_arcsec: float | None = None
    ebv: float | None = None


@dataclass(frozen=True)
class Planes:
    """`images` (n, size, size) on the survey's grid, NaN where nothing is known, of the bands `names`; `ebv` in mag."""

    names: tuple[str, ...]
    images: Floats
    ebv: float | None


@dataclass(frozen=True)
class Stored:
    """One image of a file, (..., H, W) numbers as they are stored and what turns a window of them into fluxes."""

    pixels: Array
    physical: Callable[[Array], Floats]
    grid: Grid | None
    band: str | None = None


def _band_of(cards: dict[str, str | float], known: Sequence[str]) -> str | None:
    names = [str(cards[key]).strip() for key in ("BAND", "FILTER", "EXTNAME") if str(cards.get(key, "")).strip()]
    names = [name for name in names if name != "COMPRESSED_IMAGE"]  # how fpack calls what had no name
    alike = [
        band for name in names for band in known if band.lower() == name.lower()
    ]  # astropy writes names in capitals
    usual = alike[0] if len(alike) == 1 else names[0] if names else None
    return next((name for name in names if name in known), usual)


def _plain(image: Array) -> Array:
    while image.ndim > 2 and image.shape[0] == 1:
        image = image[0]  # NAXIS3 = 1 is how some archives write a plain image
    return image


def _floats(raw: Array) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return raw.astype(np.float32)


def _of_hdu(blob: bytes, hdu: Hdu, room: int) -> tuple[Array, Callable[[Array], Floats]] | None:
    if packed.is_tiled(hdu):
        return packed.tiled_image(blob, hdu, room), _floats
    raw = formats.raw_image(blob, hdu)
    return None if raw is None else (raw, lambda window: formats.physical(window, hdu))


def _from_fits(blob: bytes, frame: Frame, unit: str) -> tuple[list[Stored], str | float]:
    """The images of a FITS file, and the first EBV card or ''."""
    images: list[Stored] = []
    ebv: str | float = ""
    room = formats.MAX_UNPACKED_BYTES
    for hdu in formats.hdus(blob):
        ebv = hdu.cards.get("EBV", "") if ebv == "" else ebv
        found = _of_hdu(blob, hdu, room)
        if found is None:
            continue
        raw, physical = found
        room -= raw.nbytes if packed.is_tiled(hdu) else 0
        written = str(hdu.cards.get("BUNIT", "")).strip()
        if unit == "uJy" and written and written.lower().replace("μ", "u") not in MICROJANSKY:
            raise BadInput(f"BUNIT={written!r}: expected pixels in uJy; convert them")
        images.append(Stored(_plain(raw), physical, grid.from_cards(hdu.cards), _band_of(hdu.cards, frame.band_names)))
    if not images:
        raise BadInput("the FITS file holds no image")
    return images, ebv


def _of_cube(cube: Stored, names: tuple[str, ...] | None) -> list[Stored]:
    if names is None:
        raise BadInput("a cube or array needs its band names: the form field `bands`, or `bands` in the .npz")
    pixels = cube.pixels
    if pixels.dtype.kind not in "fiu":
        raise BadInput(f"the array is of type {pixels.dtype}: expected numbers")
    planes = pixels[None] if pixels.ndim == 2 else pixels
    if planes.ndim != 3 or len(planes) != len(names):
        raise BadInput(f"an array of shape {pixels.shape} for bands {', '.join(names)}: expected ({len(names)}, H, W)")
    return [Stored(plane, cube.physical, cube.grid, name) for plane, name in zip(planes, names, strict=True)]


def _of_hdus(images: list[Stored], names: tuple[str, ...] | None, scaled: bool) -> list[Stored]:
    shapes = {f"{image.pixels.shape[-1]} x {image.pixels.shape[-2]}" for image in images}
    gridless = not scaled and any(image.grid is None for image in images)
    if any(image.pixels.ndim != 2 for image in images) or (gridless and len(shapes) > 1):
        raise BadInput(
            f"image HDUs of {' and '.join(sorted(shapes))}: expected one cube, or one plain image a band, all alike or "
            "each with its WCS"
        )
    if names is None:
        for at, image in enumerate(images):
            if image.band is None:
                raise BadInput(f"image HDU {at} does not name its band: expected BAND, FILTER or EXTNAME")
        return images
    if len(names) != len(images):
        raise BadInput(f"{len(images)} image HDUs for bands {', '.join(names)}: expected {len(names)}")
    return [Stored(one.pixels, one.physical, one.grid, name) for one, name in zip(images, names, strict=True)]


def _stored(blob: bytes, frame: Frame, said: Said) -> tuple[list[Stored], str | float]:
    """The images of an upload, each with its band, and what it says of the reddening."""
    inside = packed.gunzip(blob) if blob.startswith(packed.GZIP) else blob
    if inside.startswith(b"SIMPLE  ="):
        images, ebv = _from_fits(inside, frame, said.unit)
        if len(images) == 1 and images[0].pixels.ndim != 2:
            return _of_cube(images[0], said.bands), ebv
        return _of_hdus(images, said.bands, said.scale_arcsec is not None), ebv
    if inside is not blob:
        raise BadInput("the upload is gzip-compressed and no FITS: send it unpacked")
    names = said.bands
    if blob.startswith(b"\x93NUMPY"):
        array = formats.npy(blob)
    elif blob.startswith(b"PK\x03\x04"):
        array, names = formats.npz(blob, names)
    else:
        raise BadInput("the upload is no image: expected FITS, .npy or .npz")
    return _of_cube(Stored(array, _floats, None), names), ""


def _reddening(given: str | float) -> float | None:
    """E(B-V) as it was given, None for ''."""
    if given == "":
        return None
    if isinstance(given, str) or not 0 <= given <= MAX_EBV:
        raise BadInput(f"ebv={given}: expected 0 to {MAX_EBV:g} mag")
    return float(given)


def _check_names(names: Sequence[str], frame: Frame) -> None:
    for i, name in enumerate(names):
        if name not in frame.band_names:
            raise BadInput(f"band {name!r} is not in survey {frame.survey}; {nearest(name, frame.band_names)}")
        if name in names[:i]:
            raise BadInput(f"band {name!r} stands twice")


def _window(image: Stored, centre: tuple[float, float], reach: int) -> tuple[Array, tuple[float, float]]:
    """The pixels within `reach` of the centre, and the centre among them."""
    spans = []
    for place, length in zip(centre, image.pixels.shape[::-1], strict=True):
        first = min(max(0, round(place) - reach), length)
        spans.append((first, max(first, min(length, round(place) + reach + 1))))
    (left, right), (top, bottom) = spans
    return image.pixels[top:bottom, left:right], (centre[0] - left, centre[1] - top)


def _copied(image: Floats, centre: tuple[float, float], size: int) -> Floats:
    """`size` x `size` pixels with the one nearest to the centre at size // 2, NaN beyond the image."""
    out = np.full((size, size), np.nan, dtype=np.float32)
    x, y = (round(place) - size // 2 for place in centre)
    part = image[max(0, y) : max(0, y + size), max(0, x) : max(0, x + size)]
    out[max(0, -y) : max(0, -y) + part.shape[0], max(0, -x) : max(0, -x) + part.shape[1]] = part
    return out


def _on_frame(image: Stored, frame: Frame, scale_arcsec: float | None, sky: tuple[float, float] | None) -> Floats:
    """One image on the survey's grid, (size, size); `sky`: RA and Dec in radians of the source, None: at n // 2."""
    size, (height, width) = frame.size, image.pixels.shape
    lies = image.grid if scale_arcsec is None else grid.plain(scale_arcsec)
    lies = grid.plain(frame.scale_arcsec) if lies is None else lies
    centre = width // 2, height // 2
    if sky is not None and lies.at is not None:
        centre = lies.pixel(*sky)
        if not (0 <= centre[0] < width and 0 <= centre[1] < height):
            raise BadInput(f"band {image.band!r} does not show the place that the first band is centred on")
    way = grid.resampling(lies, centre, size, frame.scale_arcsec)
    if way.same:
        if min(height, width) < size:
            raise BadInput(f"a cutout of {width} x {height} pixels: expected at least {size} x {size}")
    elif min(np.hypot(*lies.matrix) * (width, height)) < (size - 1) * frame.scale_arcsec:
        raise BadInput(
            f"a cutout of {width} x {height} pixels of {lies.scale_arcsec:g} arcsec: expected at least "
            f"{size * frame.scale_arcsec:g} arcsec to each side"
        )
    part, middle = _window(image, centre, way.reach)
    part = image.physical(part)
    if way.same:
        return _copied(part, middle, size)
    return grid.Resampling(way.step, middle, size).apply(part)


def _places(images: Sequence[Stored], scale_arcsec: float | None) -> Iterator[tuple[float, float] | None]:
    """Where on the sky the source is, for each image; None where only its own middle tells."""
    first = images[0]
    known = scale_arcsec is None and len(images) > 1 and first.grid is not None and first.grid.at is not None
    sky = first.grid.sky(first.pixels.shape[1] // 2, first.pixels.shape[0] // 2) if known and first.grid else None
    yield None
    for _ in images[1:]:
        yield sky


def decode(blob: bytes, frame: Frame, said: Said) -> Planes:
    """The images of an upload on the survey's grid. Raises `BadInput` for everything that is none: no image, a foreign
    band, too small a cutout, pixels of a size that is not the survey's by far, a reddening out of range."""
    if said.scale_arcsec is not None and not 0 < said.scale_arcsec < math.inf:
        raise BadInput(f"pixel_scale_arcsec={said.scale_arcsec}: expected a positive number")
    images, card = _stored(blob, frame, said)
    names = tuple(image.band or "" for image in images)
    _check_names(names, frame)
    with np.errstate(all="ignore"):  # of headers with numbers that are none of an image
        places = _places(images, said.scale_arcsec)
        planes = [_on_frame(one, frame, said.scale_arcsec, sky) for one, sky in zip(images, places, strict=True)]
    return Planes(names, np.stack(planes), _reddening(card if said.ebv is None else said.ebv))

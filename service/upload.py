"""An uploaded cutout as one source of the survey: FITS, .npy or .npz bytes become pixels in its bands and units.

Nothing here trusts the bytes: sizes are checked in the headers against what was sent before any pixel is touched,
nothing is unpickled, and compressed FITS is refused (11 kB of it can become a gigabyte). torch waits for `embed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from redshelf.indexing import cutouts
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, nearest
from redshelf.service import formats
from redshelf.service.shelf import OpenEncoder, OpenShelf
from redshelf.service.stages import timed

MAX_EBV = 10.0  # mag
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cutout:
    """One uploaded source on the survey's bands: `pixels` (B, H, W) in noise units, `mask` True = bad, `state` (B,)."""

    pixels: Floats
    mask: npt.NDArray[np.bool_]
    state: npt.NDArray[np.int8]
    bands_missing: tuple[str, ...]  # bands of the survey that were not sent, or are bad at the source
    ebv: float | None  # Galactic reddening in mag, None where nobody said


def _band_of(cards: dict[str, str | float], known: Sequence[str]) -> str | None:
    names = [str(cards[key]).strip() for key in ("BAND", "FILTER", "EXTNAME") if str(cards.get(key, "")).strip()]
    return next((name for name in names if name in known), names[0] if names else None)


def _from_fits(
    blob: bytes, bands: tuple[str, ...] | None, info: ShelfInfo, unit: str
) -> tuple[Floats, tuple[str, ...] | None, str | float]:
    """(images, their bands, the first EBV card or ''): an image HDU a band, or one cube."""
    images, found, shapes = [], [], set()
    ebv: str | float = ""
    for hdu in formats.hdus(blob):
        ebv = hdu.cards.get("EBV", "") if ebv == "" else ebv
        image = formats.fits_image(blob, hdu, info.cutout_px)
        if image is None:
            continue
        written = str(hdu.cards.get("BUNIT", "")).strip()
        if (
            unit == "uJy"
            and written
            and written.lower().replace("μ", "u") not in ("ujy", "microjansky", "ujy/pix", "ujy/pixel")
        ):
            raise BadInput(f"BUNIT={written!r}: expected pixels in uJy; convert them")
        images.append(image)
        found.append(_band_of(hdu.cards, info.band_names))
        shapes.add(f"{hdu.shape[-1]} x {hdu.shape[-2]}")
    if not images:
        raise BadInput("the FITS file holds no image")
    if len(images) == 1 and images[0].ndim == 3:
        return images[0], bands, ebv
    if len(shapes) > 1 or any(image.ndim != 2 for image in images):
        raise BadInput(
            f"image HDUs of {' and '.join(sorted(shapes))}: expected one cube, or one plain image a band, all alike"
        )
    if bands is None:
        if None in found:
            raise BadInput(f"image HDU {found.index(None)} does not name its band: expected BAND, FILTER or EXTNAME")
        bands = tuple(name for name in found if name is not None)
    return np.stack(images), bands, ebv


def _reddening(given: str | float) -> float | None:
    """E(B-V) as it was given, None for ''."""
    if given == "":
        return None
    if isinstance(given, str) or not 0 <= given <= MAX_EBV:
        raise BadInput(f"ebv={given}: expected 0 to {MAX_EBV:g} mag")
    return float(given)


@timed("decode")
def read(
    blob: bytes,
    info: ShelfInfo,
    *,
    bands: tuple[str, ...] | None = None,
    unit: Literal["uJy", "noise"] = "uJy",
    ebv: float | None = None,
) -> Cutout:
    """A cutout of this survey from the bytes of a FITS file, an .npy or an .npz.

    `bands` names the planes of an array or cube; `ebv` (mag) is by default the EBV card of a FITS header. A cutout
    larger than the survey's is cut to its centre. Pixels that are not finite are masked. Raises `BadInput` for
    everything else: no image, a foreign band, too few pixels, a reddening out of range.
    """
    if not info.has_images:
        raise BadInput(f"survey {info.survey} has no images: it cannot be searched with a cutout")
    card: str | float = ""
    if blob.startswith(b"SIMPLE  ="):
        values, names, card = _from_fits(blob, bands, info, unit)
    elif blob.startswith(b"\x93NUMPY"):
        values, names = formats.npy(blob), bands
    elif blob.startswith(b"PK\x03\x04"):
        values, names = formats.npz(blob, bands)
    elif blob.startswith(b"\x1f\x8b"):
        raise BadInput("the upload is gzip-compressed: send it unpacked")
    else:
        raise BadInput("the upload is no image: expected FITS, .npy or .npz")
    if names is None:
        raise BadInput("a cube or array needs its band names: the form field `bands`, or `bands` in the .npz")
    if values.dtype.kind not in "fiu":
        raise BadInput(f"the array is of type {values.dtype}: expected numbers")
    images = values[None] if values.ndim == 2 else values
    if images.ndim != 3 or len(images) != len(names):
        raise BadInput(f"an array of shape {values.shape} for bands {', '.join(names)}: expected ({len(names)}, H, W)")
    return _on_survey(images, names, info, unit, _reddening(card if ebv is None else ebv))


def _on_survey(
    images: npt.NDArray[Any], names: tuple[str, ...], info: ShelfInfo, unit: str, ebv: float | None
) -> Cutout:
    for i, name in enumerate(names):
        if name not in info.band_names:
            raise BadInput(f"band {name!r} is not in survey {info.survey}; {nearest(name, info.band_names)}")
        if name in names[:i]:
            raise BadInput(f"band {name!r} stands twice")
    size = info.cutout_px
    if min(images.shape[1:]) < size:
        raise BadInput(f"a cutout of {images.shape[2]} x {images.shape[1]} pixels: expected at least {size} x {size}")
    inside = cutouts.aperture(size, info.pixel_scale_arcsec)
    shape = (len(info.bands), size, size)
    pixels, mask = np.zeros(shape, np.float32), np.ones(shape, bool)
    state = np.full(len(info.bands), State.NOT_OBSERVED, np.int8)
    for name, image in zip(names, formats.central(images, size), strict=True):
        at = info.band_names.index(name)
        if not math.isfinite(info.bands[at].noise_ujy):
            raise BadInput(f"band {name!r} has no images in survey {info.survey}")
        noise = info.bands[at].noise_ujy if unit == "uJy" else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            values = image.astype(np.float32)
            mask[at] = ~np.isfinite(values)
            values = np.where(mask[at], np.float32(0), values)
            pixels[at] = cutouts.in_noise_units(values, noise)
        saturated = np.array([(pixels[at][inside] >= cutouts.CLIP).any()])
        state[at] = cutouts.pixel_states(values[None], mask[at][None], saturated, noise_ujy=noise, inside=inside)[0]
    missing = tuple(name for name, known in zip(info.band_names, state, strict=True) if known == State.NOT_OBSERVED)
    if len(missing) == len(info.bands):
        raise BadInput("no band of the cutout has finite pixels around its centre")
    return Cutout(pixels, mask, state, missing, ebv)


def pixel_encoder(shelf: OpenShelf, name: str | None) -> OpenEncoder:
    """The encoder that embeds an upload: `name`, else the default one, or the first that needs pixels alone."""
    able = [encoder.name for encoder in shelf.encoders.values() if encoder.published.needs == ["pixels"]]
    if name is None:
        if not able:
            raise BadInput("no encoder here works on pixels alone: this shelf cannot be searched with a cutout")
        default = shelf.generation.default_encoder
        return shelf.encoder(default if default in able else able[0])
    chosen = shelf.encoder(name)
    if chosen.name not in able:
        needs = ", ".join(chosen.published.needs)
        raise BadInput(f"encoder {name!r} needs {needs}, and a cutout has pixels alone; {nearest(name, able)}")
    return chosen


@timed("encode")
def embed(shelf: OpenShelf, encoder: OpenEncoder, cutout: Cutout) -> Floats:
    """The vector of an uploaded cutout, (dim,). One of unknown reddening is taken to have that of most sources: what an
    encoder has always been told, it should be told here too."""
    import torch

    from redshelf.models.encoder import Batch

    model, info = encoder.model(), shelf.info
    ebv = shelf.usual_ebv if cutout.ebv is None else cutout.ebv
    chosen = [info.band_names.index(band) for band in model.bands]
    bands = [info.bands[i] for i in chosen]
    batch = Batch(
        state=torch.from_numpy(cutout.state[chosen][None]),
        pixels=torch.from_numpy(cutout.pixels[chosen][None]),
        pixel_mask=torch.from_numpy(cutout.mask[chosen][None]),
        depth_ab=torch.tensor([band.depth_ab for band in bands], dtype=torch.float32),
        psf_fwhm_arcsec=torch.tensor([band.psf_fwhm_arcsec for band in bands], dtype=torch.float32),
        ebv=torch.tensor([ebv], dtype=torch.float32),
    )
    with torch.inference_mode():
        return np.asarray(model.embed(batch)[0].numpy(), dtype=np.float32)

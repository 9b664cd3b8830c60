"""An uploaded cutout as one source of the survey: its bytes become pixels in the survey's bands, units and grid.

The bytes are not trusted: `service/planes` reads them, in a server in a process of its own (`service/sandbox`). What it
gives are plain arrays, of which this makes what the shelf holds of its own sources. torch waits for `embed`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from redshelf.indexing import cutouts
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, nearest
from redshelf.service import planes
from redshelf.service.planes import Frame, Planes, Said
from redshelf.service.stages import timed

if TYPE_CHECKING:
    from redshelf.service.shelf import OpenEncoder, OpenShelf

MAX_EBV = planes.MAX_EBV
FLUXES_DIFFER = (
    "the fluxes of this survey are its catalogue's, and those that could be measured on a cutout are of another "
    "photometric system, which biases redshifts by about 0.07"
)
Floats = npt.NDArray[np.float32]
Unit = Literal["uJy", "noise"]


@dataclass(frozen=True)
class Cutout:
    """One uploaded source on the survey's bands: `pixels` (B, H, W) in noise units, `mask` True = bad, `state` (B,)."""

    pixels: Floats
    mask: npt.NDArray[np.bool_]
    state: npt.NDArray[np.int8]
    bands_missing: tuple[str, ...]  # bands of the survey that were not sent, or are bad at the source
    ebv: float | None  # Galactic reddening in mag, None where nobody said


def frame_of(info: ShelfInfo) -> Frame:
    """What uploads are decoded for; `BadInput` where the survey has no images."""
    if not info.has_images:
        raise BadInput(f"survey {info.survey} has no images: it cannot be searched with a cutout")
    return Frame(info.survey, info.band_names, info.cutout_px, info.pixel_scale_arcsec)


def read(
    blob: bytes,
    info: ShelfInfo,
    *,
    bands: tuple[str, ...] | None = None,
    unit: Unit = "uJy",
    scale_arcsec: float | None = None,
    ebv: float | None = None,
) -> Cutout:
    """A cutout of this survey from the bytes of a FITS file (plain, gzipped or compressed by tiles), an .npy or an
    .npz, decoded in this process.

    `bands` names the planes of an array or cube; `scale_arcsec` is by default that of a FITS header's WCS, else the
    survey's; `ebv` (mag) the EBV card of a FITS header. A cutout of other pixels is resampled, one larger than the
    survey's cut around its pixel n // 2. Pixels that are not finite are masked. Raises `BadInput` for everything else:
    no image, a foreign band, too few pixels, a reddening out of range.
    """
    said = Said(bands=bands, unit=unit, scale_arcsec=scale_arcsec, ebv=ebv)
    return on_survey(timed("decode")(planes.decode)(blob, frame_of(info), said), info, unit)


def on_survey(decoded: Planes, info: ShelfInfo, unit: str) -> Cutout:
    """Decoded images in the survey's order of bands and in units of their noise, each with its state."""
    size = info.cutout_px
    inside = cutouts.aperture(size, info.pixel_scale_arcsec)
    shape = (len(info.bands), size, size)
    pixels, mask = np.zeros(shape, np.float32), np.ones(shape, bool)
    state = np.full(len(info.bands), State.NOT_OBSERVED, np.int8)
    for name, values in zip(decoded.names, decoded.images, strict=True):
        at = info.band_names.index(name)
        if not math.isfinite(info.bands[at].noise_ujy):
            raise BadInput(f"band {name!r} has no images in survey {info.survey}")
        noise = info.bands[at].noise_ujy if unit == "uJy" else 1.0
        with np.errstate(over="ignore", invalid="ignore"):
            mask[at] = ~np.isfinite(values)
            clean = np.where(mask[at], np.float32(0), values)
            pixels[at] = cutouts.in_noise_units(clean, noise)
        saturated = np.array([(pixels[at][inside] >= cutouts.CLIP).any()])
        state[at] = cutouts.pixel_states(clean[None], mask[at][None], saturated, noise_ujy=noise, inside=inside)[0]
    missing = tuple(name for name, known in zip(info.band_names, state, strict=True) if known == State.NOT_OBSERVED)
    if len(missing) == len(info.bands):
        raise BadInput("no band of the cutout has finite pixels around its centre")
    return Cutout(pixels, mask, state, missing, decoded.ebv)


def pixel_encoders(shelf: OpenShelf) -> list[str]:
    """The encoders that an upload can be compared by, the one that is taken by default first."""
    return shelf.default_first(name for name, one in shelf.encoders.items() if one.published.needs == ["pixels"])


def pixel_encoder(shelf: OpenShelf, name: str | None) -> OpenEncoder:
    """The encoder that embeds an upload: `name`, else the default one, or the first that needs pixels alone.

    `BadInput` for one that needs fluxes, or a fit on one: this survey's are not measured by a function that could be
    put to a cutout.
    """
    able = pixel_encoders(shelf)
    if name is None:
        if not able:
            raise BadInput("no encoder here works on pixels alone: this shelf cannot be searched with a cutout")
        return shelf.encoder(able[0])
    parts = [part for part in name.replace(" ", "+").split("+") if part in shelf.encoders]
    unable = [part for part in parts if part not in able]
    if unable and (name in shelf.encoders or "+".join(parts) in {**shelf.redshifts, **shelf.unreadable}):
        needs = ", ".join(shelf.encoders[unable[0]].published.needs)
        raise BadInput(
            f"encoder {unable[0]!r} needs {needs}, and a cutout has pixels alone: {FLUXES_DIFFER}; "
            f"{nearest(name, able)}"
        )
    return shelf.encoder(name)


def embed_all(encoder: OpenEncoder, info: ShelfInfo, cutouts: Sequence[Cutout], usual_ebv: float) -> Floats:
    """The vectors of uploaded cutouts, (N, dim). One of unknown reddening is taken to have `usual_ebv`, that of most
    sources: what an encoder has always been told, it should be told here too."""
    import torch

    from redshelf.models.encoder import Batch

    model = encoder.model()
    chosen = [info.band_names.index(band) for band in model.bands]
    bands = [info.bands[i] for i in chosen]
    ebv = [usual_ebv if cutout.ebv is None else cutout.ebv for cutout in cutouts]
    batch = Batch(
        state=torch.from_numpy(np.stack([cutout.state[chosen] for cutout in cutouts])),
        pixels=torch.from_numpy(np.stack([cutout.pixels[chosen] for cutout in cutouts])),
        pixel_mask=torch.from_numpy(np.stack([cutout.mask[chosen] for cutout in cutouts])),
        depth_ab=torch.tensor([band.depth_ab for band in bands], dtype=torch.float32),
        psf_fwhm_arcsec=torch.tensor([band.psf_fwhm_arcsec for band in bands], dtype=torch.float32),
        ebv=torch.tensor(ebv, dtype=torch.float32),
    )
    with torch.inference_mode():
        return np.asarray(model.embed(batch).numpy(), dtype=np.float32)


@timed("encode")
def embed(shelf: OpenShelf, encoder: OpenEncoder, cutout: Cutout) -> Floats:
    """The vector of one, (dim,)."""
    return np.asarray(embed_all(encoder, shelf.info, [cutout], shelf.usual_ebv)[0])

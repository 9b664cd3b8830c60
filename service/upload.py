"""An uploaded cutout as one source of the survey: FITS, .npy or .npz bytes become pixels in its bands and units.

Nothing here trusts the bytes: sizes are checked in the headers against what was sent before any pixel is touched,
nothing is unpickled, and compressed FITS is refused (11 kB of it can become a gigabyte). torch waits for `embed`.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from redshelf.indexing import cutouts
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import State
from redshelf.models.errors import BadInput, nearest
from redshelf.service.shelf import OpenEncoder, OpenShelf

FITS_BLOCK, FITS_CARD = 2880, 80
MAX_HEADER_BLOCKS, MAX_HDUS = 64, 256
MAX_NPY_HEADER = 4096
MAX_EBV = 10.0  # mag
MAX_UNPACKED_BYTES = 128 << 20  # of all members of an .npz together
END_CARD = b"END".ljust(FITS_CARD)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Cutout:
    """One uploaded source on the survey's bands: `pixels` (B, H, W) in noise units, `mask` True = bad, `state` (B,)."""

    pixels: Floats
    mask: npt.NDArray[np.bool_]
    state: npt.NDArray[np.int8]
    bands_missing: tuple[str, ...]  # bands of the survey that were not sent, or are bad at the source
    ebv: float | None  # Galactic reddening in mag, None where nobody said


@dataclass(frozen=True)
class _Hdu:
    """One HDU as its header tells: `shape` in numpy's order, `start` of its data in the file."""

    cards: dict[str, str | float]
    shape: tuple[int, ...]
    bits: int
    start: int
    scale: float
    zero: float
    blank: int | None


def _value(text: str) -> str | float:
    """The value of a FITS card: text, number, or T / F as text; '' for none."""
    text = text.strip()
    if text.startswith("'"):
        quoted = re.match(r"'((?:[^']|'')*)'", text)
        return quoted[1].replace("''", "'").rstrip() if quoted else ""
    word = text.partition("/")[0].strip()
    try:
        return int(word)
    except ValueError:
        pass
    try:
        return float(word.replace("D", "E"))
    except ValueError:
        return word


def _hdus(blob: bytes) -> Iterator[_Hdu]:
    """Every HDU, from the headers alone. Read here and not by astropy, which warns through a global and reserves
    whatever memory a header asks for."""
    offset, count = 0, 0
    while blob.startswith((b"SIMPLE  =", b"XTENSION="), offset):  # the standard allows other bytes after the last HDU
        if count == MAX_HDUS:
            raise BadInput(f"the FITS file has more than {MAX_HDUS} HDUs")
        limit = min(len(blob), offset + MAX_HEADER_BLOCKS * FITS_BLOCK)
        end = next((at for at in range(offset, limit, FITS_CARD) if blob.startswith(END_CARD, at)), None)
        if end is None:
            raise BadInput(f"FITS HDU {count}: no END card within {MAX_HEADER_BLOCKS} blocks: damaged or too long")
        lines = (blob[at : at + FITS_CARD].decode("latin-1") for at in range(offset, end, FITS_CARD))
        cards = {line[:8].rstrip(): _value(line[10:]) for line in lines if line[8:10] == "= "}
        start = offset + -(-(end + FITS_CARD - offset) // FITS_BLOCK) * FITS_BLOCK
        try:
            shape = tuple(int(cards[f"NAXIS{i}"]) for i in range(int(cards["NAXIS"]), 0, -1))
            bits, groups, heap = int(cards["BITPIX"]), int(cards.get("GCOUNT", 1)), int(cards.get("PCOUNT", 0))
            scale, zero = float(cards.get("BSCALE", 1)), float(cards.get("BZERO", 0))
            blank = int(cards["BLANK"]) if "BLANK" in cards else None
        except (KeyError, ValueError, OverflowError) as error:
            raise BadInput(f"FITS HDU {count}: not a valid header: {error}") from error
        size = abs(bits) // 8 * groups * (heap + (math.prod(shape) if shape else 0))
        if min(*shape, groups, heap, 0) < 0 or size > max(0, len(blob) - start):
            raise BadInput(f"FITS HDU {count}: its header tells of {size} bytes of data: the file is truncated")
        yield _Hdu(cards, shape, bits, start, scale, zero, blank)
        offset = start + -(-size // FITS_BLOCK) * FITS_BLOCK
        count += 1


def _fits_image(blob: bytes, hdu: _Hdu, size: int) -> Floats | None:
    """The central pixels of an image HDU, (..., H, W) float32, blanks as NaN; None for a table or an empty HDU."""
    if "ZIMAGE" in hdu.cards or "ZCMPTYPE" in hdu.cards:
        raise BadInput("the FITS image is tile-compressed: send it uncompressed (funpack)")
    if len(hdu.shape) < 2 or hdu.cards.get("XTENSION", "IMAGE") != "IMAGE":
        return None
    kinds = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    if hdu.bits not in kinds:
        raise BadInput(f"FITS BITPIX={hdu.bits}: expected one of {', '.join(map(str, kinds))}")
    raw = np.frombuffer(blob, dtype=kinds[hdu.bits], count=math.prod(hdu.shape), offset=hdu.start)
    raw = _central(raw.reshape(hdu.shape), size)  # before it is widened: bytes become doubles
    with np.errstate(over="ignore", invalid="ignore"):
        image = (raw.astype(np.float64) * hdu.scale + hdu.zero).astype(np.float32)
    if hdu.blank is not None and raw.dtype.kind in "iu":
        image[raw == hdu.blank] = np.nan
    while image.ndim > 2 and image.shape[0] == 1:
        image = image[0]  # NAXIS3 = 1 is how some archives write a plain image
    return image


def _band_of(cards: dict[str, str | float], known: Sequence[str]) -> str | None:
    names = [str(cards[key]).strip() for key in ("BAND", "FILTER", "EXTNAME") if str(cards.get(key, "")).strip()]
    return next((name for name in names if name in known), names[0] if names else None)


def _from_fits(
    blob: bytes, bands: tuple[str, ...] | None, info: ShelfInfo, unit: str
) -> tuple[Floats, tuple[str, ...] | None, str | float]:
    """(images, their bands, the first EBV card or ''): an image HDU a band, or one cube."""
    images, found, shapes = [], [], set()
    ebv: str | float = ""
    for hdu in _hdus(blob):
        ebv = hdu.cards.get("EBV", "") if ebv == "" else ebv
        image = _fits_image(blob, hdu, info.cutout_px)
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


def _npy(blob: bytes) -> npt.NDArray[Any]:
    """The array in the bytes of an .npy, without unpickling and without room for more than was sent."""
    width = 2 if blob[6:7] == b"\x01" else 4
    start = 8 + width + int.from_bytes(blob[8 : 8 + width], "little")
    try:
        if not blob.startswith(b"\x93NUMPY") or start > min(len(blob), MAX_NPY_HEADER):
            raise ValueError("its header has no end")
        header = ast.literal_eval(blob[8 + width : start].decode("latin-1").strip())
        kind, by_column, shape = header["descr"], header["fortran_order"], tuple(header["shape"])
        if not all(isinstance(n, int) and n >= 0 for n in shape):
            raise ValueError(f"its shape is {shape}")
    except (ValueError, SyntaxError, TypeError, KeyError, RecursionError, MemoryError) as error:
        raise BadInput(f"not a valid .npy: {error}") from error
    if not isinstance(kind, str) or not re.fullmatch(r"[<>|=]?[fiuUS]\d{1,4}", kind):
        raise BadInput(f".npy of type {str(kind)[:80]}: expected numbers")
    try:
        dtype = np.dtype(kind)
    except TypeError as error:
        raise BadInput(f".npy of type {kind}: {error}") from error
    size = math.prod(shape)
    if size * dtype.itemsize != len(blob) - start or not dtype.itemsize:
        raise BadInput(f".npy of shape {shape}: its data has {len(blob) - start} bytes: damaged")
    return np.frombuffer(blob, dtype, size, start).reshape(shape, order="F" if by_column else "C")


def _from_npz(blob: bytes, bands: tuple[str, ...] | None) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    """The one image array of an .npz, and its `bands` array."""
    try:
        with zipfile.ZipFile(BytesIO(blob)) as archive:
            unpacked = sum(member.file_size for member in archive.infolist())
            if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in archive.infolist()):
                raise ValueError("numpy writes stored or deflated members only")
            members = archive.infolist() if unpacked <= MAX_UNPACKED_BYTES else []
            contents = {member.filename.removesuffix(".npy"): archive.read(member) for member in members}
    except (zipfile.BadZipFile, zlib.error, struct.error, ValueError, RuntimeError, EOFError, OSError) as error:
        raise BadInput(f"not a valid .npz: {error}") from error
    if unpacked > MAX_UNPACKED_BYTES:
        raise BadInput(f"the .npz unpacks to more than {MAX_UNPACKED_BYTES} bytes")
    arrays = {name: _npy(content) for name, content in contents.items()}
    written = arrays.pop("bands", None)
    if len(arrays) != 1:
        raise BadInput(f"the .npz holds {', '.join(sorted(arrays)) or 'nothing'} beside `bands`: expected one array")
    if written is not None and bands is None:
        bands = tuple(
            name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in written.ravel()
        )
    return next(iter(arrays.values())), bands


def _central(image: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """The central `size` x `size` pixels, what there is of a smaller image; pixel n//2 of each axis goes to size//2,
    as ingest centres its sources."""
    top, left = (max(0, n // 2 - size // 2) for n in image.shape[-2:])
    return image[..., top : top + size, left : left + size]


def _reddening(given: str | float) -> float | None:
    """E(B-V) as it was given, None for ''."""
    if given == "":
        return None
    if isinstance(given, str) or not 0 <= given <= MAX_EBV:
        raise BadInput(f"ebv={given}: expected 0 to {MAX_EBV:g} mag")
    return float(given)


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
        values, names = _npy(blob), bands
    elif blob.startswith(b"PK\x03\x04"):
        values, names = _from_npz(blob, bands)
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
    for name, image in zip(names, _central(images, size), strict=True):
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


def _usual_ebv(shelf: OpenShelf) -> float:
    """The median E(B-V) of the shelf's sources, NaN where none is known."""
    known = shelf.columns["ebv"][np.isfinite(shelf.columns["ebv"])]
    return float(np.median(known)) if len(known) else math.nan


def embed(shelf: OpenShelf, encoder: OpenEncoder, cutout: Cutout) -> Floats:
    """The vector of an uploaded cutout, (dim,). One of unknown reddening is taken to have that of most sources: what an
    encoder has always been told, it should be told here too."""
    import torch

    from redshelf.models.encoder import Batch

    model, info = encoder.model(), shelf.info
    ebv = _usual_ebv(shelf) if cutout.ebv is None else cutout.ebv
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

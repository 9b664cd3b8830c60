"""Untrusted bytes to arrays: FITS headers and images, .npy and .npz, by their sizes before their content.

Nothing is unpickled, nothing is unpacked beyond a limit, and no header makes room for more than was sent. What is
compressed within a FITS file, or around it, is for `service/packed`.
"""

from __future__ import annotations

import ast
import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

FITS_BLOCK, FITS_CARD = 2880, 80
MAX_HEADER_BLOCKS, MAX_HDUS = 64, 256
MAX_NPY_HEADER, MAX_MEMBERS = 4096, 64
MAX_UNPACKED_BYTES = 64 << 20  # of a whole upload: 11 bands of 1,200 x 1,200 pixels in float32
END_CARD = b"END".ljust(FITS_CARD)
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Hdu:
    """One HDU as its header tells: `shape` in numpy's order; it is at `first` to `past` in the file, its data from
    `start`."""

    cards: dict[str, str | float]
    shape: tuple[int, ...]
    bits: int
    first: int
    start: int
    past: int
    scale: float
    zero: float
    blank: int | None


def value(text: str) -> str | float:
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


def hdus(blob: bytes) -> Iterator[Hdu]:
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
        cards = {line[:8].rstrip(): value(line[10:]) for line in lines if line[8:10] == "= "}
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
        past = start + -(-size // FITS_BLOCK) * FITS_BLOCK
        yield Hdu(cards, shape, bits, offset, start, past, scale, zero, blank)
        offset = past
        count += 1


def raw_image(blob: bytes, hdu: Hdu) -> npt.NDArray[Any] | None:
    """The stored numbers of an image HDU as they lie in the bytes; None for a table or an empty HDU."""
    if len(hdu.shape) < 2 or hdu.cards.get("XTENSION", "IMAGE") != "IMAGE":
        return None
    kinds = {8: ">u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
    if hdu.bits not in kinds:
        raise BadInput(f"FITS BITPIX={hdu.bits}: expected one of {', '.join(map(str, kinds))}")
    raw = np.frombuffer(blob, dtype=kinds[hdu.bits], count=math.prod(hdu.shape), offset=hdu.start)
    return raw.reshape(hdu.shape)


def physical(raw: npt.NDArray[Any], hdu: Hdu) -> Floats:
    """Stored numbers as what they stand for, blanks as NaN; of a window, since bytes become doubles on the way."""
    with np.errstate(over="ignore", invalid="ignore"):
        image = (raw.astype(np.float64) * hdu.scale + hdu.zero).astype(np.float32)
    if hdu.blank is not None and raw.dtype.kind in "iu":
        image[raw == hdu.blank] = np.nan
    return image


def npy(blob: bytes) -> npt.NDArray[Any]:
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


def _members(blob: bytes) -> int:
    """How many members the end of a zip tells of."""
    at = blob.rfind(b"PK\x05\x06", max(0, len(blob) - (1 << 16) - 22))
    return int.from_bytes(blob[at + 10 : at + 12], "little") if at >= 0 else 0


def npz(blob: bytes, bands: tuple[str, ...] | None) -> tuple[npt.NDArray[Any], tuple[str, ...] | None]:
    """The one image array of an .npz, and its `bands` array."""
    if _members(blob) > MAX_MEMBERS:  # the directory itself takes long to read
        raise BadInput(f"the .npz has more than {MAX_MEMBERS} members")
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
    arrays = {name: npy(content) for name, content in contents.items()}
    written = arrays.pop("bands", None)
    if len(arrays) != 1:
        raise BadInput(f"the .npz holds {', '.join(sorted(arrays)) or 'nothing'} beside `bands`: expected one array")
    if written is not None and bands is None:
        bands = tuple(
            name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in written.ravel()
        )
    return next(iter(arrays.values())), bands

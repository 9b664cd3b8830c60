"""Compressed FITS: a whole file by gzip, images by tiles (Rice, gzip, HCOMPRESS, PLIO), unpacked within limits.

Eleven kilobytes can hold a gigabyte. What a header tells of is checked before anything is unpacked; what it does not
tell, such as how long a tile becomes, is for the limits of the process that this is called in (`service/sandbox`).
"""

from __future__ import annotations

import math
import warnings
import zlib
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.service.formats import FITS_BLOCK, FITS_CARD, MAX_UNPACKED_BYTES, Hdu

GZIP = b"\x1f\x8b"
MAX_TILES = 1 << 16
CARDS = ("SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    0", "END")
NO_IMAGE = "".join(card.ljust(FITS_CARD) for card in CARDS).ljust(FITS_BLOCK).encode()


def gunzip(blob: bytes) -> bytes:
    """What a .gz holds, its members one after the other; `BadInput` beyond `MAX_UNPACKED_BYTES` and for damage."""
    parts: list[bytes] = []
    room = MAX_UNPACKED_BYTES + 1
    while blob.startswith(GZIP):  # what follows the last member is padding
        unpack = zlib.decompressobj(wbits=31)
        try:
            parts.append(unpack.decompress(blob, room))
        except zlib.error as error:
            raise BadInput(f"not a valid .gz: {error}") from error
        room -= len(parts[-1])
        if room <= 0:
            raise BadInput(f"the .gz unpacks to more than {MAX_UNPACKED_BYTES} bytes")
        if not unpack.eof:
            raise BadInput("the .gz is truncated")
        if not parts[-1] and len(parts) > 1:
            raise BadInput("the .gz has empty members")  # of which a megabyte holds fifty thousand
        blob = unpack.unused_data
    return b"".join(parts)


def is_tiled(hdu: Hdu) -> bool:
    """Whether an HDU is an image that is compressed by tiles."""
    return "ZIMAGE" in hdu.cards or "ZCMPTYPE" in hdu.cards


def _sizes(hdu: Hdu, name: str, count: int, usual: list[int]) -> list[int]:
    try:
        found = [int(hdu.cards.get(f"{name}{i + 1}", usual[i])) for i in range(count)]
    except (ValueError, OverflowError) as error:
        raise BadInput(f"tile-compressed FITS: {name}n: {error}") from error
    if min(found, default=0) < 1:
        raise BadInput(f"tile-compressed FITS: {name}n={found}: expected 1 or more")
    return found


def _check(hdu: Hdu, room: int) -> int:
    """Bytes of the image that a compressed HDU tells of; `BadInput` where they, a tile or the number of tiles is too
    large."""
    try:
        count, bits = int(hdu.cards["ZNAXIS"]), int(hdu.cards["ZBITPIX"])
    except (KeyError, ValueError, OverflowError) as error:
        raise BadInput(f"tile-compressed FITS: not a valid header: {error}") from error
    if not 2 <= count <= 4 or bits not in (8, 16, 32, 64, -32, -64):
        raise BadInput(f"tile-compressed FITS: ZNAXIS={count}, ZBITPIX={bits}: expected an image")
    shape = _sizes(hdu, "ZNAXIS", count, [0] * count)
    tile = _sizes(hdu, "ZTILE", count, [shape[0], *[1] * (count - 1)])
    size = math.prod(shape) * abs(bits) // 8
    if max(size, math.prod(tile) * abs(bits) // 8) > room:
        raise BadInput(f"the FITS images unpack to more than {MAX_UNPACKED_BYTES} bytes")
    tiles = math.prod(-(-n // step) for n, step in zip(shape, tile, strict=True))
    if tiles > MAX_TILES or hdu.shape[:1] != (tiles,):
        raise BadInput(f"tile-compressed FITS: {tiles} tiles, {hdu.shape[:1]} rows: expected as many, to {MAX_TILES}")
    return size


def tiled_image(blob: bytes, hdu: Hdu, room: int) -> npt.NDArray[Any]:
    """The image of a compressed HDU as what its numbers stand for, blanks as NaN, of at most `room` bytes."""
    from astropy.io import fits

    size = _check(hdu, room)
    alone = BytesIO(NO_IMAGE + blob[hdu.first : hdu.past])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with fits.open(alone, memmap=False) as units:
                unit = units[1]
                if not isinstance(unit, fits.CompImageHDU):
                    raise BadInput("tile-compressed FITS: the HDU is no compressed image")
                image = np.asarray(unit.data)
    except (BadInput, MemoryError):
        raise
    except Exception as error:  # of a damaged tile astropy raises whatever its parts do
        words = " ".join(str(error).split())[:200]
        raise BadInput(f"tile-compressed FITS cannot be unpacked: {words or type(error).__name__}") from error
    if image.dtype.kind not in "fiu" or image.nbytes > 8 * size:
        raise BadInput("tile-compressed FITS: its image is not what its header tells of")
    return image

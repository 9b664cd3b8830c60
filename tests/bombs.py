"""Uploads that are small and ask for much: {what it is: its bytes}."""

from __future__ import annotations

import gzip
import struct
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np

GIB, MIB = 1 << 30, 1 << 20


def _header(*cards: tuple[str, Any], extension: str | None = None) -> bytes:
    lines = [f"XTENSION= '{extension:<8}'" if extension else "SIMPLE  =                    T"]
    for key, value in cards:
        shown = "T".rjust(20) if value is True else f"'{value:<8}'" if isinstance(value, str) else f"{value:>20}"
        lines.append(f"{key:<8}= {shown}")
    text = "".join(line.ljust(80) for line in [*lines, "END"]).encode()
    return text.ljust(-(-len(text) // 2880) * 2880)


EMPTY = _header(("BITPIX", 8), ("NAXIS", 0))


def _image(bits: object, *axes: object, data: bytes = b"", **more: Any) -> bytes:
    sizes = [(f"NAXIS{i + 1}", n) for i, n in enumerate(axes)]
    cards = [("BITPIX", bits), ("NAXIS", more.pop("NAXIS", len(axes))), *sizes, ("BAND", "g"), *more.items()]
    return EMPTY + _header(*cards, extension="IMAGE") + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


def _deflated(size: int, head: bytes = b"") -> bytes:
    """A .gz of `head` and then `size` zeros, whose checksum is wrong; one block of it, as often as it takes."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    first = deflate.compress(head) + deflate.flush(zlib.Z_FULL_FLUSH)
    block = deflate.compress(bytes(MIB)) + deflate.flush(zlib.Z_FULL_FLUSH)
    return gzip.compress(b"")[:10] + first + block * (size // MIB) + b"\x03\x00" + bytes(8)


def _tiled(
    kind: str, shape: tuple[int, ...], tile: tuple[int, ...], tiles: list[bytes], *, bits: int = 16, **more: Any
) -> bytes:
    """A compressed image whose tiles hold what they are given, and whose rows point to one another's where there are
    more rows than tiles."""
    rows = more.pop("rows", len(tiles))
    at = np.cumsum([0, *map(len, tiles)])
    table = np.array([(len(tiles[i % len(tiles)]), at[i % len(tiles)]) for i in range(rows)], ">i4")
    heap = b"".join(tiles)
    cards = [
        ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 8), ("NAXIS2", rows), ("PCOUNT", len(heap)), ("GCOUNT", 1),
        ("TFIELDS", 1), ("TTYPE1", "COMPRESSED_DATA"), ("TFORM1", f"1PB({max(map(len, tiles))})"), ("BAND", "g"),
        ("ZIMAGE", more.pop("ZIMAGE", True)), ("ZCMPTYPE", kind), ("ZBITPIX", bits), ("ZNAXIS", len(shape)),
        *((f"ZNAXIS{i + 1}", n) for i, n in enumerate(shape)), *((f"ZTILE{i + 1}", n) for i, n in enumerate(tile)),
        *more.items(),
    ]  # fmt: skip
    head = _header(*cards, extension="BINTABLE")
    data = table.tobytes() + heap
    return EMPTY + head + data.ljust(-(-len(data) // 2880) * 2880, b"\0")


def _zip(*members: tuple[str, bytes], how: int = zipfile.ZIP_DEFLATED) -> bytes:
    with zipfile.ZipFile(stream := BytesIO(), "w", how) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return stream.getvalue()


def _npy(shape: object = (1, 32, 32), kind: str = "'<f4'", data: bytes = bytes(4096), version: int = 1) -> bytes:
    header = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header.ljust(-(-(len(header) + 11) // 64) * 64 - 1) + b"\n"
    width = "<H" if version == 1 else "<I"
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack(width, len(header)) + header + data


def _lying_zip(size: int, told: int) -> bytes:
    """Its member is of `size` bytes, and its directory says another number."""
    packed, written = _zip(("a.npy", bytes(size))), struct.pack("<I", size)
    assert packed.count(written) == 2
    return packed.replace(written, struct.pack("<I", told))


def _crowded_zip(members: int) -> bytes:
    """A directory that names one member so many times."""
    packed = _zip(("a.npy", b""), how=zipfile.ZIP_STORED)
    entry, end = packed.index(b"PK\x01\x02"), packed.index(b"PK\x05\x06")
    directory = packed[entry:end] * members
    return (
        packed[:entry]
        + directory
        + struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, members, members, len(directory), entry, 0)
    )


def _png(side: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(bytes(side * 100)))
        + chunk(b"IEND", b"")
    )


def _nested(depth: int) -> bytes:
    blob = _deflated(8 * MIB, EMPTY)
    for _ in range(depth):
        blob = gzip.compress(blob)
    return blob


def _a_gibibyte_in_a_tile() -> bytes:
    return _tiled("GZIP_1", (64, 64), (64, 64), [_deflated(GIB)])


BOMBS: dict[str, Callable[[], bytes]] = {
    "29 GB in two axes": lambda: _image(-64, 60000, 60000),
    "999 axes": lambda: _image(-32, *[2] * 999),
    "an axis of 10^18": lambda: _image(-32, 10**18, 32),
    "axes whose product is 0 in 64 bits": lambda: _image(-32, 2**32, 2**32),
    "an axis of -1": lambda: _image(-32, -1, 32),
    "an axis of 10^400": lambda: _image(-32, "1" + "0" * 60, 32),
    "NAXIS = -1": lambda: _image(-32, NAXIS=-1),
    "NAXIS = 10^9": lambda: _image(-32, 32, 32, NAXIS=10**9),
    "a heap of 2^62 bytes": lambda: _image(-32, 32, 32, PCOUNT=2**62),
    "10^12 groups": lambda: _image(-32, 32, 32, GCOUNT=10**12),
    "pixels of 10^9 bits": lambda: _image(10**9, 1, 1),
    "infinite scale": lambda: _image(16, 32, 32, data=bytes(2048), BSCALE=1e308, BZERO=1e308),
    "3,000 HDUs without data": lambda: EMPTY + 3000 * _header(("BITPIX", 8), ("NAXIS", 0), extension="IMAGE"),
    "3,000 images": lambda: EMPTY + 3000 * _image(8, 32, 32, data=bytes(1024))[2880:],
    "no END card in 8 MB": lambda: b"SIMPLE  =                    T".ljust(80) + b"COMMENT x".ljust(80) * 100_000,
    "8 MB of blanks after SIMPLE": lambda: b"SIMPLE  =                    T".ljust(8 * MIB),
    "a million planes of one pixel": lambda: _image(8, 1, 1, 10**6, data=bytes(10**6)),
    "pixels of a light year": lambda: _image(-32, 32, 32, data=bytes(4096), CD1_1=1e300, CD2_2=1e300),
    "pixels of nothing": lambda: _image(-32, 32, 32, data=bytes(4096), CD1_1=1e-300, CD2_2=1e-300),
    "a tile of a gibibyte in one of 64 x 64": _a_gibibyte_in_a_tile,
    "tile-compressed 60,000 x 60,000": lambda: _tiled("RICE_1", (60000, 60000), (60000, 1), [b"x"], rows=60000),
    "one tile of 10^9": lambda: _tiled("RICE_1", (64, 64), (10**9, 10**9), [b"x"]),
    "16 million tiles": lambda: _tiled("RICE_1", (4000, 4000), (1, 1), [b"x"]),
    "a tile of -1": lambda: _tiled("RICE_1", (64, 64), (-1, 64), [b"x"]),
    "no ZNAXIS": lambda: _tiled("RICE_1", (), (), [b"x"]),
    "one tile of 16 MiB in 60,000 rows": lambda: _tiled(
        "GZIP_1", (1, 60000), (1, 1), [gzip.compress(bytes(16 * MIB), 1)], rows=60000
    ),
    "ZCMPTYPE = PICKLE": lambda: _tiled("PICKLE", (32, 32), (32, 32), [b"cos\nsystem\n(S'x'\ntR."]),
    "Rice of noise": lambda: _tiled("RICE_1", (32, 32), (32, 1), [bytes(range(256)) for _ in range(32)]),
    "HCOMPRESS of noise": lambda: _tiled("HCOMPRESS_1", (32, 32), (32, 32), [b"\xdd\x99" + b"\x7f\xff\xff\xff" * 200]),
    "tiles beyond the heap": lambda: _tiled("GZIP_1", (32, 32), (32, 1), [b"x" * 8] * 32).replace(
        struct.pack(">ii", 8, 8), struct.pack(">ii", 2**31 - 1, 2**31 - 1)
    ),
    "a .gz of a gibibyte": lambda: _deflated(GIB, EMPTY),
    "a .gz of a FITS of a gibibyte": lambda: _deflated(GIB, _image(-32, 16384, 16384)),
    "a .gz in a .gz in a .gz": lambda: _nested(3),
    "50,000 empty .gz": lambda: gzip.compress(b"") * 50_000,
    "a .gz whose name has no end": lambda: b"\x1f\x8b\x08\x08\0\0\0\0\0\0" + b"a" * MIB,
    "an .npz of a gibibyte": lambda: _lying_zip(MIB, GIB),
    "an .npz whose directory lies": lambda: _lying_zip(32 * MIB, 100),
    "an .npz of 60,000 members": lambda: _crowded_zip(60_000),
    "an .npz by LZMA": lambda: _zip(("a.npy", bytes(MIB)), how=zipfile.ZIP_LZMA),
    "an .npz in an .npz": lambda: _zip(("a.npy", _zip(("a.npy", bytes(MIB))))),
    "an .npy of 10^18 numbers": lambda: _npy((10**9, 10**9)),
    "an .npy of 2^64 numbers": lambda: _npy((2**32, 2**32)),
    "an .npy with a deep header": lambda: _npy("(" * 3000 + ")" * 3000),
    "an .npy with a pickle": lambda: _npy(kind="'|O'", data=b"cos\nsystem\n(S'true'\ntR."),
    "an .npy whose header is 4 GB": lambda: b"\x93NUMPY\x03\x00\xff\xff\xff\xff" + bytes(1000),
    "an .npy of long words": lambda: _npy((1,), "'<U999999999'"),
    "a PNG of 12,000 x 12,000": lambda: _png(12_000),
    "entities of entities": lambda: b'<!DOCTYPE l [<!ENTITY a "' + b"x" * 1000 + b'">' + b'<!ENTITY b "&a;&a;">' * 99,
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(1000),
}  # fmt: skip

"""The order of a shelf's rows, by tile, strip of the tile and sky, and their parts; headers only, no pixel is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from redshelf.indexing import cutouts, mosaic, store
from redshelf.indexing.catalogue import Catalogue, healpix29
from redshelf.indexing.mosaic import Tile
from redshelf.models.errors import BadInput

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of one strip of one tile; `tile` is a position in the list of tiles, -1 for none."""

    tile: int
    strip: int
    first_row: int
    rows: int


@dataclass(frozen=True)
class Part:
    """Consecutive pieces that are written, and written again after a kill, together."""

    number: int
    pieces: tuple[Piece, ...]

    @property
    def first_row(self) -> int:
        return self.pieces[0].first_row

    @property
    def rows(self) -> int:
        return sum(piece.rows for piece in self.pieces)


def plan(tile_of_row: Ints, strip_of_row: Ints, part_rows: int) -> list[Part]:
    """Cut rows, ordered by tile and strip, into parts of at most `part_rows` rows; strips of a few rows share one."""
    if part_rows < 1:
        raise BadInput(f"part_rows={part_rows}: expected at least 1")
    places = np.stack([tile_of_row, strip_of_row])
    starts = np.flatnonzero(np.diff(places, prepend=places[:, :1] - 1).any(axis=0))
    ends = np.append(starts[1:], len(tile_of_row))
    parts: list[list[Piece]] = []
    room = 0
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for first in range(start, end, part_rows):
            rows = min(part_rows, end - first)
            if rows > room:
                parts.append([])
                room = part_rows
            parts[-1].append(Piece(int(tile_of_row[start]), int(strip_of_row[start]), first, rows))
            room -= rows
    return [Part(number, tuple(pieces)) for number, pieces in enumerate(parts)]


def order(catalogue: Catalogue, tiles: list[Tile], *, path: Path) -> tuple[Catalogue, list[Tile], Ints, Ints]:
    """Sources by tile, strip and healpix29, tiles by the healpix29 of their centre, sources on no tile (-1) last; and
    tile and strip of each source. `BadInput` naming the catalogue `path` where none lies on a tile."""
    tile_of, strip_of = np.full(len(catalogue), -1, dtype=np.int64), np.zeros(len(catalogue), dtype=np.int64)
    centres = [next(mosaic.circle(m) for m in tile.mosaics if m is not None) for tile in tiles]
    if centres:
        keys = healpix29([c[0] for c in centres], [c[1] for c in centres])
        tiles = [tiles[n] for n in np.argsort(keys, kind="stable")]
        tile_of = mosaic.assign(tiles, catalogue.ra_deg, catalogue.dec_deg)
        if (tile_of < 0).all():
            ra, dec = catalogue.ra_deg[0], catalogue.dec_deg[0]
            raise BadInput(
                f"{path.name}: none of its {len(catalogue)} sources lies on any of the {len(tiles)} tiles; the first "
                f"is at ({ra:.4f}, {dec:.4f}), the centre of a tile at ({centres[0][0]:.4f}, {centres[0][1]:.4f}): "
                "expected RA and Dec in degrees, ICRS"
            )
        lost = np.where(tile_of < 0, store.FLAG_NO_TILE, 0).astype(np.int32)
        catalogue = replace(catalogue, flags=catalogue.flags | lost)
    after = np.where(tile_of < 0, len(tiles), tile_of)
    ends = np.cumsum(np.bincount(after, minlength=len(tiles) + 1))
    for here, tile in zip(np.split(np.argsort(after, kind="stable"), ends), tiles, strict=False):
        strip_of[here] = cutouts.strips(tile, catalogue.ra_deg[here], catalogue.dec_deg[here])
    rows = np.lexsort((catalogue.source_id, catalogue.healpix29, strip_of, after))
    return catalogue.take(rows), tiles, tile_of[rows], strip_of[rows]

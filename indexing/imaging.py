"""Where a shelf's pixels come from: mosaics, or stamps that were cut already, for all that is done with either alike.

`find` lists the files, `inputs` what a shelf depends on, `imaged` puts the catalogue in the order they are read in,
`images` reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import archives, cutouts, mosaic, stamps, tiling
from redshelf.indexing.catalogue import Catalogue
from redshelf.indexing.layout import ShelfInfo
from redshelf.indexing.mosaic import Tile
from redshelf.indexing.survey import Survey
from redshelf.models.errors import BadInput

Ints = npt.NDArray[np.int64]
TilePaths = dict[str, dict[str, Path]]  # tile -> band -> image, or tile -> STAMPS -> archive
# the number of a tile, -1 for none, and where on it sources of one strip lie: RA and Dec [deg] (n, 2), or the places of
# their stamps (n,) in an archive
Span = tuple[int, npt.NDArray[Any]]
BandImages = Iterator[list[cutouts.BandImage | None]]

STAMPS = "stamps"
NOISE_TILES = 8  # mosaics of a band whose noise is measured, spread over the survey


def find(survey: Survey) -> TilePaths:
    """The images of each tile and band, or the archive of each tile; `BadInput` where a pattern finds nothing."""
    if survey.stamps is None:
        return mosaic.find_tiles(survey)
    return {name: {STAMPS: path} for name, path in archives.find(survey).items()}


def inputs(survey: Survey, tiles: TilePaths) -> Iterator[tuple[list[str], Path]]:
    """What it is (tile, band and kind), and the file, of every image, weight, mask and archive; `BadInput` naming one
    that does not exist."""
    for tile, files in tiles.items():
        if survey.stamps is not None:
            yield [tile, STAMPS], files[STAMPS]
            continue
        for band in (band for band in survey.bands if band.name in files):
            for what, file in {"image": files[band.name], **mosaic.companions(survey, band, tile)}.items():
                if not file.is_file():
                    raise BadInput(f"band {band.name}, tile {tile}: the {what} {file} does not exist")
                yield [tile, band.name, what], file


@dataclass(frozen=True)
class Imaged:
    """A catalogue in the order of the shelf's rows, and where their pixels come from."""

    catalogue: Catalogue
    tiles: tuple[str, ...]
    tile_of: Ints  # (N,) -1 for none
    strip_of: Ints  # (N,)
    where: npt.NDArray[Any]  # (N, 2) or (N,), as in `Span`
    pixels: int  # to be made ready, about
    noise_ujy: Callable[[], list[float]]  # of each band, measured when it is asked for
    stamps_of_no_source: int | None


def _mosaics_noise(survey: Survey, tiles: Sequence[Tile]) -> list[float]:
    """The noise [uJy] of each band, measured on its mosaics, NaN without. `BadInput` naming a band whose images have
    none."""
    measured = []
    for b, section in enumerate(survey.bands):
        present = [m for tile in tiles if (m := tile.mosaics[b]) is not None]
        chosen = present[:: max(1, -(-len(present) // NOISE_TILES))]
        noise = mosaic.pixel_noise(chosen) if chosen else float("nan")
        if noise == 0:
            raise BadInput(
                f"band {section.name}: its {len(chosen)} sampled images, the first {chosen[0].path}, hold hardly more "
                "than one value, so that their noise is 0: expected images with noise, or a weight"
            )
        measured.append(noise)
    return measured


def _on_mosaics(survey: Survey, catalogue: Catalogue, paths: TilePaths) -> Imaged:
    tiles = [mosaic.open_tile(survey, name, bands) for name, bands in paths.items()]
    catalogue, tiles, tile_of, strip_of = tiling.order(catalogue, tiles, path=survey.resolve(survey.catalogue.path))
    pixels = sum(m.shape[0] * m.shape[1] for tile in tiles for m in tile.mosaics if m is not None)
    where = np.stack([catalogue.ra_deg, catalogue.dec_deg], axis=1)
    names = tuple(tile.name for tile in tiles)
    return Imaged(catalogue, names, tile_of, strip_of, where, pixels, partial(_mosaics_noise, survey, tiles), None)


def _on_stamps(survey: Survey, catalogue: Catalogue, paths: TilePaths, *, file_rows: int) -> Imaged:
    files = [archives.open_archive(survey, name, of[STAMPS]) for name, of in paths.items()]
    catalogue, files, tile_of, strip_of, place, unknown = stamps.order(survey, catalogue, files, file_rows=file_rows)
    pixels = len(catalogue) * len(survey.bands) * survey.survey.cutout_px**2
    names = tuple(file.name for file in files)
    return Imaged(catalogue, names, tile_of, strip_of, place, pixels, partial(stamps.noise, survey, files), unknown)


def imaged(survey: Survey, catalogue: Catalogue, paths: TilePaths, *, file_rows: int) -> Imaged:
    """A catalogue on what `find` has found; `file_rows` are the rows of its file. Headers and ids are read."""
    if survey.stamps is None:
        return _on_mosaics(survey, catalogue, paths)
    return _on_stamps(survey, catalogue, paths, file_rows=file_rows)


def images(
    survey: Survey, info: ShelfInfo, paths: TilePaths, tiles: Sequence[str], spans: Iterable[Span]
) -> BandImages:
    """The images of the sources of each span, whose tile numbers count in `tiles`; a tile is opened once for the spans
    that follow one another on it."""
    if survey.stamps is not None:
        yield from stamps.images(survey, info, [paths[name][STAMPS] for name in tiles], spans)
        return
    for number, together in groupby(spans, key=lambda span: span[0]):
        tile = mosaic.open_tile(survey, tiles[number], paths[tiles[number]]) if number >= 0 else None
        for _, where in together:
            yield cutouts.band_images(info, tile, where[:, 0], where[:, 1])

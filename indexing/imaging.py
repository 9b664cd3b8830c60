"""Where a shelf's pixels come from: mosaics, or stamps that were cut already, for all that is done with either alike.

`find` lists the files, `inputs` what a shelf depends on, `imaged` puts the catalogue in the order they are read in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

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
Span = tuple[int, Ints]  # positions of sources on one strip of a tile, -1 for none
BandImages = Iterator[list[cutouts.BandImage | None]]
ImagesOf = Callable[[ShelfInfo, Sequence[Span]], BandImages]

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
    pixels: int  # to be made ready, about
    noise_ujy: Callable[[], list[float]]  # of each band, measured when it is asked for
    images_of: ImagesOf
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


def _mosaic_images(info: ShelfInfo, catalogue: Catalogue, tiles: Sequence[Tile], spans: Sequence[Span]) -> BandImages:
    """The images of the sources of each span."""
    for number, rows in spans:
        ra, dec = catalogue.ra_deg[rows], catalogue.dec_deg[rows]
        yield cutouts.band_images(info, tiles[number] if number >= 0 else None, ra, dec)


def _on_mosaics(survey: Survey, catalogue: Catalogue, paths: TilePaths) -> Imaged:
    tiles = [mosaic.open_tile(survey, name, bands) for name, bands in paths.items()]
    catalogue, tiles, tile_of, strip_of = tiling.order(catalogue, tiles, path=survey.resolve(survey.catalogue.path))
    pixels = sum(m.shape[0] * m.shape[1] for tile in tiles for m in tile.mosaics if m is not None)

    def images_of(info: ShelfInfo, spans: Sequence[Span]) -> BandImages:
        return _mosaic_images(info, catalogue, tiles, spans)

    names = tuple(tile.name for tile in tiles)
    return Imaged(catalogue, names, tile_of, strip_of, pixels, partial(_mosaics_noise, survey, tiles), images_of, None)


def _on_stamps(survey: Survey, catalogue: Catalogue, paths: TilePaths, *, file_rows: int) -> Imaged:
    files = [archives.open_archive(survey, name, of[STAMPS]) for name, of in paths.items()]
    catalogue, files, tile_of, strip_of, place, unknown = stamps.order(survey, catalogue, files, file_rows=file_rows)
    pixels = len(catalogue) * len(survey.bands) * survey.survey.cutout_px**2

    def images_of(info: ShelfInfo, spans: Sequence[Span]) -> BandImages:
        return stamps.images(survey, info, files, [(number, place[rows]) for number, rows in spans])

    names = tuple(file.name for file in files)
    return Imaged(catalogue, names, tile_of, strip_of, pixels, partial(stamps.noise, survey, files), images_of, unknown)


def imaged(survey: Survey, catalogue: Catalogue, paths: TilePaths, *, file_rows: int) -> Imaged:
    """A catalogue on what `find` has found; `file_rows` are the rows of its file. Headers and ids are read."""
    if survey.stamps is None:
        return _on_mosaics(survey, catalogue, paths)
    return _on_stamps(survey, catalogue, paths, file_rows=file_rows)

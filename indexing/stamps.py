"""Cutouts from stamp archives instead of mosaics: which stamp is whose, the noise of their sky, their pixels.

`order` gives each source its stamp and the shelf its rows, `noise` measures, `images` makes of stamps what
`cutouts.batches` takes; each file is read once, in its own order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from redshelf.indexing import cutouts, store
from redshelf.indexing.archives import Archive, OpenArchive, opened, section_of
from redshelf.indexing.catalogue import UNITS_UJY, Catalogue
from redshelf.indexing.cutouts import BandImage, Bools, Ints
from redshelf.indexing.layout import ShelfInfo
from redshelf.indexing.mosaic import Images, sky_rms
from redshelf.indexing.survey import Stamps, Survey
from redshelf.models.bands import ab_to_flux
from redshelf.models.errors import BadInput

NOISE_FILES = 8  # in which noise is measured, spread over the survey
NOISE_BLOCKS, NOISE_STAMPS = 16, 16  # of each: 16 stamps at 16 places
BORDER = 8  # the sky of a stamp: its outermost 1/8 on each side


def _matched(
    catalogue: Catalogue, archives: Sequence[Archive], *, path: Path, file_rows: int
) -> tuple[Ints, Ints, int]:
    """(N,) number of the archive and position in it of each source's stamp, -1 for none; stamps of no source."""
    first = archives[0]
    if first.source_id is None:
        if len(archives) > 1 or path.is_dir() or first.count != file_rows:
            raise BadInput(
                f"stamps: {first.count} stamps in {first.path.name}, the first of {len(archives)} files, for the "
                f"{file_rows} rows of {path.name}: without stamps.ids, expected one file in the order of these rows"
            )
        return np.zeros(len(catalogue), dtype=np.int64), catalogue.file_row, file_rows - len(catalogue)
    known = np.concatenate([archive.source_id for archive in archives if archive.source_id is not None])
    number = np.repeat(np.arange(len(archives)), [archive.count for archive in archives])
    place = np.concatenate([np.arange(archive.count) for archive in archives])
    by_id = np.argsort(known, kind="stable")
    known, number, place = known[by_id], number[by_id], place[by_id]
    again = np.flatnonzero(known[1:] == known[:-1])
    if len(again):
        one, two = number[again[0]], number[again[0] + 1]
        where = archives[one].path.name if one == two else f"{archives[one].path.name} and {archives[two].path.name}"
        raise BadInput(
            f"stamps: the id {known[again[0]].decode()!r} stands more than once, in {where} ({len(again)} repeats)"
        )
    at = np.minimum(np.searchsorted(known, catalogue.source_id), len(known) - 1)
    found = known[at] == catalogue.source_id
    if not found.any():
        raise BadInput(
            f"stamps: none of the {len(known)} ids in {len(archives)} files is in {path.name}; the first are "
            f"{known[0].decode()!r} there and {catalogue.source_id[0].decode()!r} in the catalogue"
        )
    return np.where(found, number[at], -1), np.where(found, place[at], -1), len(known) - int(found.sum())


def order(
    survey: Survey, catalogue: Catalogue, archives: Sequence[Archive], *, file_rows: int
) -> tuple[Catalogue, list[Archive], Ints, Ints, Ints, int]:
    """Sources by archive, strip of the archive and healpix29, archives by the median of their sources', sources without
    a stamp (-1) last; archive, strip and position in the file of each source; and the number of stamps of no source.

    A strip is as many consecutive stamps as `cutouts.HELD_BYTES` allows: they are read in the file's order, and written
    in the shelf's. `file_rows` are the rows of the catalogue's file. `BadInput` naming an id that stands twice."""
    path = survey.resolve(survey.catalogue.path)
    number, place, unknown = _matched(catalogue, archives, path=path, file_rows=file_rows)
    last = np.iinfo(np.int64).max
    keys = [catalogue.healpix29[number == n] for n in range(len(archives))]
    sequence = np.argsort([int(np.median(key)) if len(key) else last for key in keys], kind="stable")
    rank = np.empty(len(archives), dtype=np.int64)
    rank[sequence] = np.arange(len(archives))
    tile_of = np.where(number < 0, -1, rank[number])
    per_source = cutouts.HELD_BYTES_A_PIXEL * len(section_of(survey).bands) * survey.survey.cutout_px**2
    strip_of = np.where(number < 0, 0, place // max(1, cutouts.HELD_BYTES // per_source))
    lost = np.where(number < 0, store.FLAG_NO_TILE, 0).astype(np.int32)
    catalogue = replace(catalogue, flags=catalogue.flags | lost)
    after = np.where(number < 0, len(archives), tile_of)
    rows = np.lexsort((catalogue.source_id, catalogue.healpix29, strip_of, after))
    return catalogue.take(rows), [archives[n] for n in sequence], tile_of[rows], strip_of[rows], place[rows], unknown


def ujy_per_unit(survey: Survey, band: int) -> float:
    """Microjansky of 1 in the stamps of a band of the survey: by the band's `image_zero_point`, the unit or zero point
    of the stamps, the band's `zero_point`, else they are in microjansky."""
    section, its = section_of(survey), survey.bands[band]
    if its.image_zero_point is None and section.unit is not None:
        return UNITS_UJY[section.unit]
    zero_points = (its.image_zero_point, section.zero_point, its.zero_point)
    zero_point = next((z for z in zero_points if z is not None), None)
    return 1.0 if zero_point is None else float(ab_to_flux(zero_point))


def _border(shape: tuple[int, ...]) -> Bools:
    """(H, W) True on the outermost 1/8 of each side."""
    border = np.ones(shape, dtype=bool)
    width = max(1, min(shape) // BORDER)
    border[width:-width, width:-width] = False
    return border


def _file_noise(section: Stamps, archive: Archive) -> list[float]:
    """Pixel rms of each band of one file, in its unit; NaN where its borders are all bad."""
    images: list[list[Images]] = [[] for _ in section.bands]
    weights: list[list[Images]] = [[] for _ in section.bands]
    starts = np.unique(np.linspace(0, max(0, archive.count - NOISE_STAMPS), NOISE_BLOCKS).astype(np.int64))
    at = 0
    with opened(section, archive.path) as arrays:
        for start in starts.tolist():
            for first in range(max(at, start), min(start + NOISE_STAMPS, archive.count), arrays.step()):
                at = min(first + arrays.step(), start + NOISE_STAMPS, archive.count)
                for band, piece in enumerate(arrays.read(first, at)):
                    use = _border(piece.image.shape[1:])
                    bad = cutouts.bad_pixels(piece.image, piece.weight, piece.mask) | ~use
                    images[band].append(piece.image[~bad & (piece.image != 0)])
                    if piece.weight is not None:
                        weights[band].append(piece.weight[~bad])
    found = []
    for image, weight in zip(images, weights, strict=True):
        pixels = np.concatenate(weight or image)
        rms = float("nan") if not len(pixels) else float(1 / np.sqrt(np.median(pixels))) if weight else sky_rms(pixels)
        found.append(rms)
    return found


def noise(survey: Survey, archives: Sequence[Archive]) -> list[float]:
    """Median pixel rms [uJy] of each band of the survey over some files: 1/sqrt of the median weight, else the rms of
    the stamps' borders (pixels that are exactly zero are taken as uncovered); NaN for a band without good pixels.

    `BadInput` naming a band whose stamps have no noise."""
    section = section_of(survey)
    chosen = archives[:: max(1, -(-len(archives) // NOISE_FILES))]
    measured = np.array([_file_noise(section, archive) for archive in chosen], dtype=np.float64)  # (files, bands)
    out = [float("nan")] * len(survey.bands)
    for name, values in zip(section.bands, measured.T, strict=True):
        b = survey.band_names.index(name)
        if (values == 0).any() and not (values > 0).any():
            raise BadInput(
                f"band {name}: the borders of the stamps in {chosen[0].path} hold hardly more than one value, so that "
                "their noise is 0: expected stamps with noise, or a weight"
            )
        positive = values[values > 0]
        out[b] = float(np.median(positive)) * ujy_per_unit(survey, b) if len(positive) else float("nan")
    return out


def _band_images(survey: Survey, info: ShelfInfo, arrays: OpenArchive, place: Ints) -> list[BandImage | None]:
    """Each band of the sources whose stamps are at `place` (N,): one image, the stamps one below the other."""
    size, count, section = info.cutout_px, len(place), arrays.section
    bands = [info.band_names.index(name) for name in section.bands]
    pixels = np.zeros((len(bands), count, size, size), dtype=np.float16)
    bad = np.ones(pixels.shape, dtype=bool)
    state = np.zeros((len(bands), count), dtype=np.int8)
    inside = cutouts.aperture(size, info.pixel_scale_arcsec)
    by_place = np.argsort(place, kind="stable")
    ordered = place[by_place]
    step = arrays.step(size)
    for first in range(int(ordered[0]), int(ordered[-1]) + 1, step):
        past = min(first + step, int(ordered[-1]) + 1)
        rows = by_place[slice(*np.searchsorted(ordered, [first, past]))]
        if not len(rows):
            continue
        chosen = place[rows] - first
        for c, (b, piece) in enumerate(zip(bands, arrays.read(first, past, size), strict=True)):
            unit, level = ujy_per_unit(survey, b), survey.bands[b].saturation
            rms = info.bands[b].noise_ujy
            if not np.isfinite(rms):
                continue
            image = piece.image[chosen] * np.float32(unit)
            weight = None if piece.weight is None else piece.weight[chosen]
            mask = None if piece.mask is None else piece.mask[chosen]
            without = cutouts.bad_pixels(image, weight, mask)
            clean = np.where(without, np.float32(0), image)
            ceiling = cutouts.CLIP * rms if level is None else min(level * unit, cutouts.CLIP * rms)
            with np.errstate(invalid="ignore"):  # by the image itself, as of a mosaic
                saturated = np.asarray((image[:, inside] >= ceiling).any(axis=1))
            pixels[c, rows], bad[c, rows] = cutouts.in_noise_units(clean, rms), without
            state[c, rows] = cutouts.pixel_states(clean, without, saturated, noise_ujy=rms, inside=inside)
    images: list[BandImage | None] = [None] * len(info.bands)
    first_x, first_y = np.zeros(count, dtype=np.int64), np.arange(count) * size
    for c, b in enumerate(bands):
        if np.isfinite(info.bands[b].noise_ujy):
            tall = (count * size, size)
            images[b] = BandImage(pixels[c].reshape(tall), bad[c].reshape(tall), first_x, first_y, state[c])
    return images


def images(
    survey: Survey, info: ShelfInfo, archives: Sequence[Path], spans: Iterable[tuple[int, Ints]]
) -> Iterator[list[BandImage | None]]:
    """For each span, the number of an archive (-1 for none) and positions in it, its bands. A file stays open over the
    spans that follow one another in it, so that a compressed one is unpacked once."""
    for number, together in groupby(spans, key=lambda span: span[0]):
        with ExitStack() as stack:
            arrays = stack.enter_context(opened(section_of(survey), archives[number])) if number >= 0 else None
            for _, place in together:
                yield [None] * len(info.bands) if arrays is None else _band_images(survey, info, arrays, place)

"""A shelf whose survey has changed: what an ingest with `--update` has to do, whatever became of earlier ones."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from redshelf.indexing import deletions, origin, store
from redshelf.indexing.changes import Changes, Ints, MakeRows, compare
from redshelf.indexing.files import read_json, write_json
from redshelf.indexing.imaging import Imaged
from redshelf.indexing.layout import Layout, ShelfInfo, finite_or_none
from redshelf.indexing.origin import Origin
from redshelf.indexing.survey import Survey
from redshelf.models.errors import Conflict


@dataclass(frozen=True)
class Update:
    """An ingest that changes a shelf, as it is written down before it begins and until it has ended: to which state of
    the survey, and the row that it appends from. From `doubtful` on, rows are of others that never ended."""

    fingerprint: str
    first_row: int
    doubtful: int


def _begin(layout: Layout, mark: str) -> Update:
    """Write the update down, or go on with it."""
    rows = store.count_rows(layout.sources)
    update = Update(mark, rows, rows)
    if layout.update_file.is_file():
        found = Update(**read_json(layout.update_file))
        if found.fingerprint == mark:
            return found
        update = Update(mark, rows, found.doubtful)
    write_json(layout.update_file, asdict(update))
    return update


def refuse_others(layout: Layout, info: ShelfInfo, survey: Survey) -> None:
    """`Conflict` where rows of this survey cannot stand in the tables of the shelf."""
    px = survey.survey.cutout_px if survey.has_images else 0
    scale = survey.survey.pixel_scale_arcsec or float("nan")
    bands = [(b.name, b.wavelength_nm, b.extinction, b.psf_fwhm_arcsec) for b in survey.bands]
    then = [(b.name, b.wavelength_nm, b.extinction, finite_or_none(b.psf_fwhm_arcsec)) for b in info.bands]
    columns = store.open_table(layout.sources).schema.names
    wanted = store.sources_schema(info.band_names, list(survey.catalogue.z_references)).names
    for what, new, old in (
        ("survey", survey.survey.name, info.survey),
        ("bands", bands, then),
        ("cutout_px", px, info.cutout_px),
        ("pixel_scale_arcsec", scale, info.pixel_scale_arcsec),
        ("columns of the sources", wanted, columns),
    ):
        if new != old and not (new != new and old != old):
            raise Conflict(f"{layout.root} has {what} {old}, and the survey file {new}: ingest into a new folder")


def _refuse_new_units(info: ShelfInfo, imaged: Imaged) -> None:
    """`Conflict` where a band has images now, and had none to measure the noise on that its cutouts are in units of."""
    unknown = [b for b, band in enumerate(info.bands) if not np.isfinite(band.noise_ujy)]
    noise = imaged.noise_ujy() if info.has_images and unknown else []
    for b in unknown:
        if noise and np.isfinite(noise[b]):
            raise Conflict(
                f"band {info.bands[b].name} has images now, and had none when the shelf was made, which has no unit "
                "for its cutouts: ingest into a new folder"
            )


def changes_of(layout: Layout, info: ShelfInfo, imaged: Imaged, source: Origin, make_rows: MakeRows) -> Changes:
    """Write down that an update begins, and what it has to do."""
    _refuse_new_units(info, imaged)
    update, before = _begin(layout, source.fingerprint), origin.read(layout).tiles
    differs = np.array([before.get(name) != source.tiles[name] for name in imaged.tiles] + [False])  # -1: on no tile

    def recut(positions: Ints, rows: Ints) -> npt.NDArray[np.bool_]:
        others = (rows >= update.doubtful) & (rows < update.first_row)
        return np.asarray(others | (differs[imaged.tile_of[positions]] & (rows < update.first_row)))

    sources = store.open_table(layout.sources)
    return compare(sources, deletions.read(layout), imaged.catalogue, make_rows=make_rows, recut=recut)

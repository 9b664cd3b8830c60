"""A shelf whose survey has changed: what an ingest with `--update` has to do, whatever became of earlier ones."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from redshelf.indexing import deletions, origin, store
from redshelf.indexing.changes import Changes, Ints, MakeRows, compare
from redshelf.indexing.files import read_json, write_json
from redshelf.indexing.imaging import Imaged
from redshelf.indexing.layout import Layout, ShelfInfo
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
    """Write the update down, or go on with it; what another one has left of its parts is removed."""
    rows = store.count_rows(layout.sources)
    update = Update(mark, rows, rows)
    if layout.update_file.is_file():
        found = Update(**read_json(layout.update_file))
        if found.fingerprint == mark:
            return found
        update = Update(mark, rows, found.doubtful)
        for receipts in (path for path in layout.update_file.parent.iterdir() if path.is_dir()):
            shutil.rmtree(receipts)  # before the other update is forgotten
    write_json(layout.update_file, asdict(update))
    return update


def refuse_others(layout: Layout, info: ShelfInfo, survey: Survey) -> None:
    """`Conflict` where rows of this survey cannot stand in the tables of the shelf."""
    px = survey.survey.cutout_px if survey.has_images else 0
    scale = survey.survey.pixel_scale_arcsec or float("nan")
    bands = [(b.name, b.wavelength_nm, b.extinction) for b in survey.bands]
    columns = store.open_table(layout.sources).schema.names
    wanted = store.sources_schema(info.band_names, list(survey.catalogue.z_references)).names
    for what, now, then in (
        ("survey", survey.survey.name, info.survey),
        ("bands", bands, [(b.name, b.wavelength_nm, b.extinction) for b in info.bands]),
        ("cutout_px", px, info.cutout_px),
        ("pixel_scale_arcsec", scale, info.pixel_scale_arcsec),
        ("columns of the sources", wanted, columns),
    ):
        if now != then and not (now != now and then != then):
            raise Conflict(f"{layout.root} has {what} {then}, and the survey file {now}: ingest into a new folder")


def changes_of(layout: Layout, imaged: Imaged, source: Origin, make_rows: MakeRows) -> Changes:
    """Write down that an update begins, and what it has to do."""
    update, before = _begin(layout, source.fingerprint), origin.read(layout).tiles
    differs = np.array([before.get(name) != source.tiles[name] for name in imaged.tiles] + [False])  # -1: on no tile

    def recut(positions: Ints, rows: Ints) -> npt.NDArray[np.bool_]:
        others = (rows >= update.doubtful) & (rows < update.first_row)
        return np.asarray(others | (differs[imaged.tile_of[positions]] & (rows < update.first_row)))

    sources = store.open_table(layout.sources)
    return compare(sources, deletions.read(layout), imaged.catalogue, make_rows=make_rows, recut=recut)

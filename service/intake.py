"""What an ingest has to do, found out from a survey and written down (`indexing/cutting`) before any of it is done."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import catalogue as catalogues
from redshelf.indexing import cutting, imaging, origin, store
from redshelf.indexing.catalogue import Catalogue
from redshelf.indexing.changes import first
from redshelf.indexing.cutting import Facts, IngestPlan
from redshelf.indexing.imaging import Imaged, Ints, TilePaths
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.indexing.origin import Origin
from redshelf.indexing.parts import plan_of
from redshelf.indexing.survey import Survey
from redshelf.models.bands import DETECTION_SNR, Band, State, flux_to_ab
from redshelf.service.update import changes_of

SOURCES_PER_BATCH = 65_536


def describe(survey: Survey, catalogue: Catalogue, noise_ujy: Sequence[float], *, fingerprint: str) -> ShelfInfo:
    """shelf.toml of a survey: the depth of each band is measured on the catalogue's errors (median 3 sigma), else on
    the noise of its images in an aperture of 2 arcsec; NaN where there is neither."""
    scale = survey.survey.pixel_scale_arcsec or float("nan")
    bands = []
    for b, (section, noise) in enumerate(zip(survey.bands, noise_ujy, strict=True)):
        errors = catalogue.flux_error_ujy[np.isin(catalogue.state[:, b], (State.NOT_DETECTED, State.MEASURED)), b]
        error = float(np.median(errors)) if len(errors) else noise * np.sqrt(np.pi) / scale
        bands.append(
            Band(
                name=section.name,
                wavelength_nm=section.wavelength_nm,
                depth_ab=float(flux_to_ab(DETECTION_SNR * error)),
                psf_fwhm_arcsec=section.psf_fwhm_arcsec or float("nan"),
                noise_ujy=noise,
                extinction=section.extinction,
            )
        )
    return ShelfInfo(
        survey=survey.survey.name,
        bands=tuple(bands),
        cutout_px=survey.survey.cutout_px if survey.has_images else 0,
        pixel_scale_arcsec=scale,
        fingerprint=fingerprint,
    )


def _source_rows(info: ShelfInfo, imaged: Imaged, references: Sequence[str]) -> Callable[[Ints, Ints], pa.RecordBatch]:
    """What turns positions in the catalogue and their rows (n,) into rows of sources.lance."""
    schema = store.sources_schema(info.band_names, references)
    tiles = np.array([*imaged.tiles, ""])  # -1 takes the last, no name

    def make(positions: Ints, rows: Ints) -> pa.RecordBatch:
        some = imaged.catalogue.take(positions)
        columns = {
            "row": rows,
            "source_id": pa.array(some.source_id.astype(str)),
            "ra_deg": some.ra_deg,
            "dec_deg": some.dec_deg,
            "healpix29": some.healpix29,
            "tile": pa.array(tiles[imaged.tile_of[positions]]),
            "object_class": pa.array(some.object_class),
            "flags": some.flags,
            "ebv": some.ebv,
            "size_arcsec": some.size_arcsec,
            "z_reference": some.z_reference,
        }
        further = [field.name for field in schema if field.name.startswith("z_reference_")]
        columns |= {name: some.z_references[:, r] for r, name in enumerate(further)}
        for b, band in enumerate(info.band_names):
            columns[f"flux_{band}"] = some.flux_ujy[:, b]
            columns[f"flux_error_{band}"] = some.flux_error_ujy[:, b]
            columns[f"state_{band}"] = some.state[:, b]
        return pa.RecordBatch.from_arrays([pa.array(columns[field.name]) for field in schema], schema=schema)

    return make


def _to_cut(layout: Layout, info: ShelfInfo, added: Ints, *, base: int, name: str) -> Ints:
    """Those of the sources `added` whose cutouts are not in the table, all or none: an ingest that was killed may have
    committed them. What one of another state of the survey has committed is taken back."""
    if not info.has_images:
        return added[:0]
    if store.exists(layout.cutouts):
        dataset = store.open_table(layout.cutouts)
        if dataset.count_rows() == base + len(added) and plan_of(dataset).startswith(name):
            return added[:0]
        if dataset.count_rows() != base:
            store.restore(layout.cutouts, rows=base)
    return added


def _versions(layout: Layout) -> str:
    """Of the two tables, which no other plan of the same state of the survey finds them at."""
    tables = (path for path in (layout.cutouts, layout.sources) if store.exists(path))
    return "".join(f"-{store.open_table(path).version}" for path in tables)


def prepare(
    layout: Layout,
    survey_file: Path,
    survey: Survey,
    paths: TilePaths,
    source: Origin,
    *,
    part_rows: int,
    task_parts: int,
) -> IngestPlan:
    """Read the catalogue, compare it with the shelf, and leave the plan and the new rows of the sources; raises
    `BadInput` for whatever is wrong in what the survey file names, before shelf.toml is written."""
    cutting.discard(layout)
    catalogue, cuts = catalogues.read(survey)
    imaged = imaging.imaged(survey, catalogue, paths, file_rows=len(catalogue) + sum(cuts.values()))
    if layout.info_file.is_file():
        info = layout.read_info()
    else:
        info = describe(survey, imaged.catalogue, imaged.noise_ujy(), fingerprint=source.fingerprint)
        origin.write(layout.origin_file, source)
        layout.write_info(info)
    references = tuple(survey.catalogue.z_references)
    make_rows = _source_rows(info, imaged, references)
    base, changes = 0, first(len(imaged.catalogue))
    if store.exists(layout.sources):
        changes, base = changes_of(layout, info, imaged, source, make_rows), store.count_rows(layout.sources)
    added = changes.added
    name = f"ingest-{source.fingerprint}"
    cut = _to_cut(layout, info, added, base=base, name=name)
    facts = Facts(
        fingerprint=source.fingerprint,
        survey_file=str(survey_file.resolve()),
        tiles=imaged.tiles,
        references=references,
        first_row=base,
        rows=base + len(added),
        part_rows=part_rows,
        task_parts=task_parts,
        pixels=imaged.pixels,
        tag=name + _versions(layout),
        new=changes.new,
        kept_out=changes.kept_out,
        cut=cuts,
        stamps_of_no_source=imaged.stamps_of_no_source,
    )
    rows = np.arange(base, base + len(added))
    pieces = (slice(start, start + SOURCES_PER_BATCH) for start in range(0, len(added), SOURCES_PER_BATCH))
    if len(added):
        cutting.write_sources(layout, facts, (make_rows(added[here], rows[here]) for here in pieces))
    places: dict[str, npt.NDArray[Any]] = {"where": imaged.where[cut]}
    places |= {"tile_of": imaged.tile_of[cut], "strip_of": imaged.strip_of[cut]}
    plan = IngestPlan(facts, **places, changed=changes.changed, removed=changes.removed)
    cutting.write(layout, plan, source)
    return cutting.read(layout)

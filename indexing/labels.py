"""The labels table: redshifts from every [[labels]] section, matched to sources, merged to one a source.

A label belongs to at most one source: that of its id, or the nearest within the section's radius. Of several labels of
a source the one of highest priority wins, then quality, then smaller error; the others are counted, and compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing.catalogue import Z_MAX, Z_MIN, classes, ids, passes, positions, unit_vectors
from redshelf.indexing.store import LABELS_SCHEMA
from redshelf.indexing.survey import Labels, Survey
from redshelf.indexing.tables import Columns, Floats, numbers, read_columns

DISAGREEMENT = 0.01  # |dz| / (1 + z) beyond which two labels of a source contradict each other


@dataclass(frozen=True)
class SectionCounts:
    """What became of one [[labels]] section: `rows` passed its cuts = `matched` + `unmatched` + `bad_z`."""

    survey: str
    rows: int
    matched: int
    unmatched: int
    bad_z: int  # not finite, or outside -0.01 to 20


@dataclass(frozen=True)
class MergedLabels:
    """`table` follows store.LABELS_SCHEMA, sorted by row, one row a labelled source."""

    table: pa.Table
    sections: tuple[SectionCounts, ...]
    disagreeing_rows: npt.NDArray[np.int64]


def match_ids(wanted: npt.NDArray[np.bytes_], source_id: npt.NDArray[np.bytes_]) -> npt.NDArray[np.int64]:
    """Row of each wanted id, -1 where no source has it."""
    order = np.argsort(source_id, kind="stable")
    place = np.minimum(np.searchsorted(source_id, wanted, sorter=order), len(source_id) - 1)
    rows = order[place]
    return np.where(source_id[rows] == wanted, rows, -1).astype(np.int64)


def match_positions(
    ra_deg: Floats, dec_deg: Floats, source_ra_deg: Floats, source_dec_deg: Floats, *, radius_arcsec: float
) -> npt.NDArray[np.int64]:
    """Row of the nearest source to each position, -1 where there is none within the radius."""
    from scipy.spatial import cKDTree

    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)
    tree = cKDTree(unit_vectors(source_ra_deg, source_dec_deg))
    distance, rows = tree.query(unit_vectors(ra_deg, dec_deg))
    return np.where(distance <= chord, rows, -1).astype(np.int64)


def _read(section: Labels, survey: Survey) -> tuple[Columns, str | None]:
    """The section's columns after its cuts, and its id column; the survey's own rows pass the catalogue's cuts too."""
    own = section.path is None
    catalogue = survey.catalogue
    cuts = [*catalogue.cuts, *section.cuts] if own else section.cuts
    id_column = catalogue.id if own else section.id
    optional = (id_column, section.ra, section.dec, section.z_error, section.quality, section.object_class)
    names = [section.z, *(name for name in optional if name), *(cut.column for cut in cuts)]
    path = survey.resolve(section.path if section.path is not None else catalogue.path)
    columns = read_columns(
        path,
        names,
        format=catalogue.format if own else section.format,
        hdu=catalogue.hdu if own else None,
        text=[id_column] if id_column else [],
    )
    keep = passes(columns, cuts)
    return {name: values[keep] for name, values in columns.items()}, id_column


def _section(
    section: Labels, survey: Survey, source_id: npt.NDArray[np.bytes_], ra_deg: Floats, dec_deg: Floats
) -> tuple[dict[str, npt.NDArray[Any]], SectionCounts]:
    columns, id_column = _read(section, survey)
    z = numbers(columns, section.z)
    count = len(z)
    if section.match == "id" and id_column is not None:
        rows = match_ids(ids(columns[id_column], column=id_column), source_id)
    else:
        assert section.ra is not None and section.dec is not None and section.path is not None  # checked by the model
        path = survey.resolve(section.path)
        ra, dec = positions(columns, section.ra, section.dec, np.arange(count), path=path)
        rows = match_positions(ra, dec, ra_deg, dec_deg, radius_arcsec=section.radius_arcsec)
    with np.errstate(invalid="ignore"):
        good = np.isfinite(z) & (z >= Z_MIN) & (z <= Z_MAX)
    keep = good & (rows >= 0)

    def optional(name: str | None) -> Floats:
        return np.full(count, np.nan) if name is None else numbers(columns, name)

    error = optional(section.z_error)
    found = {
        "row": rows,
        "z_spec": z,
        "z_error": np.where(error > 0, error, np.nan),
        "z_kind": np.full(count, section.kind),
        "z_survey": np.full(count, section.survey),
        "z_quality": optional(section.quality),
        "object_class": classes(columns, section.object_class, section.class_values, section.class_ranges, count=count),
        "priority": np.full(count, section.priority),
    }
    counts = SectionCounts(
        survey=section.survey,
        rows=count,
        matched=int(keep.sum()),
        unmatched=int((good & (rows < 0)).sum()),
        bad_z=int((~good).sum()),
    )
    return {name: values[keep] for name, values in found.items()}, counts


def merge(labels: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """One label a row from several: highest priority, then quality, then smallest error, then first given.

    Adds `n_labels` and `disagrees` (another label differs by more than 0.01 (1+z) from the chosen one).
    """
    quality = np.where(np.isfinite(labels["z_quality"]), labels["z_quality"], -np.inf)
    error = np.where(np.isfinite(labels["z_error"]), labels["z_error"], np.inf)
    order = np.lexsort((error, -quality, -labels["priority"], labels["row"]))
    ordered = {name: values[order] for name, values in labels.items()}
    _, first, group, count = np.unique(ordered["row"], return_index=True, return_inverse=True, return_counts=True)
    best = ordered["z_spec"][first][group]
    differs = np.abs(ordered["z_spec"] - best) > DISAGREEMENT * (1 + best)
    merged = {name: values[first] for name, values in ordered.items() if name != "priority"}
    merged["n_labels"] = count
    merged["disagrees"] = np.bincount(group, weights=differs, minlength=len(first)) > 0
    return merged


def build(
    survey: Survey,
    source_id: npt.NDArray[np.bytes_],
    ra_deg: Floats,
    dec_deg: Floats,
    object_class: npt.NDArray[np.str_],
) -> MergedLabels:
    """All labels of the survey file on the sources given in row order, (N,) each.

    Where no label catalogue gives a class, the label has the source's own: a star never gets a galaxy's redshift.
    """
    sections = [_section(section, survey, source_id, ra_deg, dec_deg) for section in survey.labels]
    if not sections:
        return MergedLabels(LABELS_SCHEMA.empty_table(), (), np.empty(0, dtype=np.int64))
    parts = [found for found, _ in sections]
    merged = merge({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    unknown = merged["object_class"] == "unknown"
    merged["object_class"] = np.where(unknown, object_class[merged["row"]], merged["object_class"])
    arrays = [pa.array(merged[field.name]).cast(field.type, safe=False) for field in LABELS_SCHEMA]
    return MergedLabels(
        table=pa.Table.from_arrays(arrays, schema=LABELS_SCHEMA),
        sections=tuple(counts for _, counts in sections),
        disagreeing_rows=merged["row"][merged["disagrees"]],
    )

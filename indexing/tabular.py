"""A table in memory in every format that is asked for, and back as a table of astropy.

Numbers and ids are read back to the bit from each. What the table says of itself travels in its metadata: PARAMs of a
VOTable, cards of FITS, metadata of Parquet. A CSV has no place for that: the most important of it are columns there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from redshelf.indexing import joining, votable
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from astropy.table import Table

PROVENANCE = ("survey", "generation", "encoder", "revision", "estimator", "recall")  # columns of a CSV


@dataclass(frozen=True)
class Format:
    """One way to write a table: its media type, the ending of its files, and the writer."""

    media: str
    ending: str
    write: Callable[[pa.Table], bytes]


def _csv(table: pa.Table) -> bytes:
    from pyarrow import csv

    for field in table.schema:
        if joining.list_size(field.type) is not None:
            raise BadInput(f"{field.name} is a list, which CSV cannot hold: take votable, parquet or fits")
    facts = joining.facts_of(table.schema)
    for name in PROVENANCE:
        if name in facts and name not in table.column_names:
            table = table.append_column(name, pa.array([facts[name]] * len(table), pa.string()))
    stream = BytesIO()
    csv.write_csv(table, stream, csv.WriteOptions(quoting_style="needed"))
    return stream.getvalue()


def _written(write: Callable[[Any, joining.Lines], None], table: pa.Table) -> bytes:
    stream = BytesIO()
    write(stream, joining.lines_of(table))
    return stream.getvalue()


def _parquet(table: pa.Table) -> bytes:
    widths = joining.lines_of(table).widths()  # which astropy asks for, and warns where it is not told
    told = {f"table::len::{name}": str(width) for name, width in widths.items()}
    told |= {f"table::len::{f.name}": str(n) for f in table.schema if (n := joining.list_size(f.type)) is not None}
    known = table.replace_schema_metadata({**(table.schema.metadata or {}), **told})
    return _written(joining.write_parquet, known)


def _fits(table: pa.Table) -> bytes:
    return _written(joining.write_fits, table)


FORMATS = {
    "votable": Format("application/x-votable+xml", "vot", votable.write),
    "csv": Format("text/csv", "csv", _csv),
    "parquet": Format("application/vnd.apache.parquet", "parquet", _parquet),
    "fits": Format("application/fits", "fits", _fits),
}


def to_astropy(table: pa.Table) -> Table:
    """The same as a table of astropy: units, descriptions, UCDs (`column.meta["ucd"]`), null as masked, facts in
    `meta`."""
    import numpy as np
    from astropy.table import Column, MaskedColumn, Table

    found = Table(meta=joining.facts_of(table.schema))
    for field, column in zip(table.schema, table.columns, strict=True):
        told = {"unit": joining.says(field, "unit"), "description": joining.says(field, "says")}
        ucd = joining.says(field, "ucd")
        null = np.asarray(column.is_null())
        if pa.types.is_string(field.type):
            values = np.array([value or "" for value in column.to_pylist()], dtype=np.str_)
        elif pa.types.is_boolean(field.type):
            values = np.asarray(column.fill_null(False))
        else:
            values = joining.plain(column)
        if null.any():
            mask = np.broadcast_to(null.reshape(-1, *[1] * (values.ndim - 1)), values.shape)
            made = MaskedColumn(values, mask=mask, **told)
        else:
            made = Column(values, **told)
        if ucd is not None:
            made.meta["ucd"] = ucd
        found[field.name] = made
    return found

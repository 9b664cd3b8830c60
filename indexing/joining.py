"""A table as one file: Parquet, a FITS table, or the HDF5 of a `qp` ensemble; also of parts, each a Parquet file.

Parts are read and written a row group at a time, so that memory does not grow with the file; it appears whole or not at
all. What the table says of itself, in the schema's metadata, becomes the metadata of Parquet, cards of the FITS header,
and attributes of the HDF5 file; what a column says of itself (`unit`, `ucd`, `says`), cards of FITS.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing.files import write_with
from redshelf.models.errors import BadInput, nearest

ENDINGS = {".parquet": "parquet", ".fits": "fits", ".hdf5": "hdf5"}
PREFIX = "redshelf."
PDF = "pdf"  # the column of densities, of which its field says the `edges`, a JSON list
FITS_BLOCK = 2880
CHUNK_ROWS = 256  # of the densities in HDF5: half a megabyte to unpack for one source
FITS_TYPES = {pa.float64(): ("D", ">f8"), pa.float32(): ("E", ">f4"), pa.int32(): ("J", ">i4"), pa.bool_(): ("L", "S1")}

Values = npt.NDArray[Any]


def format_of(path: Path, formats: Sequence[str]) -> str:
    """Which of `formats` the ending of `path` stands for; `BadInput` naming those that do."""
    known = {ending: name for ending, name in ENDINGS.items() if name in formats}
    if path.suffix not in known:
        raise BadInput(f"{path.name}: unknown ending {path.suffix!r}; {nearest(path.suffix, known)}")
    return known[path.suffix]


def key(name: str) -> bytes:
    """Of a fact in a schema's metadata."""
    return f"{PREFIX}{name}".encode()


def facts_of(schema: pa.Schema) -> dict[str, str]:
    """What a table says of itself."""
    told = {name.decode(): value.decode() for name, value in (schema.metadata or {}).items()}
    return {name.removeprefix(PREFIX): value for name, value in told.items() if name.startswith(PREFIX)}


@dataclass(frozen=True)
class Lines:
    """The lines of a table that may be larger than memory; `groups` goes through them, of some columns or all."""

    schema: pa.Schema
    rows: int
    groups: Callable[[list[str] | None], Iterator[pa.Table]]

    def widths(self) -> dict[str, int]:
        """Bytes of the longest string of each column of strings."""
        import pyarrow.compute as pc

        widths = {field.name: 1 for field in self.schema if pa.types.is_string(field.type)}
        for group in self.groups(list(widths)):
            for name, column in zip(widths, group.columns, strict=True):
                widths[name] = max(widths[name], pc.max(pc.binary_length(column)).as_py() or 0)
        return widths


def lines_of(table: pa.Table) -> Lines:
    """The lines of a table in memory."""
    return Lines(table.schema, len(table), lambda names: iter([table if names is None else table.select(names)]))


def lines_of_parts(parts: Sequence[Path]) -> Lines:
    """The lines of parts of one schema, in this order."""
    import pyarrow.parquet as pq

    def groups(names: list[str] | None) -> Iterator[pa.Table]:
        for path in parts:
            with pq.ParquetFile(path) as part:
                for number in range(part.num_row_groups):
                    yield part.read_row_group(number, columns=names)

    return Lines(pq.read_schema(parts[0]), sum(pq.read_metadata(path).num_rows for path in parts), groups)


def write(path: Path, format: str, parts: Sequence[Path]) -> None:
    """Write the lines of `parts`, which have one schema, in this order to `path`, whole or not at all."""
    lines = lines_of_parts(parts)
    write_with(path, lambda handle: WRITERS[format](handle, lines))


def write_parquet(handle: BinaryIO, lines: Lines) -> None:
    """Parquet, a row group for each group of lines."""
    import pyarrow.parquet as pq

    with pq.ParquetWriter(handle, lines.schema) as writer:
        for group in lines.groups(None):
            writer.write_table(group)


def says(field: pa.Field, name: str) -> str | None:
    """What a column says of itself: its `unit`, `ucd`, ..., None where it says nothing of that."""
    value = (field.metadata or {}).get(name.encode())
    return None if value is None else value.decode()


def list_size(type: pa.DataType) -> int | None:
    """Values in each line of a column, None where a line has one."""
    return int(type.list_size) if pa.types.is_fixed_size_list(type) else None


def plain(column: pa.ChunkedArray) -> Values:
    """A column as an array: strings as bytes, empty for null, NaN for a null number; lists of one size as (N, size)."""
    if (size := list_size(column.type)) is not None:
        values = np.full((len(column), size), np.nan)
        known = np.asarray(column.is_valid())
        values[known] = np.asarray(column.combine_chunks().flatten()).reshape(-1, size)  # nulls are left out
        return values
    if pa.types.is_string(column.type):
        return np.array([value or "" for value in column.to_pylist()], "S")
    return np.asarray(column.to_numpy())


def _fits_card(header: Any, name: str, value: str) -> None:
    """A fact as a card; as a comment where it is longer than a card."""
    from astropy.io import fits

    words, text = f"{PREFIX}{name}".replace(".", " ").upper(), value.encode("ascii", "replace").decode()
    if len(f"HIERARCH {words} = ''") + len(text.replace("'", "''")) > fits.card.Card.length:
        header["COMMENT"] = f"{name}: {text}"
    else:
        header[f"HIERARCH {words}"] = text


def write_fits(handle: BinaryIO, lines: Lines) -> None:
    """One binary table; astropy makes the headers, the records follow as FITS wants them."""
    from astropy.io import fits

    schema, widths = lines.schema, lines.widths()
    columns, dtype = [], []
    for field in schema:
        width, size = widths.get(field.name), list_size(field.type)
        code, kind = (
            FITS_TYPES[field.type if size is None else field.type.value_type] if width is None else ("A", f"S{width}")
        )
        columns.append(fits.Column(name=field.name, format=f"{width or size or ''}{code}", unit=says(field, "unit")))
        dtype.append((field.name, kind) if size is None else (field.name, kind, (size,)))
    header = fits.BinTableHDU.from_columns(columns, nrows=0, name="SOURCES").header
    header["NAXIS2"] = lines.rows
    for name, value in facts_of(schema).items():
        _fits_card(header, name, value)
    for number, field in enumerate(schema, 1):
        if (ucd := says(field, "ucd")) is not None:
            header[f"TUCD{number}"] = ucd
        for line in (says(field, "says") or "").splitlines():
            header["COMMENT"] = f"{field.name}: {line}"
    handle.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
    handle.write(header.tostring().encode("ascii"))
    size = 0
    for group in lines.groups(None):
        records = np.empty(len(group), dtype=dtype)
        for field in schema:
            values = plain(group[field.name])
            records[field.name] = np.where(values, b"T", b"F") if pa.types.is_boolean(field.type) else values
        handle.write(records.tobytes())
        size += records.nbytes
    handle.write(bytes(-size % FITS_BLOCK))


def _hdf5(handle: BinaryIO, lines: Lines) -> None:
    """What `qp.read` takes for an ensemble of histograms: `meta` the bins, `data` the densities, `ancil` the rest."""
    import h5py

    schema, rows, widths = lines.schema, lines.rows, lines.widths()
    edges = json.loads(says(schema.field(PDF), "edges") or "null")
    rest = [field for field in schema if field.name != PDF]
    with h5py.File(handle, "w") as file:
        file.attrs.update(facts_of(schema))
        file["meta/pdf_name"], file["meta/pdf_version"] = np.array([b"hist"]), np.array([0])
        file["meta/bins"] = np.array([edges])
        bins = len(edges) - 1
        packed = {"chunks": (min(CHUNK_ROWS, rows), bins), "compression": 1, "shuffle": True} if rows else {}
        pdfs = file.create_dataset("data/pdfs", (rows, bins), "f4", **packed)
        ancil = {
            field.name: file.create_dataset(
                f"ancil/{field.name}",
                (rows,),
                f"S{widths[field.name]}" if field.name in widths else field.type.to_pandas_dtype(),
            )
            for field in rest
        }
        for field in rest:
            if (told := says(field, "says")) is not None:
                ancil[field.name].attrs["says"] = told
        start = 0
        for group in lines.groups(None):
            at = slice(start, start + len(group))
            pdfs[at] = group[PDF].combine_chunks().flatten().to_numpy().reshape(len(group), -1)
            for field in rest:
                ancil[field.name][at] = plain(group[field.name])
            start += len(group)


WRITERS: dict[str, Callable[[BinaryIO, Lines], None]] = {"parquet": write_parquet, "fits": write_fits, "hdf5": _hdf5}


def read_facts(path: Path, format: str) -> dict[str, str]:
    """What a file that `write` made says of itself; nothing for any other."""
    try:
        if format == "parquet":
            import pyarrow.parquet as pq

            return facts_of(pq.read_schema(path))
        if format == "fits":
            from astropy.io import fits

            begin, header = f"{PREFIX}".replace(".", " ").upper(), fits.getheader(path, 1)
            return {name.removeprefix(begin).lower(): str(header[name]) for name in header if name.startswith(begin)}
        import h5py

        with h5py.File(path) as file:
            return {name: str(value) for name, value in file.attrs.items()}
    except (pa.ArrowInvalid, OSError, IndexError):
        return {}

"""Parts of a table, each a Parquet file, as one file: Parquet, a FITS table, or the HDF5 of a `qp` ensemble.

Read and written a row group at a time, so that memory does not grow with the file; it appears whole or not at all. What
the table says of itself, in the schema's metadata, becomes the metadata of Parquet, cards of the FITS header, and
attributes of the HDF5 file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
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


def _groups(parts: Sequence[Path]) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    for path in parts:
        with pq.ParquetFile(path) as part:
            for number in range(part.num_row_groups):
                yield part.read_row_group(number)


def _schema(path: Path) -> pa.Schema:
    import pyarrow.parquet as pq

    return pq.read_schema(path)


def _rows(parts: Sequence[Path]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in parts)


def write(path: Path, format: str, parts: Sequence[Path]) -> None:
    """Write the lines of `parts`, which have one schema, in this order to `path`, whole or not at all."""
    write_with(path, lambda handle: WRITERS[format](handle, parts))


def _parquet(handle: BinaryIO, parts: Sequence[Path]) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(handle, _schema(parts[0])) as writer:
        for group in _groups(parts):
            writer.write_table(group)


def _widths(parts: Sequence[Path]) -> dict[str, int]:
    """Bytes of the longest string of each column of strings."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    widths = {field.name: 1 for field in _schema(parts[0]) if pa.types.is_string(field.type)}
    for path in parts:
        for name, column in zip(widths, pq.read_table(path, columns=list(widths)).columns, strict=True):
            widths[name] = max(widths[name], pc.max(pc.binary_length(column)).as_py() or 0)
    return widths


def _says(field: pa.Field, name: str) -> str | None:
    value = (field.metadata or {}).get(name.encode())
    return None if value is None else value.decode()


def _plain(column: pa.ChunkedArray) -> Values:
    """A column as an array: strings as bytes, NaN for null."""
    return np.array(column.to_pylist(), "S") if pa.types.is_string(column.type) else np.asarray(column.to_numpy())


def _fits(handle: BinaryIO, parts: Sequence[Path]) -> None:
    """One binary table; astropy makes the headers, the records follow as FITS wants them."""
    from astropy.io import fits

    schema, rows, widths = _schema(parts[0]), _rows(parts), _widths(parts)
    columns, dtype = [], []
    for field in schema:
        width = widths.get(field.name)
        code, kind = FITS_TYPES[field.type] if width is None else (f"{width}A", f"S{width}")
        columns.append(fits.Column(name=field.name, format=code, unit=_says(field, "unit")))
        dtype.append((field.name, kind))
    header = fits.BinTableHDU.from_columns(columns, nrows=0, name="SOURCES").header
    header["NAXIS2"] = rows
    for name, value in facts_of(schema).items():
        header[f"HIERARCH {PREFIX}{name}".replace(".", " ").upper()] = value
    for field in schema:
        if (says := _says(field, "says")) is not None:
            for line in says.splitlines():
                header["COMMENT"] = f"{field.name}: {line}"
    handle.write(fits.PrimaryHDU().header.tostring().encode("ascii"))
    handle.write(header.tostring().encode("ascii"))
    size = 0
    for group in _groups(parts):
        records = np.empty(len(group), dtype=dtype)
        for field in schema:
            values = _plain(group[field.name])
            records[field.name] = np.where(values, b"T", b"F") if pa.types.is_boolean(field.type) else values
        handle.write(records.tobytes())
        size += records.nbytes
    handle.write(bytes(-size % FITS_BLOCK))


def _hdf5(handle: BinaryIO, parts: Sequence[Path]) -> None:
    """What `qp.read` takes for an ensemble of histograms: `meta` the bins, `data` the densities, `ancil` the rest."""
    import h5py

    schema, rows, widths = _schema(parts[0]), _rows(parts), _widths(parts)
    edges = json.loads(_says(schema.field(PDF), "edges") or "null")
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
            if (says := _says(field, "says")) is not None:
                ancil[field.name].attrs["says"] = says
        start = 0
        for group in _groups(parts):
            at = slice(start, start + len(group))
            pdfs[at] = group[PDF].combine_chunks().flatten().to_numpy().reshape(len(group), -1)
            for field in rest:
                ancil[field.name][at] = _plain(group[field.name])
            start += len(group)


WRITERS: dict[str, Callable[[BinaryIO, Sequence[Path]], None]] = {"parquet": _parquet, "fits": _fits, "hdf5": _hdf5}


def read_facts(path: Path, format: str) -> dict[str, str]:
    """What a file that `write` made says of itself; nothing for any other."""
    try:
        if format == "parquet":
            return facts_of(_schema(path))
        if format == "fits":
            from astropy.io import fits

            begin, header = f"{PREFIX}".replace(".", " ").upper(), fits.getheader(path, 1)
            return {name.removeprefix(begin).lower(): str(header[name]) for name in header if name.startswith(begin)}
        import h5py

        with h5py.File(path) as file:
            return {name: str(value) for name, value in file.attrs.items()}
    except (pa.ArrowInvalid, OSError, IndexError):
        return {}

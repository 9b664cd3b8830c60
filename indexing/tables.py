"""Named columns of a table as numpy arrays: FITS, VOTable, ECSV, CSV, Parquet and HATS, for catalogues and label lists.

Only the columns asked for are read. Missing numbers are NaN, missing texts empty.
"""

from __future__ import annotations

import csv
import gzip
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput, nearest

Columns = dict[str, npt.NDArray[Any]]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Choose = Callable[[Sequence[str]], list[str]]  # the columns a table has -> those to read, or `BadInput`

FITS_BLOCK_ROWS = 16_384
FORMATS = {
    "fits": (".fits", ".fit", ".fits.gz"),
    "votable": (".xml", ".vot", ".votable"),
    "ecsv": (".ecsv",),
    "csv": (".csv", ".csv.gz"),
    "parquet": (".parquet", ".pq"),
}


def _choose(
    path: Path, names: Sequence[str], alternatives: Sequence[Sequence[str]], available: Sequence[str]
) -> list[str]:
    """`names`, and of each group of alternatives the first that is available."""
    for name in names:
        if name not in available:
            raise BadInput(f"{path.name} has no column {name!r}; {nearest(name, available)}")
    chosen = list(names)
    for group in alternatives:
        found = next((name for name in group if name in available), None)
        if found is None:
            listed = ", ".join(repr(name) for name in group)
            raise BadInput(f"{path.name} has none of the columns {listed}; {nearest(group[0], available)}")
        chosen.append(found)
    return list(dict.fromkeys(chosen))


def _masked_to_numpy(values: npt.NDArray[Any], missing: Bools | None) -> npt.NDArray[Any]:
    """Missing numbers become NaN, missing texts empty; texts are numpy strings, numbers are in native byte order."""
    if values.dtype.kind in "OSU":
        texts = values.astype(str) if values.dtype.kind != "S" else np.char.decode(values, "utf-8")
        return np.char.rstrip(np.where(missing, "", texts) if missing is not None else texts)
    values = values.astype(values.dtype.newbyteorder("="))
    if missing is not None and missing.any():
        # a float32 column stays one, so that -99.9 of a cut or of `missing` is found in it
        values = np.where(missing, np.nan, values if values.dtype.kind == "f" else values.astype(np.float64))
    return values


def _fits_null(column: Any) -> int | float | None:
    """The value that stands for a missing one in an integer column, as it is read: TNULL is of what is stored, TSCAL
    and TZERO come after."""
    if not isinstance(column.null, int) or column.dtype.kind not in "iu":
        return None
    scale, zero = column.bscale or 1, column.bzero or 0
    if scale == 1 and zero == int(zero):
        return column.null + int(zero)  # exactly, of an unsigned one of 64 bits too
    return float(column.null) * scale + zero


def _read_fits(path: Path, choose: Choose, hdu: int | None) -> Columns:
    from astropy.io import fits

    with fits.open(path, memmap=True) as units:
        tables = (
            [u for u in units if isinstance(u, fits.BinTableHDU | fits.TableHDU)]
            if hdu is None
            else units[hdu : hdu + 1]
        )
        if not tables or not hasattr(tables[0], "columns"):
            raise BadInput(
                f"{path.name}: {'no table' if hdu is None else f'HDU {hdu} is not a table'}; it has {len(units)} HDUs"
            )
        table = tables[0]
        place = table.fileinfo() or {}
        if path.suffix != ".gz" and place and place["datLoc"] + table.size > path.stat().st_size:
            raise BadInput(f"{path.name} is truncated: {path.stat().st_size} bytes, its header promises more")
        pieces: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in choose(table.columns.names)}
        data, rows = table.data, int(table.header["NAXIS2"])
        for start in range(0, max(rows, 1), FITS_BLOCK_ROWS):  # its columns lie interleaved: each page is read once
            block = data[start : start + FITS_BLOCK_ROWS]
            for name, found in pieces.items():
                values = np.asarray(block[name])
                null = _fits_null(table.columns[name])
                found.append(_masked_to_numpy(values, None if null is None else values == null))
        return {name: np.concatenate(found) for name, found in pieces.items()}


def _read_astropy(path: Path, choose: Choose, format: str) -> Columns:
    from astropy.table import Table

    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # many archives' VOTables are slightly off the standard; the values are what counts
        table = Table.read(path, format=format)
    out = {}
    for name in choose(table.colnames):
        mask = getattr(table[name], "mask", None)
        out[name] = _masked_to_numpy(np.asarray(table[name]), None if mask is None else np.asarray(mask))
    return out


def _arrow_to_numpy(column: Any) -> npt.NDArray[Any]:
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return np.asarray(column.fill_null("").to_numpy(), dtype=str)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if column.null_count and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    return np.asarray(column.to_numpy())


def _read_csv(path: Path, choose: Choose, text: Sequence[str]) -> Columns:
    import pyarrow as pa
    import pyarrow.csv

    with (
        gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig")
    ) as handle:
        header = next(csv.reader(handle), [])
    names = choose(header)
    options = pa.csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(text, pa.string()))
    table = pa.csv.read_csv(path, convert_options=options)
    return {name: _arrow_to_numpy(table[name]) for name in names}


def _read_parquet(path: Path, choose: Choose) -> Columns:
    import pyarrow.parquet as pq

    names = choose(pq.read_schema(path).names)
    table = pq.ParquetFile(path).read(columns=names)
    return {name: _arrow_to_numpy(table[name]) for name in names}


def _read_hats(path: Path, choose: Choose) -> Columns:
    from redshelf.indexing.hats import open_hats

    dataset = open_hats(path)
    names = choose(dataset.schema.names)
    # a column at a time: strings take several times as much in numpy as in Arrow
    return {name: _arrow_to_numpy(dataset.to_table(columns=[name])[name]) for name in names}


def read_columns(
    path: Path,
    names: Iterable[str],
    *,
    alternatives: Sequence[Sequence[str]] = (),
    format: str | None = None,
    hdu: int | None = None,
    text: Sequence[str] = (),
) -> Columns:
    """{name: (N,) array} of the named columns of a table file, by its ending unless `format` is given, or HATS folder.

    Missing numbers are NaN, missing texts empty. `alternatives`: of each group of names the first that the table has is
    read too. `text`: columns that a CSV must not turn into numbers (ids).
    `BadInput` names the file and, for a column that is not there, the nearest ones.
    """
    choose = partial(_choose, path, list(names), alternatives)
    if not path.exists():
        raise BadInput(f"table {path} does not exist")
    if path.is_dir() and format not in (None, "hats"):
        raise BadInput(f"table {path} is a folder: expected a {format} file")
    found = (
        "hats"
        if path.is_dir()
        else format or next((f for f, endings in FORMATS.items() if path.name.lower().endswith(endings)), None)
    )
    if found is None:
        raise BadInput(f"{path.name}: cannot tell its format; give `format`, one of {', '.join(FORMATS)}")
    try:
        if found == "fits":
            columns = _read_fits(path, choose, hdu)
        elif found == "csv":
            columns = _read_csv(path, choose, text)
        elif found == "parquet":
            columns = _read_parquet(path, choose)
        elif found == "hats":
            columns = _read_hats(path, choose)
        else:
            columns = _read_astropy(path, choose, "votable" if found == "votable" else "ascii.ecsv")
    except BadInput:
        raise
    except Exception as error:  # each reader has its own errors for a damaged file
        raise BadInput(f"{path.name} cannot be read as {found}: {error}") from error
    for name, values in columns.items():
        if values.ndim != 1:
            raise BadInput(f"{path.name} column {name!r} holds {values.shape[1:]} values a row: expected one")
    return columns


def numbers(columns: Columns, name: str) -> Floats:
    """A column as float64; `BadInput` where it holds text."""
    values = columns[name]
    if values.dtype.kind not in "fiub":
        shown = next((str(v) for v in values if str(v)), "")
        raise BadInput(f"column {name!r} holds {shown!r}: expected numbers")
    return np.asarray(values, dtype=np.float64)

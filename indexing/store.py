"""The Lance tables: their schemas, and writing them by parts that are committed once.

A part is written as uncommitted fragments and then a receipt, by atomic rename; `commit_parts` checks that the receipts
are complete and contiguous, commits them in order under a file lock, and verifies `row == position`. A run that is
killed repeats at most the part it was in.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from filelock import FileLock

from redshelf.indexing.files import read_json, write_json
from redshelf.models.errors import BadInput, Conflict, NotFound

os.environ.setdefault("LANCE_LOG", "error")  # "No existing dataset, it will be created" is no warning to a user


def sources_schema(bands: Sequence[str], references: Sequence[str] = ()) -> pa.Schema:
    """The catalogue: one row a source, `row` its dense number and position; `references` name further photo-zs."""
    fields = [
        ("row", pa.int64()),
        ("source_id", pa.string()),
        ("ra_deg", pa.float64()),
        ("dec_deg", pa.float64()),
        ("healpix29", pa.int64()),
        ("tile", pa.string()),
    ]
    for band in bands:
        fields += [(f"flux_{band}", pa.float32()), (f"flux_error_{band}", pa.float32()), (f"state_{band}", pa.int8())]
    fields += [
        ("object_class", pa.string()),
        ("flags", pa.int32()),
        ("ebv", pa.float32()),
        ("size_arcsec", pa.float32()),
        ("z_reference", pa.float32()),
    ]
    fields += [(f"z_reference_{name}", pa.float32()) for name in references]
    return pa.schema(fields)


FLAG_MASKED = 1  # a mask flag of the catalogue is set: never given a redshift
FLAG_NO_TILE = 2  # the survey has images, and none covers the source

LABELS_SCHEMA = pa.schema(
    [
        ("row", pa.int64()),
        ("z_spec", pa.float32()),
        ("z_error", pa.float32()),
        ("z_kind", pa.string()),
        ("z_survey", pa.string()),
        ("z_quality", pa.float32()),
        ("object_class", pa.string()),
        ("n_labels", pa.int32()),  # labels merged into this one
        ("disagrees", pa.bool_()),  # another label of the source differs by more than 0.01 (1+z)
    ]
)


def cutouts_schema(bands: int, cutout_px: int) -> pa.Schema:
    """The pixels: `pixels` float16 (bands, H, W) in units of the band's noise, `mask` the packed bits (1 = bad),
    `state` per band of the pixels (`models.bands.State`)."""
    size = bands * cutout_px * cutout_px
    return pa.schema(
        [
            ("row", pa.int64()),
            ("pixels", pa.list_(pa.float16(), size)),
            ("mask", pa.list_(pa.uint8(), -(-size // 8))),
            ("state", pa.list_(pa.int8(), bands)),
        ]
    )


def unpack_cutouts(piece: pa.Table, bands: int, cutout_px: int) -> tuple[Any, Any, Any]:
    """Pixels (N, B, H, W) float16, mask (N, B, H, W) bool and state (N, B) int8 of rows of the cutouts table."""
    shape = (len(piece), bands, cutout_px, cutout_px)
    bits = np.unpackbits(list_values(piece.column("mask")), axis=1, count=bands * cutout_px**2)
    pixels = list_values(piece.column("pixels")).reshape(shape)
    return pixels, bits.reshape(shape).view(np.bool_), list_values(piece.column("state"))


def column_values(column: pa.ChunkedArray, shape: Sequence[int], *, chosen: Sequence[int]) -> npt.NDArray[Any]:
    """A column of fixed-size lists as (N, len(chosen), *shape[1:]): each list is of `shape`, and `chosen` are the
    positions wanted along its first axis. The one copy is the array that comes out, which may be written to."""
    out = np.empty((len(column), len(chosen), *shape[1:]), dtype=column.type.value_type.to_pandas_dtype())
    at, straight = 0, list(chosen) == list(range(shape[0]))
    for chunk in column.chunks:
        values, part = list_values(chunk).reshape(-1, *shape), out[at : at + len(chunk)]
        if straight:
            part[...] = values
        else:
            np.take(values, chosen, axis=1, out=part, mode="clip")  # any other mode goes through a buffer
        at += len(chunk)
    return out


def band_masks(column: pa.ChunkedArray, bands: int, cutout_px: int, *, chosen: Sequence[int]) -> npt.NDArray[np.uint8]:
    """The `mask` column with each band's bits in bytes of its own, (N, len(chosen), ceil(H W / 8)), packed."""
    area = cutout_px**2
    if area % 8 == 0:
        return column_values(column, (bands, area // 8), chosen=chosen)
    bits = np.unpackbits(column_values(column, (column.type.list_size,), chosen=range(column.type.list_size)), axis=1)
    by_band = bits[:, : bands * area].reshape(-1, bands, area)
    return np.packbits(by_band[:, list(chosen)], axis=2)


def embeddings_schema(dim: int) -> pa.Schema:
    return pa.schema([("row", pa.int64()), ("vector", pa.list_(pa.float16(), dim))])


def fixed_list(values: npt.NDArray[Any]) -> pa.FixedSizeListArray:
    """An (N, size) array as one Arrow column of fixed-size lists, without a copy where it is contiguous."""
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def list_values(column: pa.ChunkedArray | pa.FixedSizeListArray) -> npt.NDArray[Any]:
    """The reverse of `fixed_list`: (N, size)."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # combine_chunks of no chunk
        array = pa.concat_arrays(array.chunks)
    values = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(array), array.type.list_size))


def open_table(path: Path, *, version: int | str | None = None) -> Any:
    """A Lance dataset; `NotFound` where there is none. `version` is a number or a tag."""
    import lance

    if not (path / "_versions").is_dir():
        raise NotFound(f"no table {path.name} in {path.parent}")
    return lance.dataset(str(path), version=version)


def count_rows(path: Path) -> int:
    """Rows of a table, 0 where there is none."""
    return int(open_table(path).count_rows()) if (path / "_versions").is_dir() else 0


def _receipt_path(receipts: Path, part: int) -> Path:
    return receipts / f"part-{part:06d}.json"


def done_parts(receipts: Path) -> set[int]:
    """The parts that have a receipt."""
    return {int(p.stem.split("-")[1]) for p in receipts.glob("part-*.json")}


def write_part(
    table: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, receipts: Path, part: int, first_row: int
) -> int:
    """Write one part as uncommitted fragments and its receipt; returns its rows.

    The batches' `row` column must count up from `first_row`; anything else is `BadInput` and leaves no receipt.
    Whatever `batches` raises comes out as it was raised, and leaves none either.
    """
    from lance.fragment import write_fragments

    started, next_row = time.perf_counter(), first_row
    raised: list[Exception] = []

    def checked() -> Iterable[pa.RecordBatch]:
        nonlocal next_row
        try:
            for batch in batches:
                rows = batch.column(batch.schema.get_field_index("row")).to_numpy()
                if len(rows) and (rows[0] != next_row or (np.diff(rows) != 1).any()):
                    raise BadInput(f"{table.name} part {part}: rows do not count up from {next_row}")
                next_row += len(rows)
                yield batch
        except Exception as error:
            raised.append(error)
            raise

    reader = pa.RecordBatchReader.from_batches(schema, checked())
    try:
        fragments = write_fragments(reader, str(table), schema=schema)
    except OSError:  # also what Arrow's C interface makes of every exception of the batches, with its traceback as text
        if not raised:
            raise
    if raised:
        raise raised[0]
    receipt = {
        "part": part,
        "first_row": first_row,
        "rows": next_row - first_row,
        "fragments": [f.to_json() for f in fragments],
        "seconds": time.perf_counter() - started,
    }
    write_json(_receipt_path(receipts, part), receipt)
    return next_row - first_row


def _committed_plans(dataset: Any) -> set[str]:
    plans = ((t.transaction_properties or {}).get("plan") for t in dataset.get_transactions() if t is not None)
    return {plan for plan in plans if plan}


def commit_parts(table: Path, schema: pa.Schema, *, receipts: Path, parts: int, plan: str) -> int:
    """Commit all `parts` of `plan` at once, in order, and return the table's rows; removes the receipts.

    Refuses (`Conflict`, naming them) missing parts and rows that do not continue the table. Committing a plan twice
    changes nothing.
    """
    import lance
    from lance.fragment import FragmentMetadata

    receipts.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(receipts.parent / f"{table.name}.lock")):
        version, rows = 0, 0
        if (table / "_versions").is_dir():
            dataset = open_table(table)
            version, rows = int(dataset.version), int(dataset.count_rows())
            if plan in _committed_plans(dataset):
                shutil.rmtree(receipts, ignore_errors=True)
                return rows
        missing = sorted(set(range(parts)) - done_parts(receipts))
        if missing:
            raise Conflict(f"{table.name}: {len(missing)} of {parts} parts have no receipt, the first is {missing[0]}")
        documents = [read_json(_receipt_path(receipts, part)) for part in range(parts)]
        for document in documents:
            if document["first_row"] != rows:
                raise Conflict(
                    f"{table.name} part {document['part']}: starts at row {document['first_row']}, expected {rows}"
                )
            rows += document["rows"]
        fragments = [FragmentMetadata.from_json(json.dumps(f)) for d in documents for f in d["fragments"]]
        overwrite, append = lance.LanceOperation.Overwrite, lance.LanceOperation.Append
        operation = overwrite(schema, fragments) if version == 0 else append(fragments)
        transaction = lance.Transaction(version, operation, transaction_properties={"plan": plan})
        dataset = lance.LanceDataset.commit(str(table), transaction, read_version=version)
        verify_rows(dataset, table.name, expected=rows)
        shutil.rmtree(receipts, ignore_errors=True)
        return rows


def verify_rows(dataset: Any, name: str, *, expected: int) -> None:
    """Raise `BadInput` unless the table has `expected` rows and `row == position` everywhere."""
    position = 0
    for batch in dataset.to_batches(columns=["row"]):
        rows = batch.column(0).to_numpy()
        if (rows != np.arange(position, position + len(rows))).any():
            raise BadInput(f"{name}: row != position at or after position {position}")
        position += len(rows)
    if position != expected:
        raise BadInput(f"{name}: {position} rows, expected {expected}")


def replace_table(path: Path, table: pa.Table) -> None:
    """Write a small table whole as a new version (labels)."""
    import lance

    lance.write_dataset(table, str(path), mode="overwrite" if (path / "_versions").is_dir() else "create")


def tag(dataset: Any, name: str) -> None:
    """Tag the version that `dataset` is open at, so that no clean-up removes it; a tag left by a killed run moves."""
    tags = dataset.tags
    if name in tags.list():
        tags.update(name, dataset.version)
    else:
        tags.create(name, dataset.version)

"""The Lance tables: their schemas, and the columns in and out of numpy. `indexing/parts` writes the large ones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.models.errors import NotFound

LAST_VERSION = 2**64 - 1  # Lance names version v's manifest by this minus v, so that the newest sorts first
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
    values = array.flatten().to_numpy(zero_copy_only=False)
    return np.asarray(values.reshape(len(array), array.type.list_size))


def same_rows(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Which rows (n,) of two arrays (n, ...) are alike, NaN for NaN."""
    floats = first.dtype.kind == "f" and second.dtype.kind == "f"
    alike = (first == second) | (np.isnan(first) & np.isnan(second)) if floats else first == second
    return np.asarray(alike.reshape(len(alike), -1).all(axis=1))


def exists(path: Path) -> bool:
    """Whether there is a version of the table; a first commit that failed leaves the folder alone."""
    return any((path / "_versions").glob("*.manifest"))


def open_table(path: Path, *, version: int | str | None = None) -> Any:
    """A Lance dataset; `NotFound` where there is none. `version` is a number or a tag."""
    import lance

    if not exists(path):
        raise NotFound(f"no table {path.name} in {path.parent}")
    return lance.dataset(str(path), version=version)


def count_rows(path: Path) -> int:
    """Rows of a table, 0 where there is none."""
    return int(open_table(path).count_rows()) if exists(path) else 0


def version_file(path: Path, dataset: Any) -> Path:
    """The manifest of the version that `dataset`, the table at `path`, is open at: it names the version's files."""
    return path / "_versions" / f"{LAST_VERSION - dataset.version}.manifest"


def data_files(path: Path, dataset: Any) -> list[Path]:
    """The files that hold the columns of the version that `dataset`, the table at `path`, is open at."""
    return [path / "data" / Path(f.path).name for fragment in dataset.get_fragments() for f in fragment.data_files()]


def unreferred(path: Path) -> list[Path]:
    """Data files of the table at `path` that no version refers to: parts of a run that was never committed, or of one
    that goes on now."""
    referred: set[Path] = set()
    if exists(path):
        for version in open_table(path).versions():
            referred.update(data_files(path, open_table(path, version=version["version"])))
    return [file for file in sorted((path / "data").rglob("*")) if file.is_file() and file not in referred]


def replace_table(path: Path, table: pa.Table) -> None:
    """Write a small table whole as a new version (labels)."""
    import lance

    lance.write_dataset(table, str(path), mode="overwrite" if exists(path) else "create")


def restore(path: Path, *, rows: int) -> Any:
    """Make the newest version of `rows` rows the current one again, and return it; no version is lost."""
    for version in reversed(open_table(path).versions()):
        dataset = open_table(path, version=version["version"])
        if dataset.count_rows() == rows:
            dataset.restore()
            return open_table(path)
    raise NotFound(f"{path.stem}: no version of {rows} rows")


def tag(dataset: Any, name: str) -> None:
    """Tag the version that `dataset` is open at, so that no clean-up removes it; a tag left by a killed run moves."""
    tags = dataset.tags
    if name in tags.list():
        tags.update(name, dataset.version)
    else:
        tags.create(name, dataset.version)

"""HATS folders: a catalogue as Parquet files, one to a HEALPix pixel (https://www.ivoa.net/documents/Notes/HATS/).

`open_hats(folder)` is the whole as one pyarrow dataset; `plan` says which rows go to which pixel, and `write` makes a
folder that the `hats` package and LSDB open. Theirs is not used here: it brings numba and pandas.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing.files import write_bytes
from redshelf.models.errors import BadInput, Conflict

HEALPIX_COLUMN, HEALPIX_ORDER = "_healpix_29", 29
MAX_ORDER = 13  # of a partition: 0.4 arcminutes; more rows than asked for stay together there
ROWS_PER_GROUP = 131_072
PARTITION = re.compile(r"Norder=(\d+)/Dir=\d+/Npix=(\d+)(\.[^/]+|/[^/]+)$")


@dataclass(frozen=True)
class Pixel:
    """A partition: the rows start to stop, sorted by HEALPix index, are those of one pixel (nested scheme)."""

    order: int
    number: int
    start: int
    stop: int

    @property
    def path(self) -> str:
        """Where its file lies under the folder `dataset`."""
        return f"Norder={self.order}/Dir={self.number // 10_000 * 10_000}/Npix={self.number}.parquet"


def _properties(folder: Path) -> dict[str, str]:
    """The folder's properties: lines of key=value, `#` for comments, Java's backslashes taken off."""
    file = next((f for name in ("hats.properties", "properties") if (f := folder / name).is_file()), None)
    if file is None:
        raise BadInput(f"{folder} is a folder without hats.properties: expected a HATS catalogue")
    pairs = (line.partition("=") for line in file.read_text("utf-8").splitlines() if not line.lstrip().startswith("#"))
    return {key.strip(): value.strip().replace("\\", "") for key, equals, value in pairs if equals}


def find(folder: Path) -> tuple[dict[str, str], list[Path]]:
    """The properties and the Parquet files, by order and pixel, of a HATS catalogue or of a collection's main one."""
    collection = folder / "collection.properties"
    if collection.is_file() and not (folder / "hats.properties").is_file():
        found = re.search(r"^hats_primary_table_url\s*=\s*(\S+)", collection.read_text("utf-8"), re.MULTILINE)
        if found is None:
            raise BadInput(f"{collection} has no hats_primary_table_url")
        folder = folder / found[1].replace("\\", "")
    properties = _properties(folder)
    kind = properties.get("dataproduct_type", "object")
    if kind not in ("object", "source"):
        raise BadInput(f"{folder.name} is a HATS catalogue of type {kind!r}: expected 'object' or 'source'")
    root, files = folder / "dataset", []
    for path in root.rglob("*"):
        where = PARTITION.search(path.relative_to(root).as_posix())
        if where and path.is_file() and not path.name.startswith(("_", ".")):
            files.append((int(where[1]), int(where[2]), path))
    if not files:
        raise BadInput(f"{folder} has no file dataset/Norder=K/Dir=D/Npix=N.parquet: the HATS catalogue is empty")
    return properties, [path for _, _, path in sorted(files)]


def open_hats(folder: Path) -> Any:
    """The catalogue as one pyarrow dataset, nothing read yet; `BadInput` where rows are missing or superfluous."""
    import pyarrow.dataset as ds
    import pyarrow.parquet as pq

    properties, files = find(folder)
    footers = [pq.read_metadata(file) for file in files]
    rows, promised = sum(footer.num_rows for footer in footers), properties.get("hats_nrows")
    if promised is not None and int(promised) != rows:
        raise BadInput(f"{folder.name}: its {len(files)} files hold {rows} rows, hats.properties promises {promised}")
    # a column without values in one pixel may have another type there
    schema = pa.unify_schemas(
        [footer.schema.to_arrow_schema().remove_metadata() for footer in footers], promote_options="permissive"
    )
    return ds.dataset(files, schema=schema, format="parquet")


def plan(healpix29: npt.NDArray[np.int64], *, max_rows: int) -> list[Pixel]:
    """Split sorted HEALPix indices (N,) of order 29 into the largest pixels that hold at most `max_rows` rows each."""
    if max_rows < 1:
        raise BadInput(f"max_rows={max_rows}: expected at least 1")
    pixels = []
    todo = [(0, number) for number in reversed(range(12))]
    while todo:
        order, number = todo.pop()
        shift = 2 * (HEALPIX_ORDER - order)
        start, stop = (int(i) for i in np.searchsorted(healpix29, [number << shift, (number + 1) << shift]))
        if stop - start > max_rows and order < MAX_ORDER:
            todo += [(order + 1, 4 * number + child) for child in (3, 2, 1, 0)]
        elif stop > start:
            pixels.append(Pixel(order, number, start, stop))
    return pixels


def write(
    folder: Path,
    pixels: list[Pixel],
    read: Callable[[Pixel], pa.Table],
    *,
    name: str,
    ra: str,
    dec: str,
    builder: str,
) -> None:
    """Write a HATS catalogue, one partition in memory at a time, and rename it into place when it is whole.

    `read` gives the rows of a pixel, sorted by their column `_healpix_29`; `ra` and `dec` name the columns in degrees.
    `Conflict` where `folder` exists.
    """
    import pyarrow.parquet as pq

    if folder.exists():
        raise Conflict(f"{folder} exists already: remove it or name another folder")
    made = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)
    footers: list[Any] = []
    schema = None
    for pixel in pixels:
        table = read(pixel)
        schema = table.schema
        path = made / "dataset" / pixel.path
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, compression="zstd", row_group_size=ROWS_PER_GROUP, metadata_collector=footers)
        footers[-1].set_file_path(pixel.path)
    if schema is None:
        raise BadInput(f"{name} has no sources: nothing to write to {folder}")
    pq.write_metadata(schema, made / "dataset" / "_common_metadata")
    pq.write_metadata(schema, made / "dataset" / "_metadata", metadata_collector=footers)
    rows = "".join(f"{pixel.order},{pixel.number}\n" for pixel in pixels)
    write_bytes(made / "partition_info.csv", f"Norder,Npix\n{rows}".encode())
    properties = {
        "obs_collection": name,
        "dataproduct_type": "object",
        "hats_nrows": sum(pixel.stop - pixel.start for pixel in pixels),
        "hats_col_ra": ra,
        "hats_col_dec": dec,
        "hats_col_healpix": HEALPIX_COLUMN,
        "hats_col_healpix_order": HEALPIX_ORDER,
        "hats_npix_suffix": ".parquet",
        "hats_order": max(pixel.order for pixel in pixels),
        "hats_max_rows": max(pixel.stop - pixel.start for pixel in pixels),
        "hats_builder": builder,
        "hats_creation_date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MUTC"),
        "hats_version": "v1.0",
        "moc_sky_fraction": f"{sum(1 / (12 * 4**pixel.order) for pixel in pixels):.9g}",
    }
    text = "#HATS catalog\n" + "".join(f"{key}={value}\n" for key, value in properties.items())
    for file in ("hats.properties", "properties"):  # the second for readers older than the first
        write_bytes(made / file, text.encode())
    made.replace(folder)

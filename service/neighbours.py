"""The neighbours of every source, as one Parquet file: for graphs, clusterings and catalogues of look-alikes.

Made by parts, each whole or not there, so that a killed run goes on; joined at the end.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ivf
from redshelf.indexing.files import alone, read_json, write_json, write_with
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.search import MAX_K
from redshelf.service.shelf import OpenEncoder, OpenShelf, open_shelf

PART_ROWS, ASKED_AT_ONCE = 65_536, 1024


@dataclass(frozen=True)
class NeighboursReport:
    """The file that was written: its sources, of the encoder's revision in a generation, and whether it is exact."""

    path: Path
    sources: int
    k: int
    encoder: str
    revision: str
    generation: int
    exact: bool
    recall: float
    seconds: float


def _schema(k: int, told: dict[str, Any]) -> Any:
    import pyarrow as pa

    fields = [
        pa.field("source_id", pa.string()),
        pa.field("neighbours", pa.list_(pa.int32(), k), metadata={"says": "positions in this file, nearest first"}),
        pa.field("distances", pa.list_(pa.float32(), k), metadata={"says": "Euclidean, in the encoder's space"}),
    ]
    return pa.schema(fields, metadata={f"redshelf.{key}": str(value) for key, value in told.items()})


def _part(
    shelf: OpenShelf,
    encoder: OpenEncoder,
    rows: npt.NDArray[np.int64],
    position: npt.NDArray[np.int32],
    k: int,
    schema: Any,
) -> Any:
    """The lines of some rows; `position` (N,) is where in the file each row of the shelf is."""
    import pyarrow as pa

    found, distances = np.empty((len(rows), k), dtype=np.int32), np.empty((len(rows), k), dtype=np.float32)
    for start in range(0, len(rows), ASKED_AT_ONCE):
        own = rows[start : start + ASKED_AT_ONCE]
        distance, near = encoder.index.search(encoder.vectors(own), k + 1)
        other = ivf.others(near, own)
        at = slice(start, start + len(own))
        kept = near[other].reshape(len(own), k)
        found[at] = np.where(kept >= 0, position[kept], -1)
        distances[at] = distance[other].reshape(len(own), k)
    ids = pa.array([bytes(source_id).decode() for source_id in shelf.columns["ids"][rows]])
    lists = [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), k) for values in (found, distances)]
    return pa.Table.from_arrays([ids, *lists], schema=schema)


def write_neighbours(
    root: Path,
    path: Path,
    *,
    k: int = 64,
    encoder: str | None = None,
    part_rows: int = PART_ROWS,
    progress: bool = False,
) -> NeighboursReport:
    """Write the `k` nearest of every source that has a vector, itself apart, to the Parquet file `path`.

    Columns `source_id`, `neighbours` (k,) as positions in the file (-1: there are fewer) and `distances` (k,). What is
    done lies beside it in .FILE.parts; the same call goes on from there. Raises `BadInput` for k out of range,
    `Conflict` for a file that is there, and for parts of another generation, encoder or k.
    """
    import pyarrow.parquet as pq
    from tqdm import tqdm

    started = time.perf_counter()
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k={k}: expected 1 <= k <= {MAX_K}")
    if path.exists():
        raise Conflict(f"{path} is there already: remove it, or give another name")
    shelf = open_shelf(root)
    chosen = shelf.encoder(encoder)
    told = {
        "survey": shelf.info.survey,
        "generation": shelf.generation.number,
        "encoder": chosen.name,
        "revision": chosen.published.revision,
        "k": k,
        "recall": chosen.index.recall,
    }
    schema, rows = _schema(k, told), np.flatnonzero(chosen.index.known)
    position = np.full(len(shelf), -1, dtype=np.int32)
    position[rows] = np.arange(len(rows), dtype=np.int32)
    home = path.with_name(f".{path.name}.parts")
    home.mkdir(parents=True, exist_ok=True)
    with alone(home.with_name(f"{home.name}.lock"), f"another process writes {path}"):
        plan = home / "plan.json"
        asked = {**told, "part_rows": part_rows}
        if not plan.is_file():
            write_json(plan, asked)
        elif read_json(plan) != asked:
            raise Conflict(f"{home} holds parts of another generation, encoder, k or size of parts: remove that folder")
        parts = [home / f"part-{number:06d}.parquet" for number in range(-(-len(rows) // part_rows))]
        with tqdm(total=len(rows), unit=" sources", desc=f"neighbours {chosen.name}", disable=not progress) as bar:
            for number, part in enumerate(parts):
                some = rows[number * part_rows : (number + 1) * part_rows]
                if not part.is_file():
                    table = _part(shelf, chosen, some, position, k, schema)

                    def fill(handle: BinaryIO, table: Any = table) -> None:
                        pq.write_table(table, handle)

                    write_with(part, fill)
                bar.update(len(some))

        def join(handle: BinaryIO) -> None:
            with pq.ParquetWriter(handle, schema) as writer:
                for part in parts:
                    writer.write_table(pq.read_table(part, schema=schema))

        write_with(path, join)
        shutil.rmtree(home)
    home.with_name(f"{home.name}.lock").unlink(missing_ok=True)
    return NeighboursReport(
        path=path,
        sources=len(rows),
        k=k,
        encoder=chosen.name,
        revision=chosen.published.revision,
        generation=shelf.generation.number,
        exact=chosen.index.exact,
        recall=chosen.index.recall,
        seconds=time.perf_counter() - started,
    )

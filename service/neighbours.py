"""The neighbours of every source, as lines of one Parquet file: for graphs, clusterings and catalogues of look-alikes.

Columns `source_id`, `neighbours` (k,) as positions in the file (-1: there are fewer) and `distances` (k,), of every
source that has a vector, itself apart. `service/outputs` writes the file.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from redshelf.indexing import ivf, joining
from redshelf.indexing.outputs import Table
from redshelf.service.search import check_number
from redshelf.service.shelf import OpenShelf

K, FORMATS = 64, ("parquet",)
ASKED_AT_ONCE = 1024


def _schema(k: int, told: dict[str, Any]) -> pa.Schema:
    fields = [
        pa.field("source_id", pa.string()),
        pa.field("neighbours", pa.list_(pa.int32(), k), metadata={"says": "positions in this file, nearest first"}),
        pa.field("distances", pa.list_(pa.float32(), k), metadata={"says": "Euclidean, in the encoder's space"}),
    ]
    return pa.schema(fields, metadata={joining.key(name): str(value) for name, value in told.items()})


def table(shelf: OpenShelf, *, encoder: str | None, k: int) -> Table:
    """The lines of every source that `encoder` (None: the default one) has a vector of, in the order of rows.

    Memory is 8 bytes a source, and `outputs.LINES_AT_ONCE` lines. Raises `NotFound` for an unknown encoder.
    """
    check_number("k", k)
    chosen = shelf.encoder(encoder)
    rows = np.flatnonzero(chosen.index.known).astype(np.int32)
    position = np.full(len(shelf), -1, dtype=np.int32)  # where in the file each row of the shelf is
    position[rows] = np.arange(len(rows), dtype=np.int32)
    told = {
        "survey": shelf.info.survey,
        "generation": shelf.generation.number,
        "encoder": chosen.name,
        "revision": chosen.published.revision,
        "k": k,
        "exact": chosen.index.exact,
        "recall": chosen.index.recall,
    }
    schema = _schema(k, told)

    def lines(first: int, past: int) -> pa.RecordBatch:
        found, distances = np.empty((past - first, k), dtype=np.int32), np.empty((past - first, k), dtype=np.float32)
        for start in range(first, past, ASKED_AT_ONCE):
            own = rows[start : min(start + ASKED_AT_ONCE, past)].astype(np.int64)
            distance, near = chosen.index.search(chosen.vectors(own), k + 1)
            other = ivf.others(near, own)
            at = slice(start - first, start - first + len(own))
            kept = near[other].reshape(len(own), k)
            found[at] = np.where(kept >= 0, position[kept], -1)
            distances[at] = distance[other].reshape(len(own), k)
        ids = pa.array([bytes(source_id).decode() for source_id in shelf.columns["ids"][rows[first:past]]])
        lists = [pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), k) for values in (found, distances)]
        return pa.RecordBatch.from_arrays([ids, *lists], schema=schema)

    facts = {"encoder": chosen.name, "revision": chosen.published.revision, "k": k, "estimator": None}
    return Table(schema, len(rows), facts, lines)

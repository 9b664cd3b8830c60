"""deleted.lance: the rows that no answer gives.

Rows are only ever appended, so that `row == position` holds for good. A source that is deleted keeps its row, which is
listed here; one that has changed gets a new row, and its old one is listed.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from redshelf.indexing import store
from redshelf.indexing.layout import Layout

ASKED, CHANGED, REMOVED = "asked", "changed", "removed"  # by `redshelf delete`; by an ingest, where the survey has
WHY = (ASKED, CHANGED, REMOVED)  # other values or images of the source, or has the source no more
SCHEMA = pa.schema([("row", pa.int64()), ("when", pa.float64()), ("why", pa.string())])  # when: Unix seconds


def read(layout: Layout) -> pa.Table:
    """The table as it is now, empty where nothing was ever deleted."""
    return store.open_table(layout.deleted).to_table() if store.exists(layout.deleted) else SCHEMA.empty_table()


def mask(table: pa.Table, rows: int) -> npt.NDArray[np.bool_]:
    """Which of `rows` rows are deleted, (rows,)."""
    out = np.zeros(rows, dtype=bool)
    out[table["row"].to_numpy()] = True
    return out


def live(layout: Layout) -> npt.NDArray[np.bool_]:
    """Which rows of the shelf are not deleted, (N,)."""
    return ~mask(read(layout), store.count_rows(layout.sources))


def keep(table: pa.Table, live: npt.NDArray[np.bool_]) -> pa.Table:
    """Those of a table's entries whose `row` is `live` (N,)."""
    return table.filter(pa.array(live[table["row"].to_numpy()]))


def add(layout: Layout, rows: Mapping[str, npt.NDArray[np.integer[Any]]]) -> None:
    """List {why: rows} as deleted, those that are listed already only where they are `ASKED` now. Only under the lock
    of an ingest."""
    known = read(layout)
    asked = known.filter(pc.equal(known["why"], ASKED))
    new = {why: np.setdiff1d(some, (asked if why == ASKED else known)["row"].to_numpy()) for why, some in rows.items()}
    if any(len(some) for some in new.values()):
        now = time.time()
        added = [
            pa.table([some.astype(np.int64), np.full(len(some), now), pa.array([why] * len(some), pa.string())], SCHEMA)
            for why, some in new.items()
        ]
        again = pc.is_in(known["row"], pa.array(new.get(ASKED, []), pa.int64()))
        store.replace_table(layout.deleted, pa.concat_tables([known.filter(pc.invert(again)), *added]))

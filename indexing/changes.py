"""What has changed between a shelf and its survey: which sources need a row, and which rows are out of date."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from redshelf.indexing import deletions, store
from redshelf.indexing.catalogue import Catalogue

BATCH_ROWS = 65_536

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
MakeRows = Callable[[Ints, Ints], pa.RecordBatch]  # positions in the catalogue and their rows (n,) -> as stored
Recut = Callable[[Ints, Ints], Bools]  # likewise -> whose images have changed


@dataclass(frozen=True)
class Changes:
    """`added` are positions in the catalogue, `changed` and `removed` rows of the shelf; all ascend."""

    added: Ints  # of sources that get a row: new ones, and changed ones
    changed: Ints  # which another row takes, or has taken, the place of
    removed: Ints  # whose source the catalogue has no more
    new: int  # of `added`, not on the shelf before
    kept_out: int  # sources of the catalogue that somebody has deleted by hand


def first(sources: int) -> Changes:
    """What an empty shelf needs: every one of `sources`."""
    none = np.empty(0, dtype=np.int64)
    return Changes(np.arange(sources), none, none, new=sources, kept_out=0)


def _alike(first: pa.RecordBatch, second: pa.RecordBatch) -> Bools:
    """Rows (n,) that are alike in every column, NaN for NaN."""
    pairs = ((batch[name].to_numpy(zero_copy_only=False) for batch in (first, second)) for name in first.schema.names)
    return np.asarray(np.logical_and.reduce([store.same_rows(*pair) for pair in pairs]))


def compare(sources: Any, deleted: pa.Table, catalogue: Catalogue, *, make_rows: MakeRows, recut: Recut) -> Changes:
    """The changes from the dataset `sources`, of which `deleted` lists rows, to `catalogue`.

    A source is known by its id; where it stands twice, as after an ingest that was killed between the new rows and the
    list of the old, the row that fits counts. Memory: 64 bytes a source beside the catalogue's.
    """
    order = np.argsort(catalogue.source_id, kind="stable")
    ordered = catalogue.source_id[order].astype("S64", copy=False)
    rows = sources.count_rows()
    gone = deletions.mask(deleted, rows)
    position, fits = np.full(rows, -1, dtype=np.int64), np.zeros(rows, dtype=bool)
    for batch in sources.to_batches(batch_size=BATCH_ROWS):
        at = batch.column("row").to_numpy()
        ids = batch.column("source_id").cast(pa.binary()).to_numpy(zero_copy_only=False).astype("S64")
        place = np.minimum(np.searchsorted(ordered, ids), len(ordered) - 1)
        found = ordered[place] == ids
        position[at[found]] = order[place[found]]
        some = np.flatnonzero(found & ~gone[at])
        if len(some):
            where, here = position[at[some]], at[some]
            fits[here] = _alike(batch.take(pa.array(some)), make_rows(where, here)) & ~recut(where, here)
    current = np.full(len(catalogue), -1, dtype=np.int64)
    known = np.flatnonzero((position >= 0) & ~gone)
    known = known[np.argsort(fits[known], kind="stable")]
    current[position[known]] = known  # one that fits, else the last: the last to be assigned stays
    asked = deleted["row"].to_numpy()[np.asarray(pc.equal(deleted["why"], deletions.ASKED), dtype=bool)]
    kept_out = np.zeros(len(catalogue), dtype=bool)
    kept_out[position[asked][position[asked] >= 0]] = True
    kept_out &= current < 0
    good = (current >= 0) & fits[current]
    return Changes(
        added=np.flatnonzero(~good & ~kept_out),
        changed=np.sort(known[(current[position[known]] != known) | ~fits[known]]),
        removed=np.flatnonzero((position < 0) & ~gone),
        new=int(((current < 0) & ~kept_out).sum()),
        kept_out=int(kept_out.sum()),
    )

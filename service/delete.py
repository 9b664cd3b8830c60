"""`redshelf delete`: sources that no answer shall give any more. Their rows stay; deleted.lance lists them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from redshelf.indexing import deletions, store
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout
from redshelf.models.errors import BadInput


@dataclass(frozen=True)
class DeleteReport:
    """`deleted` now, `before` were already; what is left, and its labels."""

    deleted: int
    before: int
    sources: int
    labelled: int


def read_ids(path: Path) -> list[str]:
    """Ids of a text file, one a line; empty lines and lines from # on are left out."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: expected a text file of source ids, one a line: {error}") from error
    return [word for line in lines if (word := line.partition("#")[0].strip())]


def delete(root: Path, ids: Sequence[str]) -> DeleteReport:
    """List the sources `ids` as deleted, and remove their labels; the next `publish` leaves them out.

    An ingest does not bring them back. `BadInput` naming the first id that the shelf has not; then nothing is deleted.
    """
    layout = Layout(root)
    layout.read_info()
    if not ids:
        raise BadInput("no source ids are given: expected at least one")
    with alone(layout.work("ingest.lock"), f"another process is writing to {layout.root}: wait until it has ended"):
        layout.refuse_open_update()
        wanted = pa.array(sorted(set(ids)), pa.string())
        known = store.open_table(layout.sources).to_table(columns=["source_id"])["source_id"]
        found = np.asarray(pc.is_in(known, wanted).to_numpy(zero_copy_only=False), dtype=bool)
        unknown = wanted.filter(pc.invert(pc.is_in(wanted, known.filter(pa.array(found)))))
        if len(unknown):
            raise BadInput(
                f"{len(unknown)} of {len(wanted)} ids are not on the shelf, the first is {str(unknown[0])!r}; "
                "nothing was deleted"
            )
        live = deletions.live(layout)
        rows = np.flatnonzero(found & live)
        deletions.add(layout, {deletions.ASKED: np.flatnonzero(found)})  # rows that were listed before too: for good
        live[rows] = False
        labels = store.open_table(layout.labels).to_table() if store.exists(layout.labels) else None
        if labels is not None:
            before, labels = len(labels), deletions.keep(labels, live)
            if len(labels) < before:
                store.replace_table(layout.labels, labels)
    return DeleteReport(
        deleted=len(rows),
        before=len(wanted) - len(rows),
        sources=int(live.sum()),
        labelled=0 if labels is None else len(labels),
    )

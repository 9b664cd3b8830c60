"""A shelf's sources and labels as a HATS folder, for LSDB and the `hats` package, or to ingest again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import deletions, hats, store
from redshelf.indexing.hats import HEALPIX_COLUMN, Pixel
from redshelf.indexing.layout import Layout

ROWS_PER_PIXEL = 1_000_000
LABEL_NAMES = {"object_class": "label_class", "n_labels": "n_labels", "disagrees": "labels_disagree"}


def _label_columns(labels: pa.Table, label_of: npt.NDArray[np.int64]) -> dict[str, pa.ChunkedArray]:
    """The label's columns for each source, null where it has none (`label_of` < 0)."""
    chosen = labels.take(pa.array(np.maximum(label_of, 0), mask=label_of < 0))
    return {LABEL_NAMES.get(name, name): chosen[name] for name in labels.column_names if name != "row"}


def export_hats(layout: Layout, folder: Path, *, rows_per_pixel: int = ROWS_PER_PIXEL) -> int:
    """Write every source of the shelf that is not deleted, with its label, to a new HATS folder; returns how many.

    Columns are those of sources.lance (fluxes in microjansky, dereddened, NaN where not observed) without `row`, and
    those of labels.lance, null without a label. Memory: 32 bytes a source, and one partition of `rows_per_pixel` rows.
    """
    info = layout.read_info()
    layout.refuse_open_update()
    sources = store.open_table(layout.sources)
    healpix29 = sources.to_table(columns=["healpix29"])["healpix29"].to_numpy()
    live = np.flatnonzero(deletions.live(layout))
    order = live[np.argsort(healpix29[live], kind="stable")]
    labels = store.open_table(layout.labels).to_table()
    label_of = np.full(len(healpix29), -1, dtype=np.int64)
    label_of[labels["row"].to_numpy()] = np.arange(len(labels))

    def read(pixel: Pixel) -> pa.Table:
        rows = order[pixel.start : pixel.stop]
        table = sources.take(rows)
        columns = {HEALPIX_COLUMN: table["healpix29"]}
        columns |= {name: table[name] for name in table.column_names if name not in ("row", "healpix29")}
        return pa.table(columns | _label_columns(labels, label_of[rows]))

    pixels = hats.plan(healpix29[order], max_rows=rows_per_pixel)
    hats.write(folder, pixels, read, name=info.survey, ra="ra_deg", dec="dec_deg", builder="redshelf")
    return len(order)

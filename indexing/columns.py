"""Memory-mapped columns of a generation: what search, filters and answers read without touching Lance.

One `.npy` a column, in row order; every worker maps the same pages.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.files import write_npy
from redshelf.models.errors import BadInput

CLASSES = ("unknown", "galaxy", "star", "agn")  # `class` column: position in this tuple
KINDS = ("", "spec", "grism", "photoz_many_band")  # `z_kind` column

LOOK_UP = ("ids_sorted", "ids_order", "dec_sorted", "dec_order")

Columns = dict[str, npt.NDArray[Any]]


def id_columns(source_ids: npt.NDArray[np.bytes_], deleted: npt.NDArray[np.bool_]) -> Columns:
    """`ids` (bytes); `ids_sorted` and `ids_order` (row of each sorted id) of those that are not deleted, for look-up by
    binary search."""
    order = np.argsort(source_ids, kind="stable")
    order = order[~deleted[order]]
    ordered = source_ids[order]
    twice = ordered[1:][ordered[1:] == ordered[:-1]]
    if len(twice):
        raise BadInput(f"source id {twice[0].decode()!r} stands twice")
    return {"ids": source_ids, "ids_sorted": ordered, "ids_order": order.astype(np.int64), "deleted": deleted}


def dec_columns(dec_deg: npt.NDArray[np.float64], deleted: npt.NDArray[np.bool_]) -> Columns:
    """`dec_sorted` and `dec_order` (row of each) of the sources that are not deleted, for look-up by position."""
    order = np.argsort(dec_deg, kind="stable")
    order = order[~deleted[order]]
    return {"dec_sorted": dec_deg[order], "dec_order": order.astype(np.int64)}


def write(folder: Path, columns: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write every column of one generation; all have the same length, but those of the look-ups."""
    lengths = {name: len(values) for name, values in columns.items() if name not in LOOK_UP}
    if len(set(lengths.values())) > 1:
        raise BadInput(f"columns differ in length: {lengths}")
    for name, values in columns.items():
        write_npy(folder / f"{name}.npy", values)


def open_columns(folder: Path) -> Columns:
    """All columns, memory-mapped read-only."""
    return {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(folder.glob("*.npy"))}


def row_of(columns: Columns, source_id: str) -> int | None:
    """The row of a source id, None where it is unknown."""
    wanted = source_id.encode("ascii", "replace")
    position = int(np.searchsorted(columns["ids_sorted"], np.bytes_(wanted)))
    # compared as Python bytes: numpy takes "a\0" for "a"
    if position < len(columns["ids_sorted"]) and bytes(columns["ids_sorted"][position]) == wanted:
        return int(columns["ids_order"][position])
    return None

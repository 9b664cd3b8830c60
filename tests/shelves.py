"""Shelves of tests: compared column by column, and left behind by an ingest that a real kill -9 ended."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from redshelf.indexing import store
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import done_parts

INGEST = """
import os, signal, sys
from pathlib import Path
from redshelf.indexing import cutting
from redshelf.service.ingest import ingest
write, commit, left, update = cutting.write_part, cutting.commit_parts, int(sys.argv[3]), sys.argv[4] == "update"
def counting(table, *args, **kwargs):
    global left
    if table.name == "cutouts.lance":
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
    return write(table, *args, **kwargs)
def committing(table, *args, **kwargs):
    if table.name == "sources.lance":
        os.kill(os.getpid(), signal.SIGKILL)
    return commit(table, *args, **kwargs)
cutting.write_part, cutting.commit_parts = counting, committing
ingest(Path(sys.argv[1]), Path(sys.argv[2]), update=update, part_rows=8)
"""


def cut_parts(shelf: Path) -> set[int]:
    """The parts of an ingest that has not ended whose cutouts are cut, and not committed."""
    return {part for receipts in Layout(shelf).work("ingest").glob("cutouts-*") for part in done_parts(receipts)}


def kill_ingest(survey: Path, shelf: Path, *, done: int, update: bool = False) -> None:
    """Ingest by parts of 8 rows, in a process that is killed when `done` parts are cut, or all, and committed."""
    how = "update" if update else "first"
    child = subprocess.run([sys.executable, "-c", INGEST, str(survey), str(shelf), str(done), how], check=False)
    assert child.returncode == -signal.SIGKILL


def columns_of(path: Path) -> dict[str, npt.NDArray[Any]]:
    """A table as arrays; fixed-size lists as (N, size)."""
    table = store.open_table(path).to_table()
    fixed = {f.name for f in table.schema if pa.types.is_fixed_size_list(f.type)}
    return {n: store.list_values(table[n]) if n in fixed else table[n].to_numpy() for n in table.column_names}


def assert_same_rows(shelf: Path, other: Path) -> None:
    """Both shelves hold the same sources, cutouts and labels, in the same order and of the same types."""
    for name in ("sources", "cutouts", "labels"):
        assert store.exists(Layout(shelf).table(name)) == store.exists(Layout(other).table(name))
        if store.exists(Layout(other).table(name)):
            found, expected = columns_of(Layout(shelf).table(name)), columns_of(Layout(other).table(name))
            assert found.keys() == expected.keys()
            for column, values in expected.items():
                assert found[column].dtype == values.dtype
                np.testing.assert_array_equal(found[column], values, err_msg=f"{name}.{column}")

"""What killed runs have left on a shelf: it is never read, and only takes up room. One line each."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from pathlib import Path

from redshelf.indexing.layout import Layout
from redshelf.indexing.store import unreferred

Lines = Generator[str, None, None]


def _room(files: Iterable[Path]) -> str:
    sizes = [file.stat().st_size for file in files]
    return f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {sum(sizes):,} bytes"


def jobs(layout: Layout) -> Lines:
    """Folders under work/ that hold something: jobs that go on now, or that were killed and would go on from there."""
    for folder in sorted(path for path in layout.work("").glob("*") if path.is_dir() and path.name != "logs"):
        files = [path for path in folder.rglob("*") if path.is_file()]
        receipts = sum(path.match("part-*.json") for path in files)
        if files:
            told = f", {receipts} of them receipts of parts" if receipts else ""
            yield f"work/{folder.name}: {_room(files)}{told}, of a run that has not ended"


def orphans(path: Path) -> Lines:
    """Data files of the table at `path` that no version refers to: parts of a run that was never committed, or of one
    that goes on now."""
    if files := unreferred(path):
        yield f"{path.stem}: {_room(files)} of data that no version refers to"


def temporary(layout: Layout) -> Lines:
    """Files that were being written when a process was killed, outside the tables."""
    hidden = [path for path in layout.root.rglob(".*") if ".lance/" not in path.relative_to(layout.root).as_posix()]
    files = {file for path in hidden for file in [path, *path.rglob("*")] if file.is_file()}
    if files:
        yield f"{_room(files)} with temporary names, the first is {min(files).relative_to(layout.root)}"

"""Compare a shelf with what was published of it, and its tables with one another: a line for each fault.

Files first, by size and sha256. What lies in a damaged file is not read further: Lance and FAISS take a flipped bit
for good, or end the process. Then tables, models, indexes and columns, by their content. Whatever cannot be read is a
fault that is told, never an error. Leftovers of killed runs are notes.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from redshelf.indexing import generation, leftovers, parts, store
from redshelf.indexing.files import verify
from redshelf.indexing.generation import Generation
from redshelf.indexing.layout import Layout
from redshelf.models.errors import RedshelfError
from redshelf.service import contents, fits, maps
from redshelf.service.contents import Bar, Checking, Table

Lines = Generator[str, None, None]

QUIET_S = 2.0  # before progress is shown


@dataclass
class Checked:
    """What `check` looked at and found."""

    generations: list[int] = field(default_factory=list)
    files: int = 0  # compared with their sha256
    bytes: int = 0
    tables: dict[str, int] = field(default_factory=dict)  # rows
    models: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def _place(name: str) -> str:
    """Of a path in the shelf, what is damaged with it: `sources.lance`, `index/vit.0123456789ab`."""
    parts = name.split("/")
    return "/".join(parts[:2] if parts[0] in ("models", "index", "columns", "redshift") else parts[:1])


def _recorded(layout: Layout) -> dict[str, dict[str, Any]]:
    """Data files of tables as they were when they were written; those that a compaction removed are not among them."""
    return {
        f"{path.name}/{name}": facts
        for path in sorted(layout.root.glob("*.lance"))
        for name, facts in parts.recorded(path).items()
        if (path / name).exists()
    }


def _hashed(layout: Layout, published: list[Generation], bar: Bar, found: Checked) -> set[str]:
    """Compare the files of the generations, one that several have once; returns the places of the damaged ones."""
    todo: list[tuple[str, dict[str, Any]]] = []  # what a line begins with, and the files
    seen: dict[str, Any] = {}
    for one in reversed(published):
        new = {name: facts.model_dump() for name, facts in one.files.items() if seen.get(name) != facts}
        seen |= one.files
        todo.append(("" if one is published[-1] else f"generation {one.number}: ", new))
    todo.append(("", {name: facts for name, facts in _recorded(layout).items() if name not in seen}))
    for _, files in todo:
        found.files += len(files)
        found.bytes += sum(facts["size"] for facts in files.values())
    damaged: set[str] = set()
    with bar(found.bytes, "B", "check files") as shown:
        for prefix, files in todo:
            lines = verify(layout.root, files, hashes=True, progress=shown.update)
            damaged |= {_place(line.partition(":")[0]) for line in lines}
            found.faults += [prefix + line for line in lines]
    return damaged


def _published_tables(layout: Layout, one: Generation) -> dict[str, Path]:
    """{name in the generation: path} of its tables."""
    revisions = {f"embeddings.{e.name}": e.revision for e in one.encoders}
    return {name: layout.table(f"{name}.{revisions[name]}" if name in revisions else name) for name in one.tables}


def _pinned(shelf: Checking, one: Generation, name: str, path: Path, opened: dict[Path, Any]) -> Lines:
    """Open the version of a table that a generation has, into `opened`; faults of its rows, files and tag."""
    facts = one.tables[name]
    dataset = store.open_table(path, version=facts.version)
    opened[path] = dataset
    rows = dataset.count_rows()
    if rows != facts.rows:
        yield f"{path.stem}: {rows} rows in version {facts.version}, generation {one.number} has {facts.rows}"
    elif name not in ("labels", "deleted") and rows != one.tables["sources"].rows:
        yield f"{path.stem}: {rows} rows in generation {one.number}, its sources {one.tables['sources'].rows}"
    for file in generation.required_files(path, dataset):
        if file.relative_to(shelf.layout.root).as_posix() not in one.files:
            yield f"{file.relative_to(shelf.layout.root)}: generation {one.number} has no checksum of it"
    tagged = dataset.tags.list().get(generation.tag_of(one.number), {}).get("version")
    if tagged != facts.version:
        yield (
            f"{path.stem}: tag {generation.tag_of(one.number)} is at version {tagged}, "
            f"expected {facts.version}: a clean-up may remove it"
        )


def _newest(shelf: Checking) -> tuple[dict[Path, Any], dict[Path, int]]:
    """Every table on the shelf as it is now, and its rows, but those that are damaged or were never committed."""
    opened: dict[Path, Any] = {}
    rows: dict[Path, int] = {}

    def opening(path: Path) -> Lines:
        dataset = store.open_table(path)
        rows[path] = int(dataset.count_rows())  # a damaged manifest may open, and fail here
        opened[path] = dataset
        yield from ()

    for path in sorted(shelf.layout.root.glob("*.lance")):
        if path.name not in shelf.damaged and store.exists(path):
            shelf.told(path.stem, opening(path))
    return opened, rows


def _superseded(layout: Layout, encoder: str, revision: str) -> bool:
    """Whether the shelf has a newer revision of the encoder; False where that cannot be told."""
    try:
        return layout.newest(encoder) != revision
    except (RedshelfError, LookupError, TypeError):
        return False


def _counts(shelf: Checking, rows: Mapping[Path, int], notes: list[str]) -> Lines:
    """Tables of other lengths than the sources, and the commands that mend them; a note for superseded embeddings."""
    layout = shelf.layout

    def unread(path: Path) -> bool:
        return path.name in shelf.damaged or (store.exists(path) and path not in rows)

    known = rows.get(layout.sources)
    if known is None:
        if not unread(layout.sources):
            yield "sources: there is no such table: run `redshelf ingest SURVEY.toml`"
        return
    if shelf.info is not None and shelf.info.has_images and not unread(layout.cutouts):
        have = rows.get(layout.cutouts, 0)
        if have != known:
            yield f"cutouts: {have} rows, the sources {known}: run `redshelf ingest SURVEY.toml`"
    for path, have in rows.items():
        if not path.name.startswith("embeddings.") or have == known:
            continue
        line = f"{path.stem}: {have} rows, the sources {known}"
        encoder, _, revision = path.stem.removeprefix("embeddings.").rpartition(".")
        if have > known:
            yield line
        elif _superseded(layout, encoder, revision):
            notes.append(f"{line}: {encoder} has a newer revision")
        else:
            yield f"{line}: run `redshelf embed --encoder {encoder}`"


def _redshifts(shelf: Checking, published: list[Generation], notes: list[str]) -> Lines:
    """Fits that cannot be read, of the newest generation and the newest of each encoder, with the commands that mend
    them; a note for those that are but in older generations."""
    stored = fits.stored(shelf.layout)
    newest = {fit.encoder: fit for fit in stored}
    of = {fit.folder: one.number for one in published for fit in one.redshifts}
    served = {fit.folder for one in published[-1:] for fit in one.redshifts}
    for fit in stored:
        name, last = fit.folder.name, newest[fit.encoder]
        if f"redshift/{name}" in shelf.damaged:
            continue
        fault = fit.fault if f"redshift/{name}" in shelf.hashed else fit.damage
        if fault and fit is last:
            yield f"{fault}: {fits.again(fit.encoder)} and `redshelf publish`"
        elif fault and name in served:
            yield f"{fault}: run `redshelf publish`"
        elif fault and name in of:
            notes.append(f"{fault}: generation {of[name]} answers no redshifts by it")


def _maps(shelf: Checking, published: list[Generation], found: Checked) -> Lines:
    """Faults of the maps of the newest generation; notes for those that are of older ones."""
    for folder in maps.stored(shelf.layout, number=max((one.number for one in published), default=None)):
        files = [path for path in folder.iterdir() if path.is_file()]
        found.files += len(files) - 1  # its manifest has no sha256 but that of its folder's name
        found.bytes += sum(path.stat().st_size for path in files if path.name != maps.MANIFEST)
    for line, is_fault in maps.check(shelf.layout, published):
        if is_fault:
            yield line
        else:
            found.notes.append(line)


def _generations(layout: Layout, every: bool, found: Checked) -> list[Generation]:
    """The generations to check, oldest first; one that cannot be read is a fault."""
    known = generation.numbers(layout)
    if not every:
        known = known[-1:]
    published = []
    for one in known:
        try:
            published.append(generation.read(layout, one))
        except (RedshelfError, OSError) as error:
            found.faults.append(f"generations/{one}.json: {error}")
    found.generations = known
    if not known:
        found.notes.append(
            "nothing is published: only the files of large tables have checksums, the rest was checked in structure"
        )
    return published


def check(root: Path, *, every: bool = False, progress: bool = False) -> Checked:
    """Check the newest generation, or `every` one, and the shelf as it is now.

    `NotFound` where there is no shelf; all else that is wrong is told in the answer.
    """
    from tqdm import tqdm

    started = time.perf_counter()

    def bar(total: int, unit: str, label: str) -> Any:
        delay = max(0.0, QUIET_S - (time.perf_counter() - started))
        scale = {"total": total, "unit": unit, "desc": label, "unit_scale": unit == "B"}
        return tqdm(**scale, delay=delay, disable=not progress, leave=False)

    layout, found, info = Layout(root), Checked(), None
    published = _generations(layout, every, found)
    if not layout.info_file.exists() and not found.generations:
        layout.read_info()  # says that this is no shelf
    damaged = _hashed(layout, published, bar, found)
    if layout.info_file.name not in damaged:
        try:
            info = layout.read_info()
        except (RedshelfError, ValueError, OSError) as error:
            found.faults.append(f"{layout.info_file.name}: {error}")
    hashed = {_place(name) for one in published for name in one.files}
    shelf = Checking(layout, info, damaged, hashed, bar, found.faults.append)
    newest, rows = _newest(shelf)
    found.tables = {path.stem: count for path, count in rows.items()}
    shelf.told("tables", _counts(shelf, rows, found.notes))
    gone = contents.deleted(shelf, newest, rows.get(layout.sources))
    for path, dataset in newest.items():
        contents.content(shelf, Table(path.stem, path, dataset, newest=True), gone)
    done = {(path, dataset.version) for path, dataset in newest.items()}
    for one in published:
        opened: dict[Path, Any] = {}
        for name, path in _published_tables(layout, one).items():
            if path.name not in damaged:
                shelf.told(path.stem, _pinned(shelf, one, name, path, opened))
        gone = contents.deleted(shelf, opened, one.tables["sources"].rows)
        for path, dataset in opened.items():
            if (path, dataset.version) not in done:
                done.add((path, dataset.version))
                label = f"{path.stem} (version {dataset.version})"
                contents.content(shelf, Table(label, path, dataset, newest=False), gone)
        contents.columns(shelf, one, opened, gone)
    shelf.told("redshift", _redshifts(shelf, published, found.notes))
    shelf.told("maps", _maps(shelf, published, found))
    for folder in sorted(layout.models.glob("[!.]*")):
        if f"models/{folder.name}" not in damaged:
            shelf.told(f"models/{folder.name}", contents.model(folder))
        found.models += 1
    noting = replace(shelf, say=found.notes.append)
    noting.told("work", leftovers.jobs(layout))
    noting.told("temporary files", leftovers.temporary(layout))
    for path in sorted(layout.root.glob("*.lance")):
        if path.name not in damaged:
            noting.told(path.stem, leftovers.orphans(path))
    return found

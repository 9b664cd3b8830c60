"""Compare a shelf with what was published of it, and its tables with one another: a line for each fault.

Files first, by size and sha256. What lies in a damaged file is not read further: Lance and FAISS take a flipped bit
for good, or end the process. Then tables, models, indexes and columns, by their content. Whatever cannot be read is a
fault that is told, never an error. Leftovers of killed runs are notes.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from redshelf.indexing import ann, faults, generation, leftovers, store
from redshelf.indexing.batches import Reader
from redshelf.indexing.columns import open_columns
from redshelf.indexing.files import read_json, verify
from redshelf.indexing.generation import Generation
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models import checkpoint
from redshelf.models.errors import RedshelfError

Lines = Generator[str, None, None]
Bar = Callable[[int, str, str], Any]  # total, unit, label -> a context that gives an object with `update`

QUIET_S = 2.0  # before progress is shown
MESSAGE = 200  # characters of an error that is not ours


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


@dataclass(frozen=True)
class _Table:
    """One version of a table, open."""

    name: str
    path: Path
    dataset: Any
    newest: bool

    @property
    def rows(self) -> int:
        return int(self.dataset.count_rows())


@dataclass(frozen=True)
class _Shelf:
    layout: Layout
    info: ShelfInfo | None  # None: shelf.toml is damaged
    damaged: set[str]  # folders and files at the top, and those below models/, index/ and columns/, with a damaged file
    hashed: set[str]  # likewise, whose files were compared with their sha256
    bar: Bar
    say: Callable[[str], None]

    def told(self, name: str, lines: Iterable[str]) -> None:
        """Tell each line, and one more where reading raises, which names `name`."""
        try:
            for line in lines:
                self.say(line)
        except RedshelfError as error:
            self.say(f"{name}: {error}")
        except BaseException as error:
            # a panic of Lance's Rust is no Exception
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            words = " ".join(str(error).split())
            self.say(f"{name}: cannot be read: {words[:MESSAGE] or type(error).__name__}")

    @contextmanager
    def rows(self, table: _Table) -> Iterator[faults.Progress]:
        with self.bar(table.rows, " rows", f"check {table.name}") as bar:
            yield bar.update


def _place(name: str) -> str:
    """Of a path in the shelf, what is damaged with it: `sources.lance`, `index/vit.0123456789ab`."""
    parts = name.split("/")
    return "/".join(parts[:2] if parts[0] in ("models", "index", "columns", "redshift") else parts[:1])


def _hashed(layout: Layout, published: list[Generation], bar: Bar, found: Checked) -> set[str]:
    """Compare the files of the generations, one that several have once; returns the places of the damaged ones."""
    damaged: set[str] = set()
    compared: dict[str, Mapping[str, Any]] = {}
    with bar(sum(facts.size for g in published for facts in g.files.values()), "B", "check files") as shown:
        for one in reversed(published):
            facts = {name: known.model_dump() for name, known in one.files.items()}
            new = {name: known for name, known in facts.items() if compared.get(name) != known}
            compared |= new
            lines = verify(layout.root, new, hashes=True, progress=shown.update)
            damaged |= {_place(line.partition(":")[0]) for line in lines}
            found.faults += lines if one is published[-1] else [f"generation {one.number}: {line}" for line in lines]
            found.files += len(new)
            found.bytes += sum(known["size"] for known in new.values())
    return damaged


def _published_tables(layout: Layout, one: Generation) -> dict[str, Path]:
    """{name in the generation: path} of its tables."""
    revisions = {f"embeddings.{e.name}": e.revision for e in one.encoders}
    return {name: layout.table(f"{name}.{revisions[name]}" if name in revisions else name) for name in one.tables}


def _pinned(shelf: _Shelf, one: Generation, name: str, path: Path, opened: dict[Path, Any]) -> Lines:
    """Open the version of a table that a generation has, into `opened`; faults of its rows, files and tag."""
    facts = one.tables[name]
    dataset = store.open_table(path, version=facts.version)
    opened[path] = dataset
    rows = dataset.count_rows()
    if rows != facts.rows:
        yield f"{path.stem}: {rows} rows in version {facts.version}, generation {one.number} has {facts.rows}"
    for file in generation.required_files(path, dataset):
        if file.relative_to(shelf.layout.root).as_posix() not in one.files:
            yield f"{file.relative_to(shelf.layout.root)}: generation {one.number} has no checksum of it"
    tagged = dataset.tags.list().get(generation.tag_of(one.number), {}).get("version")
    if tagged != facts.version:
        yield (
            f"{path.stem}: tag {generation.tag_of(one.number)} is at version {tagged}, "
            f"expected {facts.version}: a clean-up may remove it"
        )


def _newest(shelf: _Shelf) -> tuple[dict[Path, Any], dict[Path, int]]:
    """Every table on the shelf as it is now, and its rows, but those that are damaged or were never committed."""
    opened: dict[Path, Any] = {}
    rows: dict[Path, int] = {}

    def opening(path: Path) -> Lines:
        dataset = store.open_table(path)
        rows[path] = int(dataset.count_rows())  # a damaged manifest may open, and fail here
        opened[path] = dataset
        yield from ()

    for path in sorted(shelf.layout.root.glob("*.lance")):
        if path.name not in shelf.damaged and (path / "_versions").is_dir():
            shelf.told(path.stem, opening(path))
    return opened, rows


def _counts(layout: Layout, info: ShelfInfo | None, rows: Mapping[Path, int], damaged: set[str]) -> Lines:
    """Tables of other lengths than the sources, and the commands that mend them."""

    def unread(path: Path) -> bool:
        return path.name in damaged or ((path / "_versions").is_dir() and path not in rows)

    known = rows.get(layout.sources)
    if known is None:
        if not unread(layout.sources):
            yield "sources: there is no such table: run `redshelf ingest SURVEY.toml`"
        return
    if info is not None and info.has_images and not unread(layout.cutouts):
        have = rows.get(layout.cutouts, 0)
        if have != known:
            yield f"cutouts: {have} rows, the sources {known}: run `redshelf ingest SURVEY.toml`"
    for path, have in rows.items():
        if path.name.startswith("embeddings.") and have != known:
            mends = f": run `redshelf embed --encoder {path.stem.split('.')[1]}`" if have < known else ""
            yield f"{path.stem}: {have} rows, the sources {known}{mends}"


def _index(shelf: _Shelf, table: _Table, encoder: str, revision: str) -> Generator[str, None, Any]:
    """Faults of the index of an embedding; returns what `faults.vectors` compares, None where that makes no sense."""
    layout, dim = shelf.layout, table.dataset.schema.field("vector").type.list_size
    folder, name = layout.index(encoder, revision), f"index/{encoder}.{revision}"
    if name in shelf.damaged or not (folder / ann.MANIFEST).is_file():
        return None
    lines = list(faults.index_facts(folder, name, rows=table.rows, dim=dim, encoder=encoder, revision=revision))
    told = ann.read_manifest(folder)
    lines += [f"{name}/{line}" for line in verify(folder, told["files"], hashes=name not in shelf.hashed)]
    yield from lines
    if lines:
        return None
    return name, np.memmap(folder / ann.VECTORS, dtype=np.float16, mode="r", shape=(table.rows, dim)), told["vectors"]


def _visible(shelf: _Shelf, encoder: str, revision: str) -> faults.Visible | None:
    """Which rows the encoder sees a band of; None where its model, sources or cutouts are damaged."""
    layout = shelf.layout
    within = {layout.sources.name, layout.cutouts.name, f"models/{encoder}.{revision}"}
    if shelf.info is None or within & shelf.damaged:
        return None
    try:
        document = checkpoint.read_config(layout.model(encoder, revision))
        reader = Reader(layout, shelf.info, bands=document["config"]["bands"], needs=frozenset(document["needs"]))
    except (RedshelfError, LookupError, TypeError, ValueError, OSError):
        return None
    return lambda rows: reader.take(rows).visible()


def _embedding(shelf: _Shelf, table: _Table, progress: faults.Progress) -> Lines:
    encoder, _, revision = table.path.stem.removeprefix("embeddings.").rpartition(".")
    model, visible = shelf.layout.model(encoder, revision), _visible(shelf, encoder, revision)
    if f"models/{model.name}" not in shelf.damaged and not (model / "config.json").is_file():
        yield f"{table.name}: no model {model.name} on this shelf has made it"
    index = (yield from _index(shelf, table, encoder, revision)) if table.newest else None
    yield from faults.vectors(table.dataset, table.name, index=index, visible=visible, progress=progress)


def _content(shelf: _Shelf, table: _Table, sources: int | None) -> None:
    """Faults inside one version of a table; `sources` is how many there are beside it, None where that is not known."""

    def lines() -> Lines:
        with shelf.rows(table) as progress:
            if table.path == shelf.layout.sources:
                yield from faults.sources(table.dataset, table.name, progress=progress)
            elif table.path == shelf.layout.labels:
                if sources is not None:
                    yield from faults.labels(table.dataset, table.name, sources=sources, progress=progress)
            elif table.path == shelf.layout.cutouts:
                yield from faults.positions(table.dataset, table.name, progress=progress)
            elif table.path.name.startswith("embeddings."):
                yield from _embedding(shelf, table, progress)

    shelf.told(table.name, lines())


def _model(folder: Path) -> Lines:
    """Faults of a stored encoder: its revision is what its files hash to, and its folder is called so."""
    document = checkpoint.read_config(folder)
    revision, told = checkpoint.stored_revision(folder), document["revision"]
    if revision != told:
        yield f"models/{folder.name}: weights and config hash to revision {revision}, config.json says {told}"
    if folder.name != f"{document['name']}.{told}":
        yield f"models/{folder.name}: holds encoder {document['name']}.{told}: the folder was renamed"
    read_json(folder / "provenance.json")


def _columns(shelf: _Shelf, one: Generation, opened: Mapping[Path, Any]) -> None:
    """Faults of the arrays of a generation, where they and the tables are whole."""
    layout, name = shelf.layout, f"columns/{one.number}"
    sources, labels = opened.get(layout.sources), opened.get(layout.labels)
    if shelf.info is None or sources is None or name in shelf.damaged or ("labels" in one.tables and labels is None):
        return
    bands = shelf.info.band_names

    def lines() -> Lines:
        with shelf.bar(sources.count_rows(), " rows", f"check {name}") as bar:
            yield from faults.generation_columns(
                open_columns(layout.columns(one.number)), name,
                sources=sources, labels=labels, bands=bands, progress=bar.update,
            )  # fmt: skip

    shelf.told(name, lines())


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
        found.notes.append("nothing is published: there are no checksums, and only the structure was checked")
    return published


def check(root: Path, *, every: bool = False, progress: bool = False) -> Checked:
    """Check the newest generation, or `every` one, and the shelf as it is now.

    `NotFound` where there is no shelf; all else that is wrong is told in the answer.
    """
    from tqdm import tqdm

    def bar(total: int, unit: str, label: str) -> Any:
        scale = {"total": total, "unit": unit, "desc": label, "unit_scale": unit == "B"}
        return tqdm(**scale, delay=QUIET_S, disable=not progress, leave=False)

    layout, found = Layout(root), Checked()
    info = None
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
    shelf = _Shelf(layout, info, damaged, hashed, bar, found.faults.append)
    newest, rows = _newest(shelf)
    found.tables = {path.stem: count for path, count in rows.items()}
    shelf.told("tables", _counts(layout, info, rows, damaged))
    for path, dataset in newest.items():
        _content(shelf, _Table(path.stem, path, dataset, newest=True), rows.get(layout.sources))
    done = {(path, dataset.version) for path, dataset in newest.items()}
    for one in published:
        opened: dict[Path, Any] = {}
        for name, path in _published_tables(layout, one).items():
            if path.name not in damaged:
                shelf.told(path.stem, _pinned(shelf, one, name, path, opened))
        for path, dataset in opened.items():
            if (path, dataset.version) not in done:
                done.add((path, dataset.version))
                label = f"{path.stem} (version {dataset.version})"
                _content(shelf, _Table(label, path, dataset, newest=False), one.tables["sources"].rows)
        _columns(shelf, one, opened)
    for folder in sorted(layout.models.glob("[!.]*")):
        if f"models/{folder.name}" not in damaged:
            shelf.told(f"models/{folder.name}", _model(folder))
        found.models += 1
    noting = replace(shelf, say=found.notes.append)
    noting.told("work", leftovers.jobs(layout))
    noting.told("temporary files", leftovers.temporary(layout))
    for path in sorted(layout.root.glob("*.lance")):
        if path.name not in damaged:
            noting.told(path.stem, leftovers.orphans(path))
    return found

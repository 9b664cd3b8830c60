"""The contents of a shelf's tables, encoders, indexes and columns, for `redshelf check`: a line for each fault.

Whatever cannot be read is a fault that names what it lies in, never an error.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from redshelf.indexing import ann, faults
from redshelf.indexing.batches import Reader
from redshelf.indexing.columns import open_columns
from redshelf.indexing.files import read_json, verify
from redshelf.indexing.generation import Generation
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models import checkpoint
from redshelf.models.errors import RedshelfError
from redshelf.service import selfquery

Lines = Generator[str, None, None]
Bar = Callable[[int, str, str], Any]  # total, unit, label -> a context that gives an object with `update`

MESSAGE = 200  # characters of an error that is not ours
PROBES, SPREAD = 50, 0.1  # sources whose neighbours are compared with the true ones; by chance they are fewer


@dataclass(frozen=True)
class Table:
    """One version of a table, open."""

    name: str
    path: Path
    dataset: Any
    newest: bool

    @property
    def rows(self) -> int:
        return int(self.dataset.count_rows())


@dataclass(frozen=True)
class Checking:
    """What every part of a check needs to know of the shelf, and where it tells what it finds."""

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
    def rows(self, table: Table) -> Iterator[faults.Progress]:
        with self.bar(table.rows, " rows", f"check {table.name}") as bar:
            yield bar.update


def _index(shelf: Checking, table: Table, encoder: str, revision: str, compared: list[faults.Indexed]) -> Lines:
    """Faults of the index of an embedding; without any, what `faults.vectors` compares goes into `compared`."""
    layout, dim = shelf.layout, table.dataset.schema.field("vector").type.list_size
    name = f"index/{encoder}.{revision}"
    folder = layout.index(encoder, revision, table.rows)
    if not (folder / ann.MANIFEST).is_file() and folder.parent.is_dir():
        yield f"{name}: there is none of {table.rows} rows: run `redshelf index --encoder {encoder}`"
    if name in shelf.damaged or not (folder / ann.MANIFEST).is_file():
        return
    lines = list(faults.index_facts(folder, name, rows=table.rows, dim=dim, encoder=encoder, revision=revision))
    told = ann.read_manifest(folder)
    lines += [f"{name}/{table.rows}/{line}" for line in verify(folder, told["files"], hashes=name not in shelf.hashed)]
    yield from lines
    if not lines:
        if told["kind"] == "ivf":
            index = ann.open_index(folder)
            asked = selfquery.ask(index)
            if not asked.passed:
                yield f"{name}: {selfquery.told(asked, encoder, revision, index)}"
            recall, wanted = ann.measure(index, queries=PROBES), told["recall"]["wanted"]
            if recall < wanted - SPREAD:
                yield f"{name}: finds {recall:.2f} of the true neighbours, and {wanted} were promised"
        vectors = ann.open_vectors(folder)
        compared.append((name, vectors, told["vectors"]))


def _visible(shelf: Checking, encoder: str, revision: str) -> faults.Visible | None:
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


def _embedding(shelf: Checking, table: Table, progress: faults.Progress) -> Lines:
    encoder, _, revision = table.path.stem.removeprefix("embeddings.").rpartition(".")
    model, visible = shelf.layout.model(encoder, revision), _visible(shelf, encoder, revision)
    if f"models/{model.name}" not in shelf.damaged and not (model / "config.json").is_file():
        yield f"{table.name}: no model {model.name} on this shelf has made it"
    compared: list[faults.Indexed] = []
    if table.newest:
        shelf.told(f"index/{model.name}", _index(shelf, table, encoder, revision, compared))
    index = compared[0] if compared else None
    yield from faults.vectors(table.dataset, table.name, index=index, visible=visible, progress=progress)


def deleted(shelf: Checking, opened: Mapping[Path, Any], sources: int | None) -> faults.Bools | None:
    """Which of `sources` rows are listed as deleted, (N,); None where that cannot be told."""
    found: list[faults.Bools] = []

    def lines() -> Lines:
        if sources is not None:
            table = opened.get(shelf.layout.deleted)
            rows = np.empty(0, dtype=np.int64) if table is None else table.to_table(columns=["row"])["row"].to_numpy()
            mask = np.zeros(sources, dtype=bool)
            mask[rows[(rows >= 0) & (rows < sources)]] = True
            found.append(mask)
        yield from ()

    shelf.told(shelf.layout.deleted.stem, lines())
    return found[0] if found else None


def content(shelf: Checking, table: Table, gone: faults.Bools | None) -> None:
    """Faults inside one version of a table; `gone` are the deleted sources, (N,), None where that is not known."""

    def lines() -> Lines:
        with shelf.rows(table) as progress:
            if table.path == shelf.layout.sources:
                none = np.zeros(table.rows, dtype=bool)
                yield from faults.sources(
                    table.dataset, table.name, deleted=none if gone is None else gone, progress=progress
                )
            elif table.path == shelf.layout.labels:
                if gone is not None:
                    yield from faults.labels(table.dataset, table.name, deleted=gone, progress=progress)
            elif table.path == shelf.layout.deleted:
                if gone is not None:
                    yield from faults.deleted(table.dataset, table.name, sources=len(gone), progress=progress)
            elif table.path == shelf.layout.cutouts:
                yield from faults.positions(table.dataset, table.name, progress=progress)
            elif table.path.name.startswith("embeddings."):
                yield from _embedding(shelf, table, progress)

    shelf.told(table.name, lines())


def model(folder: Path) -> Lines:
    """Faults of a stored encoder: its revision is what its files hash to, and its folder is called so."""
    document = checkpoint.read_config(folder)
    revision, told = checkpoint.stored_revision(folder), document["revision"]
    if revision != told:
        yield f"models/{folder.name}: weights and config hash to revision {revision}, config.json says {told}"
    if folder.name != f"{document['name']}.{told}":
        yield f"models/{folder.name}: holds encoder {document['name']}.{told}: the folder was renamed"
    read_json(folder / "provenance.json")


def columns(shelf: Checking, one: Generation, opened: Mapping[Path, Any], gone: faults.Bools | None) -> None:
    """Faults of the arrays of a generation, where they and the tables are whole."""
    layout, name = shelf.layout, f"columns/{one.number}"
    sources, labels = opened.get(layout.sources), opened.get(layout.labels)
    if shelf.info is None or sources is None or name in shelf.damaged or ("labels" in one.tables and labels is None):
        return
    if gone is None or len(gone) != sources.count_rows():
        return
    bands = shelf.info.band_names

    def lines() -> Lines:
        with shelf.bar(sources.count_rows(), " rows", f"check {name}") as bar:
            yield from faults.generation_columns(
                open_columns(layout.columns(one.number)), name,
                sources=sources, labels=labels, deleted=gone, bands=bands, progress=bar.update,
            )  # fmt: skip

    shelf.told(name, lines())

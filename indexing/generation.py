"""A generation: the frozen, checked set of tables, embeddings, indexes and estimators that is served together."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from redshelf.indexing.files import read_json, write_bytes
from redshelf.indexing.layout import SCHEMA_VERSION, Layout, other_schema
from redshelf.indexing.store import data_files, version_file
from redshelf.models.errors import BadInput, NotFound


class FileFacts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    sha256: str
    size: int


class TableVersion(BaseModel):
    """One Lance table as published: its version, kept by the tag `generation-<n>`, and its rows."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    version: int
    rows: int


class PublishedEncoder(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    revision: str
    kind: str
    dim: int
    needs: list[str]
    weights: str = "unknown"  # where they come from: the published name and sha256, what was trained on, or random


class PublishedEstimators(BaseModel):
    """One fit: the encoder (`vit`, `vit+photometry`) and the folder under redshift/ that holds its estimators."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    encoder: str
    folder: str
    estimators: list[str]


class Generation(BaseModel):
    """generations/<n>.json. `files`: path in the shelf -> sha256 and size, for every file of this state."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    number: int
    created: float  # Unix seconds
    schema_version: int = SCHEMA_VERSION
    tables: dict[str, TableVersion]
    encoders: list[PublishedEncoder]
    redshifts: list[PublishedEstimators]
    default_encoder: str
    default_redshift: str | None  # the `encoder` of one of `redshifts`
    default_estimator: str | None
    files: dict[str, FileFacts]


def numbers(layout: Layout) -> list[int]:
    """The published generations, oldest first."""
    return sorted(int(p.stem) for p in layout.generations.glob("*.json") if p.stem.isdigit())


def path_of(layout: Layout, number: int) -> Path:
    return layout.generations / f"{number}.json"


def _signed(document: dict[str, Any]) -> bytes:
    """The bytes of the file: the document, and the sha256 of its text, since no other file vouches for this one."""
    text = json.dumps(document, indent=1, allow_nan=False).encode()
    signed = {**document, "sha256": hashlib.sha256(text).hexdigest()}
    return json.dumps(signed, indent=1, allow_nan=False).encode() + b"\n"


def write(layout: Layout, generation: Generation) -> None:
    """Write the generation whole, under a sha256 of its own."""
    write_bytes(path_of(layout, generation.number), _signed(generation.model_dump()))


def tag_of(number: int) -> str:
    """The Lance tag that keeps the tables' versions of generation `number`."""
    return f"generation-{number}"


def required_files(path: Path, dataset: Any) -> list[Path]:
    """The files that the open version of the table at `path` cannot be read without: data, deletions, manifest."""
    deletions = [path / name for fragment in dataset.get_fragments() if (name := fragment.deletion_file())]
    return [*data_files(path, dataset), *deletions, version_file(path, dataset)]


def files_of(path: Path, dataset: Any, number: int) -> list[Path]:
    """Every file of the open version as generation `number` has tagged it: those, its transaction, and the tag."""
    found = [*required_files(path, dataset), path / "_refs" / "tags" / f"{tag_of(number)}.json"]
    transaction = dataset.read_transaction(dataset.version)
    if transaction is not None:
        found.append(path / "_transactions" / f"{transaction.read_version}-{transaction.uuid}.txn")
    return found


def read(layout: Layout, number: int | None = None) -> Generation:
    """Generation `number`, the newest by default.

    `NotFound` where nothing was published, `BadInput` for a file that is damaged.
    """
    known = numbers(layout)
    if not known:
        raise NotFound(f"nothing is published on {layout.root}; run `redshelf publish` first")
    if number is None:
        number = known[-1]
    if number not in known:
        raise NotFound(f"no generation {number}; there are {known[0]} to {known[-1]}")
    path = path_of(layout, number)
    document = read_json(path)
    found = document.get("schema_version") if isinstance(document, dict) else None
    if found != SCHEMA_VERSION:
        raise BadInput(f"generation {number}: {other_schema(found)}")
    # a generation of an earlier redshelf has no sha256; one whose key was damaged has a key too many
    if document.pop("sha256", None) is not None and path.read_bytes() != _signed(document):
        raise BadInput(f"{path} is not as it was published (its sha256 differs): the file is damaged")
    try:
        return Generation.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise BadInput(f"{path} is damaged: {where}: {first['msg']}") from error

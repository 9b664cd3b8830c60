"""A generation: the frozen, checked set of tables, embeddings, indexes and estimators that is served together."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from redshelf.indexing.files import read_json, write_json
from redshelf.indexing.layout import SCHEMA_VERSION, Layout
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


def write(layout: Layout, generation: Generation) -> None:
    write_json(path_of(layout, generation.number), generation.model_dump())


def read(layout: Layout, number: int | None = None) -> Generation:
    """Generation `number`, the newest by default. `NotFound` where nothing was published."""
    known = numbers(layout)
    if not known:
        raise NotFound(f"nothing is published on {layout.root}; run `redshelf publish` first")
    if number is None:
        number = known[-1]
    if number not in known:
        raise NotFound(f"no generation {number}; there are {known[0]} to {known[-1]}")
    document = read_json(path_of(layout, number))
    found = document.get("schema_version")
    if found != SCHEMA_VERSION:
        raise BadInput(f"generation {number}: schema version {found}, this redshelf reads version {SCHEMA_VERSION}")
    return Generation.model_validate(document)

"""Maps of a shelf: an embedding in two dimensions, or the sky, as `redshelf map` has made them of one generation.

A map is a folder maps/GENERATION/NAME.DIGEST of the shelf, which appears whole and is never changed; its manifest has
the sha256 of every file. It is of one generation, as redshifts and labels are: where a newer one is served, the map is
refused with the command that makes it anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from redshelf.indexing import generation, pyramid
from redshelf.indexing.files import read_json, sha256, verify
from redshelf.indexing.generation import FileFacts, Generation
from redshelf.indexing.layout import Layout
from redshelf.indexing.pyramid import How, Pyramid, Values
from redshelf.models.errors import BadInput, Conflict, NotFound, RedshelfError, nearest
from redshelf.service.shelf import OpenShelf

SKY = "sky"  # the map of where the sources are; no encoder is called so
MANIFEST, KEYS, ROWS, PLACE, SUPPORT = "manifest.json", "keys", "rows", "place", "support"
DENSITY = "density"
COLOURS: dict[str, How] = {
    "z_phot": "median",
    "z_spec": "median",
    "magnitude": "median",
    "error": "median",
    "support": "share",
    "labelled": "share",
}
_opening = Lock()


class Sky(BaseModel):
    """How a map of the sky is laid out: its middle in degrees, and the degrees along its sides. East is to the left."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    ra_deg: float
    dec_deg: float
    side_deg: float


class Manifest(BaseModel):
    """What a map is. `home`: the box (x, y, x, y) that holds nearly all sources; `peaks`: of each zoom, the sources of
    a full pixel; `zooms`: how many were worked out beforehand; `colours`: the ends of each scale."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    revision: str  # of the encoder; empty for the sky
    generation: int
    generation_sha256: str
    method: Literal["umap", "pca", "sky"]
    seed: int
    sample: int  # sources that the two dimensions were found with
    shares: list[float]  # of the variance, along the two components
    rows: int
    sources: int
    without_vector: int
    home: tuple[float, float, float, float]
    peaks: list[int]
    zooms: int
    colours: dict[str, tuple[float, float]]
    known: dict[str, int]  # sources that a colouring says something of
    magnitude_band: str
    sky: Sky | None
    created: float  # Unix seconds
    files: dict[str, FileFacts]


@dataclass(frozen=True, eq=False)
class OpenMap:
    """A map, mapped into memory. `place` (rows,): where each row of the shelf is among the sources of the pyramid, -1
    without; `support` (n,): 1 and 0 of those that were asked, else -1."""

    manifest: Manifest
    digest: str
    pyramid: Pyramid
    place: npt.NDArray[np.integer]
    support: npt.NDArray[np.int8]

    @property
    def name(self) -> str:
        return self.manifest.name


def digest_of(manifest: Manifest) -> str:
    """What the folder of a map is called after."""
    return hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()[:12]


def again(name: str) -> str:
    """The command that makes a map."""
    return f"run `redshelf map --encoder {name}`"


def read(folder: Path) -> Manifest:
    """The manifest of a map; `Conflict` naming the folder and the command where this redshelf cannot read it."""
    name, _, digest = folder.name.rpartition(".")
    where = f"maps/{folder.parent.name}/{folder.name}"
    try:
        found = Manifest.model_validate(read_json(folder / MANIFEST))
    except (BadInput, ValidationError, OSError) as error:
        raise Conflict(f"{where}: this redshelf cannot read its manifest: {again(name)}") from error
    if digest_of(found) != digest:
        raise Conflict(f"{where}: its manifest is not as it was written: {again(name)}")
    return found


def open_map(folder: Path) -> OpenMap:
    """A map whose files are all compared with their sha256; `Conflict` where one is not what the manifest says."""
    manifest = read(folder)
    files = {name: facts.model_dump() for name, facts in manifest.files.items()}
    faults = verify(folder, files, hashes=True)
    if faults:
        raise Conflict(f"maps/{folder.parent.name}/{folder.name}/{faults[0]}: {again(manifest.name)}")

    def mapped(name: str) -> npt.NDArray[np.integer]:
        return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))

    levels = pyramid.read(folder, manifest.zooms, {name: COLOURS[name] for name in manifest.colours})
    sources = Pyramid(mapped(KEYS).view(np.uint64), mapped(ROWS), levels)
    return OpenMap(manifest, folder.name.rpartition(".")[2], sources, mapped(PLACE), mapped(SUPPORT).astype(np.int8))


def stored(layout: Layout, *, number: int | None = None, name: str = "*") -> list[Path]:
    """The folders of the maps on a shelf, of one generation or of all, the oldest first."""
    found = []
    for path in layout.maps.glob(f"{'[1-9]*' if number is None else number}/{name}.*/{MANIFEST}"):
        if path.parent.parent.name.isdecimal():
            with suppress(FileNotFoundError):  # `redshelf map` has put a newer one in its place meanwhile
                found.append((int(path.parent.parent.name), path.stat().st_mtime_ns, path.parent))
    return [folder for _, _, folder in sorted(found)]


def names(shelf: OpenShelf) -> list[str]:
    """Everything that has a map, or may have one: the encoders, the default one first, and the sky."""
    default = shelf.generation.default_encoder
    return [*sorted(shelf.encoders, key=lambda name: (name != default, name)), SKY]


def made(shelf: OpenShelf) -> list[str]:
    """Those of `names` that have a map of this generation."""
    there = {folder.name.rpartition(".")[0] for folder in stored(shelf.layout, number=shelf.generation.number)}
    return [name for name in names(shelf) if name in there]


def find(shelf: OpenShelf, name: str) -> OpenMap:
    """The newest map of an encoder, or of the sky, of this generation.

    `NotFound` for an unknown name and where no map was made, `Conflict` where there is one of another generation only,
    and for one that is damaged: each with the command that makes it.
    """
    if name not in names(shelf):
        raise NotFound(f"no encoder {name!r} is published here; {nearest(name, names(shelf))}")
    number = shelf.generation.number
    there = stored(shelf.layout, number=number, name=name)
    if not there:
        others = sorted({int(folder.parent.name) for folder in stored(shelf.layout, name=name)})
        if others:
            raise Conflict(f"the map of {name} is of generation {others[-1]}, and {number} is served: {again(name)}")
        raise NotFound(f"there is no map of {name} yet: {again(name)}")
    folder = there[-1]
    with _opening:  # of many tiles that are asked for at once, one opens the map
        if folder.name not in shelf.open_maps:
            opened = open_map(folder)
            written = generation.path_of(shelf.layout, number)
            if not written.is_file() or opened.manifest.generation_sha256 != sha256(written):
                raise Conflict(f"the map of {name} is of another generation {number} than is served: {again(name)}")
            for other in [one for one in shelf.open_maps if one.rpartition(".")[0] == name]:
                del shelf.open_maps[other]  # its files are gone, and are kept by those that are being answered from it
            shelf.open_maps[folder.name] = opened
        found: OpenMap = shelf.open_maps[folder.name]
    return found


def values_of(
    shelf: OpenShelf, colour: str, rows: npt.NDArray[np.integer], support: npt.NDArray[np.int8] | None = None
) -> Values:
    """What a colouring says of `rows` (n,), NaN where it says nothing; `support` (n,) of the same ones, as in a map."""

    def column(name: str) -> Values:
        return np.asarray(np.asarray(shelf.columns[name])[rows], dtype=np.float32)

    if colour == "support":
        known = np.full(len(rows), -1, dtype=np.int8) if support is None else support
        return np.where(known < 0, np.nan, known).astype(np.float32)
    if colour == "labelled":
        return np.isfinite(column("z_spec")).astype(np.float32)
    if colour == "error":
        z_spec = column("z_spec")
        return np.asarray(np.abs(column("z_phot") - z_spec) / (1 + z_spec))
    if colour == "magnitude":
        band = shelf.info.band_names.index(shelf.info.reference_band)
        return np.asarray(np.asarray(shelf.columns["magnitudes"])[rows, band], dtype=np.float32)
    return column(colour)


def check(layout: Layout, published: Iterable[Generation]) -> Iterator[tuple[str, bool]]:
    """What is wrong with the maps on a shelf, a line each, and whether it is a fault; else it is a note: a map of an
    older generation than the newest of those `published`."""
    newest = max((one.number for one in published), default=0)
    for folder in stored(layout):
        name, where = folder.name.rpartition(".")[0], f"maps/{folder.parent.name}/{folder.name}"
        if int(folder.parent.name) != newest:
            if not stored(layout, number=newest, name=name):
                yield f"{where}: generation {newest} is the newest: {again(name)}", False
            continue
        try:
            opened = open_map(folder)
        except RedshelfError as error:
            yield str(error), True
            continue
        keys, rows = opened.pyramid.keys, np.asarray(opened.pyramid.rows)
        if len(rows) != len(keys) or not np.array_equal(opened.place[rows], np.arange(len(rows))):
            yield f"{where}: its rows and their places contradict one another: {again(name)}", True
        elif opened.manifest.generation_sha256 != sha256(generation.path_of(layout, newest)):
            yield f"{where}: it is of another generation {newest}: {again(name)}", True

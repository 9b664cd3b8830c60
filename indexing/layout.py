"""Where everything lies in a shelf, and shelf.toml: the facts of the survey that no file of it may contradict.

A shelf is one folder and one LanceDB database (docs/architecture.md); this module knows its paths, nothing else does.
"""

from __future__ import annotations

import math
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from redshelf.indexing.files import read_json, write_bytes
from redshelf.models.bands import Band, reference_band
from redshelf.models.errors import BadInput, Conflict, NotFound, nearest

SCHEMA_VERSION = 3  # tests/data keeps a shelf of each that has to be read


def other_schema(found: object) -> str:
    """What to do about a shelf or a generation of another schema version."""
    newer = isinstance(found, int) and found > SCHEMA_VERSION
    what = "a newer one made it, upgrade redshelf" if newer else "ingest the survey again, into a new shelf"
    return f"schema version {found}, this redshelf reads version {SCHEMA_VERSION}: {what}"


@dataclass(frozen=True)
class ShelfInfo:
    """The content of shelf.toml. `cutout_px` is 0 and `pixel_scale_arcsec` NaN where the survey has no images."""

    survey: str
    bands: tuple[Band, ...]
    cutout_px: int = 0
    pixel_scale_arcsec: float = float("nan")
    fingerprint: str = ""  # `origin.Origin` of the first ingest, which stays: what was made for another shelf shows
    schema_version: int = SCHEMA_VERSION

    @property
    def band_names(self) -> tuple[str, ...]:
        return tuple(band.name for band in self.bands)

    @property
    def reference_band(self) -> str:
        """The band whose magnitude stands for brightness: the one nearest to the i band."""
        return self.bands[reference_band([band.wavelength_nm for band in self.bands])].name

    @property
    def has_images(self) -> bool:
        return self.cutout_px > 0


@dataclass(frozen=True)
class Layout:
    """The paths of one shelf."""

    root: Path

    @property
    def info_file(self) -> Path:
        return self.root / "shelf.toml"

    def table(self, name: str) -> Path:
        return self.root / f"{name}.lance"

    @property
    def sources(self) -> Path:
        return self.table("sources")

    @property
    def labels(self) -> Path:
        return self.table("labels")

    @property
    def deleted(self) -> Path:
        return self.table("deleted")

    @property
    def origin_file(self) -> Path:
        return self.root / "origin.json"

    @property
    def cutouts(self) -> Path:
        return self.table("cutouts")

    def embeddings(self, encoder: str, revision: str) -> Path:
        return self.table(f"embeddings.{encoder}.{revision}")

    @property
    def models(self) -> Path:
        return self.root / "models"

    def model(self, encoder: str, revision: str) -> Path:
        return self.models / f"{encoder}.{revision}"

    def index(self, encoder: str, revision: str, rows: int) -> Path:
        """The index of an embedding of so many rows: a longer one gets another, and what is published keeps its own."""
        return self.root / "index" / f"{encoder}.{revision}" / f"{rows}"

    @property
    def redshift(self) -> Path:
        return self.root / "redshift"

    def columns(self, generation: int) -> Path:
        return self.root / "columns" / f"{generation}"

    @property
    def maps(self) -> Path:
        """Maps of generations: maps/GENERATION/NAME.DIGEST."""
        return self.root / "maps"

    @property
    def generations(self) -> Path:
        return self.root / "generations"

    def work(self, name: str) -> Path:
        """Receipts and other files of a job that has not been committed yet."""
        return self.root / "work" / name

    @property
    def update_file(self) -> Path:
        """There while an ingest that changes the shelf has not ended."""
        return self.work("ingest") / "update.json"

    def refuse_open_update(self) -> None:
        """Raise `Conflict` while an ingest changes the shelf, or where one that did was interrupted."""
        if self.update_file.is_file():
            raise Conflict(
                f"an update of {self.root} goes on or was interrupted: wait for it, or run `redshelf ingest "
                "SURVEY.toml --update` again"
            )

    def read_info(self) -> ShelfInfo:
        """shelf.toml; `NotFound` where there is no shelf, `BadInput` for one of another schema version."""
        if not self.info_file.is_file():
            raise NotFound(f"{self.root} is not a shelf: it has no shelf.toml; make one with `redshelf ingest`")
        try:
            document = tomllib.loads(self.info_file.read_text(encoding="utf-8"))
            found = document["schema_version"]
            if found != SCHEMA_VERSION:
                raise BadInput(f"{self.root}: {other_schema(found)}")
            bands = tuple(Band(**band) for band in document.pop("bands"))
            return ShelfInfo(bands=bands, **document)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise BadInput(f"{self.info_file} is damaged: {error}") from error

    def write_info(self, info: ShelfInfo) -> None:
        """Write shelf.toml whole."""
        import tomli_w

        document: dict[str, Any] = asdict(info)
        document["bands"] = list(document["bands"])
        write_bytes(self.info_file, tomli_w.dumps(document).encode())

    def encoders(self) -> dict[str, list[str]]:
        """{encoder name: its revisions, oldest first} of the models on this shelf."""
        found: dict[str, list[tuple[float, str]]] = {}
        for path in self.models.glob("[!.]*/provenance.json"):
            name, _, revision = path.parent.name.rpartition(".")
            found.setdefault(name, []).append((read_json(path)["created"], revision))
        return {name: [revision for _, revision in sorted(pairs)] for name, pairs in sorted(found.items())}

    def newest(self, encoder: str) -> str:
        """The newest revision of an encoder; `NotFound` naming those there are."""
        known = self.encoders()
        if encoder not in known:
            raise NotFound(f"no encoder {encoder!r} on this shelf; {nearest(encoder, known)}")
        return known[encoder][-1]


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: None where `value` is not finite."""
    return float(value) if math.isfinite(value) else None

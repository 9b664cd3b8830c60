"""The fits under redshift/: which there are, whether this redshelf can read them, and what mends those that it cannot.

A fit is called ENCODER.REVISION.DIGEST and is never changed: one that an earlier redshelf wrote lacks what this one
reads, and is made anew by `redshelf fit`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redshelf.indexing.files import read_json, sha256
from redshelf.indexing.layout import Layout
from redshelf.models.errors import BadInput

MODEL, CONFIG, LABEL_ROWS = "model.npz", "config.json", "label_rows"
KEYS = ("encoder", "revisions", "estimators", "scores", "created", "labels_sha256", "model")
REPORTED = ("validation", "rehearsal")


@dataclass(frozen=True)
class StoredFit:
    """A fit on the shelf. `revisions`: of each encoder whose vectors are its features; `config`: its document, empty
    where that is damaged; `fault`: why this redshelf cannot read it, None where it can."""

    folder: Path
    encoder: str
    revisions: dict[str, str]
    config: dict[str, Any]
    fault: str | None

    @property
    def created(self) -> float:
        """Unix seconds."""
        return float(self.config.get("created", self.folder.stat().st_mtime))

    @property
    def damage(self) -> str | None:
        """`fault`, or that its arrays do not hash to what its folder is called after; reads them whole."""
        if self.fault or sha256(self.folder / MODEL).startswith(self.folder.name.rpartition(".")[2]):
            return self.fault
        return f"redshift/{self.folder.name}: the sha256 of {MODEL} is not that of its folder's name: it is damaged"

    def made_with(self, labels: str | None) -> bool:
        """Whether it was fitted on the labels of this digest; a damaged one may have been."""
        return not self.config or bool(self.config.get("labels_sha256") == labels)


def name_of(encoder: str, revisions: Iterable[str], digest: str) -> str:
    """What the folder of a fit is called; `digest` is the sha256 of its arrays."""
    return f"{encoder}.{'+'.join(revisions)}.{digest[:12]}"


def again(*encoders: str) -> str:
    """The commands that make fits anew."""
    return "run " + ", ".join(f"`redshelf fit --encoder {name}`" for name in sorted(encoders))


def read(folder: Path) -> StoredFit:
    """One fit, from its document and the names of its arrays: quick, however large they are."""
    from redshelf.models.redshift import RedshiftModel

    config: dict[str, Any] = {}
    fault = None
    try:
        document = read_json(folder / CONFIG)
        config = document if isinstance(document, dict) else {}
        with zipfile.ZipFile(folder / MODEL) as stored:
            arrays = {name.removesuffix(".npy") for name in stored.namelist()}
        missing = [key for key in KEYS if key not in config]
        missing += [key for key in REPORTED if not missing and key not in config["model"].get("report", {})]
        if missing or LABEL_ROWS not in arrays:
            raise BadInput(f"{[*missing, LABEL_ROWS][0]!r} is missing; it is damaged or of another version")
        RedshiftModel.check(arrays, config["model"])
    except (BadInput, OSError, zipfile.BadZipFile) as error:
        fault = f"redshift/{folder.name}: this redshelf cannot read it: {error}"
    encoder, revisions, _ = folder.name.rsplit(".", 2)
    parts = dict(zip(encoder.split("+"), revisions.split("+"), strict=False))
    return StoredFit(folder, encoder, parts, config, fault)


def stored(layout: Layout) -> list[StoredFit]:
    """Every fit on the shelf, oldest first; what a killed one has left is none."""
    found = [read(path.parent) for path in layout.redshift.glob(f"*.*.*/{CONFIG}")]
    return sorted(found, key=lambda fit: (fit.created, fit.folder.name))

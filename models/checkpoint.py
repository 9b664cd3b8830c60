"""Encoders on disk: `weights.safetensors`, `config.json`, `provenance.json` in one folder `<name>.<revision>`.

The revision is the first 12 hex digits of sha256(weights + config), and the config holds the preprocessing, so that
two embeddings with one revision are comparable and two with different ones are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from redshelf.models.encoder import StoredEncoder, encoder_class
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

NAME_PATTERN = re.compile(r"[a-z][a-z0-9_-]{0,39}")
RESERVED = {
    "photometry": "the encoder that needs no training",
    "sky": "the map of where the sources are",
}


def revision_of(kind: str, config: dict[str, Any], weights: bytes | Iterable[bytes]) -> str:
    """First 12 hex digits of sha256 over the kind, the canonical JSON of `config`, and the weight file's bytes, whole
    or in pieces."""
    text = json.dumps({"kind": kind, "config": config}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    digest = hashlib.sha256(text.encode() + b"\0")
    for piece in [weights] if isinstance(weights, bytes) else weights:
        digest.update(piece)
    return digest.hexdigest()[:12]


def _serialise(weights: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save({key: value.detach().contiguous().cpu() for key, value in sorted(weights.items())})


def revision(encoder: StoredEncoder) -> str:
    """The revision under which `save` will store `encoder`."""
    return revision_of(encoder.kind, encoder.config, _serialise(encoder.weights()))


def check_name(name: str) -> str:
    """`name`, or `BadInput` where no encoder may be called so."""
    if not NAME_PATTERN.fullmatch(name):
        raise BadInput(f"encoder name {name!r}: expected {NAME_PATTERN.pattern}")
    return name


def check_new_name(name: str) -> str:
    """`name`, or `BadInput` where no encoder may be called so that is trained or made of published weights."""
    if name in RESERVED:
        raise BadInput(f"encoder name {name!r} is taken by {RESERVED[name]}: take another")
    return check_name(name)


def save(
    encoder: StoredEncoder,
    models_dir: Path,
    *,
    provenance: dict[str, Any],
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> Path:
    """Write `encoder` whole under `models_dir/<name>.<revision>` and return that folder; an existing one is kept.

    `provenance` says where the weights come from (data, seed, command), `beside` names further files, such as the log
    of the training; neither enters the revision.
    """
    check_name(encoder.name)
    blob = _serialise(encoder.weights())
    revision = revision_of(encoder.kind, encoder.config, blob)
    folder = models_dir / f"{encoder.name}.{revision}"
    if folder.exists():
        return folder
    models_dir.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{encoder.name}.", dir=models_dir))
    try:
        (scratch / "weights.safetensors").write_bytes(blob)
        document = {"kind": encoder.kind, "name": encoder.name, "revision": revision, "config": encoder.config}
        document["needs"] = sorted(encoder.needs)  # told without reading the weights
        (scratch / "config.json").write_text(json.dumps(document, indent=1, sort_keys=True))
        (scratch / "provenance.json").write_text(
            json.dumps({**provenance, "created": time.time()}, indent=1, sort_keys=True)
        )
        for name, data in beside.items():
            (scratch / name).write_bytes(data)
        for path in scratch.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())
        scratch.chmod(0o755)
        try:
            scratch.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process has saved the same meanwhile
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return folder


def provenance(folder: Path) -> dict[str, Any]:
    """Where the weights in `folder` come from, as `save` was told; empty for a folder that does not say."""
    path = folder / "provenance.json"
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """What config.json in `folder` says: kind, name, revision, config, needs. `BadInput` where it is damaged."""
    path = folder / "config.json"
    try:
        document = json.loads(path.read_text())
    except ValueError as error:
        raise BadInput(f"{path} is no whole JSON document ({error}): restore it, or train again") from error
    lacks = [key for key in ("kind", "name", "revision", "config") if key not in document]
    if lacks:
        raise BadInput(f"{path} lacks {lacks[0]!r}: expected an encoder written by redshelf")
    return {**document, "needs": document.get("needs") or sorted(encoder_class(document["kind"]).needs)}


def stored_revision(folder: Path) -> str:
    """The revision that weights and config in `folder` hash to, whatever they say; weights are read by pieces."""
    document = read_config(folder)
    with (folder / "weights.safetensors").open("rb") as handle:
        return revision_of(document["kind"], document["config"], iter(partial(handle.read, 1 << 22), b""))


def load(folder: Path) -> StoredEncoder:
    """The encoder stored in `folder`, on the CPU.

    Raises `BadInput` when a file is missing or when weights and config do not give the recorded revision.
    """
    from safetensors.torch import load as parse

    for needed in ("config.json", "weights.safetensors"):
        if not (folder / needed).is_file():
            raise BadInput(f"{folder}: no {needed}; expected an encoder written by redshelf")
    document = read_config(folder)
    blob = (folder / "weights.safetensors").read_bytes()
    found = revision_of(document["kind"], document["config"], blob)
    if found != document["revision"]:
        raise BadInput(
            f"{folder}: weights and config hash to revision {found}, config.json says {document['revision']}: "
            "the files were altered or damaged"
        )
    kind = encoder_class(document["kind"])
    made = kind.from_config(document["config"], parse(blob), name=document["name"], revision=found)
    if json.loads(json.dumps(made.config)) != document["config"]:
        raise BadInput(
            f"{folder}: made by another version of redshelf, whose encoder {document['kind']!r} differs: train again"
        )
    return made

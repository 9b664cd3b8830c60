"""Frozen dataclasses as arrays for an .npz without pickle, and a JSON document beside them; and back."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

Arrays = dict[str, npt.NDArray[np.generic]]
TEXTS = "texts"  # a field of megabytes of text: beside the JSON, not in it


def to_parts(parts: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
    """Arrays "name.field", and for each name a document of the fields that are no arrays."""
    arrays: Arrays = {}
    config: dict[str, Any] = {}
    for part, owner in parts.items():
        config[part] = {}
        for name, value in ((field.name, getattr(owner, field.name)) for field in fields(owner)):
            if name == TEXTS:
                arrays[f"{part}.{name}"] = np.frombuffer("\0".join(value).encode(), dtype=np.uint8)
            elif isinstance(value, np.ndarray):
                arrays[f"{part}.{name}"] = value
            else:
                config[part][name] = value
    return arrays, config


def check_parts(kinds: Mapping[str, Any], names: Collection[str], config: Mapping[str, Any]) -> None:
    """`BadInput` for the first field of `kinds` that is neither among the arrays' `names` nor in the document."""
    for part, kind in kinds.items():
        for name in (field.name for field in fields(kind)):
            if f"{part}.{name}" not in names and name not in config.get(part, {}):
                raise missing(f"{part}.{name}")


def from_parts(kinds: Mapping[str, Any], arrays: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What `to_parts` wrote, as `kinds` (the class of each name); `BadInput` naming what is missing."""
    check_parts(kinds, arrays.keys(), config)

    def value(part: str, name: str) -> Any:
        if name == TEXTS:
            return tuple(bytes(arrays[f"{part}.{name}"]).decode().split("\0"))
        found = arrays[f"{part}.{name}"] if f"{part}.{name}" in arrays else config[part][name]
        return tuple(found) if isinstance(found, list) else found

    return {part: kind(**{f.name: value(part, f.name) for f in fields(kind)}) for part, kind in kinds.items()}


def missing(name: str) -> BadInput:
    """What to say of something that is not there."""
    return BadInput(f"redshift model: {name!r} is missing; the files are damaged or of another version")

"""What every list of sources says of each of them, out of the mapped columns: for answers and for tables alike."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.columns import CLASSES, KINDS
from redshelf.service.shelf import OpenShelf

LABEL = ("z_error", "z_quality")  # which generations of an earlier redshelf do not have
KIND = (None, *KINDS[1:])  # a source without a label has no kind of one


def _known(values: npt.NDArray[np.floating]) -> list[float | None]:
    return [value if isfinite(value) else None for value in values.tolist()]


def told(shelf: OpenShelf, rows: npt.NDArray[np.int64]) -> dict[str, list[Any]]:
    """The fields of `answers.Listed` of `rows` (n,), a list of n each; None for what is not known."""
    columns, unknown = shelf.columns, np.full(len(rows), np.nan)
    label = {name: _known(columns[name][rows] if name in columns else unknown) for name in LABEL}
    return {
        "source_id": [source_id.decode() for source_id in columns["ids"][rows].tolist()],
        "ra_deg": columns["ra"][rows].tolist(),
        "dec_deg": columns["dec"][rows].tolist(),
        "z_spec": _known(columns["z_spec"][rows]),
        "z_error": label["z_error"],
        "z_kind": [KIND[kind] for kind in columns["z_kind"][rows].tolist()],
        "z_quality": label["z_quality"],
        "z_phot": _known(columns["z_phot"][rows]),
        "object_class": [CLASSES[kind] for kind in columns["object_class"][rows].tolist()],
    }


def listed(shelf: OpenShelf, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """The same, a dict for each row."""
    fields = told(shelf, rows)
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]

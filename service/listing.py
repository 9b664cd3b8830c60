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
    columns, unknown = shelf.columns, [None] * len(rows)

    def values(name: str) -> npt.NDArray[Any]:
        return np.asarray(columns[name])[rows]  # else numpy makes a memmap of each, which takes longer

    label = {name: _known(values(name)) if name in columns else unknown for name in LABEL}
    return {
        "source_id": [source_id.decode() for source_id in values("ids").tolist()],
        "ra_deg": values("ra").tolist(),
        "dec_deg": values("dec").tolist(),
        "z_spec": _known(values("z_spec")),
        "z_error": label["z_error"],
        "z_kind": [KIND[kind] for kind in values("z_kind").tolist()],
        "z_quality": label["z_quality"],
        "z_phot": _known(values("z_phot")),
        "object_class": [CLASSES[kind] for kind in values("object_class").tolist()],
    }


def listed(shelf: OpenShelf, rows: npt.NDArray[np.int64]) -> list[dict[str, Any]]:
    """The same, a dict for each row."""
    fields = told(shelf, rows)
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]

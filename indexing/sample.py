"""Which rows the lists of an index are trained on: spread over the sky and in magnitude, in the shares of the survey.

Rows follow the sky (HEALPix order), so that one of every so many of them is spread over it. Where fluxes are known, the
rows are put into classes of brightness first, each of a hundredth of them, and of each class one of every so many is
taken: the brightest and the faintest hundredth are in the sample as they are in the survey, and not by chance more or
less. None is given more than its share: most questions are about what most sources are like.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from redshelf.indexing.flat import Floats, Ints

CLASSES = 100


def classes(brightness: Floats) -> npt.NDArray[np.uint8]:
    """The class of each row (N,), from 0 for the faintest, by its `brightness` (N,) in any unit that grows with it;
    rows where that is not finite are one more class, the last."""
    measured = np.isfinite(brightness)
    if not measured.any():
        return np.full(len(brightness), CLASSES, dtype=np.uint8)
    edges = np.quantile(brightness[measured], np.linspace(0, 1, CLASSES + 1)[1:-1])
    return np.where(measured, np.searchsorted(edges, brightness, side="right"), CLASSES).astype(np.uint8)


def spread(
    known: npt.NDArray[np.bool_], wanted: int, *, brightness: Floats | None = None, seed: int = 0
) -> npt.NDArray[np.int64]:
    """`wanted` of the rows that are `known` (N,), or all where there are fewer, in order; of every class of
    `brightness` (N,), or of all rows together where it is None, as many as its share is, to within two."""
    rows: Ints = np.flatnonzero(known)
    wanted = min(len(rows), wanted)
    if brightness is not None:
        rows = rows[np.argsort(classes(brightness[rows]), kind="stable")]
    edges = np.linspace(0, len(rows), wanted + 1).astype(np.int64)
    picked = edges[:-1] + (np.random.default_rng(seed).random(wanted) * np.diff(edges)).astype(np.int64)
    return np.sort(rows[picked])

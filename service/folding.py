"""Near-duplicates in a list of neighbours: one galaxy detected twice, or shredded, is shown once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from redshelf.indexing.filters import separation_arcsec
from redshelf.service.answers import Neighbour

RADIUS_ARCSEC = 2.0


@dataclass(frozen=True)
class Fold:
    """A neighbour and those after it that lie on the same spot of the sky, nearest in the encoder's space first."""

    first: Neighbour
    others: tuple[Neighbour, ...] = ()


def fold(
    neighbours: Sequence[Neighbour],
    beside: Sequence[tuple[float, float]] = (),
    *,
    radius_arcsec: float = RADIUS_ARCSEC,
) -> tuple[list[Fold], list[Neighbour]]:
    """Neighbours in their order, each with the later ones within `radius_arcsec` of it; and those that lie so near to
    one of the positions (RA, Dec in degrees) `beside`, those of the query."""
    ra, dec = (np.array([getattr(one, name) for one in neighbours]) for name in ("ra_deg", "dec_deg"))
    free = np.ones(len(neighbours), dtype=bool)
    for place in beside:
        free &= separation_arcsec(ra, dec, *place) > radius_arcsec
    own = [one for one, is_free in zip(neighbours, free, strict=True) if not is_free]
    folds = []
    for i, one in enumerate(neighbours):
        if not free[i]:
            continue
        same = np.flatnonzero(free & (separation_arcsec(ra, dec, one.ra_deg, one.dec_deg) <= radius_arcsec))
        free[same] = False
        folds.append(Fold(one, tuple(neighbours[j] for j in same.tolist() if j != i)))
    return folds, own

"""Where a survey lies on the sky, and which of its sources are near to what somebody was looking for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np
import numpy.typing as npt

from redshelf.indexing.filters import near, nearest_first
from redshelf.service.search import WIDER_ARCSEC
from redshelf.service.shelf import OpenShelf

OFFERED = 6  # ids in place of one that is unknown
PIECE = 1 << 22  # rows that are looked at in one go
AROUND = 200  # ids that sort near it, of which the most alike are offered


@dataclass(frozen=True)
class Footprint:
    """The smallest box in RA and Dec [degrees] that holds every source. `ra_low` is above `ra_high` where it holds
    RA 0; `n` is 0, and the rest NaN, where there is no source."""

    ra_low: float
    ra_high: float
    dec_low: float
    dec_high: float
    n: int

    def __str__(self) -> str:
        if not self.n:
            return "has no source."
        over = " (over RA 0)" if self.ra_low > self.ra_high else ""
        return (
            f"lies between RA {self.ra_low:.4f} and {self.ra_high:.4f}{over}, "
            f"Dec {self.dec_low:+.4f} and {self.dec_high:+.4f} degrees."
        )


def _right_ascensions(shelf: OpenShelf) -> Iterator[npt.NDArray[np.float64]]:
    """RA of the sources that are not deleted, some at a time."""
    ra, deleted = np.asarray(shelf.columns["ra"]), np.asarray(shelf.columns["deleted"])
    for first in range(0, len(ra), PIECE):
        piece = slice(first, first + PIECE)
        yield ra[piece][~deleted[piece]]


def footprint(shelf: OpenShelf) -> Footprint:
    """Where the sources of a shelf are that are not deleted: the box that leaves out the widest empty range of RA, to a
    degree; its sides are exact."""
    dec = shelf.columns["dec_sorted"]
    if not len(dec):
        nan = float("nan")
        return Footprint(nan, nan, nan, nan, n=0)
    counts = sum(np.bincount(ra.astype(np.int64), minlength=360) for ra in _right_ascensions(shelf))
    taken = np.flatnonzero(counts)
    gaps = np.diff(taken, append=taken[0] + 360)  # of whole degrees, from each that is taken to the next one
    first = taken[(int(gaps.argmax()) + 1) % len(taken)]  # behind the widest gap
    ends = [(along.min(), along.max()) for ra in _right_ascensions(shelf) if len(along := (ra - first) % 360)]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return Footprint(float((low + first) % 360), float((high + first) % 360), float(dec[0]), float(dec[-1]), n=len(dec))


def nearest_ids(shelf: OpenShelf, ra_deg: float, dec_deg: float, *, n: int = OFFERED) -> list[str]:
    """The ids of at least one and at most `n` sources, the nearest to a position first."""
    for radius in WIDER_ARCSEC:
        rows, distance = near(shelf.columns, ra_deg, dec_deg, radius)
        if len(rows):
            return [shelf.source_id(row) for row in rows[nearest_first(distance, n)]]
    return []


def similar_ids(shelf: OpenShelf, text: str, *, n: int = OFFERED) -> list[str]:
    """At most `n` ids that look like a text, of those that sort near to it; else the ones that sort nearest."""
    ids = shelf.columns["ids_sorted"]
    at = int(np.searchsorted(ids, np.bytes_(text.encode("ascii", "replace"))))
    around = [bytes(one).decode() for one in ids[max(0, at - AROUND) : at + AROUND]]
    middle = min(at, AROUND)
    close = get_close_matches(text[:64], around, n=n, cutoff=0.6)
    return close or around[max(0, middle - n // 2) : middle + n - n // 2]

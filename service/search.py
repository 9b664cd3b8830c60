"""Similar galaxies: by source, by position, by vector."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import hypot, inf
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann, ivf
from redshelf.indexing.filters import Filters, near
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.answers import NeighboursAnswer, RecallAnswer
from redshelf.service.listing import listed
from redshelf.service.shelf import OpenEncoder, OpenShelf
from redshelf.service.stages import timed

MAX_K, MAX_PROBES = 1000, 100
MAX_MUTUAL = 200  # sources of which each is asked for as many neighbours
ROUNDING = 1e-6  # of a distance between the same two vectors, measured from either
WIDER_ARCSEC = (60.0, 3600.0, 648_000.0)  # where a position has no source near it
MAX_LENGTH = 1e19  # of a query vector: its square and all differences from it stay within float32, 3.4e38

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def check_number(name: str, value: int) -> None:
    """Raise `BadInput` for a number of sources out of range."""
    if not 1 <= value <= MAX_K:
        raise BadInput(f"{name}={value}: expected 1 <= {name} <= {MAX_K}")


def check_position(ra_deg: float, dec_deg: float) -> None:
    """Raise `BadInput` for what is no place on the sky."""
    if not 0 <= ra_deg < 360 or not -90 <= dec_deg <= 90:
        raise BadInput(f"position ra={ra_deg}, dec={dec_deg}: expected 0 <= ra < 360 and -90 <= dec <= 90 degrees")


@dataclass(frozen=True)
class Wanted:
    """At most `k` sources that pass `filters` and lie within `max_distance` of the query; with `mutual` only those of
    them that have the query among their own `k` nearest. `exact` compares with every source, whatever the index is."""

    k: int = 10
    filters: Filters = field(default_factory=Filters)
    exact: bool = False
    max_distance: float | None = None
    mutual: bool = False

    def __post_init__(self) -> None:
        check_number("k", self.k)
        if self.mutual and self.k > MAX_MUTUAL:
            raise BadInput(f"k={self.k}: with mutual, which asks about each of them, expected at most {MAX_MUTUAL}")
        if self.max_distance is not None and not 0 <= self.max_distance < inf:
            raise BadInput(f"max_distance={self.max_distance}: expected a number that is not negative")


@dataclass(frozen=True)
class Scope:
    """Where a question looks: the rows of an embedding that pass its filters, but for those that are left out."""

    encoder: OpenEncoder
    among: ann.Selection | None  # None: every row that has a vector
    left_out: Ints  # (n,) rows
    n_matching: int

    @timed("search")
    def nearest(self, queries: Floats, k: int, *, exact: bool = False) -> tuple[Floats, Ints]:
        """Distances and rows (Q, k) of the nearest, padded with inf and -1."""
        distance, rows = self.encoder.index.search(queries, k + len(self.left_out), among=self.among, exact=exact)
        if not len(self.left_out):
            return distance, rows
        if len(self.left_out) == 1:  # what sorts below takes several times as long, a twentieth of an answer
            other = ivf.others(rows, np.repeat(self.left_out, len(rows)))
            return distance[other].reshape(len(rows), k), rows[other].reshape(len(rows), k)
        kept = (rows >= 0) & ~np.isin(rows, self.left_out)
        order = np.argsort(~kept, axis=1, kind="stable")[:, :k]
        distance = np.take_along_axis(np.where(kept, distance, np.float32(inf)), order, axis=1)
        return distance, np.take_along_axis(np.where(kept, rows, -1), order, axis=1)

    @property
    def compares_all(self) -> bool:
        """Whether every row that passes is compared, even where that is not asked for."""
        return self.encoder.index.exact or (self.among is not None and self.among.few is not None)


def scope(
    shelf: OpenShelf, encoder: OpenEncoder, filters: Filters, *, row: int | None = None, left_out: Ints | None = None
) -> Scope:
    """Where to look with `filters`: not at the `row` that is asked about and what lies too near to it on the sky, nor
    at the rows `left_out` (n,)."""
    index, among = encoder.index, shelf.selection(encoder, filters)
    gone = np.array([] if row is None else [row], dtype=np.int64)
    if left_out is not None:
        gone = np.union1d(gone, left_out)
    if filters.exclude_radius_arcsec is not None:
        if row is None:
            raise BadInput("exclude_radius_arcsec needs a query with a position: a source of this survey")
        ra, dec = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
        gone = np.union1d(gone, near(shelf.columns, ra, dec, filters.exclude_radius_arcsec)[0])
    passing = index.known if among is None else among.mask
    n_matching = (index.findable if among is None else among.count) - int(np.count_nonzero(passing[gone]))
    if len(gone) > MAX_K:  # too many to ask for and drop
        mask = passing.copy()
        mask[gone] = False
        gone, among = np.empty(0, dtype=np.int64), index.select(mask)
    return Scope(encoder, among, gone, n_matching)


@timed("hydrate")
def answer(
    shelf: OpenShelf,
    within: Scope,
    rows: Ints,
    distance: Floats,
    *,
    complete: bool,
    exact: bool = False,
    row: int | None = None,
    **more: Any,
) -> NeighboursAnswer:
    """The answer that has these rows (n,) in this order; `more` are fields that not every question has."""
    encoder = within.encoder
    exact = exact or within.compares_all
    ranked = enumerate(zip(listed(shelf, rows), distance.tolist(), strict=True), start=1)
    told = {
        "query": None if row is None else shelf.source_id(row),
        "encoder": encoder.name,
        "revision": encoder.published.revision,
        "generation": shelf.generation.number,
        "exact": exact,
        "recall": 1.0 if exact else encoder.index.recall,
        "n_matching": within.n_matching,
        "complete": complete,
        "neighbours": [{"rank": rank, "distance": d, **one} for rank, (one, d) in ranked],
    }
    return NeighboursAnswer.model_validate(told | more)  # whole: half the time of one neighbour after the other


def _mutual(within: Scope, rows: Ints, distance: Floats, wanted: Wanted) -> Bools:
    """Which of the rows (n,) at a `distance` (n,) from the query have it among their own k nearest of those that pass:
    fewer than k others lie nearer to them."""
    if not len(rows):
        return np.zeros(0, dtype=bool)
    theirs, found = within.nearest(within.encoder.vectors(rows), wanted.k + 1, exact=wanted.exact)
    nearer = (found >= 0) & (found != rows[:, None]) & (theirs < distance[:, None] * (1 - ROUNDING))
    return np.asarray(nearer.sum(axis=1) < wanted.k)


def look(
    shelf: OpenShelf,
    encoder: OpenEncoder,
    vector: Floats,
    wanted: Wanted,
    *,
    row: int | None = None,
    left_out: Ints | None = None,
    **more: Any,
) -> NeighboursAnswer:
    """The sources nearest to `vector` (dim,), which is that of `row` where a source is asked about; those of the rows
    `left_out` (n,) are not in the answer, whose other fields are `more`."""
    if wanted.mutual and row is None:
        raise BadInput("mutual needs a query that is a source of this survey: others are nobody's neighbours")
    within = scope(shelf, encoder, wanted.filters, row=row, left_out=left_out)
    distances, found = within.nearest(vector[None], wanted.k + 1, exact=wanted.exact)
    seen = found[0] >= 0
    with np.errstate(over="ignore"):  # a limit beyond float32 is none
        inside = seen if wanted.max_distance is None else seen & (distances[0] <= wanted.max_distance)
    n_inside, n_seen = int(np.count_nonzero(inside)), int(np.count_nonzero(seen))
    reached = n_inside < n_seen or n_seen == within.n_matching  # the limit, or all that there are
    rows, distance = found[0][inside][: wanted.k], distances[0][inside][: wanted.k]
    if wanted.mutual:
        both = _mutual(within, rows, distance, wanted)
        rows, distance = rows[both], distance[both]
    complete = reached and n_inside <= wanted.k
    return answer(shelf, within, rows, distance, complete=complete, exact=wanted.exact, row=row, **more)


def known_row(shelf: OpenShelf, encoder: OpenEncoder, source_id: str) -> int:
    """The row of a source; `NotFound` where it is unknown, `BadInput` where `encoder` has no vector of it."""
    row = shelf.row(source_id)
    if not encoder.index.known[row]:
        raise BadInput(f"source {source_id!r} has no vector by {encoder.name}: no band of it was observed")
    return row


def neighbours(
    shelf: OpenShelf, source_id: str, *, encoder: str | None = None, filters: Filters | None = None, **how: Any
) -> NeighboursAnswer:
    """The `k` sources nearest to `source_id` in the space of `encoder`, itself never among them; `how`: the other
    fields of `Wanted`."""
    chosen = shelf.encoder(encoder)
    row = known_row(shelf, chosen, source_id)
    vector = chosen.vectors(np.array([row]))[0]
    return look(shelf, chosen, vector, Wanted(filters=filters or Filters(), **how), row=row)


def neighbours_of_vector(
    shelf: OpenShelf,
    vector: npt.NDArray[np.floating],
    *,
    encoder: str | None = None,
    filters: Filters | None = None,
    bands_missing: tuple[str, ...] = (),
    **how: Any,
) -> NeighboursAnswer:
    """The `k` sources nearest to a vector (dim,) of the space of `encoder`, which is refused beyond `MAX_LENGTH`;
    `how`: the other fields of `Wanted`."""
    chosen = shelf.encoder(encoder)
    length = hypot(*vector.tolist())
    if length > MAX_LENGTH:
        raise BadInput(
            f"vector of length {length:g}: expected at most {MAX_LENGTH:g}, since squared distances overflow float32"
        )
    query = np.asarray(vector, dtype=np.float32)
    wanted = Wanted(filters=filters or Filters(), **how)
    return look(shelf, chosen, query, wanted, bands_missing=list(bands_missing))


def live_recall(shelf: OpenShelf, *, encoder: str | None = None, n: int = 20) -> RecallAnswer:
    """How many of the ten nearest of `n` sources a search finds, compared with every one; `BadInput` for another n
    than 1 to `MAX_PROBES`."""
    if not 1 <= n <= MAX_PROBES:
        raise BadInput(f"n={n}: expected 1 <= n <= {MAX_PROBES}")
    chosen = shelf.encoder(encoder)
    number = shelf.generation.number
    return RecallAnswer(
        encoder=chosen.name,
        revision=chosen.published.revision,
        generation=number,
        exact=chosen.index.exact,
        n=min(n, chosen.index.findable),
        k=ann.RECALL_K,
        recall=ann.measure(chosen.index, queries=n, seed=number),
        promised=chosen.index.recall,
    )


def nearest_source(shelf: OpenShelf, ra_deg: float, dec_deg: float, *, radius_arcsec: float = 5.0) -> str:
    """The id of the source nearest to a position; `NotFound` where none lies within `radius_arcsec`."""
    check_position(ra_deg, dec_deg)
    for radius in (radius_arcsec, *(r for r in WIDER_ARCSEC if r > radius_arcsec)):
        rows, distance = near(shelf.columns, ra_deg, dec_deg, radius)
        if len(rows):
            break
    else:
        raise NotFound(f"survey {shelf.info.survey} has no source that is not deleted")
    first = int(distance.argmin())
    if distance[first] > radius_arcsec:
        raise NotFound(
            f"no source within {radius_arcsec} arcsec of ra={ra_deg}, dec={dec_deg}; "
            f"the nearest, {shelf.source_id(rows[first])}, is {distance[first]:.1f} arcsec away"
        )
    return shelf.source_id(rows[first])

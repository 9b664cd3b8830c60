"""The most isolated sources of an embedding, by the distance to their 10th nearest: found once, when it is indexed.

The tenth, and not the nearest, since a strange source may have a twin: another detection of the same galaxy, or the row
it had before it was changed (Ramaswamy, Rastogi & Shim 2000). Comparing all with all would take days for forty million
rows. Instead those farthest from the centres of their inverted lists are asked for their neighbours through the index
itself, the best of them once more with more candidates, the first of these compared with all, and `KEPT` are kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from zipfile import BadZipFile

import numpy as np

from redshelf.indexing import ivf
from redshelf.indexing.files import write_with
from redshelf.indexing.flat import Floats, Ints
from redshelf.models.errors import Conflict

if TYPE_CHECKING:
    from redshelf.indexing.ann import Index

ISOLATED = "isolated.npz"
NEIGHBOUR = 10
KEPT = 2000
SHORTLIST, ONE_OF = 20_000, 400  # rows far from their centres, whose neighbours are asked for; of many one in so many
CLOSER = 10  # times as many candidates for those that are likely to be kept, an approximate index being what it is
MOST_NUMBERS = 2**37  # that are compared in some five seconds, with all rows: those of an exact index, or the first
LEAST = 100  # of the shortlist, unless that would be fewer rows than these
CENTRES, SAMPLE_PER_CENTRE, ITERATIONS = 1024, 40, 6  # of k-means, where an index is exact and has no lists
ASKED_AT_ONCE = 1024


@dataclass(frozen=True, eq=False)
class Isolated:
    """Rows (n,) of an index and the distance (n,) of each to its 10th nearest other one, the most isolated first.

    `exact`: every row was compared with every other one; else there may be others as isolated, and a distance may be
    to a somewhat later neighbour.
    """

    rows: Ints
    distance: Floats
    exact: bool


def _tenth(index: Index, rows: Ints, k: int, *, exact: bool = False) -> Floats:
    """Distance (n,) of each row to the 10th nearest other one when a search is asked for `k`; inf without so many."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), ASKED_AT_ONCE):
        own = rows[start : start + ASKED_AT_ONCE]
        distance, near = index.search(index.take(own).astype(np.float32), k + 1, exact=exact)
        found[start : start + len(own)] = distance[ivf.others(near, own)].reshape(len(own), k)[:, NEIGHBOUR - 1]
    return found


def _centres(index: Index) -> Floats:
    """Centres (L, dim) of clusters: of the inverted lists, or of a small k-means where there are none."""
    import faiss

    if index.lists is not None:
        quantiser = index.lists.index.quantizer
        return np.asarray(quantiser.reconstruct_n(0, quantiser.ntotal))
    rows = np.flatnonzero(index.known)
    number = min(CENTRES, max(1, round(len(rows) ** 0.5)))
    picked = rows[np.linspace(0, len(rows) - 1, min(len(rows), SAMPLE_PER_CENTRE * number)).astype(np.int64)]
    means = faiss.Kmeans(index.dim, number, niter=ITERATIONS, max_points_per_centroid=SAMPLE_PER_CENTRE, seed=1)
    means.train(index.take(picked).astype(np.float32))
    return np.asarray(means.centroids)


def _nearest(centres: Floats, vectors: Floats) -> tuple[Floats, Ints]:
    """Squared distance (n,) of vectors (n, dim) from the nearest of centres (L, dim), and which that is (n,)."""
    import faiss

    quantiser = faiss.IndexFlatL2(centres.shape[1])
    quantiser.add(centres)
    squared, found = quantiser.search(vectors, 1)
    return squared[:, 0], found[:, 0]


def _far_from_centres(index: Index, wanted: int) -> Ints:
    """The `wanted` rows that are farthest from the centre of their cluster, ascending; all are read once, in blocks."""
    centres = _centres(index)
    of = np.full(len(index.known), -1, dtype=np.int32) if index.lists is None else np.asarray(index.lists.list_of)
    far = np.full(len(index.known), -1, dtype=np.float32)
    for rows, vectors in ivf.blocks(index.flat, index.known, start=0, past=len(index.known)):
        if index.lists is None:
            far[rows], of[rows] = _nearest(centres, vectors)
        else:
            vectors -= centres[of[rows]]
            far[rows] = np.einsum("nd,nd->n", vectors, vectors)
    # a few rows far from all others may be a cluster of their own, and near its centre: then the next one counts
    crowded = np.bincount(of[of >= 0], minlength=len(centres)) > 2 * NEIGHBOUR
    alone = np.flatnonzero((of >= 0) & ~crowded[of])
    if crowded.any() and len(alone):
        far[alone] = _nearest(np.ascontiguousarray(centres[crowded]), index.take(alone).astype(np.float32))[0]
    return np.sort(np.argpartition(far, len(far) - wanted)[len(far) - wanted :])


NONE = Isolated(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), True)


def find(index: Index) -> Isolated:
    """The most isolated rows of an index; rows without a vector are not among them. None of ten or fewer rows."""
    known = index.findable
    if known <= NEIGHBOUR:
        return NONE
    affordable = MOST_NUMBERS // (known * index.dim)
    most = max(SHORTLIST, known // ONE_OF)
    wanted = affordable if index.exact else most
    rows = np.flatnonzero(index.known) if known <= wanted else _far_from_centres(index, min(wanted, most))
    distance = _tenth(index, rows, NEIGHBOUR)
    if not index.exact:  # what was missed makes a distance too large: ask again where it matters
        likely = np.argsort(-distance, kind="stable")[: 2 * KEPT]
        rows, distance = rows[likely], distance[likely]
        distance = np.minimum(distance, _tenth(index, rows, min(CLOSER * NEIGHBOUR, known - 1)))
        likely = np.argsort(-distance, kind="stable")
        rows, distance = rows[likely], distance[likely]
        first = min(len(rows), affordable)
        if first >= LEAST:
            distance[:first] = _tenth(index, rows[:first], NEIGHBOUR, exact=True)
    enough = np.isfinite(distance)
    rows, distance = rows[enough], distance[enough]
    best = np.argsort(-distance, kind="stable")[:KEPT]
    return Isolated(rows[best], distance[best], index.exact and known <= wanted)


def write(path: Path, index: Index) -> Path:
    """Find the most isolated rows of an index and write them whole; returns `path`."""
    found = find(index)

    def fill(handle: BinaryIO) -> None:
        np.savez(handle, rows=found.rows, distance=found.distance, exact=np.array(found.exact))

    write_with(path, fill)
    return path


def read(path: Path, *, rows: int) -> Isolated:
    """What `write` has written; `Conflict` where it is not of an index of `rows`."""
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as stored:
            found = Isolated(stored["rows"], stored["distance"], bool(stored["exact"]))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise Conflict(f"{path} is missing or damaged ({error})") from error
    outside = (found.rows < 0) | (found.rows >= rows)
    if found.rows.shape != found.distance.shape or outside.any():
        raise Conflict(f"{path} is not of the index beside it, which has {rows} rows")
    return found

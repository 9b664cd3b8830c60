"""Similar galaxies: by source, by position, by vector."""

from __future__ import annotations

from math import hypot

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann
from redshelf.indexing.columns import CLASSES, KINDS
from redshelf.indexing.filters import Filters, near
from redshelf.indexing.layout import finite_or_none
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.answers import Neighbour, NeighboursAnswer, RecallAnswer
from redshelf.service.shelf import OpenEncoder, OpenShelf

MAX_K, MAX_PROBES = 1000, 100
WIDER_ARCSEC = (60.0, 3600.0, 648_000.0)  # where a position has no source near it
MAX_LENGTH = 1e19  # of a query vector: its square and all differences from it stay within float32, 3.4e38


def _neighbour(shelf: OpenShelf, row: int, rank: int, distance: float) -> Neighbour:
    columns = shelf.columns
    return Neighbour(
        source_id=shelf.source_id(row),
        rank=rank,
        distance=distance,
        ra_deg=float(columns["ra"][row]),
        dec_deg=float(columns["dec"][row]),
        z_spec=finite_or_none(columns["z_spec"][row]),
        z_kind=KINDS[columns["z_kind"][row]] or None,
        z_phot=finite_or_none(columns["z_phot"][row]),
        object_class=CLASSES[columns["object_class"][row]],
    )


def _search(
    shelf: OpenShelf,
    encoder: OpenEncoder,
    vector: npt.NDArray[np.float32],
    *,
    k: int,
    filters: Filters,
    row: int | None,
    exact: bool,
) -> NeighboursAnswer:
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k={k}: expected 1 <= k <= {MAX_K}")
    index, among = encoder.index, shelf.selection(encoder, filters)
    left_out = np.empty(0, dtype=np.int64) if row is None else np.array([row])
    if filters.exclude_radius_arcsec is not None:
        if row is None:
            raise BadInput("exclude_radius_arcsec needs a query with a position: a source of this survey")
        ra, dec = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
        left_out = near(shelf.columns, ra, dec, filters.exclude_radius_arcsec)[0]
        if len(left_out) > MAX_K:  # too many to ask for and drop
            mask = index.known.copy() if among is None else among.mask.copy()
            mask[left_out] = False
            left_out, among = np.array([row]), index.select(mask)
    passing = index.known if among is None else among.mask
    n_matching = (index.findable if among is None else among.count) - int(passing[left_out].sum())
    distance, rows = index.search(vector[None], k + len(left_out), among=among, exact=exact)
    kept = (rows[0] >= 0) & ~np.isin(rows[0], left_out)
    compared = index.exact or (among is not None and among.few is not None)
    found = list(zip(rows[0][kept][:k].tolist(), distance[0][kept][:k].tolist(), strict=True))
    return NeighboursAnswer(
        query=None if row is None else shelf.source_id(row),
        encoder=encoder.name,
        revision=encoder.published.revision,
        generation=shelf.generation.number,
        exact=exact or compared,
        recall=1.0 if exact or compared else index.recall,
        n_matching=n_matching,
        bands_missing=[],
        neighbours=[_neighbour(shelf, r, rank, d) for rank, (r, d) in enumerate(found, start=1)],
    )


def neighbours(
    shelf: OpenShelf,
    source_id: str,
    *,
    encoder: str | None = None,
    k: int = 10,
    filters: Filters | None = None,
    exact: bool = False,
) -> NeighboursAnswer:
    """The `k` sources nearest to `source_id` in the space of `encoder`, itself never among them; `exact` compares it
    with every source, whatever the index is."""
    chosen, row = shelf.encoder(encoder), shelf.row(source_id)
    if not chosen.index.known[row]:
        raise BadInput(f"source {source_id!r} has no vector by {chosen.name}: no band of it was observed")
    vector = chosen.vectors(np.array([row]))[0]
    return _search(shelf, chosen, vector, row=row, k=k, filters=filters or Filters(), exact=exact)


def neighbours_of_vector(
    shelf: OpenShelf,
    vector: npt.NDArray[np.floating],
    *,
    encoder: str | None = None,
    k: int = 10,
    filters: Filters | None = None,
    exact: bool = False,
    bands_missing: tuple[str, ...] = (),
) -> NeighboursAnswer:
    """The `k` sources nearest to a vector (dim,) of the space of `encoder`, which is refused beyond `MAX_LENGTH`."""
    chosen = shelf.encoder(encoder)
    length = hypot(*vector.tolist())
    if length > MAX_LENGTH:
        raise BadInput(
            f"vector of length {length:g}: expected at most {MAX_LENGTH:g}, since squared distances overflow float32"
        )
    query = np.asarray(vector, dtype=np.float32)
    answer = _search(shelf, chosen, query, row=None, k=k, filters=filters or Filters(), exact=exact)
    return answer.model_copy(update={"bands_missing": list(bands_missing)})


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
    if not 0 <= ra_deg < 360 or not -90 <= dec_deg <= 90:
        raise BadInput(f"position ra={ra_deg}, dec={dec_deg}: expected 0 <= ra < 360 and -90 <= dec <= 90 degrees")
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

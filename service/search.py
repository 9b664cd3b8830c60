"""Similar galaxies: by source, by position, by vector."""

from __future__ import annotations

from math import hypot

import numpy as np
import numpy.typing as npt

from redshelf.indexing.columns import CLASSES, KINDS
from redshelf.indexing.filters import Filters, row_mask, separation_arcsec
from redshelf.indexing.layout import finite_or_none
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.answers import Neighbour, NeighboursAnswer
from redshelf.service.shelf import OpenEncoder, OpenShelf

MAX_K = 1000
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
    bands_missing: tuple[str, ...],
) -> NeighboursAnswer:
    if not 1 <= k <= MAX_K:
        raise BadInput(f"k={k}: expected 1 <= k <= {MAX_K}")
    position = None if row is None else (float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row]))
    if filters.exclude_radius_arcsec is not None and position is None:
        raise BadInput("exclude_radius_arcsec needs a query with a position: a source of this survey")
    mask = row_mask(shelf.columns, filters, bands=shelf.info.band_names, query_position=position)
    known = encoder.index.known
    if mask is None:
        n_matching = int(known.sum()) - (row is not None)
    else:
        mask &= known
        if row is not None:
            mask[row] = False
        n_matching = int(mask.sum())
    # without a mask the query itself comes back among its neighbours: ask for one more and drop it
    distance, rows = encoder.index.search(vector[None], k + (mask is None and row is not None), mask=mask)
    found = [(int(r), float(d)) for r, d in zip(rows[0], distance[0], strict=True) if r >= 0 and r != row][:k]
    return NeighboursAnswer(
        query=None if row is None else shelf.source_id(row),
        encoder=encoder.name,
        revision=encoder.published.revision,
        generation=shelf.generation.number,
        exact=encoder.index.exact,
        recall=encoder.index.recall,
        n_matching=n_matching,
        bands_missing=list(bands_missing),
        neighbours=[_neighbour(shelf, r, rank, d) for rank, (r, d) in enumerate(found, start=1)],
    )


def neighbours(
    shelf: OpenShelf, source_id: str, *, encoder: str | None = None, k: int = 10, filters: Filters | None = None
) -> NeighboursAnswer:
    """The `k` sources nearest to `source_id` in the space of `encoder`, itself never among them."""
    chosen, row = shelf.encoder(encoder), shelf.row(source_id)
    if not chosen.index.known[row]:
        raise BadInput(f"source {source_id!r} has no vector by {chosen.name}: no band of it was observed")
    vector = chosen.vectors(np.array([row]))[0]
    return _search(shelf, chosen, vector, k=k, filters=filters or Filters(), row=row, bands_missing=())


def neighbours_of_vector(
    shelf: OpenShelf,
    vector: npt.NDArray[np.floating],
    *,
    encoder: str | None = None,
    k: int = 10,
    filters: Filters | None = None,
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
    return _search(shelf, chosen, query, k=k, filters=filters or Filters(), row=None, bands_missing=bands_missing)


def nearest_source(shelf: OpenShelf, ra_deg: float, dec_deg: float, *, radius_arcsec: float = 5.0) -> str:
    """The id of the source nearest to a position; `NotFound` where none lies within `radius_arcsec`."""
    if not 0 <= ra_deg < 360 or not -90 <= dec_deg <= 90:
        raise BadInput(f"position ra={ra_deg}, dec={dec_deg}: expected 0 <= ra < 360 and -90 <= dec <= 90 degrees")
    distance = separation_arcsec(shelf.columns["ra"], shelf.columns["dec"], ra_deg, dec_deg)
    distance[shelf.columns["deleted"]] = np.inf
    row = int(distance.argmin())
    if not np.isfinite(distance[row]):
        raise NotFound(f"survey {shelf.info.survey} has no source that is not deleted")
    if distance[row] > radius_arcsec:
        raise NotFound(
            f"no source within {radius_arcsec} arcsec of ra={ra_deg}, dec={dec_deg}; "
            f"the nearest, {shelf.source_id(row)}, is {distance[row]:.1f} arcsec away"
        )
    return shelf.source_id(row)

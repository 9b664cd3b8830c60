"""Lists of sources beside neighbours: all in a cone, the most isolated ones, and two encoders side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redshelf.indexing.filters import Filters, near, nearest_first, row_mask
from redshelf.models import ranking
from redshelf.models.errors import BadInput
from redshelf.service.answers import CompareAnswer, ConeAnswer, ConeSource, Outlier, OutliersAnswer
from redshelf.service.listing import listed
from redshelf.service.search import check_number, check_position, neighbours
from redshelf.service.shelf import OpenShelf

MAX_CONE_ARCSEC = 36_000.0  # ten degrees: every source at these declinations is looked at


def cone(shelf: OpenShelf, ra_deg: float, dec_deg: float, radius_arcsec: float, *, n: int = 100) -> ConeAnswer:
    """The `n` sources nearest to the axis of a cone, nearest first, and how many lie in it; `BadInput` for what is out
    of range."""
    check_number("n", n)
    check_position(ra_deg, dec_deg)
    if not 0 < radius_arcsec <= MAX_CONE_ARCSEC:
        raise BadInput(f"radius_arcsec={radius_arcsec}: expected 0 < radius_arcsec <= {MAX_CONE_ARCSEC:g}")
    rows, separation = near(shelf.columns, ra_deg, dec_deg, radius_arcsec)
    first = nearest_first(separation, n)
    sources = [
        ConeSource(separation_arcsec=arcsec, **one)
        for one, arcsec in zip(listed(shelf, rows[first]), separation[first].tolist(), strict=True)
    ]
    return ConeAnswer(
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        radius_arcsec=radius_arcsec,
        generation=shelf.generation.number,
        n_within=len(rows),
        sources=sources,
    )


def compare(
    shelf: OpenShelf,
    source_id: str,
    encoders: Sequence[str],
    *,
    k: int = 10,
    filters: Filters | None = None,
    exact: bool = False,
) -> CompareAnswer:
    """The `k` neighbours of a source by each of two encoders, and what the two lists share; `BadInput` unless two
    different ones are named."""
    if len(encoders) != 2 or encoders[0] == encoders[1]:
        raise BadInput(f"encoders={','.join(encoders)!r}: expected the names of two different ones, as in a,b")
    told: dict[str, Any] = {"k": k, "filters": filters, "exact": exact}
    answers = [neighbours(shelf, source_id, encoder=name, **told) for name in encoders]
    first, second = ([one.source_id for one in answer.neighbours] for answer in answers)
    both = set(second)
    return CompareAnswer(
        query=source_id,
        generation=shelf.generation.number,
        k=k,
        neighbours=answers,
        shared=[one for one in first if one in both],
        jaccard=ranking.jaccard(first, second),
        rank_biased_overlap=ranking.rank_biased_overlap(first, second),
    )


def outliers(
    shelf: OpenShelf, *, encoder: str | None = None, n: int = 100, filters: Filters | None = None
) -> OutliersAnswer:
    """The `n` most isolated sources that pass the filters, of those that were kept when the index was built."""
    check_number("n", n)
    chosen, filters = shelf.encoder(encoder), filters or Filters()
    if filters.exclude_radius_arcsec is not None:
        raise BadInput("exclude_radius_arcsec needs a query with a position: a source of this survey")
    index = chosen.index
    mask = row_mask(shelf.columns, filters, bands=shelf.info.band_names)
    passing = index.known if mask is None else mask & index.known
    kept = passing[index.isolated.rows]
    rows, distance = index.isolated.rows[kept][:n], index.isolated.distance[kept][:n]
    return OutliersAnswer(
        encoder=chosen.name,
        revision=chosen.published.revision,
        generation=shelf.generation.number,
        exact=index.isolated.exact,
        n_matching=int(passing.sum()),
        n_kept=int(kept.sum()),
        outliers=[
            Outlier(rank=rank, distance=d, **one)
            for rank, (one, d) in enumerate(zip(listed(shelf, rows), distance.tolist(), strict=True), start=1)
        ],
    )

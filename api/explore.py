"""Lists of sources: all in a cone, the most isolated ones, and the neighbours by two encoders side by side."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from redshelf.api.queries import CompareQuery, Cone, InForce, N, OutliersQuery, Shelf, how_many, names
from redshelf.service import explore
from redshelf.service.answers import CompareAnswer, ConeAnswer, OutliersAnswer

router = APIRouter(prefix="/v1", tags=["lists"])


@router.get("/cone", response_model=ConeAnswer)
def cone(query: Annotated[Cone, Query()], shelf: Shelf, settings: InForce) -> ConeAnswer:
    """The sources within a cone, nearest to its axis first, and how many there are in all."""
    n = how_many(query.n, settings, usual=N, name="n")
    return explore.cone(shelf, query.ra_deg, query.dec_deg, query.radius_arcsec, n=n)


@router.get("/sources/{source_id}/compare", response_model=CompareAnswer)
def compare(source_id: str, query: Annotated[CompareQuery, Query()], shelf: Shelf, settings: InForce) -> CompareAnswer:
    """The `k` neighbours of this source by each of two encoders, and how much the two lists overlap."""
    told: dict[str, Any] = {"k": how_many(query.k, settings), "filters": query.filters(), "exact": query.exact}
    return explore.compare(shelf, source_id, names(query.encoders), **told)


@router.get("/outliers", response_model=OutliersAnswer)
def outliers(query: Annotated[OutliersQuery, Query()], shelf: Shelf, settings: InForce) -> OutliersAnswer:
    """The sources that are farthest from their 10th nearest neighbour, of those that were kept with the index."""
    n = how_many(query.n, settings, usual=N, name="n")
    return explore.outliers(shelf, encoder=query.encoder, n=n, filters=query.filters())

"""Lists of sources: all in a cone, the most isolated ones, and the neighbours by two encoders side by side."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from redshelf.api.caching import ByGeneration
from redshelf.api.queries import CompareQuery, Cone, InForce, N, OutliersQuery, Shelf, how_many, names
from redshelf.api.tables import TABLES, Wanted, respond
from redshelf.service import explore
from redshelf.service.answers import CompareAnswer, ConeAnswer, OutliersAnswer

router = APIRouter(prefix="/v1", tags=["lists"], route_class=ByGeneration)


@router.get("/cone", response_model=ConeAnswer, responses=TABLES)
def cone(
    request: Request, query: Annotated[Cone, Query()], shelf: Shelf, settings: InForce, format: Wanted
) -> Response:
    """The sources within a cone, nearest to its axis first, and how many there are in all."""
    n = how_many(query.n, settings, usual=N, name="n")
    found = explore.cone(shelf, query.ra_deg, query.dec_deg, query.radius_arcsec, n=n)
    return respond(request, shelf, found, format, what="cone")


@router.get("/sources/{source_id}/compare", response_model=CompareAnswer, responses=TABLES)
def compare(
    request: Request,
    source_id: str,
    query: Annotated[CompareQuery, Query()],
    shelf: Shelf,
    settings: InForce,
    format: Wanted,
) -> Response:
    """The `k` neighbours of this source by each of two encoders, and how much the two lists overlap. A table has the
    lines of both."""
    told: dict[str, Any] = {"k": how_many(query.k, settings), "filters": query.filters(), "exact": query.exact}
    found = explore.compare(shelf, source_id, names(query.encoders), **told)
    return respond(request, shelf, found, format, what="compare", of=source_id)


@router.get("/outliers", response_model=OutliersAnswer, responses=TABLES)
def outliers(
    request: Request, query: Annotated[OutliersQuery, Query()], shelf: Shelf, settings: InForce, format: Wanted
) -> Response:
    """The sources that are farthest from their 10th nearest neighbour, of those that were kept with the index."""
    n = how_many(query.n, settings, usual=N, name="n")
    found = explore.outliers(shelf, encoder=query.encoder, n=n, filters=query.filters())
    return respond(request, shelf, found, format, what="outliers", of=found.encoder)

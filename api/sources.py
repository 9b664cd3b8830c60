"""`/v1/shelf`, and one source: its catalogue row and its picture."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from redshelf.api.caching import ByGeneration
from redshelf.api.queries import CutoutQuery, InForce, OfGeneration, PositionQuery, Shelf, band_list
from redshelf.api.tables import respond
from redshelf.service import pictures, search
from redshelf.service import sources as service
from redshelf.service.answers import ShelfAnswer, SourceAnswer

router = APIRouter(prefix="/v1", tags=["sources"], route_class=ByGeneration)


@router.get("/shelf", response_model=ShelfAnswer)
def shelf(request: Request, query: Annotated[OfGeneration, Query()], shelf: Shelf, settings: InForce) -> Response:
    """The survey, its bands, encoders, estimators, and the limits of this server."""
    return respond(request, shelf, service.describe(shelf, settings))


@router.get("/sources", response_model=SourceAnswer)
def source_at(request: Request, query: Annotated[PositionQuery, Query()], shelf: Shelf) -> Response:
    """The catalogue row of the source nearest to a position."""
    source_id = search.nearest_source(shelf, query.ra_deg, query.dec_deg, radius_arcsec=query.radius_arcsec)
    return respond(request, shelf, service.source(shelf, source_id))


@router.get("/sources/{source_id}", response_model=SourceAnswer)
def source(request: Request, source_id: str, query: Annotated[OfGeneration, Query()], shelf: Shelf) -> Response:
    """The catalogue row, with flux and state in each band."""
    return respond(request, shelf, service.source(shelf, source_id))


@router.get(
    "/sources/{source_id}/cutout",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "application/fits": {}}, "description": "The cutout"}},
)
def cutout(source_id: str, query: Annotated[CutoutQuery, Query()], shelf: Shelf) -> Response:
    """The cutout as a colour picture, or as FITS in microjansky with a WCS, one HDU a band."""
    row, bands = shelf.row(source_id), band_list(query.bands)
    if query.format == "fits":
        name = f'attachment; filename="{source_id}.fits"'  # an id holds no character that needs quoting
        blob = pictures.fits(shelf, row, bands=bands)
        return Response(blob, media_type="application/fits", headers={"content-disposition": name})
    picture = pictures.png(shelf, row, bands=bands, stretch=query.stretch)
    return Response(picture, media_type="image/png", headers={"cache-control": "private, max-age=300"})

"""How far away: of a source, of a list of sources, of an uploaded cutout."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from redshelf.api.caching import ByGeneration
from redshelf.api.queries import CutoutForm, InForce, RedshiftQuery, RedshiftsBody, Shelf, Tabular, at_most
from redshelf.api.tables import TABLES, Wanted, respond, with_densities
from redshelf.api.uploads import Uploading
from redshelf.service import redshift, upload
from redshelf.service.answers import RedshiftAnswer, RedshiftsAnswer

router = APIRouter(prefix="/v1", tags=["redshifts"], route_class=ByGeneration)


@router.get("/sources/{source_id}/redshift", response_model=RedshiftAnswer)
def of_source(request: Request, source_id: str, query: Annotated[RedshiftQuery, Query()], shelf: Shelf) -> Response:
    """p(z) of a source, with its support. A labelled source is never its own neighbour."""
    told: dict[str, Any] = {name: getattr(query, name) for name in ("encoder", "estimator", "pdf")}
    return respond(request, shelf, redshift.redshifts(shelf, [source_id], **told)[0])


@router.post("/redshifts", response_model=RedshiftsAnswer, responses=TABLES)
def of_sources(
    request: Request,
    query: Annotated[Tabular, Query()],
    body: RedshiftsBody,
    shelf: Shelf,
    settings: InForce,
    format: Wanted,
) -> Response:
    """The same of many sources, in the order of `ids`; one unknown id is a 404 for all. A CSV has no densities."""
    pdf = with_densities(format, body.pdf, said="pdf" in body.model_fields_set)
    at_most("number of ids", len(body.ids), settings.max_batch)
    found = redshift.redshifts(shelf, body.ids, encoder=body.encoder, estimator=body.estimator, pdf=pdf)
    return respond(request, shelf, RedshiftsAnswer(redshifts=found), format, what="redshifts", pdf=pdf)


@router.post("/cutouts/redshift", response_model=RedshiftAnswer)
async def of_cutout(
    request: Request,
    query: Annotated[RedshiftQuery, Query()],
    form: Annotated[CutoutForm, Form(media_type="multipart/form-data")],
    shelf: Shelf,
    uploads: Uploading,
) -> RedshiftAnswer:
    """The redshift of an uploaded cutout, by an estimator fitted on a pixel encoder alone: fluxes measured on it would
    be of another photometric system than the catalogue's. `bands_missing` are those that it lacks."""
    chosen = upload.pixel_encoder(shelf, query.encoder)
    vector, cutout = await uploads.vector(request, shelf, chosen, form)
    told: dict[str, Any] = {"encoder": chosen.name, "estimator": query.estimator, "pdf": query.pdf}
    told["bands_missing"] = cutout.bands_missing
    return await run_in_threadpool(redshift.redshift_of_vector, shelf, vector, **told)

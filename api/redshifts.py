"""How far away: of a source, of a list of sources, of an uploaded cutout."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query

from redshelf.api.queries import CutoutForm, InForce, NoQuery, RedshiftQuery, RedshiftsBody, Shelf, at_most, band_list
from redshelf.service import redshift, upload
from redshelf.service.answers import RedshiftAnswer, RedshiftsAnswer

router = APIRouter(prefix="/v1", tags=["redshifts"])


@router.get("/sources/{source_id}/redshift", response_model=RedshiftAnswer)
def of_source(source_id: str, query: Annotated[RedshiftQuery, Query()], shelf: Shelf) -> RedshiftAnswer:
    """p(z) of a source, with its support. A labelled source is never its own neighbour."""
    return redshift.redshifts(shelf, [source_id], encoder=query.encoder, estimator=query.estimator, pdf=query.pdf)[0]


@router.post("/redshifts", response_model=RedshiftsAnswer)
def of_sources(
    query: Annotated[NoQuery, Query()], body: RedshiftsBody, shelf: Shelf, settings: InForce
) -> RedshiftsAnswer:
    """The same of many sources, in the order of `ids`; one unknown id is a 404 for all."""
    at_most("number of ids", len(body.ids), settings.max_batch)
    found = redshift.redshifts(shelf, body.ids, encoder=body.encoder, estimator=body.estimator, pdf=body.pdf)
    return RedshiftsAnswer(redshifts=found)


@router.post("/cutouts/redshift", response_model=RedshiftAnswer)
def of_cutout(
    query: Annotated[RedshiftQuery, Query()],
    form: Annotated[CutoutForm, Form(media_type="multipart/form-data")],
    shelf: Shelf,
) -> RedshiftAnswer:
    """The redshift of an uploaded cutout, by an estimator fitted on a pixel encoder alone."""
    chosen = upload.pixel_encoder(shelf, query.encoder)
    cutout = upload.read(form.file.file.read(), shelf.info, bands=band_list(form.bands), unit=form.unit, ebv=form.ebv)
    return redshift.redshift_of_vector(
        shelf,
        upload.embed(shelf, chosen, cutout),
        encoder=chosen.name,
        estimator=query.estimator,
        pdf=query.pdf,
        bands_missing=cutout.bands_missing,
    )

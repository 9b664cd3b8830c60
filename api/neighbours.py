"""Similar galaxies: of a source, of a position, of a vector, of an uploaded cutout."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Form, Query

from redshelf.api.queries import (
    CutoutForm,
    InForce,
    NeighboursBody,
    NeighboursQuery,
    NoQuery,
    RecallQuery,
    Shelf,
    band_list,
    how_many,
)
from redshelf.service import search, upload
from redshelf.service.answers import NeighboursAnswer, RecallAnswer

router = APIRouter(prefix="/v1", tags=["neighbours"])


@router.get("/sources/{source_id}/neighbours", response_model=NeighboursAnswer)
def of_source(
    source_id: str, query: Annotated[NeighboursQuery, Query()], shelf: Shelf, settings: InForce
) -> NeighboursAnswer:
    """The `k` sources nearest to this one in the encoder's space, itself never among them."""
    k = how_many(query.k, settings)
    return search.neighbours(shelf, source_id, encoder=query.encoder, k=k, filters=query.filters(), exact=query.exact)


@router.post("/neighbours", response_model=NeighboursAnswer)
def of_query(
    query: Annotated[NoQuery, Query()], body: NeighboursBody, shelf: Shelf, settings: InForce
) -> NeighboursAnswer:
    """The same, of a source by id, of the source at a position, or of a vector of the encoder's space."""
    k = how_many(body.k, settings)
    if body.vector is not None:
        vector = np.array(body.vector)
        return search.neighbours_of_vector(
            shelf, vector, encoder=body.encoder, k=k, filters=body.filters(), exact=body.exact
        )
    source_id = body.source_id
    if body.position is not None:
        at = body.position
        source_id = search.nearest_source(shelf, at.ra_deg, at.dec_deg, radius_arcsec=at.radius_arcsec)
    assert source_id is not None  # NeighboursBody holds exactly one of the three
    return search.neighbours(shelf, source_id, encoder=body.encoder, k=k, filters=body.filters(), exact=body.exact)


@router.get("/recall", response_model=RecallAnswer)
def recall(query: Annotated[RecallQuery, Query()], shelf: Shelf) -> RecallAnswer:
    """How many of the true neighbours a search finds now: each of `n` sources is compared with every other one."""
    return search.live_recall(shelf, encoder=query.encoder, n=query.n)


@router.post("/cutouts/neighbours", response_model=NeighboursAnswer)
def of_cutout(
    query: Annotated[NeighboursQuery, Query()],
    form: Annotated[CutoutForm, Form(media_type="multipart/form-data")],
    shelf: Shelf,
    settings: InForce,
) -> NeighboursAnswer:
    """The sources that look like an uploaded cutout. A cutout larger than the survey's is cut to its centre."""
    k = how_many(query.k, settings)
    chosen = upload.pixel_encoder(shelf, query.encoder)
    cutout = upload.read(form.file.file.read(), shelf.info, bands=band_list(form.bands), unit=form.unit, ebv=form.ebv)
    return search.neighbours_of_vector(
        shelf,
        upload.embed(shelf, chosen, cutout),
        encoder=chosen.name,
        k=k,
        filters=query.filters(),
        exact=query.exact,
        bands_missing=cutout.bands_missing,
    )

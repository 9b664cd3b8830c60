"""Similar galaxies: of a source, a position, a vector, examples, a text, an uploaded cutout."""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Form, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from redshelf.api.caching import ByGeneration
from redshelf.api.queries import (
    CutoutForm,
    InForce,
    NeighboursBody,
    NeighboursQuery,
    RecallQuery,
    Shelf,
    Tabular,
)
from redshelf.api.routes import Route
from redshelf.api.tables import TABLES, Wanted, respond
from redshelf.api.uploads import Uploading
from redshelf.service import examples, search, upload
from redshelf.service.answers import NeighboursAnswer, RecallAnswer
from redshelf.service.shelf import OpenShelf

router = APIRouter(prefix="/v1", tags=["neighbours"], route_class=ByGeneration)
live = APIRouter(route_class=Route)  # of a GET whose answer is measured anew each time


@router.get("/sources/{source_id}/neighbours", response_model=NeighboursAnswer, responses=TABLES)
def of_source(
    request: Request,
    source_id: str,
    query: Annotated[NeighboursQuery, Query()],
    shelf: Shelf,
    settings: InForce,
    format: Wanted,
) -> Response:
    """The `k` sources nearest to this one in the encoder's space, itself never among them."""
    found = search.neighbours(shelf, source_id, **query.how(settings))
    return respond(request, shelf, found, format, what="neighbours", of=source_id)


def _asked(shelf: OpenShelf, body: NeighboursBody, how: dict[str, Any]) -> NeighboursAnswer:
    if body.vector is not None:
        return search.neighbours_of_vector(shelf, np.array(body.vector), **how)
    if body.text is not None:
        return examples.neighbours_of_text(shelf, body.text, **how)
    if body.positive is not None:
        method = body.method or "rocchio"
        return examples.neighbours_of_examples(shelf, body.positive, body.negative, method=method, **how)
    source_id = body.source_id
    if body.position is not None:
        at = body.position
        source_id = search.nearest_source(shelf, at.ra_deg, at.dec_deg, radius_arcsec=at.radius_arcsec)
    assert source_id is not None  # NeighboursBody holds exactly one of the five
    return search.neighbours(shelf, source_id, **how)


@router.post("/neighbours", response_model=NeighboursAnswer, responses=TABLES)
def of_query(
    request: Request,
    query: Annotated[Tabular, Query()],
    body: NeighboursBody,
    shelf: Shelf,
    settings: InForce,
    format: Wanted,
) -> Response:
    """The same, of a source by id, of the source at a position, of a vector of the encoder's space, of what a text
    says, or of sources like the `positive` and unlike the `negative` ones."""
    found = _asked(shelf, body, body.how(settings))
    return respond(request, shelf, found, format, what="neighbours", of=found.query)


@live.get("/recall", response_model=RecallAnswer)
def recall(query: Annotated[RecallQuery, Query()], shelf: Shelf) -> RecallAnswer:
    """How many of the true neighbours a search finds now: each of `n` sources is compared with every other one."""
    return search.live_recall(shelf, encoder=query.encoder, n=query.n)


router.include_router(live)


@router.post("/cutouts/neighbours", response_model=NeighboursAnswer, responses=TABLES)
async def of_cutout(
    request: Request,
    query: Annotated[NeighboursQuery, Query()],
    form: Annotated[CutoutForm, Form(media_type="multipart/form-data")],
    shelf: Shelf,
    settings: InForce,
    uploads: Uploading,
    format: Wanted,
) -> Response:
    """The sources that look like an uploaded cutout. One of other pixels than the survey's is resampled, its flux kept;
    a larger one is cut around its pixel n // 2. `bands_missing` are those that it lacks."""
    how = query.how(settings)
    chosen = upload.pixel_encoder(shelf, query.encoder)
    vector, cutout = await uploads.vector(request, shelf, chosen, form)
    how |= {"encoder": chosen.name, "bands_missing": cutout.bands_missing}

    def answer() -> Response:
        found = search.neighbours_of_vector(shelf, vector, **how)
        return respond(request, shelf, found, format, what="neighbours", of="cutout")

    return await run_in_threadpool(answer)

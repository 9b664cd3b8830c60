"""The first page and what leads on from it: the search box, a random galaxy, an uploaded cutout.

Works without JavaScript. `pages` makes a page, `similar` the grid, `source_page` a source, `status_page` the rest.
"""

from __future__ import annotations

import base64
import random as chance
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from pydantic import Field, model_validator
from starlette.concurrency import run_in_threadpool

from redshelf.api import cards, drawing, map_page, pages, similar, source_page, status_page, typed
from redshelf.api.pages import PAGE_HEADERS, render
from redshelf.api.queries import CutoutForm, InForce, NoQuery, Shelf, Strict, how_many
from redshelf.api.similar import GRID, LookQuery
from redshelf.api.uploads import Uploading
from redshelf.models.errors import NotFound
from redshelf.service import maps, pictures, redshift, search, sources, upload
from redshelf.service.answers import RedshiftAnswer
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf
from redshelf.service.upload import Cutout

router = APIRouter()
UPLOAD_POLICY = pages.policy(img="data:")  # the picture of what was sent
TRIES = 64  # at a source that is not deleted, before all are looked through


class HomeQuery(Strict):
    q: str | None = Field(None, max_length=200)


class UploadForm(CutoutForm):
    """A cutout, and by which encoder how many neighbours are looked for; fields left empty are not there."""

    encoder: str | None = None
    k: int | None = Field(None, ge=1, le=1000)

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, given: Any) -> Any:
        return similar.without_blanks(given)


def example(shelf: OpenShelf) -> str | None:
    """The source whose position stands beside the search box; None where there is none at all."""
    examples = shelf.beginnings
    return examples[len(examples) // 2] if examples else None


def _place(shelf: OpenShelf, source_id: str) -> tuple[str, str, str]:
    """The position of a source as a person may type it: in degrees, in hours and degrees, and as an IAU name."""
    row = shelf.row(source_id)
    ra, dec = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
    j = sources.iau_name(ra, dec)
    return f"{ra:.4f} {dec:+.4f}", f"{j[1:3]}:{j[3:5]}:{j[5:10]} {j[10:13]}:{j[13:15]}:{j[15:]}", j


@router.get("/", response_class=HTMLResponse)
def home(query: Annotated[HomeQuery, Query()], shelf: Shelf, settings: InForce) -> Response:
    """The search box; with `q`, on to the source it names."""
    text = (query.q or "").strip()
    if text:
        try:
            return RedirectResponse(typed.source_path(typed.find(shelf, text)), status_code=303, headers=PAGE_HEADERS)
        except NotFound as error:
            told: dict[str, Any] = {"q": text, "error": str(error), "title": "Not Found"}
            offered = cards.of_ids(shelf, typed.offered(shelf, text))
            return render(shelf.info, "error.html", status=404, offered=offered, look=cards.Look(), **told)
    named = example(shelf)
    return render(
        shelf.info,
        "home.html",
        shelf=sources.describe(shelf, settings),
        examples=cards.of_ids(shelf, shelf.beginnings),
        look=cards.Look(),
        place=_place(shelf, named) if named else None,
        uploads=upload.pixel_encoders(shelf) if shelf.info.has_images else [],
        max_ebv=upload.MAX_EBV,
        maps=maps.made(shelf),
    )


@router.get("/random")
def random(query: Annotated[NoQuery, Query()], shelf: Shelf) -> Response:
    """On to a source at random, another one each time."""
    deleted = shelf.columns["deleted"]
    row = next((n for n in (chance.randrange(len(shelf)) for _ in range(TRIES)) if not deleted[n]), None)
    if row is None:
        rows = np.flatnonzero(~deleted)
        if not len(rows):
            raise NotFound(f"survey {shelf.info.survey} has no source that is not deleted")
        row = int(chance.choice(rows))
    headers = {**PAGE_HEADERS, "cache-control": "no-store"}
    return RedirectResponse(typed.source_path(shelf.source_id(row)), status_code=303, headers=headers)


def _redshift(shelf: OpenShelf, vector: Any, encoder: str, missing: tuple[str, ...]) -> RedshiftAnswer | None:
    """Of an uploaded cutout, by the fit on its encoder alone; None without one."""
    if encoder not in shelf.redshifts:
        return None
    return redshift.redshift_of_vector(shelf, vector, encoder=encoder, bands_missing=missing)


@router.get("/upload")
def upload_form(query: Annotated[NoQuery, Query()]) -> Response:
    """Where the form is, for who comes back to the address of an answer that was not kept."""
    return RedirectResponse("/#upload", status_code=303, headers=PAGE_HEADERS)


def _looks_like(
    shelf: OpenShelf, settings: Settings, cutout: Cutout, vector: Any, *, encoder: str, k: int, name: str
) -> Response:
    """The page of a cutout that was sent and has been encoded."""
    answer = search.neighbours_of_vector(shelf, vector, encoder=encoder, k=k, bands_missing=cutout.bands_missing)
    distance = _redshift(shelf, vector, encoder, cutout.bands_missing)
    picture = pictures.colour(shelf.info, cutout.pixels, cutout.mask, cutout.state)
    near = source_page.label_redshifts(answer)
    return render(
        shelf.info,
        "upload.html",
        headers={"content-security-policy": UPLOAD_POLICY, "cache-control": "no-store"},
        picture=f"data:image/png;base64,{base64.b64encode(picture).decode()}",
        name=name,
        missing=cutout.bands_missing,
        redshift=distance,
        plot=distance and drawing.plot(distance, z_spec=None, neighbours=near),
        columns=similar.columns(shelf, [answer], [], unfolded=False),
        **similar.drawn(shelf, LookQuery.model_validate({"encoder": encoder}), settings, k),
    )


@router.post("/upload", response_class=HTMLResponse)
async def uploaded(
    request: Request,
    query: Annotated[NoQuery, Query()],
    form: Annotated[UploadForm, Form(media_type="multipart/form-data")],
    shelf: Shelf,
    settings: InForce,
    uploads: Uploading,
) -> Response:
    """What looks like a cutout that somebody sends, and how far away it is; nothing of it is kept."""
    k, chosen = how_many(form.k, settings, usual=GRID), upload.pixel_encoder(shelf, form.encoder)
    vector, cutout = await uploads.vector(request, shelf, chosen, form)
    told: dict[str, Any] = {"encoder": chosen.name, "k": k, "name": (form.file.filename or "the cutout")[:80]}
    return await run_in_threadpool(_looks_like, shelf, settings, cutout, vector, **told)


for part in (similar, source_page, map_page, status_page):
    router.include_router(part.router)

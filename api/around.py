"""What lies around a source on the sky: the stored cutouts where they belong, in Aladin Lite.

Aladin Lite is GPL-3 and not shipped: the setting `aladin` names the file `aladin.js` that the operator put there. It is
served from here and, by the policy of this page, asks nobody else; that policy alone lets it compile its WebAssembly
and style itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, HTMLResponse, Response
from pydantic import Field

from redshelf.api import cards
from redshelf.api.pages import policy, render
from redshelf.api.queries import InForce, NoQuery, Shelf, Strict
from redshelf.indexing.layout import ShelfInfo
from redshelf.models.bands import reference_band
from redshelf.models.errors import BadInput, NotFound, nearest
from redshelf.service import explore, pictures, sources
from redshelf.service.settings import Settings

router = APIRouter()
AROUND_POLICY = policy(
    img="data:", style="'unsafe-inline'", script="'wasm-unsafe-eval'", connect="'self' data:", worker="blob:"
)
MOST = 60  # cutouts, each a layer
FAINT, BRIGHT = -3.0, 60.0  # in units of the noise: where a picture begins and ends


class AroundQuery(Strict):
    """How far around, and in which band."""

    radius_arcsec: float = Field(60.0, gt=0, le=600)
    band: str | None = Field(None, max_length=64)


def _file(settings: Settings) -> Path:
    if settings.aladin is None or not settings.aladin.is_file():
        raise NotFound("there is no Aladin Lite here: the operator names its file by the setting aladin")
    return settings.aladin


def _usual(info: ShelfInfo, bands: Sequence[str]) -> str | None:
    """The band nearest to i of those that have images; None without one."""
    known = [band for band in info.bands if band.name in bands]
    return known[reference_band([band.wavelength_nm for band in known])].name if known else None


@router.get("/aladin.js")
def aladin(query: Annotated[NoQuery, Query()], settings: InForce) -> Response:
    """Aladin Lite, as the operator put it there."""
    headers = {"cache-control": "private, max-age=86400"}
    return FileResponse(_file(settings), media_type="text/javascript", headers=headers)


@router.get("/source/{source_id}/around", response_class=HTMLResponse)
def around(source_id: str, query: Annotated[AroundQuery, Query()], shelf: Shelf, settings: InForce) -> Response:
    """The sources around one, their cutouts on the sky where there are any, and as a grid."""
    _file(settings)
    info, source = shelf.info, sources.source(shelf, source_id)
    bands = pictures.imaged(shelf) if info.has_images else ()
    if query.band is not None and query.band not in bands:
        raise BadInput(f"band {query.band!r} has no images in survey {info.survey}; {nearest(query.band, bands)}")
    band = query.band or _usual(info, bands)
    found = explore.cone(shelf, source.ra_deg, source.dec_deg, query.radius_arcsec, n=MOST)
    noise = next((float(one.noise_ujy) for one in info.bands if one.name == band), None)
    data = {
        "ra": source.ra_deg,
        "dec": source.dec_deg,
        "fov": 2 * query.radius_arcsec / 3600,
        "cuts": None if noise is None else [FAINT * noise, BRIGHT * noise],
        "sources": [
            {
                "id": one.source_id,
                "ra": one.ra_deg,
                "dec": one.dec_deg,
                "labelled": one.z_spec is not None,
                "cutout": f"/v1/sources/{quote(one.source_id, safe='')}/cutout?format=fits&bands={quote(band)}"
                if band
                else None,
            }
            for one in found.sources
        ],
    }
    return render(
        info,
        "around.html",
        headers={"content-security-policy": AROUND_POLICY},
        q=source_id,
        source=source,
        bands=bands,
        band=band,
        radius=query.radius_arcsec,
        data=json.dumps(data, allow_nan=False),
        found=found,
        cards=cards.of_ids(shelf, [one.source_id for one in found.sources]),
        look=cards.Look(size="small"),
    )

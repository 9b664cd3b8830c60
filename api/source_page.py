"""The page of one source: its pictures and facts, how far away it is by each estimator, and what looks like it."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from redshelf.api import drawing, elsewhere, similar, sky, words
from redshelf.api.pages import render
from redshelf.api.queries import InForce, Shelf, how_many
from redshelf.api.similar import LookQuery, SimilarQuery
from redshelf.service import maps, pictures, redshift, search, sources
from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer
from redshelf.service.shelf import OpenShelf

router = APIRouter()
GRID = 24  # similar galaxies on the page


def _redshift(shelf: OpenShelf, source_id: str) -> RedshiftAnswer | None:
    """By the default fit, the best validated one, whatever encoder finds the neighbours; None without one to read."""
    fit = shelf.generation.default_redshift
    return redshift.redshifts(shelf, [source_id])[0] if fit in shelf.redshifts else None


def _by_each(shelf: OpenShelf, source_id: str, usual: RedshiftAnswer | None) -> list[RedshiftAnswer]:
    """The answers of every estimator of the default fit, the usual one first; none where no redshift is given."""
    if usual is None or usual.z_median is None:
        return []
    others = [name for name in shelf.redshift().published.estimators if name != usual.estimator]
    return [usual, *(redshift.redshifts(shelf, [source_id], estimator=name)[0] for name in others)]


def label_redshifts(answer: NeighboursAnswer | None) -> list[float]:
    """The measured redshifts of the galaxies among the neighbours."""
    neighbours = answer.neighbours if answer else []
    return [n.z_spec for n in neighbours if n.z_spec is not None and n.object_class == "galaxy"]


@router.get("/source/{source_id}", response_class=HTMLResponse)
def source(
    request: Request, source_id: str, query: Annotated[LookQuery, Query()], shelf: Shelf, settings: InForce
) -> Response:
    """One source: its picture and facts, p(z), and what looks like it, by an encoder that has seen it."""
    k = how_many(query.k, settings, usual=GRID)
    facts, row, asked = sources.source(shelf, source_id), shelf.row(source_id), shelf.encoder(query.encoder).name
    seen_by = [name for name in sorted(shelf.encoders) if shelf.encoder(name).index.known[row]]
    found = search.neighbours(shelf, source_id, encoder=asked, k=k) if asked in seen_by else None
    distance = _redshift(shelf, source_id)
    near, info = label_redshifts(found), shelf.info
    by_each = _by_each(shelf, source_id, distance)
    base = str(request.base_url)
    drawn = similar.drawn(shelf, query, settings, k)
    ask = SimilarQuery(like=[source_id], **query.model_dump(exclude={"generation", "k"}))
    return render(
        shelf.info,
        "source.html",
        q=source_id,
        source=facts,
        redshift=distance,
        fault=shelf.unreadable.get(shelf.generation.default_redshift or ""),
        plot=distance and drawing.plot(distance, z_spec=facts.z_spec, neighbours=near),
        rows=drawing.rows(by_each, z_spec=facts.z_spec, neighbours=near),
        support=words.support(distance) if distance else [],
        shift=words.shift(distance) if distance else "",
        sed=sky.sed(facts.photometry, [band.wavelength_nm for band in info.bands]),
        bands={band.name: band for band in info.bands},
        frame=sky.frame(info),
        limits=sky.limits(facts.photometry),
        imaged=pictures.imaged(shelf) if info.has_images else (),
        elsewhere=elsewhere.links(facts.ra_deg, facts.dec_deg),
        curl=elsewhere.curl(base, source_id, asked),
        python=elsewhere.python(base, source_id, asked),
        around=settings.aladin is not None,
        maps=[name for name in maps.made(shelf) if name == maps.SKY or shelf.encoder(name).index.known[row]],
        columns=similar.columns(shelf, [found], [source_id], unfolded=query.unfolded) if found else [],
        asked=asked,
        ask=ask,
        **(drawn | {"encoders": seen_by}),
    )

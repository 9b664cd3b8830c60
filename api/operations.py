"""Is the process alive, can it answer, what has it done; and the one order that it takes."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Request, Response
from pydantic import BaseModel, Field

from redshelf.api.observability import Metrics
from redshelf.api.queries import InForce, InService, NoQuery, Shelf
from redshelf.api.routes import Route
from redshelf.indexing import generation
from redshelf.models.errors import Conflict

router = APIRouter(tags=["operations"], route_class=Route)


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    generation: int
    n_sources: int
    refused: str | None = Field(description="a newer generation that this process does not serve, and why")


class TakenUp(BaseModel):
    generation: int = Field(description="the one that is served now")
    taken_up: bool = Field(description="whether it was taken up by this request, and is newer than the one before")
    others_within_seconds: float | None = Field(
        description="when the other workers have looked for themselves; null where there are none"
    )


METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@router.get("/healthz", response_model=Health)
async def healthz(query: Annotated[NoQuery, Query()]) -> Health:
    """The process runs."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness)
def readyz(query: Annotated[NoQuery, Query()], shelf: Shelf, serving: InService) -> Readiness:
    """A generation is open and still on the shelf, 503 where it is not. Of several workers the one that answers."""
    number = shelf.generation.number
    if not generation.path_of(shelf.layout, number).is_file():
        raise HTTPException(503, f"generation {number} of the shelf is no longer there")
    return Readiness(status="ready", generation=number, n_sources=shelf.n_sources, refused=serving.refused)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus' format"}},
)
def metrics(query: Annotated[NoQuery, Query()], request: Request) -> Response:
    """Requests, stages, generation and recall for Prometheus, added up over the workers."""
    told: Metrics = request.app.state.metrics
    return Response(told.text(), media_type=METRICS_TYPE)


@router.post("/admin/generation", response_model=TakenUp)
def take_up(query: Annotated[NoQuery, Query()], serving: InService, settings: InForce) -> TakenUp:
    """Look for a newer generation now, and serve it; 409 where the newest is refused, and why. Of several workers the
    one that answers looks; the others do so within `refresh_seconds`, as always."""
    taken_up = serving.refresh()
    if serving.refused is not None:
        raise Conflict(f"{serving.refused}; generation {serving.current.generation.number} is served")
    others = settings.refresh_seconds if settings.workers > 1 else None
    number = serving.current.generation.number
    return TakenUp(generation=number, taken_up=taken_up, others_within_seconds=others)

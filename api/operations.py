"""Is the process alive, and can it answer?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel, Field

from redshelf.api.queries import InService, NoQuery, Shelf
from redshelf.indexing import generation

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    generation: int
    n_sources: int
    refused: str | None = Field(description="a newer generation that this process does not serve, and why")


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

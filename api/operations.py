"""Is the process alive, and can it answer?"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from redshelf.api.queries import NoQuery, Shelf
from redshelf.indexing import generation

router = APIRouter(tags=["operations"])


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    status: str
    generation: int
    n_sources: int


@router.get("/healthz", response_model=Health)
async def healthz(query: Annotated[NoQuery, Query()]) -> Health:
    """The process runs."""
    return Health(status="ok")


@router.get("/readyz", response_model=Readiness)
def readyz(query: Annotated[NoQuery, Query()], shelf: Shelf) -> Readiness:
    """The shelf is open and its files are still there; 503 where they are not."""
    number = shelf.generation.number
    if not generation.path_of(shelf.layout, number).is_file():
        raise HTTPException(503, f"generation {number} of the shelf is no longer there")
    return Readiness(status="ready", generation=number, n_sources=shelf.n_sources)

"""The HTTP service: one FastAPI app over one open shelf. `serve(settings)` runs it, `create_app` makes it.

The shelf is opened before the first request, so that a damaged one never serves; torch waits for the first upload.
"""

from __future__ import annotations

import os
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from redshelf.api import browse, explore, neighbours, operations, problems, redshifts, sources
from redshelf.api.queries import PROBLEMS
from redshelf.models.errors import Conflict
from redshelf.service.settings import Settings
from redshelf.service.shelf import open_shelf

BODY_MARGIN_BYTES = 16 << 10  # the multipart headers and small fields around an upload


def _version() -> str:
    try:
        return version("redshelf")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "0"


def create_app(settings: Settings) -> FastAPI:
    """The app over the newest generation of `settings.shelf`; raises `RedshelfError` where it cannot be opened."""
    app = FastAPI(
        title="redshelf",
        version=_version(),
        description="Which galaxies look like this one, and how far away is it? Angles in degrees, fluxes in "
        "microjansky, magnitudes AB. Errors are RFC 9457 problems.",
        responses=PROBLEMS,
        docs_url=None,  # FastAPI's pages load their script from another host
        redoc_url=None,
    )
    app.state.settings = settings
    app.state.shelf = open_shelf(settings.shelf)
    problems.install(app)
    app.add_middleware(problems.Envelope, max_body_bytes=settings.max_upload_bytes + BODY_MARGIN_BYTES)
    for module in (sources, neighbours, explore, redshifts, operations):
        app.include_router(module.router)
    app.include_router(browse.router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    return app


def serve(settings: Settings) -> None:
    """Serve until interrupted."""
    import uvicorn

    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))  # read by FAISS and torch when they are loaded
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Conflict(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, log_level="info")

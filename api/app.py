"""The HTTP service: one FastAPI app over the newest generation. `serve(settings)` runs it, `create_app` makes it.

The shelf is opened before the first request, so that a damaged one never serves; what questions load is loaded in the
background from then on (`warming`), but for torch, which waits for the first upload.
Several workers are processes of uvicorn's own, which share a port and, by the page cache, the shelf's mapped files.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import tempfile
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import connection
from pathlib import Path
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from redshelf.api import (
    around,
    browse,
    cone,
    connections,
    datalink,
    explore,
    jobs,
    login,
    maps,
    neighbours,
    observability,
    operations,
    problems,
    redshifts,
    security,
    sources,
    warming,
)
from redshelf.api.envelope import Envelope
from redshelf.api.limits import SPARE_THREADS
from redshelf.api.tracing import Tracing
from redshelf.api.uploads import Uploads
from redshelf.models.errors import Conflict
from redshelf.models.revision import version
from redshelf.service import keys
from redshelf.service.jobs import Jobs
from redshelf.service.serving import Serving, open_checked
from redshelf.service.settings import Settings, environment, load
from redshelf.service.shelf import OpenShelf
from redshelf.service.working import Working

SILENT_S = 60  # after which a worker is taken for hung: on a busy file system the imports alone take seconds


def create_app(settings: Settings, *, fall_back: bool = False, log: Any = None) -> FastAPI:
    """The app over the newest generation of `settings.shelf`, and over newer ones as they are published.

    Raises `RedshelfError` where it cannot be opened; `fall_back`: where there is none that can. `log` is told a line a
    request.
    """
    metrics, guard = observability.Metrics(), security.Guard(settings)
    how: dict[str, Any] = {"refresh_seconds": settings.refresh_seconds, "fall_back": fall_back}

    def prepare(shelf: OpenShelf) -> None:
        warming.warm(shelf, settings, stopping=lambda: serving.stopping)

    serving = Serving(settings.shelf, **how, looked=metrics.looked, prepare=prepare)
    uploads = Uploads(settings, metrics)
    tracing = Tracing(settings, version=version() or "0") if settings.otlp_endpoint else None
    working = Working(
        Jobs(settings.state_dir, settings.shelf),
        lambda: serving.current,
        max_bytes=settings.max_job_bytes,
        look_seconds=settings.refresh_seconds,
        ended=lambda phase: metrics.jobs[phase].inc(),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Settings]]:
        # of AnyIO's 40, as many requests in flight would leave none to who looks whether the server lives
        to_thread.current_default_thread_limiter().total_tokens = settings.max_concurrent + SPARE_THREADS
        serving.start()
        metrics.start(settings)
        working.start()
        try:
            yield {"settings": settings}
        finally:
            working.stop()
            serving.stop()
            uploads.close()
            if tracing is not None:
                tracing.stop()

    app = _routed(guard, lifespan)
    app.state.settings = settings
    app.state.serving, app.state.uploads, app.state.working = serving, uploads, working
    app.state.metrics, app.state.guard = metrics, guard
    app.add_middleware(Envelope, settings=settings, guard=guard, metrics=metrics, log=log, tracing=tracing)
    if settings.cors_origins:
        methods, headers = (
            ["GET", "HEAD", "POST", "DELETE"],
            ["Authorization", "X-API-Key", "Content-Type", "X-Request-Id"],
        )
        told: dict[str, Any] = {
            "allow_methods": methods,
            "allow_headers": headers,
            "expose_headers": ["X-Request-Id", "Retry-After"],
        }
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors_origins, **told)
    return app


def described() -> FastAPI:
    """The routes and their description with nothing behind them: what the reference of docs/ is made from."""
    return _routed(security.Guard(Settings()))


def _routed(guard: security.Guard, lifespan: Any = None) -> FastAPI:
    app = FastAPI(
        title="redshelf",
        version=version() or "0",
        description="Which galaxies look like this one, and how far away is it? Angles in degrees, fluxes in "
        "microjansky, magnitudes AB. Errors are RFC 9457 problems.",
        docs_url=None,  # FastAPI's pages load their script from another host
        redoc_url=None,
        redirect_slashes=False,  # an address is a route or 404: no answer that the description does not have
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # ours tells nothing that a user typed
    )
    problems.install(app)
    problems.describe(app)
    security.describe(app, guard)
    for module in (sources, neighbours, explore, maps, redshifts, jobs, cone, datalink, operations):
        app.router.routes.extend(module.router.routes)  # see `routes`
    for page in (browse, around, login):
        app.include_router(page.router, include_in_schema=False)
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"), name="static")
    return app


def _end_with(parent: int) -> None:
    """End this process as SIGTERM does when the process of this sentinel has: else its port would stay taken."""
    connection.wait([parent])
    os.kill(os.getpid(), signal.SIGTERM)


def worker_app() -> FastAPI:
    """The app of one of several workers: the settings are in the environment. One that takes the place of a worker
    that was killed serves what can be served, where the newest generation cannot."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), name="redshelf-parent", daemon=True).start()
    settings = load()
    return create_app(settings, fall_back=True, log=observability.request_log(settings))


def serve(settings: Settings) -> None:
    """Serve until interrupted. Raises `RedshelfError` before anything starts: a port that is taken, a damaged shelf, an
    address that others can reach and no key."""
    import uvicorn

    if not settings.on_loopback and not keys.read(settings.state_dir):
        raise Conflict(
            f"host {settings.host} can be reached by others, and there is no key in {settings.state_dir}: "
            "run `redshelf keys add NAME`, or serve on 127.0.0.1"
        )
    os.environ.setdefault("OMP_NUM_THREADS", str(settings.threads))  # read by FAISS and torch when they are loaded
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            raise Conflict(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from error
    told: dict[str, Any] = {"host": settings.host, "port": settings.port, "log_level": "info", **connections.options()}
    told["log_config"] = observability.log_config(settings)
    if settings.workers == 1:
        uvicorn.run(create_app(settings, log=observability.request_log(settings)), **told)
        return
    open_checked(settings.shelf)  # what is wrong with it is said here, once
    os.environ.update(environment(settings))
    told |= {"workers": settings.workers, "timeout_worker_healthcheck": SILENT_S}
    with tempfile.TemporaryDirectory(prefix="redshelf-metrics-") as folder:
        os.environ[observability.FOLDER] = folder
        try:
            uvicorn.run("redshelf.api.app:worker_app", factory=True, **told)
        finally:
            del os.environ[observability.FOLDER]

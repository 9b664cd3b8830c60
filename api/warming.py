"""What the first question of each kind loads (LightGBM, Lance, Pillow, SciPy, templates), loaded before somebody waits.

Each kind is asked once, of one source, by the functions that answer it over HTTP, so that nothing is forgotten that
they come to need. A server does this in the background once it is ready, and with a newer generation before it serves
that. torch is left alone: only an upload needs it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial

from starlette.requests import Request

from redshelf.api import browse, similar, source_page, sources, typed
from redshelf.api.queries import CutoutQuery
from redshelf.service import redshift
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf

log = logging.getLogger("redshelf")
HERE = {"type": "http", "method": "GET", "scheme": "http", "server": ("127.0.0.1", 80), "path": "/", "headers": []}


def _questions(shelf: OpenShelf, settings: Settings) -> Iterator[Callable[[], object]]:
    """Each kind of question, the pages before what only they lead to."""
    source_id = browse.example(shelf)
    if source_id is None:
        return
    yield lambda: browse.home(browse.HomeQuery.model_validate({}), shelf, settings)
    if shelf.info.has_images:
        yield lambda: sources.cutout(source_id, CutoutQuery.model_validate({}), shelf)
    yield lambda: source_page.source(Request(HERE), source_id, similar.LookQuery.model_validate({}), shelf, settings)
    yield lambda: similar.similar(similar.SimilarQuery.model_validate({"like": [source_id]}), shelf, settings)
    yield lambda: typed.find(shelf, source_id)
    for encoder, fit in shelf.redshifts.items():
        for estimator in fit.published.estimators:
            yield partial(redshift.redshifts, shelf, [source_id], encoder=encoder, estimator=estimator)
    if shelf.info.has_images:
        yield lambda: sources.cutout(source_id, CutoutQuery.model_validate({"format": "fits"}), shelf)


def warm(shelf: OpenShelf, settings: Settings, *, stopping: Callable[[], bool] = lambda: False) -> int:
    """Ask every kind of question; how many were answered. One that fails keeps nothing from being served: it is logged,
    as it will be for who asks it. Ends early where the server is `stopping`."""
    began, answered = time.perf_counter(), 0
    for question in _questions(shelf, settings):
        if stopping():
            return answered
        try:
            question()
            answered += 1
        except Exception:
            log.exception("a first question to generation %d failed", shelf.generation.number)
    log.info("%d first questions answered in %.1f s", answered, time.perf_counter() - began)
    return answered

"""How long each stage of an answer takes: `@timed("search")` on what does it, told to whoever listens.

The stages: *decode* (an upload's bytes become pixels), *encode* (pixels become a vector), *search* (nearest vectors),
*estimate* (densities of redshift), *hydrate* (rows become the fields of an answer), *render* (pictures and pages).
Nobody listens on the command line; a server listens for the request at hand, in whatever thread it is answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Literal, ParamSpec, TypeVar, get_args

Stage = Literal["decode", "encode", "search", "estimate", "hydrate", "render"]
STAGES: tuple[Stage, ...] = get_args(Stage)
Listener = Callable[[Stage, float], object]  # is told of a stage and its seconds

P = ParamSpec("P")
R = TypeVar("R")
_listener: ContextVar[Listener | None] = ContextVar("redshelf_stages", default=None)


def listen(listener: Listener) -> None:
    """Tell `listener` of the stages of this context: of this request and the threads that it is answered in."""
    _listener.set(listener)


def timed(stage: Stage) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function whose calls are a stage, those that fail counted too."""

    def of(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            listener = _listener.get()
            if listener is None:
                return function(*args, **kwargs)
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                listener(stage, time.perf_counter() - began)

        return wrapper

    return of

"""How much at once: requests in flight and their rate, both of this process; several workers each count their own.

Rates are moving windows in memory. An address is counted unless it is this machine's own; of IPv6 the first 64 bits,
which one customer has to himself. Beyond a rate a request is 429, beyond what is in flight 503, each with Retry-After.
"""

from __future__ import annotations

import ipaddress
import math
import time
from functools import lru_cache

from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.exceptions import HTTPException

from redshelf.service.settings import Settings

MOST_CALLERS = 10_000  # after which those are forgotten that have not asked within their window
BUSY_RETRY_S = 1
SPARE_THREADS = 8  # beyond one for each that is answered: what is not counted finds one free
# answered however busy the server is: who looks at it must see that
NOT_COUNTED = frozenset({"/healthz", "/readyz", "/metrics", "/admin/generation"})


@lru_cache(1024)
def caller_of(address: str) -> str | None:
    """Whom an address is counted as, None for this machine itself and for what is no address."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is None:
            return None if ip.is_loopback else str(ipaddress.ip_network((ip, 64), strict=False))
        ip = ip.ipv4_mapped
    return None if ip.is_loopback else str(ip)


class Rates:
    """Requests with the same key, and from the same address."""

    def __init__(self, settings: Settings) -> None:
        self._storage = MemoryStorage()
        self._limiter = MovingWindowRateLimiter(self._storage)
        told = {"key": settings.rate_per_key, "address": settings.rate_per_address}
        self._limits: dict[str, RateLimitItem] = {kind: parse(rate) for kind, rate in told.items() if rate}
        self._told = told

    def count(self, kind: str, who: str | None) -> None:
        """Count one request of a `key` or an `address`; `HTTPException` 429 where it is one too many."""
        limit = self._limits.get(kind)
        if limit is None or who is None:
            return
        self._forget()
        if self._limiter.hit(limit, kind, who):
            return
        wait = max(1, math.ceil(self._limiter.get_window_stats(limit, kind, who).reset_time - time.time()))
        shown = f"key {who!r}" if kind == "key" else f"address {who}"
        raise HTTPException(429, f"{shown} has asked {self._told[kind]} already", {"retry-after": str(wait)})

    def _forget(self) -> None:
        """Drop those who are silent: `limits` keeps an empty list of each for good."""
        events = self._storage.events
        if len(events) > MOST_CALLERS:
            for silent in [name for name, hits in list(events.items()) if not hits]:
                self._storage.clear(silent)


class Turnstile:
    """So many requests at the same time and no more; only the event loop's thread counts."""

    def __init__(self, settings: Settings) -> None:
        self.limit, self.inside = settings.max_concurrent, 0

    def enter(self) -> None:
        """Count one in; `HTTPException` 503 where there are as many as may be. Each that enters leaves."""
        if self.inside >= self.limit:
            detail = f"this server answers {self.limit} requests at a time, and is doing so: ask again"
            raise HTTPException(503, detail, {"retry-after": str(BUSY_RETRY_S)})
        self.inside += 1

    def leave(self) -> None:
        """Count one out."""
        self.inside -= 1

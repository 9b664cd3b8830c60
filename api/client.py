"""A client of a running server, which waits (`Client`) or awaits (`AsyncClient`).

    from redshelf.api.client import Client
    with Client("http://127.0.0.1:8000") as shelf:
        print(shelf.neighbours("SIM00000001", k=5))

Lists are tables of astropy, with units and where they come from in `meta`. A server that is busy (429, 503) is asked
again, when it says so or after ever longer waits. Whatever else it refuses is the error that the service raised.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, Self

import httpx

from redshelf.api import calls, job_calls
from redshelf.api.calls import Asking, Call, Pause, T, checked
from redshelf.models.errors import BadInput, RedshelfError
from redshelf.service.answers import JobAnswer, Phase, RedshiftAnswer, ShelfAnswer, SourceAnswer

if TYPE_CHECKING:
    import qp
    from astropy.io.fits import HDUList
    from astropy.table import Table

What = Literal["neighbours", "redshifts"]
BUSY = (429, 503)
TIMEOUT_S = 120.0  # the first upload makes the server load torch and the weights
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


def _asked_to_wait(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header, a number or a date; None where there is none that can be read."""
    told = response.headers.get("retry-after", "").strip()
    if told.isascii() and told.isdigit():
        return float(told)
    try:
        return max(0.0, (parsedate_to_datetime(told) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


class _Asker:
    """What both clients share: how they are made, and how long they wait."""

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = TIMEOUT_S, tries: int = 5) -> None:
        if tries < 1:
            raise BadInput(f"tries={tries}: expected 1 or more")
        if api_key is not None and not re.fullmatch(r"[!-~]+", api_key):
            raise BadInput("api_key: expected printable ASCII without spaces")  # which is not shown, being a secret
        self.url, self.tries = url.rstrip("/"), tries
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self.how: dict[str, Any] = {"headers": headers, "timeout": timeout_s}

    def _waits(self) -> Iterator[float]:
        """Seconds to wait before each further try, where the server does not say."""
        for number in range(self.tries - 1):
            yield min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**number) * random.uniform(0.75, 1.25)

    def _next_wait(self, response: httpx.Response, waits: Iterator[float]) -> float | None:
        """Seconds until the call is made again; None where its response is what there is."""
        usual = next(waits, None) if response.status_code in BUSY else None
        if usual is None:
            return None
        told = _asked_to_wait(response)
        return usual if told is None else told if told <= LONGEST_WAIT_S else None

    def _failed(self, error: Exception) -> RedshelfError:
        return RedshelfError(f"cannot ask {self.url}: {error}")


class Client(_Asker):
    """Asks a server and waits. `api_key` is sent as `Authorization: Bearer`; `tries` counts those at a busy server."""

    def __init__(self, url: str, **how: Any) -> None:
        super().__init__(url, **how)
        self._http = httpx.Client(**self.how)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def send(self, call: Call) -> httpx.Response:
        """The response with the status that is expected; raises what another one tells of."""
        waits = self._waits()
        while True:
            try:
                response = self._http.request(call.method, self.url + call.path, **call.words())
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._failed(error) from error
            wait = self._next_wait(response, waits)
            if wait is None:
                return checked(call, response)
            time.sleep(wait)

    def ask(self, question: Asking[T]) -> T:
        """The answer to a question of `calls.py` or `job_calls.py`."""
        try:
            step = next(question)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = question.send(None)
                else:
                    step = question.send(self.send(step))
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            question.close()

    def shelf(self) -> ShelfAnswer:
        """See `calls.shelf`."""
        return self.ask(calls.shelf())

    def source(self, source_id: str) -> SourceAnswer:
        """See `calls.source`."""
        return self.ask(calls.source(source_id))

    def source_at(self, ra_deg: float, dec_deg: float, **asked: Any) -> SourceAnswer:
        """See `calls.source_at`."""
        return self.ask(calls.source_at(ra_deg, dec_deg, **asked))

    def redshift(self, source_id: str | None = None, **asked: Any) -> RedshiftAnswer:
        """See `calls.redshift`."""
        return self.ask(calls.redshift(source_id, **asked))

    def neighbours(self, source_id: str | None = None, **asked: Any) -> Table:
        """See `calls.neighbours`."""
        return self.ask(calls.neighbours(source_id, **asked))

    def cone(self, ra_deg: float, dec_deg: float, radius_arcsec: float, **asked: Any) -> Table:
        """See `calls.cone`."""
        return self.ask(calls.cone(ra_deg, dec_deg, radius_arcsec, **asked))

    def outliers(self, **asked: Any) -> Table:
        """See `calls.outliers`."""
        return self.ask(calls.outliers(**asked))

    def cutout(self, source_id: str, **asked: Any) -> HDUList:
        """See `calls.cutout`."""
        return self.ask(calls.cutout(source_id, **asked))

    def redshifts(self, source_ids: Sequence[str], **asked: Any) -> Table:
        """See `calls.redshifts`."""
        return self.ask(calls.redshifts(source_ids, **asked))

    def ensemble(self, source_ids: Sequence[str], **asked: Any) -> qp.Ensemble:
        """See `calls.ensemble`."""
        return self.ask(calls.ensemble(source_ids, **asked))

    def submit(self, what: What, source_ids: Sequence[str], **asked: Any) -> str:
        """See `job_calls.submit`."""
        return self.ask(job_calls.submit(what, source_ids, **asked))

    def job(self, job_id: str) -> JobAnswer:
        """See `job_calls.job`."""
        return self.ask(job_calls.job(job_id))

    def jobs(self, phase: Phase | None = None) -> list[JobAnswer]:
        """See `job_calls.jobs`."""
        return self.ask(job_calls.jobs(phase))

    def wait(self, job_id: str, *, progress: bool = False, timeout_s: float | None = None) -> JobAnswer:
        """See `job_calls.wait`."""
        return self.ask(job_calls.wait(job_id, progress=progress, timeout_s=timeout_s))

    def result(self, job_id: str) -> Table:
        """See `job_calls.result`."""
        return self.ask(job_calls.result(job_id))

    def result_bytes(self, job_id: str) -> bytes:
        """See `job_calls.result_bytes`."""
        return self.ask(job_calls.result_bytes(job_id))

    def abort(self, job_id: str) -> None:
        """See `job_calls.abort`."""
        self.ask(job_calls.abort(job_id))

    def forget(self, job_id: str) -> None:
        """See `job_calls.forget`."""
        self.ask(job_calls.forget(job_id))

    def long_list(self, what: What, source_ids: Sequence[str], **asked: Any) -> Table:
        """See `job_calls.long_list`."""
        return self.ask(job_calls.long_list(what, source_ids, **asked))


class AsyncClient(_Asker):
    """The same for `async` code: every method is awaited."""

    def __init__(self, url: str, **how: Any) -> None:
        super().__init__(url, **how)
        self._http = httpx.AsyncClient(**self.how)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def send(self, call: Call) -> httpx.Response:
        waits = self._waits()
        while True:
            try:
                response = await self._http.request(call.method, self.url + call.path, **call.words())
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise self._failed(error) from error
            wait = self._next_wait(response, waits)
            if wait is None:
                return checked(call, response)
            await asyncio.sleep(wait)

    async def ask(self, question: Asking[T]) -> T:
        try:
            step = next(question)
            while True:
                given = asyncio.sleep(step.seconds) if isinstance(step, Pause) else self.send(step)
                step = question.send(await given)
        except StopIteration as end:
            answer: T = end.value
            return answer
        finally:
            question.close()

    async def shelf(self) -> ShelfAnswer:
        return await self.ask(calls.shelf())

    async def source(self, source_id: str) -> SourceAnswer:
        return await self.ask(calls.source(source_id))

    async def source_at(self, ra_deg: float, dec_deg: float, **asked: Any) -> SourceAnswer:
        return await self.ask(calls.source_at(ra_deg, dec_deg, **asked))

    async def redshift(self, source_id: str | None = None, **asked: Any) -> RedshiftAnswer:
        return await self.ask(calls.redshift(source_id, **asked))

    async def neighbours(self, source_id: str | None = None, **asked: Any) -> Table:
        return await self.ask(calls.neighbours(source_id, **asked))

    async def cone(self, ra_deg: float, dec_deg: float, radius_arcsec: float, **asked: Any) -> Table:
        return await self.ask(calls.cone(ra_deg, dec_deg, radius_arcsec, **asked))

    async def outliers(self, **asked: Any) -> Table:
        return await self.ask(calls.outliers(**asked))

    async def cutout(self, source_id: str, **asked: Any) -> HDUList:
        return await self.ask(calls.cutout(source_id, **asked))

    async def redshifts(self, source_ids: Sequence[str], **asked: Any) -> Table:
        return await self.ask(calls.redshifts(source_ids, **asked))

    async def ensemble(self, source_ids: Sequence[str], **asked: Any) -> qp.Ensemble:
        return await self.ask(calls.ensemble(source_ids, **asked))

    async def submit(self, what: What, source_ids: Sequence[str], **asked: Any) -> str:
        return await self.ask(job_calls.submit(what, source_ids, **asked))

    async def job(self, job_id: str) -> JobAnswer:
        return await self.ask(job_calls.job(job_id))

    async def jobs(self, phase: Phase | None = None) -> list[JobAnswer]:
        return await self.ask(job_calls.jobs(phase))

    async def wait(self, job_id: str, *, progress: bool = False, timeout_s: float | None = None) -> JobAnswer:
        return await self.ask(job_calls.wait(job_id, progress=progress, timeout_s=timeout_s))

    async def result(self, job_id: str) -> Table:
        return await self.ask(job_calls.result(job_id))

    async def result_bytes(self, job_id: str) -> bytes:
        return await self.ask(job_calls.result_bytes(job_id))

    async def abort(self, job_id: str) -> None:
        await self.ask(job_calls.abort(job_id))

    async def forget(self, job_id: str) -> None:
        await self.ask(job_calls.forget(job_id))

    async def long_list(self, what: What, source_ids: Sequence[str], **asked: Any) -> Table:
        return await self.ask(job_calls.long_list(what, source_ids, **asked))

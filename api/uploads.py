"""An uploaded cutout on its way to a vector: decoded in a process of its own, encoded together with others.

The routes that take one, of /v1 and of the page, wait here, and give up when their client leaves. Processes and queue
belong to the app.
"""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import Depends, HTTPException, Request
from starlette.concurrency import run_in_threadpool

from redshelf.api.observability import Metrics
from redshelf.api.queries import CutoutForm, band_list
from redshelf.service import upload
from redshelf.service.batching import Batcher, Size
from redshelf.service.planes import Said
from redshelf.service.sandbox import Limits, Sandbox
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenEncoder, OpenShelf
from redshelf.service.stages import timed
from redshelf.service.upload import Cutout, Floats

T = TypeVar("T")
SMALL_BYTES = 80 << 20  # of weights: such an encoder is done sooner by one thread than by several that wait on another


class _Space:
    """An encoder of a generation: what cutouts that are encoded together have in common."""

    def __init__(self, shelf: OpenShelf, encoder: OpenEncoder) -> None:
        self.shelf, self.encoder = shelf, encoder

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Space) and self.encoder is other.encoder

    def __hash__(self) -> int:
        return id(self.encoder)


def _encode(space: _Space, cutouts: list[Cutout], *, threads: int) -> list[Floats]:
    import torch

    shelf, weights = space.shelf, space.encoder.folder / "weights.safetensors"
    torch.set_num_threads(1 if weights.stat().st_size < SMALL_BYTES else threads)  # of this Python thread
    return list(upload.embed_all(space.encoder, shelf.info, cutouts, shelf.usual_ebv))


class Uploads:
    """The uploads of an app."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._metrics = metrics
        limits = Limits(settings.decode_seconds, settings.decode_bytes)
        self._sandbox = Sandbox(limits, ended=lambda why: metrics.decoding_ended[why].inc())
        size = Size(settings.max_encode_batch, settings.encode_wait_seconds, settings.max_encode_queue)
        run = partial(_encode, threads=settings.threads)
        self._batcher = Batcher(run, size, queued=metrics.encode_queue.set, done=self._encoded)

    def _encoded(self, count: int, seconds: float) -> None:
        self._metrics.encode_batch.observe(count)
        for _ in range(count):
            self._metrics.stage("encode", seconds)

    def close(self) -> None:
        """End the thread that encodes and the processes that decode."""
        self._batcher.close()
        self._sandbox.close()

    @timed("decode")
    def decode(self, blob: bytes, shelf: OpenShelf, form: CutoutForm) -> Cutout:
        """The cutout in an upload."""
        frame = upload.frame_of(shelf.info)
        said = Said(band_list(form.bands), form.unit, form.pixel_scale_arcsec, form.ebv)
        return upload.on_survey(self._sandbox.decode(blob, frame, said), shelf.info, form.unit)

    async def vector(
        self, request: Request, shelf: OpenShelf, encoder: OpenEncoder, form: CutoutForm
    ) -> tuple[Floats, Cutout]:
        """The vector of an upload, (dim,), and the cutout in it; `Busy` where too many are waiting."""
        cutout = await run_in_threadpool(self.decode, await form.file.read(), shelf, form)
        until: float = request.state.until
        began, trace = time.perf_counter(), getattr(request.state, "trace", None)
        future = self._batcher.submit(_Space(shelf, encoder), cutout, until=until)
        vector = await _unless_left(request, future)
        if trace is not None:  # with the wait for others: the metrics are told of the batch by the thread that does it
            trace.stage("encode", time.perf_counter() - began)
        return vector, cutout


async def _uploads(request: Request) -> Uploads:
    uploads: Uploads = request.app.state.uploads
    return uploads


Uploading = Annotated[Uploads, Depends(_uploads)]


async def _unless_left(request: Request, future: Future[T]) -> T:
    """What a future comes to; cancelled where the client leaves before."""
    done: asyncio.Future[Any] = asyncio.wrap_future(future)
    # the body has been read: what comes next is that the client has left
    left: asyncio.Future[Any] = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({done, left}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise HTTPException(400, "the client has left")
        found: T = await done
        return found
    finally:
        done.cancel()
        left.cancel()

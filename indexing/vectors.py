"""From the rows of a shelf to their vectors: read ahead, encode, check; in order, and in float16.

The encoder has the calling thread to itself while others read the batches to come. On a GPU a batch is copied there,
and the vectors before it back, while it computes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from redshelf.indexing.batches import Reader, converted
from redshelf.models.encoder import Encoder
from redshelf.models.errors import BadInput
from redshelf.models.parallel import usable_device
from redshelf.models.threads import ahead

if TYPE_CHECKING:
    from torch import Tensor

    from redshelf.models.encoder import Batch

    T = TypeVar("T")

EXPONENT = 0x7C00  # bits of a float16
READ_BATCHES = 4  # at once on a CPU: a scan of 64 rows spends most of its time on beginning

Span = tuple[int, int]  # first row, past the last
Vectors = npt.NDArray[np.float16]


def cut(span: Span, size: int) -> list[Span]:
    """The span in pieces of `size` rows, the last one shorter."""
    return [(start, min(start + size, span[1])) for start in range(*span, size)]


@dataclass(frozen=True)
class _Loaded:
    """The sources of a span that have a band, as a batch, and which those are."""

    start: int
    known: npt.NDArray[np.bool_]
    batch: Batch | None  # None: none of them


@dataclass(frozen=True)
class _Launched:
    """Vectors on their way to the host, complete once `wait` returns."""

    loaded: _Loaded
    found: Tensor | None
    wait: Callable[[], None]


def _load(reader: Reader, span: Span, batch_size: int, pin: bool) -> list[_Loaded]:
    """The batches of a span, read at once."""
    whole, loaded = reader.span(*span), []
    for first, past in cut((0, len(whole)), batch_size):
        rows = whole[first:past]
        known = rows.visible()
        if not known.all():
            rows = rows[known]
        batch = reader.batch(rows) if len(rows) else None
        if batch is not None and pin:
            batch = batch.pinned()
        loaded.append(_Loaded(span[0] + first, known, batch))
    return loaded


def _launch(encoder: Encoder, loaded: _Loaded, device: str, copies: Any) -> _Launched:
    """Begin to encode; on a GPU the call returns while it computes. `copies`: a stream for what goes there, or None."""
    import torch

    batch = loaded.batch
    if batch is None:
        return _Launched(loaded, None, lambda: None)
    with torch.inference_mode():
        if copies is None:
            found = encoder.embed(batch)
        else:
            here = torch.cuda.current_stream(device)
            with torch.cuda.stream(copies):
                moved = batch.to(device)
            here.wait_stream(copies)
            for value in moved.tensors().values():
                value.record_stream(here)  # the allocator of the other stream must not hand it out again before
            found = encoder.embed(moved)
        if found.shape != (len(batch), encoder.dim):
            raise BadInput(
                f"encoder {encoder.name} gives vectors of shape {tuple(found.shape)}, "
                f"expected ({len(batch)}, {encoder.dim})"
            )
        if copies is None:
            return _Launched(loaded, converted(found, torch.float16), lambda: None)
        host = torch.empty(found.shape, dtype=torch.float16, pin_memory=True)
        host.copy_(found.to(torch.float16), non_blocking=True)
        arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
        arrived.record(here)
        return _Launched(loaded, host, arrived.synchronize)


def _finish(encoder: Encoder, launched: _Launched) -> tuple[int, Vectors]:
    launched.wait()
    loaded = launched.loaded
    if launched.found is not None and loaded.known.all():
        vectors: Vectors = launched.found.numpy()
    else:
        vectors = np.zeros((len(loaded.known), encoder.dim), dtype=np.float16)
        if launched.found is not None:
            vectors[loaded.known] = launched.found.numpy()
    # the exponent of infinity and NaN: numpy's isfinite takes ten times as long for float16
    if vectors.size and (vectors.view(np.uint16) & EXPONENT).max() == EXPONENT:
        row = loaded.start + int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise BadInput(f"encoder {encoder.name} gives NaN or infinity for row {row}")
    return loaded.start, vectors


@contextmanager
def placed(encoder: Encoder, device: str | None) -> Generator[str, None, None]:
    """The encoder on `device` inside, where it was outside; yields the device. What is no module stays on the CPU."""
    import torch

    wanted = usable_device(device)
    if not isinstance(encoder, torch.nn.Module):
        yield "cpu"
        return
    tensors = [*encoder.parameters(), *encoder.buffers()]
    home = tensors[0].device if tensors else torch.device("cpu")
    try:
        encoder.to(wanted)
        yield wanted
    finally:
        encoder.to(home)


def vectors(
    encoder: Encoder, reader: Reader, spans: Iterable[Span], *, batch_size: int, device: str = "cpu"
) -> Generator[tuple[int, Vectors], None, None]:
    """First row and vectors (n, dim) float16 of each batch of `spans`, in order; `encoder` is on `device`.

    Zero for a source without any band, which no search finds. `BadInput` naming the first row whose vector is not
    finite. An encoder that is no torch module is asked by two threads at once.
    """
    import torch

    on_gpu, is_module = device.startswith("cuda"), isinstance(encoder, torch.nn.Module)
    copies = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
    reading = batch_size if on_gpu else READ_BATCHES * batch_size
    reads = (read for span in spans for read in cut(span, reading))

    def prepared(read: Span) -> Sequence[_Loaded | _Launched]:
        loaded = _load(reader, read, batch_size, on_gpu)
        return loaded if is_module else [_launch(encoder, one, device, copies) for one in loaded]

    # torch spreads a batch over the cores, and leaves one thread the time to read; numpy computes on one core
    threads, depth = (4, 8) if on_gpu else (1, 2) if is_module else (2, 4)
    with closing(ahead((partial(prepared, read) for read in reads), threads=threads, depth=depth)) as pieces:
        flying: deque[_Launched] = deque()
        for one in chain.from_iterable(pieces):
            flying.append(one if isinstance(one, _Launched) else _launch(encoder, one, device, copies))
            if len(flying) > on_gpu:  # a GPU computes one batch while the next one is prepared
                yield _finish(encoder, flying.popleft())
        while flying:
            yield _finish(encoder, flying.popleft())

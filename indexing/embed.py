"""Bulk embedding by parts: read ahead, encode, write uncommitted fragments and a receipt; one commit at the end.

`part_ranges` is the plan, arithmetic only; `vectors` is the pipeline, `embed_parts` what it feeds, `embed_all` all of
it on one machine. The encoder has the calling thread to itself: others read the batches to come, and one writes a part
that is finished. A killed run repeats at most two parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from redshelf.indexing import store
from redshelf.indexing.batches import Reader
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout
from redshelf.indexing.memory import keep_freed_memory
from redshelf.models.encoder import Encoder
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from torch import Tensor

    from redshelf.models.encoder import Batch

    T = TypeVar("T")

PART_ROWS, PART_ROWS_FLUXES = 16_384, 262_144
# of a batch: on a CPU what its caches hold, on a GPU enough to fill it, without pixels what makes Python's part small
BATCH_CPU, BATCH_GPU, BATCH_FLUXES = 64, 512, 16_384
EXPONENT = 0x7C00  # bits of a float16
READ_BATCHES = 4  # at once on a CPU: a scan of 64 rows spends most of its time on beginning

Span = tuple[int, int]  # first row, past the last
Vectors = npt.NDArray[np.float16]


def part_ranges(rows: int, part_rows: int = PART_ROWS) -> list[Span]:
    """[first, past-the-last) rows of each part: contiguous, ordered, none empty."""
    if part_rows < 1:
        raise BadInput(f"part_rows={part_rows}: expected at least 1")
    return [(start, min(start + part_rows, rows)) for start in range(0, rows, part_rows)]


def ahead(jobs: Iterable[Callable[[], T]], *, threads: int = 1, depth: int = 2) -> Generator[T, None, None]:
    """What each of `jobs` returns, in order, while `threads` threads work on up to `depth` of those that come next.

    What a job raises is raised here, in its turn. Close the generator to give up the jobs that have not begun.
    """
    with ThreadPoolExecutor(threads, "read") as pool:
        coming: deque[Future[T]] = deque()
        try:
            for job in jobs:
                coming.append(pool.submit(job))
                if len(coming) > depth:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for future in coming:
                future.cancel()


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
    for first, past in part_ranges(len(whole), batch_size):
        rows = whole[first:past]
        known = rows.visible()
        if not known.all():
            rows = rows[known]
        batch = reader.batch(rows) if len(rows) else None
        if batch is not None and pin:
            tensors = {f.name: v for f in fields(batch) if (v := getattr(batch, f.name)) is not None}
            batch = replace(batch, **{name: value.pin_memory() for name, value in tensors.items()})
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
            for field in fields(moved):
                if (value := getattr(moved, field.name)) is not None:
                    value.record_stream(here)  # the allocator of the other stream must not hand it out again before
            found = encoder.embed(moved)
        if found.shape != (len(batch), encoder.dim):
            raise BadInput(
                f"encoder {encoder.name} gives vectors of shape {tuple(found.shape)}, "
                f"expected ({len(batch)}, {encoder.dim})"
            )
        if copies is None:
            return _Launched(loaded, found.to(torch.float16), lambda: None)
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
def _placed(encoder: Encoder, device: str | None) -> Generator[str, None, None]:
    """The encoder on `device` inside, where it was outside; yields the device. What is no module stays on the CPU."""
    import torch

    wanted = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"device {wanted!r}: this machine has no GPU that torch can use")
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
    finite.
    """
    import torch

    on_gpu = device.startswith("cuda")
    copies = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
    reading = batch_size if on_gpu else READ_BATCHES * batch_size
    reads = ((a + first, b + first) for first, past in spans for a, b in part_ranges(past - first, reading))
    jobs = (partial(_load, reader, read, batch_size, on_gpu) for read in reads)
    # a CPU is busy enough with the encoder
    with closing(ahead(jobs, threads=4 if on_gpu else 1, depth=8 if on_gpu else 2)) as pieces:
        flying: deque[_Launched] = deque()
        for loaded in chain.from_iterable(pieces):
            flying.append(_launch(encoder, loaded, device, copies))
            if len(flying) > on_gpu:  # a GPU computes one batch while the next one is prepared
                yield _finish(encoder, flying.popleft())
        while flying:
            yield _finish(encoder, flying.popleft())


def embed_parts(
    layout: Layout,
    encoder: Encoder,
    reader: Reader,
    parts: Sequence[tuple[int, Span]],
    *,
    receipts: Path,
    batch_size: int,
    device: str = "cpu",
    progress: Callable[[int], object] = lambda rows: None,
) -> None:
    """Embed the rows of `parts`, (number, span) each, and leave their receipts in `receipts`.

    `progress` is told of the rows of each batch. What was finished before an error has its receipt.
    """
    import pyarrow as pa

    table, schema = layout.embeddings(encoder.name, encoder.revision), store.embeddings_schema(encoder.dim)

    def write(part: int, first: int, whole: Vectors) -> None:
        rows = pa.array(np.arange(first, first + len(whole), dtype=np.int64))
        batch = pa.record_batch([rows, store.fixed_list(whole)], schema=schema)
        store.write_part(table, schema, [batch], receipts=receipts, part=part, first_row=first)

    spans = [span for _, span in parts]
    encoding = vectors(encoder, reader, spans, batch_size=batch_size, device=device)
    with ThreadPoolExecutor(1, "write") as writer, closing(encoding) as found:
        writing: Future[None] | None = None
        for part, (first, past) in parts:
            whole, at = np.empty((past - first, encoder.dim), dtype=np.float16), first
            while at < past:
                start, values = next(found)
                whole[start - first : start - first + len(values)] = values
                at = start + len(values)
                progress(len(values))
            if writing is not None:
                writing.result()
            writing = writer.submit(write, part, first, whole)
        if writing is not None:
            writing.result()


def embed_all(
    layout: Layout,
    encoder: Encoder,
    *,
    batch_size: int | None = None,
    part_rows: int | None = None,
    progress: bool = False,
    device: str | None = None,
) -> int:
    """Embed every source that is not embedded yet; returns the rows of the finished table. Resumes after a kill.

    `device`: where the encoder computes, a GPU where there is one by default. Sizes that are not given go by device and
    by what the encoder reads. Two runs of one embedding at once: the second raises `Conflict`.
    """
    from tqdm import tqdm

    images = "pixels" in encoder.needs
    if part_rows is None:
        part_rows = PART_ROWS if images else PART_ROWS_FLUXES
    reader = Reader(layout, layout.read_info(), bands=encoder.bands, needs=encoder.needs)
    table = layout.embeddings(encoder.name, encoder.revision)
    job = f"embed.{encoder.name}.{encoder.revision}"
    with alone(layout.work(f"{job}.lock"), f"another run is embedding {encoder.name} on {layout.root}"):
        have = store.count_rows(table)
        if have == reader.rows:
            return have
        ranges = [(a + have, b + have) for a, b in part_ranges(reader.rows - have, part_rows)]
        receipts = layout.work(f"{job}.{have}-{reader.rows}.{part_rows}")  # only the same plan goes on from them
        done = store.done_parts(receipts)
        todo = [(part, span) for part, span in enumerate(ranges) if part not in done]
        before = reader.rows - sum(past - first for _, (first, past) in todo)
        label = f"embed {encoder.name}"
        with (
            _placed(encoder, device) as place,
            tqdm(total=reader.rows, initial=before, unit=" sources", desc=label, disable=not progress) as bar,
        ):
            if batch_size is None:
                batch_size = BATCH_FLUXES if not images else BATCH_GPU if place.startswith("cuda") else BATCH_CPU
            if images and place == "cpu":
                keep_freed_memory()
            embed_parts(
                layout,
                encoder,
                reader,
                todo,
                receipts=receipts,
                batch_size=batch_size,
                device=place,
                progress=bar.update,
            )
        schema = store.embeddings_schema(encoder.dim)
        return store.commit_parts(table, schema, receipts=receipts, parts=len(ranges), plan=receipts.name)

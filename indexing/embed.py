"""Bulk embedding by parts: encode, write uncommitted fragments and a receipt; one commit at the end.

`part_ranges` is the plan, arithmetic only; `embed_parts` does some of it, whatever runs it; `embed_all` is one machine
that does all. A part is written while the next one is encoded, so that a killed run repeats at most two.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np

from redshelf.indexing import store
from redshelf.indexing.batches import Reader
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout
from redshelf.indexing.memory import keep_freed_memory
from redshelf.indexing.vectors import Span, Vectors, cut, placed, vectors
from redshelf.models.encoder import Encoder
from redshelf.models.errors import BadInput

PART_ROWS, PART_ROWS_FLUXES = 16_384, 262_144
# of a batch: on a CPU what its caches hold, on a GPU enough to fill it, without pixels what makes Python's part small
BATCH_CPU, BATCH_GPU, BATCH_FLUXES = 64, 512, 32_768


def part_ranges(rows: int, part_rows: int = PART_ROWS) -> list[Span]:
    """[first, past-the-last) rows of each part: contiguous, ordered, none empty."""
    if part_rows < 1:
        raise BadInput(f"part_rows={part_rows}: expected at least 1")
    return cut((0, rows), part_rows)


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

    if batch_size < 1:
        raise BadInput(f"batch_size={batch_size}: expected at least 1")
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
            placed(encoder, device) as place,
            tqdm(total=reader.rows, initial=before, unit=" sources", desc=label, disable=not progress) as bar,
        ):
            if batch_size is None:
                batch_size = BATCH_FLUXES if not images else BATCH_GPU if place.startswith("cuda") else BATCH_CPU
            if place == "cpu":
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

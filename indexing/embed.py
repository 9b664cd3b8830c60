"""Bulk embedding by parts: read rows, encode, write uncommitted fragments and a receipt; one commit at the end.

`part_ranges` is the plan, arithmetic only; `embed_part` does one part, whatever runs it; `embed_all` is the loop on one
machine. A killed run repeats at most the part it was in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from redshelf.indexing import store
from redshelf.indexing.batches import Reader
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout
from redshelf.models.encoder import Encoder
from redshelf.models.errors import BadInput

PART_ROWS = 16384


def part_ranges(rows: int, part_rows: int = PART_ROWS) -> list[tuple[int, int]]:
    """[first, past-the-last) rows of each part: contiguous, ordered, none empty."""
    if part_rows < 1:
        raise BadInput(f"part_rows={part_rows}: expected at least 1")
    return [(start, min(start + part_rows, rows)) for start in range(0, rows, part_rows)]


def encode(encoder: Encoder, reader: Reader, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float16]:
    """Vectors of `rows`, (n, dim) float16; zero for a source without any band, which no search finds.

    `BadInput` naming the first row whose vector is not finite.
    """
    import torch

    from redshelf.models.backbone import visible

    batch = reader.read(rows)
    known = visible(batch)
    vectors = np.zeros((len(rows), encoder.dim), dtype=np.float16)
    if not known.any():
        return vectors
    with torch.inference_mode():
        found = encoder.embed(batch if known.all() else batch.select(known)).to(torch.float16).numpy()
    if found.shape != (int(known.sum()), encoder.dim):
        raise BadInput(
            f"encoder {encoder.name} gives vectors of shape {found.shape}, expected ({int(known.sum())}, {encoder.dim})"
        )
    vectors[known.numpy()] = found
    bad = ~np.isfinite(vectors).all(axis=1)
    if bad.any():
        raise BadInput(f"encoder {encoder.name} gives NaN or infinity for row {rows[bad][0]}")
    return vectors


def embed_part(
    layout: Layout,
    encoder: Encoder,
    reader: Reader,
    *,
    part: int,
    span: tuple[int, int],
    receipts: Path,
    batch_size: int,
) -> int:
    """Embed the rows of one part and leave its receipt in `receipts`; returns the rows written."""
    import pyarrow as pa

    schema = store.embeddings_schema(encoder.dim)

    def batches() -> Iterator[pa.RecordBatch]:
        for start in range(span[0], span[1], batch_size):
            rows = np.arange(start, min(start + batch_size, span[1]), dtype=np.int64)
            vectors = encode(encoder, reader, rows)
            yield pa.record_batch([pa.array(rows), store.fixed_list(vectors)], schema=schema)

    table = layout.embeddings(encoder.name, encoder.revision)
    return store.write_part(table, schema, batches(), receipts=receipts, part=part, first_row=span[0])


def embed_all(
    layout: Layout, encoder: Encoder, *, batch_size: int = 256, part_rows: int = PART_ROWS, progress: bool = False
) -> int:
    """Embed every source that is not embedded yet; returns the rows of the finished table. Resumes after a kill.

    Two runs of one embedding at once: the second raises `Conflict`.
    """
    from tqdm import tqdm

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
        label = f"embed {encoder.name}"
        with tqdm(total=reader.rows, initial=have, unit=" sources", desc=label, disable=not progress) as bar:
            for part, span in enumerate(ranges):
                if part not in done:
                    embed_part(layout, encoder, reader, part=part, span=span, receipts=receipts, batch_size=batch_size)
                bar.update(span[1] - span[0])
        schema = store.embeddings_schema(encoder.dim)
        return store.commit_parts(table, schema, receipts=receipts, parts=len(ranges), plan=receipts.name)

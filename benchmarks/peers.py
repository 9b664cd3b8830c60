"""The other systems of `search.py`: LanceDB, hnswlib and usearch over the same vectors."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from systems import CORES, Find, Floats, Ints, K, System, Vectors

LANCE_EFFORTS = {
    "IVF_PQ": [{"nprobes": n, "refine_factor": r} for n in (10, 20, 40, 80, 160, 320) for r in (5, 20)],
    "IVF_HNSW_SQ": [{"nprobes": n, "ef": e, "refine_factor": 2} for n in (1, 4, 10, 40) for e in (50, 200)],
}


def lancedb_table(folder: Path, vectors: Vectors) -> Any:
    """A table of the vectors, of a random number `u` and of their first number `x`."""
    import lancedb
    import pyarrow as pa

    shutil.rmtree(folder, ignore_errors=True)
    vector = pa.list_(pa.float16(), vectors.dim)
    schema = pa.schema([("row", pa.int64()), ("u", pa.float32()), ("x", pa.float32()), ("vector", vector)])
    u = np.random.default_rng(0).random(vectors.rows).astype(np.float32)

    def batches() -> Iterator[Any]:
        start = 0
        for block in vectors.blocks():
            at = slice(start, start + len(block))
            values = pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), vectors.dim)
            first = pa.array(block[:, 0].astype(np.float32))
            columns = [pa.array(np.arange(vectors.rows)[at]), pa.array(u[at]), first, values]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
            start += len(block)

    return lancedb.connect(folder).create_table("v", pa.RecordBatchReader.from_batches(schema, batches()))


def lance_find(table: Any, where: str | None, **how: int) -> tuple[Find, Find]:
    def one(query: Floats) -> list[int]:
        asked = table.search(query).limit(K).select(["row", "_distance"])
        for name, value in how.items():
            asked = getattr(asked, name)(value)
        if where is not None:
            asked = asked.where(where, prefilter=True)
        found = asked.to_arrow()["row"].to_pylist()
        return found + [-1] * (K - len(found))

    def find(queries: Floats) -> Ints:
        return np.array([one(query) for query in queries])

    def batched(queries: Floats) -> Ints:
        with ThreadPoolExecutor(CORES) as pool:
            return np.array(list(pool.map(one, queries)))

    return find, batched


def lance(table: Any, kind: str, vectors: Vectors) -> System:
    """An index of LanceDB over the table."""
    from lancedb.index import HnswSq, IvfPq

    started = time.perf_counter()
    partitions = {"num_partitions": round(vectors.rows**0.5), "num_sub_vectors": max(1, vectors.dim // 16)}
    config: Any = IvfPq(distance_type="l2", **partitions) if kind == "IVF_PQ" else HnswSq(distance_type="l2")
    table.create_index("vector", config=config, replace=True)
    efforts = {str(e).replace("'", ""): lance_find(table, None, **e) for e in LANCE_EFFORTS[kind]}
    return System(time.perf_counter() - started, float("nan"), efforts)


def hnswlib(vectors: Vectors) -> System:
    from hnswlib import Index

    started = time.perf_counter()
    index = Index(space="l2", dim=vectors.dim)
    index.init_index(max_elements=vectors.rows, ef_construction=100, M=16)
    index.set_num_threads(CORES)
    for block in vectors.blocks():
        index.add_items(block.astype(np.float32))
    seconds = time.perf_counter() - started

    def asking(ef: int, number: int) -> Find:
        def find(queries: Floats) -> Ints:
            index.set_ef(ef)
            index.set_num_threads(number)
            return np.asarray(index.knn_query(queries, K)[0], dtype=np.int64)

        return find

    efforts = {f"ef {ef}": (asking(ef, 1), asking(ef, CORES)) for ef in (10, 20, 40, 80, 160, 320, 640)}
    return System(seconds, index.index_file_size(), efforts)


def usearch(vectors: Vectors) -> System:
    from usearch.index import Index

    started = time.perf_counter()
    index = Index(ndim=vectors.dim, metric="l2sq", dtype="f16", connectivity=16, expansion_add=100)
    start = 0
    for block in vectors.blocks():
        index.add(np.arange(start, start + len(block)), block, threads=CORES)
        start += len(block)
    seconds = time.perf_counter() - started

    def asking(ef: int, number: int) -> Find:
        def find(queries: Floats) -> Ints:
            index.expansion_search = ef
            keys = index.search(queries.astype(np.float16), K, threads=number).keys
            return np.asarray(keys, dtype=np.int64).reshape(len(queries), -1)

        return find

    efforts = {f"ef {ef}": (asking(ef, 1), asking(ef, CORES)) for ef in (16, 32, 64, 128, 256, 512)}
    return System(seconds, index.memory_usage, efforts)


GRAPHS = {"hnswlib": hnswlib, "usearch": usearch}

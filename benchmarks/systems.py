"""What the systems of `search.py` share: the vectors that they hold, how they are asked, how they are measured.

Systems that are compared are asked in turn, query by query, so that a machine that is busy is as busy for each of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

K, RECALL, CORES = 10, 0.95, 2
BLOCK = 65_536
Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]
Ints = npt.NDArray[np.int64]
Find = Callable[[Floats], Ints]  # rows (Q, K) of queries


def blocks(kind: str, rows: int, dim: int, seed: int) -> Iterator[Halves]:
    """Vectors of one kind, some at a time; another seed draws others from the same set."""
    shape = np.random.default_rng(7)
    waves, into = shape.normal(size=(10, 64)).astype(np.float32), shape.normal(size=(64, dim)).astype(np.float32) / 8
    phase, spread = shape.uniform(0, 6.28, 64).astype(np.float32), np.float32([0.3, 1, 1.5])
    rng = np.random.default_rng(seed)
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        noise = rng.standard_normal((n, dim), dtype=np.float32)
        if kind == "uniform":
            yield noise.astype(np.float16)
            continue
        points = rng.standard_normal((n, 10), dtype=np.float32) * rng.choice(spread, size=(n, 1))
        yield (np.sin(points @ waves * 0.6 + phase) @ into + 0.05 * noise).astype(np.float16)


@dataclass(frozen=True)
class Vectors:
    """`rows` vectors of `dim` numbers, given some at a time, and `queries` (Q, dim) that are not among them."""

    name: str
    rows: int
    dim: int
    blocks: Callable[[], Iterator[Halves]]
    queries: Floats


def synthetic(kind: str, rows: int, dim: int, *, queries: int) -> Vectors:
    """*clustered*: a curved set of ten dimensions in many, plus noise; *uniform*: Gaussian in every dimension."""
    asked = np.concatenate(list(blocks(kind, max(1, queries), dim, 1)))[:queries].astype(np.float32)
    return Vectors(kind, rows, dim, partial(blocks, kind, rows, dim, 0), asked)


def of_shelf(root: Path, encoder: str, *, queries: int) -> Vectors:
    """The newest embedding of a shelf, but for `queries` of its vectors, taken at random, which are asked for."""
    from redshelf.indexing import store
    from redshelf.indexing.layout import Layout

    layout = Layout(root)
    table = store.open_table(layout.embeddings(encoder, layout.newest(encoder)))
    vectors = store.list_values(table.to_table(columns=["vector"])["vector"])
    vectors = vectors[vectors.any(axis=1)]
    asked = np.zeros(len(vectors), dtype=bool)
    asked[np.random.default_rng(0).choice(len(vectors), queries, replace=False)] = True
    held = vectors[~asked]
    return Vectors(encoder, *held.shape, lambda: iter([held]), vectors[asked].astype(np.float32))


def threads(number: int) -> None:
    import faiss

    faiss.omp_set_num_threads(number)


def recall(found: Ints, true: Ints) -> float:
    hits = sum(len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, true, strict=True))
    return hits / max(1, int((true >= 0).sum()))


@dataclass(frozen=True)
class Asked:
    """One way to ask a system: one query at a time, all at once, and the true rows (Q, K)."""

    find: Find
    batched: Find
    true: Ints


@dataclass(frozen=True)
class Measured:
    recall: float
    single_ms: float
    batched_ms: float  # a query
    cpu_ms: float  # of a single query, by the thread that asks: what a busy machine leaves as it is


def measure(asked: Sequence[Asked], queries: Floats, *, singles: int = 200) -> list[Measured]:
    """Of each of `asked`, the recall of single queries, their median times on one thread, and the best of three times
    of all of them at once on two; they are asked in turn, each for another query, which none finds in a cache."""
    number = min(singles, len(queries))
    times, cpu, found = ([[] for _ in asked] for _ in range(3))
    threads(1)
    for one in asked:
        one.find(queries[:1])
    for turn in range(number):
        for which, one in enumerate(asked):
            query = (turn + which * number // len(asked)) % number
            started, ran = time.perf_counter(), time.thread_time()
            rows = one.find(queries[query : query + 1])[0]
            cpu[which].append(time.thread_time() - ran)
            times[which].append(time.perf_counter() - started)
            found[which].append((query, rows))
    threads(CORES)
    rounds = [list[float]() for _ in asked]
    for one in asked:
        one.batched(queries[:10])
    for _ in range(3):
        for which, one in enumerate(asked):
            started = time.perf_counter()
            one.batched(queries)
            rounds[which].append(time.perf_counter() - started)
    out = []
    for which, one in enumerate(asked):
        places, rows = zip(*found[which], strict=True)
        single, batched = 1000 * statistics.median(times[which]), 1000 * min(rounds[which]) / len(queries)
        got = recall(np.array(rows), one.true[list(places)])
        out.append(Measured(got, single, batched, 1000 * statistics.median(cpu[which])))
    return out


@dataclass(frozen=True)
class System:
    """One system over the vectors: how long it took to build, what it holds [bytes], how to ask it, less to more."""

    build_s: float
    held: float
    efforts: dict[str, tuple[Find, Find]]


def tuned(efforts: dict[str, tuple[Find, Find]], queries: Floats, true: Ints) -> tuple[str, Measured]:
    """The first of `efforts`, which grow, that reaches the recall on all queries; else the last."""
    enough = (name for name, (_, batched) in efforts.items() if recall(batched(queries), true) >= RECALL)
    name = next(enough, list(efforts)[-1])
    return name, measure([Asked(*efforts[name], true)], queries)[0]

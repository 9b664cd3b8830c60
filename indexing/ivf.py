"""The approximate index of a large embedding: inverted lists of 4-bit product-quantiser codes, and how far to look.

A query is compared with the codes of the lists nearest to it, and the best of those with the vectors themselves
(`flat`). How many lists that takes is measured when the index is built: `coverage` says how many hold the `depth`
nearest neighbours. A search for k under a filter that a fraction f passes nearby is as hard as one for k/f without it,
so that the lists to look into follow from how many of their rows pass.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing.flat import Flat, Floats, Ints, empty, of, selector_of
from redshelf.indexing.sample import spread
from redshelf.models.errors import BadInput

SAMPLE_PER_LIST, ITERATIONS = 40, 6  # of k-means: more finds no more neighbours, and takes longer
MOST_LISTS = 16_384  # training and adding 40 million vectors then take an hour of two cores
BLOCK_ROWS = 65_536
GRAPH_LISTS, GRAPH_LINKS, GRAPH_EFFORT = 8192, 32, (80, 32)  # from how many lists on; of HNSW: to build, to search
QUERIES = 256  # stored vectors, by which an index is measured
DEPTHS = (1, 3, 10, 30, 100, 300, 1000, 3000, 10_000)  # neighbours of each, whose lists are looked up
SHARES = (0.85, 0.5, 0.2)  # of what may be missed, in lists that are not looked into; the rest is for the codes
MARGIN = 0.1  # of what may be missed, for queries that are not those it is measured with
FACTORS = (1, 2, 4, 8, 16, 32, 64)  # candidates for each neighbour wanted, compared with the vectors themselves
SLACK_QUERIES, SLACK_VALUES = 96, 2**22  # by which a filter is measured: some ten milliseconds
ID_BYTES, OVERHEAD = 8, 1.1  # of a row in a list; of lists that are not full

Lists = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Shape:
    """`lists`, and `codes` of 4 bits a vector."""

    lists: int
    codes: int

    def bytes(self, rows: int, dim: int) -> int:
        """Of memory that each process, or the one that they are forked from, holds."""
        return math.ceil(rows * (self.codes / 2 + ID_BYTES) * OVERHEAD) + 4 * self.lists * dim + 4 * rows


def choose(rows: int, dim: int, *, memory: int) -> Shape:
    """The most codes that fit into `memory` [bytes], at most one for 4 numbers of a vector and at least 16 or one for
    each; `BadInput` where not even two would fit."""
    lists = min(MOST_LISTS, 2 ** round(math.log2(2 * math.sqrt(rows))))
    wanted = max(dim / 4, min(dim, 16))
    divisors = [m for m in range(1, dim + 1) if dim % m == 0]
    most = next(m for m in divisors if m >= wanted)
    for codes in reversed([m for m in divisors if m <= most]):
        shape = Shape(lists, codes)
        if shape.bytes(rows, dim) <= memory:
            return shape
    least = Shape(lists, 1).bytes(rows, dim)
    raise BadInput(f"memory={memory} bytes: an index of {rows} vectors of {dim} numbers takes at least {least}")


def blocks(flat: Flat, known: npt.NDArray[np.bool_], *, start: int, past: int) -> Iterator[tuple[Ints, Floats]]:
    """(rows, vectors) of the rows from `start` to before `past` that are `known`, some at a time."""
    for first in range(start, past, BLOCK_ROWS):
        rows = first + np.flatnonzero(known[first : min(first + BLOCK_ROWS, past)])
        if len(rows):
            yield rows, flat.take(rows).astype(np.float32)


def train(
    flat: Flat, known: npt.NDArray[np.bool_], shape: Shape, *, brightness: Floats | None = None, seed: int = 0
) -> Any:
    """An index without vectors, trained on a sample that is spread over the sky and in `brightness` (N,), if given."""
    import faiss

    rows = spread(known, SAMPLE_PER_LIST * shape.lists, brightness=brightness, seed=seed)
    sample = flat.take(rows).astype(np.float32)
    quantiser = faiss.IndexFlatL2(flat.dim)
    means = faiss.Clustering(flat.dim, shape.lists)
    means.niter, means.max_points_per_centroid, means.seed = ITERATIONS, SAMPLE_PER_LIST, seed + 1
    means.train(sample, quantiser)
    index = faiss.IndexIVFPQFastScan(quantiser, flat.dim, shape.lists, shape.codes, 4)
    index.own_fields = True
    quantiser.this.disown()
    index.train(sample)
    return index


def graph_of(index: Any) -> Any | None:
    """A graph of the centres of many lists, by which the list of a vector is found three times as fast as by comparing
    it with every one (7 in 1,000 vectors get the second nearest); None where there are few. Made by one thread, so that
    it is always the same."""
    import faiss

    if index.nlist < GRAPH_LISTS:
        return None
    graph, threads = faiss.IndexHNSWFlat(index.d, GRAPH_LINKS), faiss.omp_get_max_threads()
    graph.hnsw.efConstruction, graph.hnsw.efSearch = GRAPH_EFFORT
    faiss.omp_set_num_threads(1)
    try:
        graph.add(index.quantizer.reconstruct_n(0, index.nlist))
    finally:
        faiss.omp_set_num_threads(threads)
    return graph


def add(index: Any, found: Iterable[tuple[Ints, Floats]], *, graph: Any | None = None) -> None:
    """Add vectors under the numbers of their rows, to the lists that `graph` finds for them."""
    centres = index.quantizer
    if graph is not None:
        index.quantizer = graph
        graph.this.own(True)  # the assignment has taken it from Python
    try:
        for rows, vectors in found:
            index.add_with_ids(vectors, rows)
    finally:
        if graph is not None:
            index.quantizer = centres


@dataclass(frozen=True)
class Tuning:
    """What was measured: `coverage` pairs a depth with the lists that hold so many nearest neighbours, `factors` a k
    with the candidates for each neighbour, `table` is of k=10: lists, candidates, recall, milliseconds a query."""

    coverage: tuple[tuple[int, float], ...]
    factors: tuple[tuple[int, int], ...]
    table: tuple[tuple[int, int, float, float], ...]
    recall: float
    wanted: float

    @cached_property
    def _coverage(self) -> npt.NDArray[np.float64]:
        """The logarithms (2, n) of depths and lists."""
        return np.log(np.array(self.coverage, dtype=np.float64).T)

    def lists(self, depth: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """How many lists hold the `depth` (n,) nearest, interpolated in the logarithms, beyond them extrapolated."""
        x, y = self._coverage
        at = np.log(np.maximum(depth, 1.0))
        slope = (y[-1] - y[0]) / max(x[-1] - x[0], 1e-9) if len(x) > 1 else 0.0
        return np.asarray(np.exp(np.interp(at, x, y) + np.maximum(at - x[-1], 0) * max(slope, 1.0)))

    def factor(self, k: int) -> int:
        """Candidates for each of `k` neighbours; for fewer than were measured as many in all."""
        first, most = self.factors[0]
        if k < first:
            return math.ceil(first * most / k)
        return next(factor for least, factor in reversed(self.factors) if least <= k)


def refined(index: Any, flat: Flat) -> Any:
    """The lists with the vectors behind them, by which candidates are compared; both stay in Python's hands."""
    import faiss

    blank = empty(flat.dim)  # the constructor wants as many rows in both, and the lists lack those without a vector
    both = faiss.IndexRefine(blank, blank)
    owned = [(one, one.this.own()) for one in (index, flat.index)]
    both.base_index, both.refine_index, both.ntotal = index, flat.index, len(flat)
    for one, ours in owned:
        one.this.own(ours)  # the assignment has taken it from Python, and nobody would free it
    both.referenced_objects = [index, flat.index]
    return both


def search(
    both: Any, queries: Floats, k: int, *, lists: int, factor: int, selector: Any | None = None
) -> tuple[Floats, Ints]:
    """Squared distances and rows (Q, k) of the nearest in `lists` lists of `refined` ones, `factor` k of them compared
    exactly."""
    import faiss

    base = faiss.SearchParametersIVF(nprobe=lists, sel=selector)
    parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=base)
    squared, rows = both.search(queries, k, params=parameters)
    return squared, rows


def _found(rows: Ints, nearest: Ints) -> float:
    """The fraction of `nearest` (Q, k) among `rows` (Q, k), missing ones (-1) apart."""
    hits = sum(len(np.intersect1d(a, b)) for a, b in zip(rows, nearest, strict=True))
    return hits / max(1, int((nearest >= 0).sum()))


def others(rows: Ints, own: Ints) -> npt.NDArray[np.bool_]:
    """Which of the rows found (Q, k + 1) are the `k` others than `own` (Q,)."""
    keep = np.asarray(rows != own[:, None])
    keep[np.arange(len(rows)), -1] &= ~keep.all(axis=1)  # without itself among them, the last is one too many
    return keep


def _without_self(rows: Ints, own: Ints) -> Ints:
    """(Q, k) of the rows (Q, k + 1) in order, `own` (Q,) left out."""
    return np.asarray(rows[others(rows, own)].reshape(len(rows), -1))


def _ranks(index: Any, queries: Floats, lists: Lists) -> Ints:
    """The places (Q, n), from 1, of some `lists` (Q, n) among all, by their distance from each query."""
    _, order = index.quantizer.search(queries, index.nlist)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(index.nlist)[None], axis=1)
    return np.asarray(np.take_along_axis(rank, lists.astype(np.int64), axis=1) + 1)


def tune(
    index: Any, flat: Flat, known: npt.NDArray[np.bool_], list_of: Lists, *, recall: float, seed: int = 0
) -> Tuning:
    """Measure how many lists and candidates it takes for `recall`, on stored vectors, which do not find themselves."""
    rows = np.flatnonzero(known)
    own = np.sort(np.random.default_rng(seed + 1).choice(rows, min(QUERIES, len(rows)), replace=False))
    queries = flat.take(own).astype(np.float32)
    deepest = min(DEPTHS[-1], len(rows) - 1)
    nearest = _without_self(
        flat.search(queries, deepest + 1, selector=None if known.all() else selector_of(known))[1], own
    )
    ranks = _ranks(index, queries, list_of[nearest])  # (Q, deepest)
    depths = [depth for depth in DEPTHS if depth <= deepest]
    target = recall + MARGIN * (1 - recall)
    measured = partial(_measured, refined(index, flat), queries, own, nearest=nearest)
    for share in SHARES:
        covered = 1 - share * (1 - target)
        reached = np.maximum.accumulate([float(np.quantile(ranks[:, :depth], covered)) for depth in depths])
        tuning = Tuning(tuple(zip(depths, reached.tolist(), strict=True)), (), (), 0.0, recall)
        factors: list[tuple[int, int]] = []
        found: list[float] = []
        for k in (depth for depth in (10, 100, 1000) if depth <= deepest):
            lists = min(index.nlist, math.ceil(tuning.lists(np.array([k]))[0]))
            for factor in FACTORS:
                got, _ = measured(k, lists=lists, factor=factor)
                if got >= target or k * factor * 2 >= len(rows):
                    break
            factors.append((k, factor))
            found.append(got)
        if min(found) >= target:
            break
    table = []
    for lists in (min(2**power, index.nlist) for power in range(math.ceil(math.log2(index.nlist)) + 1)):
        table.append((lists, factors[0][1], *measured(10, lists=lists, factor=factors[0][1])))
        if table[-1][2] >= 0.999:
            break
    return replace(tuning, factors=tuple(factors), table=tuple(table), recall=found[0])


def _measured(
    both: Any, queries: Floats, own: Ints, k: int, *, nearest: Ints, lists: int, factor: int
) -> tuple[float, float]:
    """Recall, and milliseconds a query."""
    started = time.perf_counter()
    _, found = search(both, queries, k + 1, lists=lists, factor=factor)
    seconds = time.perf_counter() - started
    return _found(_without_self(found, own), nearest[:, :k]), 1000 * seconds / len(queries)


def nearby(index: Any, tuning: Tuning, queries: Floats, k: int, *, sizes: Ints, passing: Ints) -> npt.NDArray[np.int64]:
    """How many lists (Q,) to look into for `k` rows that pass a filter: list by list, of `sizes` rows `passing` do.

    Enough are as many as hold k neighbours of those that pass where the query is, and that have the share of all that
    pass which k of so few would take: a query may lie far from everything that passes.
    """
    everywhere = float(tuning.lists(np.array([k * sizes.sum() / max(1, passing.sum())]))[0])
    share = min(1.0, everywhere / index.nlist) * passing.sum()
    looked = np.full(len(queries), index.nlist, dtype=np.int64)
    left = np.arange(len(queries))
    for most in (min(index.nlist, math.ceil(4 * everywhere)), index.nlist):
        _, order = index.quantizer.search(queries[left], most)
        seen, hits = np.cumsum(sizes[order], axis=1), np.cumsum(passing[order], axis=1)
        needed = tuning.lists((k * seen / np.maximum(hits, 1)).ravel()).reshape(seen.shape)
        enough = (np.arange(1, most + 1) >= needed) & (hits >= max(share, min(2 * k, passing.sum())))
        looked[left] = np.where(enough.any(axis=1), enough.argmax(axis=1) + 1, index.nlist)
        left = left[~enough.any(axis=1)]
        if most == index.nlist or not len(left):
            break
    return looked


def slack(
    index: Any, tuning: Tuning, flat: Flat, rows: Ints, queries: Floats, list_of: Lists, *, sizes: Ints, passing: Ints
) -> float:
    """How many times the lists of `nearby` it takes for the `rows` (n,) that pass a filter: measured on a sample of
    them, since a filter may keep a corner of the space that most queries are far from; 1 for one that keeps any."""
    some = min(len(rows), SLACK_VALUES // flat.dim)
    sample = rows[np.linspace(0, len(rows) - 1, some).astype(np.int64)]
    depth = max(1, round(10 * some / len(rows)))
    _, places = of(flat.codes[sample]).search(queries, depth)
    ranks = _ranks(index, queries, list_of[sample[places]])
    looked = nearby(index, tuning, queries, math.ceil(depth * len(rows) / some), sizes=sizes, passing=passing)
    ratios = np.maximum(1.0, ranks / looked[:, None])
    return float(np.quantile(ratios, 1 - (1 - tuning.wanted) / 2))

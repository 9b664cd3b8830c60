"""The search index of one embedding: its vectors (`flat`), and from some size on inverted lists before them (`ivf`).

Small embeddings are searched exactly; large ones to the recall that was asked for when the index was built, which is
measured then. Under a filter the rows that pass are counted first: few are compared one by one, many are looked for in
as many lists as it takes. Distances are Euclidean, between stored vectors; `row` is the id inside FAISS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.indexing import flat, isolation, ivf, lists
from redshelf.indexing.files import read_json
from redshelf.indexing.flat import Flat, Floats, Halves, Ints
from redshelf.models.errors import BadInput, Conflict, NotFound

VECTORS, KNOWN, MANIFEST = "vectors.faiss", "known.npy", "manifest.json"
INDEX, LISTS, LIST_OF = "all.faiss", "all.lists", "list_of.npy"  # what was trained, its lists, the list of each row
RECALL_QUERIES, RECALL_K = 100, 10
EXACT_VALUES = 2**25  # numbers that are compared in milliseconds: smaller embeddings need no inverted lists
FEW_VALUES = 2**23  # likewise in less than one: of rows that pass a filter
AT_RANDOM, PROBES = 1.05, 12  # the slack of a filter that keeps any part of the space, and queries to measure others by

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows that a search is restricted to, as an index wants them; kept, since people ask on under one filter."""

    mask: Bools  # (N,)
    count: int
    selector: Any
    few: tuple[Any, Ints] | None  # of few rows: a FAISS index of their vectors, and which they are
    passing: Ints  # of each inverted list, how many
    slack: float  # how many times as many lists it takes as for rows that pass at random
    candidates: int  # and how many times as many candidates


@dataclass(frozen=True, eq=False)
class Lists:
    """The inverted lists of an index, which list each row is in, and what was measured on them."""

    index: Any
    refined: Any  # the same, with the vectors behind them
    list_of: ivf.Lists  # (N,), mapped
    tuning: ivf.Tuning

    @cached_property
    def sizes(self) -> Ints:
        """Rows of each list."""
        return np.array([self.index.invlists.list_size(number) for number in range(self.index.nlist)])


@dataclass(frozen=True, eq=False)
class Index:
    """An open index: search parameters are passed per call, so that callers share it without a lock."""

    flat: Flat
    lists: Lists | None  # None: exact
    known: Bools  # (N,), False where the encoder had nothing to see: such a row is never found
    recall: float
    hides: bool = False  # whether the lists have rows that are never found
    isolated: isolation.Isolated = isolation.NONE
    _everything: list[Selection] = field(default_factory=list, repr=False)

    @property
    def exact(self) -> bool:
        return self.lists is None

    @property
    def dim(self) -> int:
        return self.flat.dim

    def without(self, rows: Bools) -> Index:
        """The same index, which never finds the rows (N,) given."""
        if not (self.known & rows).any():
            return self
        return replace(self, known=self.known & ~rows, hides=True, _everything=[])

    def take(self, rows: Ints | slice) -> Halves:
        """Stored vectors, (n, dim)."""
        return self.flat.take(rows)

    def select(self, mask: Bools) -> Selection:
        """Restrict searches to the rows (N,) that `mask` has, and that can be found at all."""
        mask = mask & self.known
        rows = np.flatnonzero(mask)
        few = len(rows) * self.dim <= FEW_VALUES
        passing, slack, candidates = np.empty(0, dtype=np.int64), 1.0, 1
        if self.lists is not None and not few:
            its = self.lists
            passing = np.bincount(its.list_of[rows], minlength=its.index.nlist)
            asked = np.random.default_rng(0).integers(0, len(self.known), ivf.SLACK_QUERIES)
            queries = self.take(asked[self.known[asked] & ~mask[asked]]).astype(np.float32)
            if len(queries) >= ivf.SLACK_QUERIES // 4:  # else nearly all pass
                told = {"sizes": its.sizes, "passing": passing}
                slack = ivf.slack(its.index, its.tuning, self.flat, rows, queries, its.list_of, **told)
        vectors = (flat.of(self.flat.codes[rows]), rows) if few else None
        found = Selection(mask, len(rows), flat.selector_of(mask), vectors, passing, slack, candidates)
        if slack <= AT_RANDOM or self.lists is None:
            return found
        asking = queries[:PROBES]
        true, _ = self.flat.search(asking, min(RECALL_K, len(rows)), selector=found.selector)
        for candidates in (1, 2, 4, 8, 16):  # the codes tell far vectors apart less well than near ones
            found = replace(found, candidates=candidates)
            got, _ = self._look(self.lists, asking, RECALL_K, found)
            if (got[:, : true.shape[1]] <= true[:, -1:] * (1 + 1e-5)).mean() >= self.lists.tuning.wanted:
                break
        return found

    def _findable(self, exact: bool) -> Selection | None:
        """All rows that can be found, None where that is every row that is looked at."""
        if not self.hides and not (exact and self.findable < len(self.known)):
            return None
        if not self._everything:
            self._everything.append(self.select(self.known))
        return self._everything[0]

    def search(
        self, queries: Floats, k: int, *, among: Selection | None = None, exact: bool = False
    ) -> tuple[Floats, Ints]:
        """The `k` nearest rows of each query: distances (Q, k) and rows (Q, k), padded with inf and -1.

        `among` restricts the rows, `exact` compares with every one of them. Raises `BadInput` on a wrong dimension and
        on values that are not finite.
        """
        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise BadInput(f"a query vector has {queries.shape[-1]} numbers: expected {self.dim}")
        if not np.isfinite(queries).all():
            raise BadInput("query vector holds NaN or infinity")
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        exact = exact or self.lists is None
        among = self._findable(exact) if among is None else among
        if among is not None and among.few is not None:
            squared, rows = _among_few(among.few, queries, k)
        elif exact or self.lists is None:
            squared, rows = self.flat.search(queries, k, selector=None if among is None else among.selector)
        else:
            squared, rows = self._look(self.lists, queries, k, among)
        distance = np.where(rows >= 0, np.sqrt(squared), np.float32(np.inf))
        beyond = k - rows.shape[1]
        if not beyond:
            return distance, rows
        padding = ((0, 0), (0, beyond))
        return np.pad(distance, padding, constant_values=np.inf), np.pad(rows, padding, constant_values=-1)

    @cached_property
    def findable(self) -> int:
        """How many rows can be found."""
        return int(self.known.sum())

    def _look(self, lists: Lists, queries: Floats, k: int, among: Selection | None) -> tuple[Floats, Ints]:
        tuning, most = lists.tuning, lists.index.nlist
        times = 1 if among is None else among.candidates
        told: dict[str, Any] = {"factor": times * tuning.factor(k)}
        told["selector"] = None if among is None else among.selector
        if among is None:
            needed = min(most, math.ceil(tuning.lists(np.array([max(k, RECALL_K)]))[0]))
            return ivf.search(lists.refined, queries, k, lists=needed, **told)
        of_each = ivf.nearby(lists.index, tuning, queries, max(k, RECALL_K), sizes=lists.sizes, passing=among.passing)
        of_each = np.minimum(most, np.ceil(of_each * among.slack).astype(np.int64))
        steps = np.minimum(most, 2 ** np.ceil(np.log2(of_each)).astype(np.int64)) if len(queries) > 1 else of_each
        squared, rows = np.full((len(queries), k), np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        for step in np.unique(steps):
            at = steps == step
            squared[at], rows[at] = ivf.search(lists.refined, queries[at], k, lists=int(step), **told)
        return squared, rows


def _among_few(few: tuple[Any, Ints], queries: Floats, k: int) -> tuple[Floats, Ints]:
    index, among = few
    k = min(k, len(among))
    if not k:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    squared, places = index.search(queries, k)
    return squared, np.where(places >= 0, among[places], -1)


def brute_force(
    vectors: Halves, queries: Floats, k: int, *, rows: Ints | None = None
) -> tuple[npt.NDArray[np.float64], Ints]:
    """Exact neighbours among `rows` (all by default) by direct differences in float64: the oracle of every index."""
    among = np.arange(len(vectors)) if rows is None else rows
    k = min(k, len(among))
    best = np.full((len(queries), k), np.inf)
    nearest = np.full((len(queries), k), -1, dtype=np.int64)
    for start in range(0, len(among), 16384):
        part = among[start : start + 16384]
        block = vectors[part].astype(np.float64)
        for i, query in enumerate(queries.astype(np.float64)):
            squared = np.concatenate([best[i], ((block - query) ** 2).sum(axis=1)])
            kept = np.argsort(squared, kind="stable")[:k]
            best[i], nearest[i] = squared[kept], np.concatenate([nearest[i], part])[kept]
    return np.sqrt(best), nearest


def measure(index: Index, *, queries: int = RECALL_QUERIES, seed: int = 0) -> float:
    """The fraction of true neighbours that a search finds, on stored vectors; a tie in distance counts as found."""
    known = np.flatnonzero(index.known)
    rows = np.sort(np.random.default_rng(seed).choice(known, min(queries, len(known)), replace=False))
    vectors = index.take(rows).astype(np.float32)
    k = min(RECALL_K + 1, len(known))  # each finds itself, which does not count
    true, _ = index.search(vectors, k, exact=True)
    found, _ = index.search(vectors, k)
    reached = (found <= true[:, -1:] * (1 + 1e-5) + 1e-6)[:, 1:] if k > 1 else np.ones((len(rows), 1), dtype=bool)
    return float(reached.mean())


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; `NotFound` where the index was not built or its build did not finish."""
    if not (folder / MANIFEST).is_file():
        name = folder.parent.name
        again = f"run `redshelf index --encoder {name.rpartition('.')[0]}`"
        raise NotFound(f"no index for {name} of {folder.name} rows; {again}")
    document: dict[str, Any] = read_json(folder / MANIFEST)
    return document


def open_vectors(folder: Path, told: dict[str, Any] | None = None) -> Flat:
    """The vectors of an index alone; `Conflict` where their file is not what its manifest says."""
    told = read_manifest(folder) if told is None else told
    return flat.open_flat(folder / VECTORS, rows=told["rows"], dim=told["dim"])


def open_index(folder: Path, told: dict[str, Any] | None = None) -> Index:
    """Open an index that `assembly` made, by its manifest or what that will say; `Conflict` where a size differs."""
    import faiss

    told = read_manifest(folder) if told is None else told
    vectors = open_vectors(folder, told)
    known = np.asarray(np.load(folder / KNOWN, mmap_mode="r"))  # mapped still, and faster to take from
    if known.shape != (len(vectors),) or known.sum() != told["vectors"]:
        raise Conflict(f"{folder / KNOWN}: {known.sum()} vectors of {known.size}, its manifest says {told['vectors']}")
    its = None
    if told["kind"] == "ivf":
        index = lists.mapped(folder / LISTS, faiss.read_index(str(folder / INDEX), faiss.IO_FLAG_MMAP_IFC))
        if (index.ntotal, index.d, index.nlist) != (told["vectors"], told["dim"], told["lists"]):
            raise Conflict(f"{folder / LISTS}: holds {index.ntotal} x {index.d}, its manifest says otherwise")
        coverage, factors = (tuple((a, b) for a, b in told[name]) for name in ("coverage", "factors"))
        tuning = ivf.Tuning(coverage, factors, (), told["recall"]["value"], told["recall"]["wanted"])
        its = Lists(index, ivf.refined(index, vectors), np.asarray(np.load(folder / LIST_OF, mmap_mode="r")), tuning)
    being_made = "files" not in told
    isolated = isolation.NONE if being_made else isolation.read(folder / isolation.ISOLATED, rows=len(vectors))
    return Index(vectors, its, known, told["recall"]["value"], isolated=isolated)

"""The k nearest of labelled points: the three ways to find them, each where it is the fastest.

A k-d tree in few dimensions, products of matrices in many, and inverted lists where labels are many too. The first two
are exact. Lists are trained on the labels, with as many of them looked through as find 99.5% of the true neighbours;
their centres are stored, so that every process answers alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.threads import default_threads

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TREE_DIM = 10  # of 10,000 normal points, where a tree is slowest: 14 us against 44 in 6 dimensions, 56 against 39 in 10
LEAF = 32
MANY = 256  # queries for which threads are worth their start
LISTS_ROWS = 20_000  # fewer are compared one by one
POINTS_A_LIST = 40  # FAISS warns of fewer
PROBES = (8, 16, 32, 64, 128)
LISTS_RECALL, RECALL_ROWS, RECALL_K = 0.995, 1000, 40
SPARE = 8  # products of matrices may swap near ties at the end of a list: look a little further
BLOCK = 2048


def no_centres() -> npt.NDArray[np.float32]:
    """Of a bank without lists."""
    return np.zeros((0, 0), dtype=np.float32)


@dataclass(frozen=True)
class Bank:
    """`points` (L, D). `centres` (C, D) of inverted lists, `probe` of which are looked through; (0, D) for none."""

    points: npt.NDArray[np.floating]
    centres: npt.NDArray[np.float32] = field(default_factory=no_centres)
    probe: int = 0

    def nearest(self, queries: npt.ArrayLike, k: int, *, exclude: npt.ArrayLike | None = None) -> tuple[Floats, Ints]:
        """Distances (N, k), ascending, and rows (N, k) of the k points nearest to each of `queries` (N, D).

        `exclude` (N,) or (N, m): rows that a query must not see, -1 for none. `BadInput` when under k remain.
        """
        asked = np.asarray(queries)
        banned = None if exclude is None else np.asarray(exclude, dtype=np.int64).reshape(len(asked), -1)
        spare = 0 if banned is None else banned.shape[1]
        if not 1 <= k <= len(self.points) - spare:
            raise BadInput(f"k={k}: expected 1 to {len(self.points) - spare}, the labelled sources left")
        if self.has_few_dimensions:
            distance, found = self._in_tree(asked, k + spare)
        elif len(self.centres):
            distance, found = self._in_lists(asked, k + spare)
        else:
            distance, found = self._one_by_one(asked, min(k + spare + SPARE, len(self.points)))
        if banned is not None:
            hidden = np.zeros(found.shape, dtype=bool)
            for column in banned.T:
                hidden |= found == column[:, None]
            distance = np.where(hidden, np.inf, distance)
            order = np.argsort(distance, axis=1, kind="stable")[:, :k]
            return np.take_along_axis(distance, order, axis=1), np.take_along_axis(found, order, axis=1)
        return distance[:, :k], found[:, :k]

    @cached_property
    def has_few_dimensions(self) -> bool:
        """Whether a tree is the fastest: at most 10 columns vary."""
        return int((np.ptp(self.points, axis=0) > 0).sum()) <= TREE_DIM

    @cached_property
    def _tree(self) -> Any:
        from scipy.spatial import cKDTree

        return cKDTree(self.points, leafsize=LEAF, balanced_tree=False)

    def _in_tree(self, queries: npt.NDArray[Any], k: int) -> tuple[Floats, Ints]:
        workers = default_threads() if len(queries) >= MANY else 1
        distance, found = self._tree.query(queries, k=np.arange(1, k + 1), workers=workers)
        return distance, found.astype(np.int64)

    def _one_by_one(self, queries: npt.NDArray[Any], k: int) -> tuple[Floats, Ints]:
        import faiss

        points = np.ascontiguousarray(queries, dtype=np.float32)
        _, found = faiss.knn(points, np.ascontiguousarray(self.points, dtype=np.float32), k)
        square = np.empty(found.shape)
        for start in range(0, len(points), BLOCK):
            rows = slice(start, start + BLOCK)
            offset = self.points[found[rows]] - queries[rows, None]  # (n, k, D)
            square[rows] = np.einsum("nkd,nkd->nk", offset, offset)
        order = np.argsort(square, axis=1, kind="stable")
        found = np.take_along_axis(found, order, axis=1).astype(np.int64)
        return np.sqrt(np.take_along_axis(square, order, axis=1)), found

    @cached_property
    def _lists(self) -> Any:
        import faiss

        quantizer = faiss.IndexFlatL2(self.points.shape[1])
        quantizer.add(self.centres)
        index = faiss.IndexIVFFlat(quantizer, self.points.shape[1], len(self.centres))
        index.is_trained = True
        index.add(np.ascontiguousarray(self.points, dtype=np.float32))
        index.nprobe = self.probe
        return index

    def _in_lists(self, queries: npt.NDArray[Any], k: int) -> tuple[Floats, Ints]:
        square, found = self._lists.search(np.ascontiguousarray(queries, dtype=np.float32), k)
        distance, found = np.sqrt(np.maximum(square, 0), dtype=np.float64), found.astype(np.int64)
        short = found[:, -1] < 0  # too few in the lists that were looked through
        if short.any():
            near = self._one_by_one(queries[short], k)
            distance[short], found[short] = near
        return distance, found


def fit_bank(points: npt.ArrayLike, *, seed: int = 0) -> Bank:
    """A bank of labelled `points` (L, D), with lists where they are many, in many dimensions, and lists find them."""
    import faiss

    base = np.ascontiguousarray(points, dtype=np.float32)
    exact = Bank(base)
    if exact.has_few_dimensions or len(base) <= LISTS_ROWS:
        return exact
    lists = int(min(4 * len(base) ** 0.5, len(base) / POINTS_A_LIST))
    means = faiss.Kmeans(base.shape[1], lists, niter=10, seed=seed + 1, max_points_per_centroid=64)
    means.train(base)
    rows = np.sort(np.random.default_rng(seed).permutation(len(base))[:RECALL_ROWS])
    _, truth = exact.nearest(base[rows], RECALL_K, exclude=rows)
    for probe in PROBES:
        tried = Bank(base, np.asarray(means.centroids), probe)
        _, found = tried.nearest(base[rows], RECALL_K, exclude=rows)
        if np.mean([np.isin(a, b).mean() for a, b in zip(truth, found, strict=True)]) >= LISTS_RECALL:
            return tried
    return exact


def exact_neighbours(
    bank: npt.ArrayLike, queries: npt.ArrayLike, k: int, *, exclude: npt.ArrayLike | None = None
) -> tuple[Floats, Ints]:
    """`Bank.nearest` among `bank` (L, D), exact."""
    return Bank(np.asarray(bank)).nearest(queries, k, exclude=exclude)

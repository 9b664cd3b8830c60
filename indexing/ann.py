"""The FAISS index of one embedding and its row-ordered float16 vectors.

Exact search (`IndexFlatL2`) for now: right at every size, fast to some hundred thousand rows. Distances are Euclidean
(FAISS returns their square); `row` is the id inside FAISS.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from redshelf.indexing.files import manifest, read_json, write_bytes, write_json, write_with
from redshelf.models.errors import BadInput, Conflict, NotFound

VECTORS, INDEX, MANIFEST = "vectors.f16", "all.faiss", "manifest.json"
RECALL_QUERIES, RECALL_K = 100, 10
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Index:
    """An open index: search parameters are passed per call, so that callers share it without a lock."""

    faiss_index: Any
    vectors: npt.NDArray[np.float16]  # (N, dim), memory-mapped
    known: npt.NDArray[np.bool_]  # (N,), False where the encoder had nothing to see: such a row is never found
    exact: bool
    recall: float
    hides: bool = False  # whether there are rows in it that are never found

    def without(self, rows: npt.NDArray[np.bool_]) -> Index:
        """The same index, which never finds the rows (N,) given."""
        hides = bool((self.known & rows).any())
        return replace(self, known=self.known & ~rows, hides=hides) if hides else self

    @property
    def dim(self) -> int:
        return int(self.vectors.shape[1])

    def search(
        self, queries: Floats, k: int, *, mask: npt.NDArray[np.bool_] | None = None
    ) -> tuple[Floats, npt.NDArray[np.int64]]:
        """The `k` nearest rows of each query: distances (Q, k) and rows (Q, k), padded with inf and -1.

        `mask` (N,) bool restricts the rows. Raises `BadInput` on a wrong dimension and on values that are not finite.
        """
        import faiss

        if queries.ndim != 2 or queries.shape[1] != self.dim:
            raise BadInput(f"a query vector has {queries.shape[-1]} numbers: expected {self.dim}")
        if not np.isfinite(queries).all():
            raise BadInput("query vector holds NaN or infinity")
        parameters = None
        mask = self.known if mask is None and self.hides else mask
        if mask is not None:
            bits = np.packbits(mask, bitorder="little")
            selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bits))
            parameters = faiss.SearchParameters(sel=selector)
        found = min(k, self.faiss_index.ntotal)
        squared, rows = self.faiss_index.search(
            np.ascontiguousarray(queries, dtype=np.float32), found, params=parameters
        )
        distance = np.where(rows >= 0, np.sqrt(np.maximum(squared, 0)), np.inf).astype(np.float32)
        return distance, rows


def brute_force(
    vectors: npt.NDArray[np.float16], queries: Floats, k: int, *, rows: npt.NDArray[np.int64] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
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


def _recall(index: Any, vectors: npt.NDArray[np.float16], seed: int = 0) -> float:
    """Fraction of true neighbours found, on stored vectors as queries; a tie in distance counts as found."""
    import faiss

    known = np.sort(faiss.vector_to_array(index.id_map))
    rows = np.random.default_rng(seed).choice(known, min(RECALL_QUERIES, len(known)), replace=False)
    queries = vectors[np.sort(rows)].astype(np.float32)
    k = min(RECALL_K, len(known))
    true_distance, _ = brute_force(vectors, queries, k, rows=known)
    squared, _ = index.search(queries, k)
    reached = np.sqrt(np.maximum(squared, 0)) <= true_distance[:, -1:] * (1 + 1e-3) + 1e-6
    return float(reached.mean())


def build(
    folder: Path, batches: Iterable[npt.NDArray[np.float16]], *, rows: int, dim: int, provenance: dict[str, Any]
) -> None:
    """Write `vectors.f16`, `all.faiss` and last `manifest.json` from row-ordered batches of (n, dim) float16."""
    import faiss

    if rows == 0:
        raise BadInput("cannot index an embedding without rows")

    def fill(handle: BinaryIO) -> None:
        written = 0
        for batch in batches:
            if not np.isfinite(batch).all():
                raise BadInput(f"embedding holds NaN or infinity near row {written}: embed again")
            handle.write(np.ascontiguousarray(batch, dtype=np.float16).tobytes())
            written += len(batch)
        if written != rows:
            raise BadInput(f"embedding has {written} rows, expected {rows}")

    write_with(folder / VECTORS, fill)
    vectors = np.memmap(folder / VECTORS, dtype=np.float16, mode="r", shape=(rows, dim))
    index = faiss.IndexIDMap(faiss.IndexFlatL2(dim))
    for start in range(0, rows, 65536):
        block = vectors[start : start + 65536].astype(np.float32)
        known = np.flatnonzero(block.any(axis=1))
        index.add_with_ids(block[known], start + known)
    if index.ntotal == 0:
        raise BadInput("cannot index an embedding whose every vector is zero: the encoder saw no source")
    recall = _recall(index, vectors)
    blob = faiss.serialize_index(index).tobytes()
    write_bytes(folder / INDEX, blob)
    write_json(
        folder / MANIFEST,
        {
            **provenance,
            "kind": "flat",
            "exact": True,
            "rows": rows,
            "vectors": index.ntotal,
            "dim": dim,
            "recall": {"k": RECALL_K, "queries": RECALL_QUERIES, "value": recall},
            "files": manifest(folder, [folder / VECTORS, folder / INDEX]),
        },
    )


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest; `NotFound` where the index was not built or its build did not finish."""
    if not (folder / MANIFEST).is_file():
        name = folder.parent.name
        again = f"run `redshelf index --encoder {name.rpartition('.')[0]}`"
        raise NotFound(f"no index for {name} of {folder.name} rows; {again}")
    document: dict[str, Any] = read_json(folder / MANIFEST)
    return document


def open_index(folder: Path) -> Index:
    """Open an index that `build` wrote. `Conflict` where its size is not what the manifest says."""
    import faiss

    document = read_manifest(folder)
    rows, dim = document["rows"], document["dim"]
    if (folder / VECTORS).stat().st_size != rows * dim * 2:
        raise Conflict(f"{folder / VECTORS}: {(folder / VECTORS).stat().st_size} bytes, expected {rows * dim * 2}")
    index = faiss.read_index(str(folder / INDEX))
    if (index.ntotal, index.d) != (document["vectors"], dim):
        raise Conflict(f"{folder / INDEX}: holds {index.ntotal} x {index.d}, its manifest says otherwise")
    vectors = np.memmap(folder / VECTORS, dtype=np.float16, mode="r", shape=(rows, dim))
    known = np.zeros(rows, dtype=bool)
    known[faiss.vector_to_array(index.id_map)] = True
    return Index(index, vectors, known, exact=document["exact"], recall=document["recall"]["value"])

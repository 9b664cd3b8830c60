"""Embeddings in two dimensions, to be looked at: UMAP (McInnes, Healy & Melville 2018) of a sample, or its two
principal components.

UMAP says where the vectors of a sample lie; every other one lies among the sampled vectors nearest to it, at the mean
of their places weighted by how near they are, which costs one search. Principal components are two products.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

Method = Literal["umap", "pca"]
NEIGHBOURS = 15  # of UMAP, where the sample is large enough: what it takes for near
COMPARED = 64  # principal components by which UMAP compares longer vectors: nine times as fast as with 384 numbers
NEAREST = 5  # sampled vectors that place another one
EXACT = 20_000  # sampled vectors that are all compared; more are looked for by lists
LISTS, LOOKED_INTO = 512, 8
BLOCK = 16_384
OFFSET = 1e-6  # of the distance to the farthest of them, so that a vector of the sample lies where that one does

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Components:
    """The directions (n, dim), usually two, in which vectors vary most about their mean (dim,), and their shares of all
    that they vary (n,)."""

    mean: Floats
    axes: Floats
    shares: npt.NDArray[np.float64]

    def place(self, vectors: Floats) -> Floats:
        return np.asarray((vectors - self.mean) @ self.axes.T)


def components(sample: Floats, n: int = 2) -> Components:
    """The first `n` principal components of a sample (N, dim). The largest number of each is positive, so that the same
    sample gives the same."""
    mean = sample.mean(axis=0, dtype=np.float64)
    products = np.zeros((len(mean), len(mean)))
    for start in range(0, len(sample), BLOCK):  # in float64, which all of a large sample would fill the memory with
        centred = sample[start : start + BLOCK].astype(np.float64) - mean
        products += centred.T @ centred
    variance, directions = np.linalg.eigh(products / max(1, len(sample)))
    axes = directions[:, ::-1][:, :n].T
    if len(axes) < n:  # of vectors of one number
        axes = np.vstack([axes, np.zeros((n - len(axes), len(mean)))])
    largest = np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1)
    axes = axes * np.where(largest < 0, -1, 1)
    total = variance.sum()
    shares = np.zeros(n)
    if total > 0:
        shares[: len(mean)] = np.clip(variance[::-1][:n], 0, None) / total
    return Components(mean.astype(np.float32), axes.astype(np.float32), shares)


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """The places (n, 2) of sampled vectors, and a FAISS index of the vectors: of as many components as they were
    compared by, where they have more numbers."""

    index: Any
    places: Floats
    compared_by: Components | None = None

    def place(self, vectors: Floats) -> Floats:
        k = min(NEAREST, len(self.places))
        if self.compared_by is not None:
            vectors = self.compared_by.place(vectors)
        squared, near = self.index.search(np.ascontiguousarray(vectors, dtype=np.float32), k)
        found = near >= 0  # lists may hold fewer
        distance = np.sqrt(np.where(found, np.maximum(squared, 0), 0))
        weight = np.where(found, 1 / (distance + OFFSET * distance.max(axis=1, keepdims=True) + 1e-30), 0)
        weight /= weight.sum(axis=1, keepdims=True)
        return np.asarray(np.einsum("nk,nkd->nd", weight, self.places[near]), dtype=np.float32)


def neighbourhood(sample: Floats, places: Floats, *, seed: int = 0) -> Neighbourhood:
    """What places vectors among those of a sample (n, dim), whose `places` (n, 2) are known."""
    import faiss

    sample = np.ascontiguousarray(sample, dtype=np.float32)
    flat = faiss.IndexFlatL2(sample.shape[1])
    if len(sample) <= EXACT:
        flat.add(sample)
        return Neighbourhood(flat, places.astype(np.float32))
    index = faiss.IndexIVFFlat(flat, sample.shape[1], LISTS)
    index.own_fields = True
    flat.this.disown()
    index.cp.seed, index.nprobe = seed + 1, LOOKED_INTO
    index.train(sample)
    index.add(sample)
    return Neighbourhood(index, places.astype(np.float32))


def has_umap() -> bool:
    """Whether the `map` extra is installed."""
    return find_spec("umap") is not None


def by_umap(sample: Floats, *, seed: int = 0) -> Neighbourhood:
    """UMAP of a sample (n, dim), which takes minutes for 100,000 vectors; `BadInput` without the `map` extra."""
    if not has_umap():
        raise BadInput("method umap needs the `map` extra: pip install 'redshelf[map]', or take method pca")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a part of it that nobody asked for would need Tensorflow
        import umap

    fewer = components(sample, COMPARED) if sample.shape[1] > COMPARED else None
    sample = sample if fewer is None else fewer.place(sample)
    neighbours = max(2, min(NEIGHBOURS, len(sample) - 1))
    # one thread, as umap-learn does with a seed: the same sample gives the same map
    places = umap.UMAP(n_components=2, n_neighbors=neighbours, random_state=seed, n_jobs=1).fit_transform(sample)
    return replace(neighbourhood(sample, np.asarray(places), seed=seed), compared_by=fewer)

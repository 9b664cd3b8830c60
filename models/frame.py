"""From named features to the space in which redshifts are estimated, and to what the trees see.

Names say what a column is: "u-g" an adjacent colour, "i" the reference magnitude, "observed_g" a state, "e0", "e1", ...
an embedding. Photometry is standardised by the labels; the embedding by labels and target, then projected by PCA.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.boost import pair_colours
from redshelf.models.errors import BadInput
from redshelf.models.knn import MAX_DIM

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Frame:
    """From named features to the neighbour space: photometry standardised by the labels, embedding ("e0", "e1", ...)
    standardised and projected by PCA; together at most 64 dimensions. The embedding's total variance is
    `embedding_scale`^2 times the number of photometric columns (of one, without photometry)."""

    names: tuple[str, ...]
    centre: Floats  # (D,)
    scale: Floats  # (D,)
    components: Floats  # (C, E), unit total variance
    embedding_scale: float
    left_out: tuple[str, ...] = ()  # photometric columns that estimators do not see; support still may

    @property
    def is_embedding(self) -> npt.NDArray[np.bool_]:
        """(D,) True for the columns of the embedding."""
        return embedding_columns(self.names)

    @property
    def _kept(self) -> npt.NDArray[np.bool_]:
        """(P,) which photometric columns the estimators see."""
        photometric = [name for name, flag in zip(self.names, self.is_embedding, strict=True) if not flag]
        return np.array([name not in self.left_out for name in photometric], dtype=bool)

    def parts(self, features: npt.ArrayLike) -> tuple[Floats, Floats]:
        """Standardised photometry (N, P), and PCA of the embedding (N, C), scaled against it."""
        x = (checked(features, self.names) - self.centre) / self.scale
        split = self.is_embedding
        size = self.embedding_scale * np.sqrt(max((~split).sum(), 1))
        return x[:, ~split], size * (x[:, split] @ self.components.T)

    def transform(self, features: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """The neighbour space, (N, P + C)."""
        photometry, embedding = self.parts(features)
        return np.concatenate([photometry[:, self._kept], embedding], axis=1).astype(np.float32)

    def trees(self, features: npt.ArrayLike) -> Floats:
        """Photometry as it is with all its colours, and the PCA of the embedding: what the trees see."""
        x, split = checked(features, self.names), self.is_embedding
        kept = ~split & np.array([name not in self.left_out for name in self.names], dtype=bool)
        names = tuple(name for name, flag in zip(self.names, kept, strict=True) if flag)
        return np.concatenate([pair_colours(x[:, kept], names)[0], self.parts(x)[1]], axis=1)

    @property
    def own_space(self) -> str | None:
        """Which of `spaces` is the neighbour space itself; None where columns are left out of that."""
        both = self.is_embedding.any() and not self.is_embedding.all()
        name = "embedding" if self.is_embedding.all() else "colours+magnitude"
        return None if self.left_out else "embedding+colours+magnitude" if both else name

    def spaces(self, features: npt.ArrayLike) -> dict[str, Floats]:
        """Where support can be measured: colours, photometry, embedding, both; those that these features hold."""
        photometry, embedding = self.parts(features)
        names = [name for name, flag in zip(self.names, self.is_embedding, strict=True) if not flag]
        colour = np.array([not is_magnitude(name) for name in names], dtype=bool)
        out = {}
        if photometry.shape[1]:
            out["colours+magnitude"] = photometry
            if 0 < colour.sum() < len(colour):
                out["colours"] = photometry[:, colour]
        if embedding.shape[1]:
            out["embedding"] = embedding
            if photometry.shape[1]:
                out["embedding+colours+magnitude"] = np.concatenate([photometry, embedding], axis=1)
        return out


def embedding_columns(names: tuple[str, ...]) -> npt.NDArray[np.bool_]:
    """(D,) True for the names "e0", "e1", ..."""
    return np.array([bool(re.fullmatch(r"e\d+", name)) for name in names], dtype=bool)


def is_magnitude(name: str) -> bool:
    """Whether a feature's name is a plain band, the reference magnitude, and no colour, state or embedding column."""
    return not ("-" in name or name.startswith("observed_") or re.fullmatch(r"e\d+", name))


def checked(features: npt.ArrayLike, names: tuple[str, ...]) -> Floats:
    """`features` as float64 (N, D); `BadInput` for another width, names given twice, NaN or infinity."""
    x = np.asarray(features, dtype=np.float64)
    if x.ndim != 2 or x.shape[1] != len(names) or len(names) == 0:
        raise BadInput(f"features of shape {x.shape}: expected (N, {len(names)}), one column a name")
    if len(set(names)) < len(names):
        raise BadInput(f"feature names {names}: expected each once")
    bad = ~np.isfinite(x).all(axis=0)
    if bad.any():
        raise BadInput(f"feature {names[int(bad.argmax())]!r} holds NaN or infinity: expected finite values")
    return x


def fit_frame(features: Floats, target: Floats, names: tuple[str, ...]) -> Frame:
    """Centre and scale photometry by the labels, the embedding by labels and target together; PCA on the latter."""
    embedding = embedding_columns(names)
    pool = np.concatenate([features, target])
    centre, scale = np.median(features, axis=0), features.std(axis=0)
    centre[embedding], scale[embedding] = pool[:, embedding].mean(axis=0), pool[:, embedding].std(axis=0)
    scale = np.where(
        scale > 1e-9 * (1 + np.abs(centre)), scale, 1.0
    )  # a constant feature says nothing, divides nothing
    components = np.zeros((0, 0))
    room = MAX_DIM - int((~embedding).sum())
    if room < int(embedding.any()):
        raise BadInput(f"{(~embedding).sum()} photometric features: expected at most {MAX_DIM - int(embedding.any())}")
    if embedding.any():
        standard = ((pool - centre) / scale)[:, embedding]
        variance, vectors = np.linalg.eigh(standard.T @ standard / len(standard))
        kept = [i for i in np.argsort(-variance)[:room] if variance[i] > 1e-6 * variance.sum()]
        components = vectors[:, kept].T / np.sqrt(max(variance.sum(), 1e-12))
    return Frame(names, centre, scale, components, 1.0)

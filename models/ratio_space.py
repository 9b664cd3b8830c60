"""The space in which density ratios are taken, and how targets of any number pass through it.

At most 16 dimensions: above that, counts in balls and kernels measure noise. Targets are read in blocks, so that a
memory map of 40 million rows stays on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MAX_DIM = 16
PCA_ROWS = 100_000
TARGET_ROWS = 512  # with BLOCK_PAIRS, a product of 16 MB, which stays near the cores
BLOCK_PAIRS = 2_000_000


@dataclass(frozen=True)
class Space:
    """Minus `centre` (P,), then onto `components` (P, Q); (P, 0) keeps the P columns as they are."""

    centre: Floats
    components: Floats

    def __call__(self, points: npt.ArrayLike, name: str = "points") -> Floats:
        """`points` (N, P) as float64 (N, Q); `BadInput` for another width, NaN or infinity."""
        x = np.asarray(points, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.centre):
            raise BadInput(f"{name} of shape {x.shape}: expected (N, {len(self.centre)})")
        if not np.isfinite(x).all():
            raise BadInput(f"{name} hold NaN or infinity: expected finite values")
        x = x - self.centre
        return x @ self.components if self.components.size else x

    def blocks(self, target: npt.NDArray[Any], step: int = TARGET_ROWS) -> Iterator[Floats]:
        """`target` (M, P), in order, by blocks of at most `step` rows."""
        for start in range(0, len(target), step):
            yield self(target[start : start + step], "target features")


def fit_space(
    labelled: npt.ArrayLike, target: npt.ArrayLike, *, least: int = 1, seed: int = 0
) -> tuple[Space, Floats, npt.NDArray[Any]]:
    """The space, the labels in it (L, Q), and `target` (M, P) as it came (a memory map stays one).

    Centred on the labels: small norms keep expanded squares exact. With P > 16 the 16 leading components of labels and
    target, each counted as half, so that the direction of the shift is among them. `BadInput` for under 2 labels, under
    `least` targets, unequal widths, NaN among the labels.
    """
    bank, wanted = np.asarray(labelled, dtype=np.float64), np.asarray(target)
    if bank.ndim != 2 or wanted.ndim != 2 or bank.shape[1] != wanted.shape[1] or len(bank) < 2 or len(wanted) < least:
        raise BadInput(f"labelled {bank.shape}, target {wanted.shape}: expected (N >= 2, D) and (M >= {least}, D)")
    if bank.shape[1] == 0:
        raise BadInput("labelled and target have no columns: expected at least one observable")
    if not np.isfinite(bank).all():
        raise BadInput("labelled features hold NaN or infinity: expected finite values")
    centre = bank.mean(axis=0)
    plain = Space(centre, np.zeros((len(centre), 0)))
    if len(centre) <= MAX_DIM:
        return plain, bank - centre, wanted
    near, far = bank - centre, plain(wanted[sampled(len(wanted), PCA_ROWS, seed)], "target features")
    _, vectors = np.linalg.eigh(near.T @ near / len(near) + far.T @ far / len(far))
    space = Space(centre, np.ascontiguousarray(vectors[:, : -MAX_DIM - 1 : -1]))
    return space, near @ space.components, wanted


def sampled(n: int, most: int, seed: int) -> Ints:
    """All of 0..n-1, or `most` of them drawn without replacement; ascending."""
    if n <= most:
        return np.arange(n)
    return np.sort(np.random.default_rng(seed).choice(n, most, replace=False, shuffle=False))


def counts_within(
    balls: Floats, squares: Floats, n_labels: int, space: Space, target: npt.NDArray[Any], block_pairs: int
) -> tuple[Ints, int]:
    """How many of `target` (M, P) lie in each ball (C, Q) of squared radius (C,), and how many in any of the first
    `n_labels` balls.

    Exact, by products of matrices; the memory does not grow with M. 100,000 balls in 16 dimensions take 1M targets in
    205 s of one core, 40M in 2.3 hours. Looking in FAISS lists for the 256 nearest labels of each target takes half of
    that and misses three quarters of the counts (`benchmarks/shift.py`). Points on the sphere are inside.
    """
    norm = (balls**2).sum(axis=1)
    # Equal distances (a label that is also a target) must be inside on both sides of rounding.
    limit = squares * (1 + 1e-9) + 1e-14 * norm + 1e-24
    left = np.column_stack([balls, 0.5 * (limit - norm), np.ones(len(balls))])
    counts, reached = np.zeros(len(balls), dtype=np.int64), 0
    rows = max(1, block_pairs // TARGET_ROWS)
    for block in space.blocks(target):
        right = np.vstack([block.T, np.ones(len(block)), -0.5 * (block**2).sum(axis=1)])
        found = np.zeros(len(block), dtype=bool)
        for start in range(0, len(balls), rows):
            inside = left[start : start + rows] @ right >= 0  # d^2 <= r^2, rearranged: one comparison a pair
            counts[start : start + rows] += np.count_nonzero(inside, axis=1)
            found |= inside[: max(0, n_labels - start)].any(axis=0)
        reached += int(found.sum())
    return counts, reached

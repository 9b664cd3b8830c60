"""The self-query: vectors that an embedding stores are looked for through its index, and must find themselves.

It is asked before a generation is published and before one is served: the sha256 of a file tells that it is the file
that was written, and not that it answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.indexing import ann
from redshelf.models.errors import Conflict

QUERIES = 100  # vectors of each encoder, fewer where there are fewer
SIGMAS = 3  # by which so few of them may fall short of the promise by chance

Ints = npt.NDArray[np.int64]
Stored = Callable[[Ints], npt.NDArray[np.float16]]  # rows (n,) -> vectors (n, dim)


@dataclass(frozen=True)
class SelfQuery:
    """How many of the vectors `asked` have `found` themselves, and how many were `expected` to."""

    asked: int
    found: int
    expected: int

    @property
    def passed(self) -> bool:
        return self.found >= self.expected

    def __str__(self) -> str:
        return f"{self.found} of {self.asked} stored vectors find themselves, expected at least {self.expected}"


def expected(index: ann.Index, asked: int) -> int:
    """How many of `asked` vectors must find themselves: all where the search is exact.

    Lists promise a part of the ten nearest. A vector lies in the list that is looked into first and its own code is
    among the nearest to it, so that it is found more surely than its neighbours are. Allowed for are what is promised,
    three standard deviations of so small a sample, and one vector, since the deviation is next to nothing where nearly
    all is promised: at the usual 0.95, 87 of 100 must be found.
    """
    if index.lists is None:
        return asked
    promised = min(index.recall, index.lists.tuning.wanted)
    chance = SIGMAS * math.sqrt(asked * promised * (1 - promised))
    return max(0, math.floor(asked * promised - chance - 1))


def ask(index: ann.Index, *, stored: Stored | None = None) -> SelfQuery:
    """Ask an index for `QUERIES` of its vectors, as `stored` has them, by default as it has them itself.

    Found is a vector whose nearest is its own row, or another one at distance 0, whose vector is the same.
    """
    rows = np.flatnonzero(index.known)
    own = np.sort(np.random.default_rng(0).choice(rows, min(QUERIES, len(rows)), replace=False))
    if not len(own):
        return SelfQuery(0, 0, 0)
    vectors = (stored or index.take)(own).astype(np.float32)
    distance, nearest = index.search(vectors, 1)
    found = (nearest[:, 0] >= 0) & ((nearest[:, 0] == own) | (distance[:, 0] == 0))
    return SelfQuery(len(own), int(found.sum()), expected(index, len(own)))


def told(found: SelfQuery, encoder: str, revision: str, index: ann.Index) -> str:
    """What was found, and what to do: `redshelf index` alone would leave an index whose checksums are right."""
    folder = f"index/{encoder}.{revision}/{len(index.known)}"
    return f"by {folder} {found}: remove that folder, run `redshelf index --encoder {encoder}`, and publish"


def require(encoder: str, revision: str, index: ann.Index, *, stored: Stored | None = None) -> None:
    """`Conflict` naming the encoder and what was found, where too few vectors find themselves."""
    found = ask(index, stored=stored)
    if not found.passed:
        raise Conflict(f"encoder {encoder}: {told(found, encoder, revision, index)}")

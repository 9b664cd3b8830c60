"""What the questions beside plain neighbours take, and how many of the most isolated sources are found.

    python benchmarks/questions.py [--quick] [--check] [--out bench-out/search]

On clustered vectors of `search.py`, whose index is taken where it is there. *Outliers*: the true hundred by the
distance to the 10th nearest. What the index finds is never nearer than the truth, so that a row which it puts below the
hundredth true distance cannot be among them: all are asked through the index, and those above it compared with all.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import search as bench
import systems

from redshelf.indexing import ann, isolation, ivf

TOP, WANTED = 100, 0.95
ROUNDS = 7
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


def tenth(index: ann.Index, rows: Ints, *, exact: bool) -> Floats:
    """Distance of each row to its 10th nearest other one, as the index finds it or the true one."""
    found = np.empty(len(rows), dtype=np.float32)
    for start in range(0, len(rows), 1024):
        own = rows[start : start + 1024]
        distance, near = index.search(index.take(own).astype(np.float32), isolation.NEIGHBOUR + 1, exact=exact)
        found[start : start + len(own)] = distance[ivf.others(near, own)].reshape(len(own), -1)[:, -1]
    return found


def truly_isolated(index: ann.Index) -> Ints:
    """The `TOP` rows with the largest true distance to their 10th nearest."""
    rows = np.flatnonzero(index.known)
    upper = tenth(index, rows, exact=False)
    order = np.argsort(-upper)
    rows, upper = rows[order], upper[order]
    true = tenth(index, rows[: 2 * TOP], exact=True)
    while upper[len(true) - 1] >= np.sort(true)[-TOP] * (1 - 1e-6):  # others may still be farther
        more = rows[len(true) : len(true) + TOP]
        true = np.concatenate([true, tenth(index, more, exact=True)])
    return rows[np.argsort(-true)[:TOP]]


def milliseconds(ask: Callable[[], Any]) -> float:
    """The median of some rounds, after one that does not count."""
    ask()
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        ask()
        times.append(time.perf_counter() - started)
    return 1000 * statistics.median(times)


def questions(index: ann.Index) -> dict[str, float]:
    """Milliseconds of each question to the service."""
    from redshelf.service.examples import neighbours_of_examples
    from redshelf.service.explore import cone, outliers
    from redshelf.service.search import neighbours

    _, shelf = bench.whole(index)
    ids = [f"s{row}" for row in np.random.default_rng(3).choice(len(index.flat), 200, replace=False)]
    asked: dict[str, Callable[[], Any]] = {"neighbours, k=10": lambda: neighbours(shelf, ids[0])}
    asked["within a distance, k=100"] = lambda: neighbours(shelf, ids[0], k=100, max_distance=1.0)
    for k in (10, 200):
        asked[f"mutual, k={k}"] = lambda k=k: neighbours(shelf, ids[0], k=k, mutual=True)  # type: ignore[misc]
    for method in ("rocchio", "classifier"):
        for n in (5, 100):
            asked[f"{method}, {n} and {n} examples"] = (
                lambda method=method, n=n: neighbours_of_examples(  # type: ignore[misc]
                    shelf, ids[:n], ids[n : 2 * n], method=method
                )
            )
    asked["cone of a degree, n=100"] = lambda: cone(shelf, 180.0, 0.0, 3600.0)
    asked["outliers, n=100"] = lambda: outliers(shelf)
    return {name: milliseconds(ask) for name, ask in asked.items()}


def main() -> int:
    """Print both tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/search"))
    arguments = parser.parse_args()
    rows, dim = (100_000, 384) if arguments.quick else (1_000_000, 128)
    folder = arguments.out / f"clustered-{rows}x{dim}" / f"{rows}"
    if not (folder / isolation.ISOLATED).exists():
        bench.redshelf(folder, systems.synthetic("clustered", rows, dim, queries=1))
    index = ann.open_index(folder)
    systems.threads(systems.CORES)
    print(f"**clustered**, {rows:,} x {dim}, recall promised {systems.RECALL}\n\n| question | ms |\n|---|---|")
    for name, ms in questions(index).items():
        print(f"| {name} | {ms:.1f} |", flush=True)
    started = time.perf_counter()
    found = isolation.find(index)
    seconds, true = time.perf_counter() - started, truly_isolated(index)
    share = len(np.intersect1d(found.rows[:TOP], true)) / TOP
    kept = len(np.intersect1d(found.rows, true)) / TOP
    print(
        f"\noutliers: {share:.2f} of the true {TOP} among the first {TOP}, {kept:.2f} among all kept; {seconds:.0f} s"
    )
    if share < WANTED:
        print(f"outliers: {share:.2f} of the true {TOP}, wanted {WANTED}")
    return 1 if arguments.check and share < WANTED else 0


if __name__ == "__main__":
    sys.exit(main())

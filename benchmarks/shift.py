"""Shift weights against weights that are known: Gaussian shifts, none, and one that nearly separates.

    python benchmarks/shift.py [--quick] [--check]

Labels are drawn from one Gaussian, targets from the same one moved, so that the true weight of every point is known;
redshifts are linear in the direction of the move, with noise. In 64 dimensions the spread falls as that of an embedding
does. For each method: correlation with the true weights at the labels, and at unseen targets by `at`; Kullback-Leibler
divergence of the estimated weights (as shares) from the true ones; effective sample size (true one in the title), mean
weight, error of the weighted <z>, held-out risk, seconds of the fit alone. Then the cost of counting targets in balls.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.bank import exact_neighbours
from redshelf.models.ratio_choice import DEFAULT, METHODS, choose_weights
from redshelf.models.ratio_space import BLOCK_PAIRS, Space, counts_within
from redshelf.models.shift import ShiftMethod, ShiftWeights

Floats = npt.NDArray[np.float64]
SLOPE, NOISE = 0.3, 0.1  # of the redshift along the move, in units of the labels' spread
FLOOR = 1e-3  # of the mean: a weight of 0 would make the divergence infinite
CORES_40M_HOURS = 12.0
CELLS, VISITED, LISTED = 1024, 32, 256  # of the other way to count


@dataclass(frozen=True)
class Case:
    """A move by `distance` standard deviations, spread evenly over the first four dimensions of `dim`."""

    name: str
    dim: int
    distance: float

    def spread(self) -> Floats:
        """Standard deviation of each dimension, (dim,)."""
        return 1 / np.sqrt(1 + np.arange(self.dim)) if self.dim > 16 else np.ones(self.dim)

    def direction(self) -> Floats:
        """The move's direction in units of the spread, (dim,), of length 1."""
        first = min(self.dim, 4)
        return np.where(np.arange(self.dim) < first, 1 / np.sqrt(first), 0.0)

    def draw(self, n: int, moved: bool, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
        """Points (n, dim), their true weights (n,) and redshifts (n,)."""
        unit = rng.normal(size=(n, self.dim)) + (self.distance * self.direction() if moved else 0)
        along = unit @ self.direction()
        true = np.exp(self.distance * along - 0.5 * self.distance**2)
        return unit * self.spread(), true, 1 + SLOPE * along + NOISE * rng.normal(size=n)


CASES = (
    Case("2 dimensions", 2, 1.0),
    Case("9 dimensions", 9, 1.0),
    Case("16 dimensions", 16, 1.0),
    Case("64 dimensions", 64, 1.0),
    Case("no shift, 9 dimensions", 9, 0.0),
    Case("nearly separable, 9 dimensions", 9, 3.0),
)


def divergence(true: Floats, found: Floats) -> float:
    """sum p log(p / q) of two sets of weights, as shares."""
    p, q = true / true.sum(), np.maximum(found, FLOOR * max(float(found.mean()), 1e-12))
    return float((p * np.log(np.maximum(p, 1e-300) / (q / q.sum()))).sum())


def timed(method: ShiftMethod, kept: dict[str, Any], name: str) -> ShiftMethod:
    """The method, which keeps its last answer and its seconds: the fit on all."""

    def run(labelled: npt.ArrayLike, target: npt.ArrayLike, *, seed: int = 0) -> ShiftWeights:
        started = time.perf_counter()
        found = method(labelled, target, seed=seed)
        kept[name] = found, time.perf_counter() - started
        return found

    return run


def measure(case: Case, labels: int, targets: int) -> list[str]:
    """Print the case's table; a line for each number that falls short."""
    rng = np.random.default_rng(11)
    (x, true, z), (wanted, _, target_z), (fresh, fresh_true, _) = (
        case.draw(n, moved, rng) for n, moved in ((labels, False), (targets, True), (2000, True))
    )
    kept: dict[str, Any] = {}
    candidates = {name: timed(method, kept, name) for name, method in METHODS.items()}
    _, report = choose_weights(candidates, x, wanted, redshifts=z)
    ess = metrics.effective_sample_size(true)
    print(f"\n**{case.name}**, ESS of the true weights {ess:,.0f}; chosen: {report['chosen']}\n")
    print("| method | correlation | at targets | KL | ESS | mean weight | error of weighted <z> | risk | s |")
    print("|" + "---|" * 9)
    apart, error = {}, {}
    for name, (found, seconds) in kept.items():
        scores = report["candidates"][name]
        if "refused" in scores:
            print(f"| {name} | {scores['refused']} |")
            continue
        constant = case.distance == 0 or np.ptp(found.weights) == 0
        here, there = (
            float("nan") if constant else float(np.corrcoef(*pair)[0, 1])
            for pair in ((found.weights, true), (found.at(fresh), fresh_true))
        )
        apart[name] = divergence(true, found.weights)
        error[name] = scores.get("weighted_mean_z", float("nan")) - target_z.mean()
        cells = [f"{here:.3f}", f"{there:.3f}"] if not constant else ["–", "–"]
        print(
            f"| {name} | {' | '.join(cells)} | {apart[name]:.3f} | "
            f"{found.effective_sample_size:,.0f} | {found.mean_weight:.2f} | {error[name]:+.4f} | "
            f"{scores['risk']:.3f} ± {scores['risk_error']:.3f} | {seconds:.1f} |",
            flush=True,
        )
    chosen, faults = report["chosen"], []
    if case.distance == 0 and kept[chosen][0].effective_sample_size < 0.9 * labels:
        faults.append(f"{case.name}: {chosen} keeps {kept[chosen][0].effective_sample_size:.0f} of {labels} labels")
    if case.distance and apart[chosen] > apart[DEFAULT]:
        faults.append(f"{case.name}: {chosen} has a divergence of {apart[chosen]:.3f}, {DEFAULT} {apart[DEFAULT]:.3f}")
    plain = z.mean() - target_z.mean()
    if case.distance and abs(error[chosen]) > max(abs(error[DEFAULT]), 0.1 * abs(plain)):
        faults.append(f"{case.name}: {chosen} has <z> off by {error[chosen]:+.4f}, {DEFAULT} by {error[DEFAULT]:+.4f}")
    return faults


def seconds_per_million(count: Callable[[Floats], Any], points: Floats) -> tuple[float, Any]:
    """Seconds of one core for a million targets, and what was counted."""
    count(points[:64])
    started = time.process_time()
    found = count(points)
    return (time.process_time() - started) * 1e6 / len(points), found


def cost(labels: int, targets: int, dim: int = 16) -> list[str]:
    """Print what a million targets take, exactly and by inverted lists of the labels."""
    import faiss

    rng = np.random.default_rng(3)
    case = Case("cost", dim, 1.0)
    (bank, _, _), (points, _, _) = case.draw(labels, False, rng), case.draw(targets, True, rng)
    space = Space(np.zeros(dim), np.zeros((dim, 0)))
    # K-th distances as they are: of a sample of labels, for all
    distance, _ = exact_neighbours(bank, bank[:500], 30, exclude=np.arange(500))
    squares = np.resize(distance[:, -1] ** 2, labels)
    exact, (counts, _) = seconds_per_million(
        lambda part: counts_within(bank, squares, labels, space, part, BLOCK_PAIRS), points
    )
    quantizer = faiss.IndexFlatL2(dim)
    cells = min(CELLS, labels // 40)
    index = faiss.IndexIVFFlat(quantizer, dim, cells)
    index.train(bank[:50_000].astype(np.float32))
    index.add(bank.astype(np.float32))
    index.nprobe = VISITED

    def by_lists(part: Floats) -> npt.NDArray[np.int64]:
        near, rows = index.search(part.astype(np.float32), LISTED)
        inside = (rows >= 0) & (near <= squares[rows])
        return np.bincount(rows[inside], minlength=labels)

    listed, some = seconds_per_million(by_lists, points)
    print(f"\n**{labels:,} labels, {dim} dimensions, K = 30**, {targets:,} targets measured\n")
    print("| way to count | s of one core for 1M targets | hours for 40M | counted of all |\n|---|---|---|---|")
    print(f"| exact, products of matrices | {exact:.0f} | {40 * exact / 3600:.1f} | 1 |")
    print(
        f"| the {LISTED} nearest labels by {VISITED} of {cells} lists | {listed:.0f} | {40 * listed / 3600:.1f} "
        f"| {some.sum() / max(counts.sum(), 1):.3f} |"
    )
    hours = 40 * exact / 3600
    return [f"40M targets: {hours:.1f} core hours, wanted {CORES_40M_HOURS}"] if hours > CORES_40M_HOURS else []


def main() -> int:
    """Print the tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sets; nothing to publish")
    parser.add_argument("--check", action="store_true", help="exit 1 and a line for each number that falls short")
    arguments = parser.parse_args()
    labels, targets = (600, 1500) if arguments.quick else (3000, 10_000)
    print(f"{labels:,} labels, {targets:,} targets")
    faults = [fault for case in CASES for fault in measure(case, labels, targets)]
    faults += cost(20_000, 4096) if arguments.quick else cost(100_000, 16_384)
    print("\n" + "\n".join(faults))
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())

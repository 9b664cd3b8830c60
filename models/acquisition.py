"""Which unlabelled sources to take spectra of: those whose labels would lower the error of the next fit most.

A source's error is expected to fall as labels come nearer to it in the space of the fit. How far, the labelled sources
tell: each is answered for while more and more of its nearest labels are hidden. Sources are chosen one by one, each
where it lowers the summed expected error of all targets most, given those already chosen (greedy coverage, weighted by
the density of the targets and by how uncertain the fit is of each).
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from redshelf.models.bank import Bank
from redshelf.models.errors import BadInput
from redshelf.models.knn import kernel_weights, row_quantile
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
OUTLIER = 0.15  # an error of |dz| / (1 + z) beyond this counts as this: an outlier is one, however far off
COVER = 3  # labels nearest to a source, each of which tells a third of its error
NEIGHBOURS = 10  # that answer for a label while nearer ones are hidden
HIDDEN = (0, 1, 2, 4, 8, 16, 32, 64, 128)
LEARNT_ROWS = 4000
BINS = 40
REACH = 256  # targets nearest to a candidate, of which it lowers the error
BLOCK = 1024
QUANTILES = np.linspace(0.025, 0.975, 20)


@dataclass(frozen=True)
class ErrorModel:
    """Expected error `error` (G,) of a source whose nearest labels lie at a mean `distance` (G,), both ascending."""

    distance: Floats
    error: Floats

    def at(self, distance: npt.ArrayLike) -> Floats:
        """Expected error at these distances, linear between those learnt, constant beyond."""
        return np.interp(np.asarray(distance, dtype=np.float64), self.distance, self.error)


@dataclass(frozen=True)
class Chosen:
    """Positions among the candidates (n,) in the order of choice, and what each lowers the mean expected error of the
    targets by, given those before it (n,). `error` is that mean now, `after` with all of them labelled, `at_random`
    with as many candidates at random."""

    candidates: Ints
    gain: Floats
    error: float
    after: float
    at_random: float
    model: ErrorModel


def learn_error(points: npt.ArrayLike, z: npt.ArrayLike, hidden: Ints, *, seed: int = 0) -> ErrorModel:
    """The error of a label's nearest neighbours as a function of how near they are.

    `points` (L, D) and redshifts `z` (L,) of the labels; `hidden` (L, m): each label and its companions, which never
    answer for it. Of at most 4,000 labels up to the 128 nearest are hidden as well. `BadInput` for under 20 labels.
    """
    bank, log1pz = np.asarray(points, dtype=np.float32), np.log1p(np.asarray(z, dtype=np.float64))
    most = len(bank) - hidden.shape[1]
    if most < 2 * NEIGHBOURS:
        raise BadInput(f"{len(bank)} labelled sources: expected at least {2 * NEIGHBOURS + hidden.shape[1]}")
    rows = np.sort(np.random.default_rng(seed).permutation(len(bank))[:LEARNT_ROWS])
    steps = [h for h in HIDDEN if h + NEIGHBOURS <= most]
    distance, near = Bank(bank).nearest(bank[rows], steps[-1] + NEIGHBOURS, exclude=hidden[rows])
    seen: list[Floats] = []
    errors: list[Floats] = []
    for step in steps:
        part = np.s_[:, step : step + NEIGHBOURS]
        share = kernel_weights(distance[part], np.ones(near[part].shape))
        dz = np.expm1(row_quantile(log1pz[near[part]], share, 0.5) - log1pz[rows])  # over 1 + z
        seen.append(distance[:, step : step + COVER].mean(axis=1))
        errors.append(np.minimum(np.abs(dz), OUTLIER))
    return _increasing(np.concatenate(seen), np.concatenate(errors))


def _increasing(distance: Floats, error: Floats) -> ErrorModel:
    """Mean error by bins of as many distances each, made to increase."""
    from scipy.optimize import isotonic_regression

    parts = np.array_split(np.argsort(distance, kind="stable"), min(BINS, len(distance)))
    middle = np.array([distance[part].mean() for part in parts])
    fitted = isotonic_regression([error[part].mean() for part in parts], weights=[len(part) for part in parts])
    return ErrorModel(middle, np.asarray(fitted.x))


def expected_error(pdf: Pdf) -> Floats:
    """(N,) mean of |z - median| / (1 + z) by each density itself, outliers counted as `OUTLIER`."""
    z = np.stack(pdf.quantiles(QUANTILES.tolist()))  # (20, N)
    median = pdf.median()
    return np.asarray(np.minimum(np.abs(median - z) / (1 + z), OUTLIER).mean(axis=0))


@dataclass
class _Cover:
    """Of T targets the errors that the model gives at each of their nearest labels, `levels` (T, 3) ascending, as
    labels are added. A target's expected error is `error` (T,) times the mean of these over what that was at first:
    a first label in an empty place is worth a third, whatever the distance to the others."""

    levels: Floats
    error: Floats

    def __post_init__(self) -> None:
        self.share = self.error / np.maximum(self.levels.mean(axis=1), 1e-9) / self.levels.shape[1]

    def lowered(self, targets: Ints, level: Floats) -> Floats:
        """What a label at which the model gives `level` (..., n) would lower the errors of `targets` (..., n) by."""
        return np.asarray(self.share[targets] * np.maximum(self.levels[targets, -1] - level, 0))

    def add(self, targets: Ints, level: Floats) -> None:
        """Take such a label of `targets` (n,) for known."""
        both = np.concatenate([self.levels[targets], level[:, None]], axis=1)
        self.levels[targets] = np.sort(both, axis=1)[:, :-1]


def _after(cover: _Cover, levels: Floats) -> float:
    """The mean expected error once there are labels too at which the model gives `levels` (T, 3 or fewer)."""
    nearest = np.sort(np.concatenate([cover.levels, levels], axis=1), axis=1)[:, : cover.levels.shape[1]]
    return float((cover.share * nearest.sum(axis=1)).mean())


def choose(
    labels: npt.ArrayLike,
    z: npt.ArrayLike,
    hidden: Ints,
    targets: npt.ArrayLike,
    own_error: Floats,
    candidates: npt.ArrayLike,
    n: int,
    *,
    seed: int = 0,
) -> Chosen:
    """`n` of the candidates (C, D) to label, for the error of the targets (T, D); fewer than `n` are all chosen.

    `labels` (L, D) with redshifts `z` (L,) and companions `hidden` (L, m), as in `learn_error`, all in the space of the
    fit. `own_error` (T,): what the fit itself expects (`expected_error`); a target's expected error is the mean of that
    and of what the distance to its nearest labels says, since a fit may be sure of itself where no label is near.
    `BadInput` for n below 1, no target or no candidate.
    """
    bank, wanted, points = (np.ascontiguousarray(part, dtype=np.float32) for part in (labels, targets, candidates))
    if n < 1 or not len(wanted) or not len(points):
        raise BadInput(f"n={n}, {len(wanted)} targets, {len(points)} candidates: expected at least one of each")
    model = learn_error(bank, z, hidden, seed=seed)
    to_labels, _ = Bank(bank).nearest(wanted, COVER)
    error = (own_error + model.at(to_labels.mean(axis=1))) / 2
    before = _Cover(model.at(to_labels), error)
    some = np.random.default_rng(seed).permutation(len(points))[:n]
    order, gain = _greedy(_Cover(before.levels.copy(), error), model, wanted, points, n)

    def after(rows: Ints) -> float:
        distance, _ = Bank(points[rows]).nearest(wanted, min(COVER, len(rows)))
        return _after(before, model.at(distance))

    return Chosen(order, gain, float(error.mean()), after(order), after(some), model)


def _greedy(
    cover: _Cover, model: ErrorModel, wanted: npt.NDArray[np.float32], points: npt.NDArray[np.float32], n: int
) -> tuple[Ints, Floats]:
    """The best candidate, the best after that, and so on. A gain only falls as others are chosen, so it is brought up
    to date when it comes first."""
    distance, near = Bank(wanted).nearest(points, min(REACH, len(wanted)))
    level = model.at(distance)
    parts = [slice(i, i + BLOCK) for i in range(0, len(points), BLOCK)]
    first = np.concatenate([cover.lowered(near[part], level[part]).sum(axis=1) for part in parts])
    heap = [(-gain, candidate) for candidate, gain in enumerate(first.tolist())]
    heapq.heapify(heap)
    chosen: list[int] = []
    gains: list[float] = []
    while heap and len(chosen) < n:
        _, candidate = heapq.heappop(heap)
        gain = float(cover.lowered(near[candidate], level[candidate]).sum())
        if heap and gain < -heap[0][0]:  # others were chosen near it since: less than was thought
            heapq.heappush(heap, (-gain, candidate))
            continue
        cover.add(near[candidate], level[candidate])
        chosen.append(candidate)
        gains.append(gain / len(wanted))
    return np.array(chosen, dtype=np.int64), np.array(gains)

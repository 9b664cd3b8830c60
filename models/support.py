"""Whether the labels can know: support of a source by the labelled sample, in numbers and in words.

`distance_ratio` is the distance to the 5th labelled neighbour over the 99th percentile of the same among the labels.
The space it is measured in is chosen on labelled magnitude hold-outs (bright labels answer for fainter ones), so the
target's redshifts are never needed. `labels_in_radius` counts the labels nearer than the source's 10th target: the
local ratio of the two as a plain number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.bank import Bank, exact_neighbours
from redshelf.models.errors import BadInput
from redshelf.models.knn import kernel_weights, local_samples, row_quantile
from redshelf.models.pdf import Pdf
from redshelf.models.ratio_space import sampled

Floats = npt.NDArray[np.float64]
NEIGHBOUR = 5
RADIUS_TARGETS = 10  # of a sample as large as the labels: so many labels lie within, were they spread as the targets
MOST_TARGETS = 10_000  # more would cost as much as the search for neighbours; of more labels more lie within
MOST_COUNTED = 20  # labels: more than twice the targets say no more
ITSELF = 1e-4  # of the unit distance: nearer, and a target is the source
MIN_EFFECTIVE_NEIGHBOURS = 5.0
LIMIT_QUANTILE = 0.995  # of the labels' redshifts
MAX_BEYOND_LABELS = 0.5
MAX_DISAGREEMENT = 0.1  # in dz
MAX_MASS_AT_INFINITY = 0.05  # more, and a conformal interval of 95% is infinite
# Bright fractions of the labels that answer for the rest; small ones too: mild cuts have too few bad answers to judge.
HOLDOUT_CUTS = (0.2, 0.35, 0.5, 0.65, 0.8)
HOLDOUT_NEIGHBOURS = 40
NUMBERS = (
    "distance_ratio",
    "labels_in_radius",
    "effective_neighbours",
    "beyond_labels",
    "disagreement",
    "mass_at_infinity",
)
REASONS = (
    "no labelled source is near: the distance ratio is above 1",
    "fewer than 5 effective labelled neighbours",
    "more than half of the density lies beyond the labels' redshifts: a lower limit only",
    "nearest neighbours and network disagree by more than 0.1 (1+z)",
    "the labels are too few here to promise an interval of 95%",
)


@dataclass(frozen=True)
class SupportAnswer:
    """Support of N sources; `flags` (N, 5) bool marks which of `REASONS` hold, `in_support` (N,) where none does."""

    distance_ratio: Floats
    labels_in_radius: Floats
    effective_neighbours: Floats
    beyond_labels: Floats
    disagreement: Floats
    mass_at_infinity: Floats
    flags: npt.NDArray[np.bool_]

    @property
    def in_support(self) -> npt.NDArray[np.bool_]:
        """(N,) True where no reason speaks against the answer."""
        return np.asarray(~self.flags.any(axis=1))

    def reasons(self, row: int) -> list[str]:
        """Why source `row` is out of support, in words; empty when it is in."""
        return [text for text, flag in zip(REASONS, self.flags[row], strict=True) if flag]


@dataclass(frozen=True)
class Support:
    """Labelled positions `bank` (L, D) in the chosen space, what means ratio 1, the limit of their redshifts, and a
    sample of the targets (T, D), T <= L."""

    bank: npt.NDArray[np.float32]
    unit_distance: float
    z_limit: float
    targets: npt.NDArray[np.float32]

    @cached_property
    def _labels(self) -> Bank:
        return Bank(self.bank)  # kept, since to build its tree takes longer than to answer for one source

    @cached_property
    def _wanted(self) -> Bank:
        return Bank(self.targets)

    def distance_ratio(self, points: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None) -> Floats:
        """d_5 of `points` (N, D) over the 99th percentile of d_5 among the labels, (N,); `exclude` hides labels."""
        distance, _ = self._labels.nearest(points, NEIGHBOUR, exclude=exclude)
        return np.asarray(distance[:, -1] / self.unit_distance)

    def radius(self, points: npt.ArrayLike) -> Floats:
        """Distance (N,) of `points` (N, D) to their 10th nearest target, themselves left out; the farthest of fewer."""
        if not len(self.targets):
            return np.full(len(np.asarray(points)), np.nan)
        k = min(RADIUS_TARGETS + 1, len(self.targets))
        distance, _ = self._wanted.nearest(points, k)
        itself = distance[:, 0] < ITSELF * self.unit_distance
        return np.asarray(distance[np.arange(len(distance)), np.minimum(RADIUS_TARGETS - 1 + itself, k - 1)])

    def answer(
        self,
        points: npt.ArrayLike,
        pdf: Pdf,
        neighbour_weights: Floats,
        *,
        disagreement: Floats,
        mass_at_infinity: Floats,
        exclude: npt.ArrayLike | None = None,
        distances: Floats | None = None,
    ) -> SupportAnswer:
        """Support of `points` (N, D) with densities `pdf`; their labelled neighbours' weights (N, k) sum to 1.

        `disagreement` (N,) of the estimators, in dz; `mass_at_infinity` (N,) of the conformal distribution. `distances`
        (N, k) of the neighbours spare a search where they were looked for in this space; then `labels_in_radius` is at
        most k.
        """
        if distances is None or distances.shape[1] < NEIGHBOUR:
            spare = 0 if exclude is None else np.asarray(exclude).reshape(len(pdf), -1).shape[1]
            counted = max(NEIGHBOUR, min(MOST_COUNTED, len(self.bank) - spare))
            distances, _ = self._labels.nearest(points, counted, exclude=exclude)
        ratio = distances[:, NEIGHBOUR - 1] / self.unit_distance
        radius = self.radius(points)
        within = (distances[:, :MOST_COUNTED] <= radius[:, None]).sum(axis=1)
        effective = 1 / (neighbour_weights**2).sum(axis=1)
        beyond = 1 - pdf.pit(np.full(len(pdf), self.z_limit))
        flags = np.column_stack(
            [
                ratio > 1,
                effective < MIN_EFFECTIVE_NEIGHBOURS,
                beyond > MAX_BEYOND_LABELS,
                disagreement > MAX_DISAGREEMENT,
                mass_at_infinity > MAX_MASS_AT_INFINITY,
            ]
        )
        return SupportAnswer(
            np.asarray(ratio),
            np.where(np.isnan(radius), np.nan, within),
            effective,
            np.asarray(beyond),
            disagreement,
            mass_at_infinity,
            flags,
        )


def fit_support(
    bank: npt.ArrayLike,
    z: npt.ArrayLike,
    *,
    targets: npt.ArrayLike | None = None,
    exclude: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Support:
    """Support by labelled positions (L, D) with redshifts `z` (L,); `exclude` (L, m): each label and its companions.

    Of `targets` (M, D) a sample as large as the labels, and of 10,000 at most, tells `labels_in_radius`; without any
    that is NaN.
    """
    points = np.ascontiguousarray(bank, dtype=np.float32)
    hidden = np.arange(len(points)) if exclude is None else np.asarray(exclude)
    if points.ndim != 2 or len(points) != len(np.asarray(z)) or len(points) < 2 * NEIGHBOUR:
        raise BadInput(
            f"support: {points.shape} positions, {len(np.asarray(z))} redshifts: expected (L >= 10, D) and L"
        )
    distance, _ = exact_neighbours(points, points, NEIGHBOUR, exclude=hidden)
    unit = float(np.quantile(distance[:, -1], 0.99))
    # Labels that all coincide support only themselves: any positive unit says so.
    limit = float(np.quantile(np.asarray(z, dtype=np.float64), LIMIT_QUANTILE))
    wanted = np.empty((0, points.shape[1])) if targets is None else np.asarray(targets)
    sample = wanted[sampled(len(wanted), min(len(points), MOST_TARGETS), seed)]
    return Support(points, unit if unit > 0 else 1e-12, limit, np.ascontiguousarray(sample, dtype=np.float32))


def choose_space(
    spaces: Mapping[str, npt.ArrayLike], features: npt.ArrayLike, z: npt.ArrayLike, magnitude: npt.ArrayLike
) -> tuple[str, dict[str, Any]]:
    """Name of the space (each (L, D_s)) in which a distance ratio above 1 best marks bad redshifts of fainter labels.

    For each of five magnitude cuts the brighter labels give the fainter ones a redshift (local-linear neighbours in
    `features` (L, D)) and a distance ratio in every space. Bad is |dz| > 0.15, or the worst twentieth where fewer are.
    The score is Youden's: fraction of the bad marked minus fraction of the good marked, over all cuts; the greatest
    wins.
    Without 200 labels there is nothing to choose on: the first space is taken, and the report says so.
    """
    names = list(spaces)
    magnitude = np.asarray(magnitude, dtype=np.float64)
    if len(names) == 1 or len(magnitude) < 200:
        return names[0], {"space": names[0], "chosen": False, "scores": {}}
    points, y = np.asarray(features, dtype=np.float32), np.log1p(np.asarray(z, dtype=np.float64))
    order = np.argsort(magnitude, kind="stable")
    errors, ratios = [], {name: [] for name in names}  # type: ignore[var-annotated]
    for cut in HOLDOUT_CUTS:
        bright, faint = np.split(order, [int(cut * len(order))])
        distance, near = exact_neighbours(points[bright], points[faint], min(HOLDOUT_NEIGHBOURS, len(bright) // 2))
        share = kernel_weights(distance, np.ones(near.shape))
        hits = bright[near]
        samples = local_samples(y[hits], points[hits] - points[faint][:, None], share)
        errors.append(np.abs(np.expm1(row_quantile(samples, share, 0.5) - y[faint])))
        for name in names:
            space = np.asarray(spaces[name], dtype=np.float32)
            ratios[name].append(fit_support(space[bright], np.expm1(y[bright])).distance_ratio(space[faint]))
    error = np.concatenate(errors)
    bad = error > min(0.15, float(np.quantile(error, 0.95)))
    scores = {}
    for name in names:
        marked = np.concatenate(ratios[name]) > 1
        scores[name] = float(marked[bad].mean() - marked[~bad].mean()) if bad.any() else 0.0
    best = max(names, key=scores.__getitem__)
    return best, {"space": best, "chosen": True, "scores": scores, "n_bad": int(bad.sum()), "n": len(bad)}

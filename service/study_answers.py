"""Redshifts of asked sources from labelled ones, by one estimator and one set of weights, as a cell of the study.

Weights are demanded, not chosen: a cell shows where a correction harms, too. The estimator `redshelf` is the whole fit,
which chooses by itself; with it stands what its user would see without the truth (`warnings_without_truth`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.bank import exact_neighbours
from redshelf.models.boost import fit_boost
from redshelf.models.fitting import fit_neighbours, fit_redshift
from redshelf.models.frame import fit_frame
from redshelf.models.network import fit_network
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.support import MAX_DISAGREEMENT, fit_support
from redshelf.models.validate import MEMBERS, disagreement

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Z_BEYOND = 0.15  # of the grid past the last label, in ln(1 + z)
MAP_POINTS = 1500
TEXTBOOK = 40
VALIDATED = 2000  # labels on which the PIT is looked at


@dataclass(frozen=True)
class Known:
    """L labels and M asked sources: features (L, D) and (M, D) with their names, redshifts (L,), what the labels were
    selected on, (L, P) and (M, P), rows of the same source (L, m), magnitudes (L,) and (M,)."""

    x: Floats
    z: Floats
    asked: Floats
    names: tuple[str, ...]
    observables: Floats
    asked_observables: Floats
    observed_names: tuple[str, ...]
    same: Ints
    magnitude: Floats
    asked_magnitude: Floats

    @property
    def edges(self) -> Floats:
        return default_edges(min(np.expm1(np.log1p(self.z.max()) + Z_BEYOND), 20.0))

    def near_labels(self) -> Bools:
        """(M,) whether labels lie near in colours and magnitude: the support that every cell of a draw shares."""
        frame = fit_frame(self.observables, self.asked_observables, self.observed_names)
        support = fit_support(frame.transform(self.observables), self.z, exclude=self.same)
        return np.asarray(support.distance_ratio(frame.transform(self.asked_observables)) <= 1)


@dataclass(frozen=True)
class Answers:
    """Of M asked sources: densities (None where only points are known), points (M,), support (M,); `more` is JSON.

    `own_point` (L,): the labels answered without themselves, where asked for. `flags`: support of other sources in the
    same features.
    """

    pdf: Pdf | None
    point: Floats
    in_support: Bools
    more: dict[str, Any]
    own_point: Floats = field(default_factory=lambda: np.zeros(0))
    flags: Callable[[Floats], Bools] | None = None


def answer(known: Known, estimator: str, weights: Floats | None, *, seed: int, own: bool = False) -> Answers:
    """Fit and answer; `weights` (L,) of the labels, None for none; `own`: answer the labels without themselves, too."""
    if estimator == "redshelf":
        return _redshelf(known, seed)
    one = np.ones(len(known.z))
    options: dict[str, Any] = {
        "edges": known.edges,
        "importance": one if weights is None else weights,
        "exclude": known.same,
        "shift_weights": weights is not None,
        "seed": seed,
    }
    knn, report, frame = fit_neighbours(fit_frame(known.x, known.asked, known.names), known.x, known.z, options)
    itself = np.arange(len(known.z))
    x, asked = frame.transform(known.x), frame.transform(known.asked)
    if estimator == "knn40":
        return _textbook(known, weights, np.asarray(asked, np.float64), np.asarray(x, np.float64))
    ours = None
    if estimator == "knn":
        pdf = knn.predict(asked).pdf
        ours = knn.predict(x, exclude=known.same).pdf if own else None
    elif estimator == "lightgbm":
        trees, report = fit_boost(frame.trees(known.x), known.z, threads=1, **options)
        pdf = trees.predict(frame.trees(known.asked), threads=1)
        ours = trees.predict(frame.trees(known.x), exclude=itself, threads=1) if own else None
    elif estimator == "network":
        network, report = fit_network(x, known.z, threads=1, **options)
        pdf = network.predict(asked)
        ours = network.predict(x, exclude=itself) if own else None
    else:
        raise ValueError(f"estimator {estimator!r}")
    own_point = np.zeros(0) if ours is None else ours.median()
    return Answers(pdf, pdf.median(), known.near_labels(), {"fit": report}, own_point)


def _textbook(known: Known, weights: Floats | None, asked: Floats, x: Floats) -> Answers:
    """The (weighted) mean redshift of the 40 nearest labels: the classical algorithm, without anything of ours."""
    share = np.ones(len(known.z)) if weights is None else weights + 1e-9
    _, near = exact_neighbours(x, asked, min(TEXTBOOK, len(x)))
    point = (share[near] * known.z[near]).sum(axis=1) / share[near].sum(axis=1)
    return Answers(None, np.asarray(point), known.near_labels(), {})


def _redshelf(known: Known, seed: int) -> Answers:
    """The whole fit of `redshelf fit`, which chooses weights, estimator and calibration by itself."""
    model = fit_redshift(
        known.x,
        known.z,
        known.asked,
        names=known.names,
        observables=(known.observables, known.asked_observables),
        magnitudes=(known.magnitude, known.asked_magnitude),
        seed=seed,
        threads=1,
    )
    found = model.predict(known.asked, threads=1)
    report = model.report
    more = {
        "estimator": model.default_estimator,
        "blend": report["blend"],
        "weights_used": {name: bool(report[name]["shift_weights"]) for name in MEMBERS},
        "shift": {k: report["shift"][k] for k in ("method", "effective_sample_size", "mean_weight", "warnings")},
        "left_out": report["left_out"],
        "without_truth": _without_truth(known, model, found, seed),
        "map": _map(known, model, seed),
    }
    inside = found.support.in_support

    def flags(features: Floats) -> Bools:
        return np.asarray(model.predict(features, threads=1).support.in_support)

    return Answers(found.pdf, found.point, inside, more, flags=flags)


def _without_truth(known: Known, model: Any, found: Any, seed: int) -> dict[str, Any]:
    """What a user sees who has no truth: how much is out of support, how often the estimators disagree, beside labels
    weighted to the target, and the PIT of such labels by photometric redshift."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(known.z))[:VALIDATED])
    weights = model.shift.weights[rows]
    if not weights.any():
        weights = np.ones(len(rows))
    members, *_ = model.members(known.x[rows], rows, frozenset(MEMBERS), 1)
    apart = disagreement(members) > MAX_DISAGREEMENT
    own = model.predict(known.x[rows], exclude=rows, threads=1)
    pit, by_z = own.pdf.pit(known.z[rows]), []
    cuts = np.quantile(found.point, np.linspace(0, 1, 7))
    for low, high in pairwise(cuts.tolist()):
        there = (own.point >= low) & (own.point <= high)
        size = metrics.effective_sample_size(weights[there])
        if there.sum() < 100 or size < 20:
            continue
        mean = metrics.weighted_mean(pit[there], weights[there])
        by_z.append(
            {"z": [float(low), float(high)], "mean_pit": mean, "sigma": float((mean - 0.5) * np.sqrt(12 * size))}
        )
    return {
        "out_of_support": float(1 - found.support.in_support.mean()),
        "disagree": float((found.support.disagreement > MAX_DISAGREEMENT).mean()),
        "labels_disagree": metrics.weighted_mean(apart, weights),
        "pit_by_z_phot": by_z,
    }


def _map(known: Known, model: Any, seed: int) -> dict[str, Any]:
    """Two leading components of the neighbour space: asked sources, and labels with their weights."""
    rng = np.random.default_rng(seed)
    labels, asked = (np.sort(rng.permutation(len(part))[:MAP_POINTS]) for part in (known.x, known.asked))
    near, far = model.frame.transform(known.x[labels]), model.frame.transform(known.asked[asked])
    pool = np.concatenate([near, far]).astype(np.float64)
    _, _, axes = np.linalg.svd(pool - pool.mean(axis=0), full_matrices=False)
    flat = (pool - pool.mean(axis=0)) @ axes[:2].T
    return {
        "labels": np.round(flat[: len(near)], 3).tolist(),
        "weights": np.round(model.shift.weights[labels], 4).tolist(),
        "asked": np.round(flat[len(near) :], 3).tolist(),
    }

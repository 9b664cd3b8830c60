"""A cell of the study: one estimator and one correction, asked of the vectors that a space left, and scored."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.bins import Target, prior_of
from redshelf.models.errors import BadInput
from redshelf.models.imbalance import inverse_density
from redshelf.models.pdf import Pdf
from redshelf.models.ratio_choice import METHODS
from redshelf.models.zphot_calibration import calibrated_points
from redshelf.service.study_answers import Answers, Known, answer
from redshelf.service.study_plan import DIMMED, LIN, PHOTOZ, Cell
from redshelf.service.study_scores import reference, scores
from redshelf.service.study_sky import Ints, Sky
from redshelf.service.study_work import Bench

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class _Asked:
    """What a cell answers from: `known`, the true redshifts of its asked sources, and which (M,) of the space's asked
    sources these are."""

    known: Known
    truth: Floats
    keep: Bools


def cell(job: Cell, bench: Bench) -> dict[str, Any]:
    """Answer for every asked source, and score against the truth."""
    began = time.monotonic()
    own, plain = (_opened(bench.vectors(s)) for s in (job.space, job.space.plain))
    asked = _asked(job, bench.sky(job.space.sky), own, plain)
    known = asked.known
    weights, details = _weights(job, known)
    if job.estimator == "head":
        head = Pdf.from_mass(own["head_edges"], own["head"][asked.keep].astype(np.float64))
        found = Answers(head, head.median(), known.near_labels(), {})
    else:
        found = answer(known, job.estimator, weights, seed=job.space.seed, own=job.correction == LIN)
    if job.correction == LIN:
        point = calibrated_points(found.own_point, known.z, known.magnitude, found.point, known.asked_magnitude)
        found = replace(found, pdf=None, point=point)
    said = scores(found, asked.truth, known.asked_magnitude, known.z)
    if job.estimator == "redshelf":
        said["reference"] = reference(found, asked.truth, job.space.seed)
    stars = _stars(own, found) if job.estimator == "redshelf" and not job.space.start else {}
    return {
        "labels": len(known.z),
        "asked": len(asked.truth),
        "mean_z": {"labels": float(known.z.mean()), "asked": float(asked.truth.mean())},
        **details,
        **said,
        **stars,
        "more": found.more,
        "seconds": time.monotonic() - began,
    }


def _asked(job: Cell, sky: Sky, own: Arrays, plain: Arrays) -> _Asked:
    """The sources with vectors of their own, photometry and a magnitude: labels of the groups that the correction
    takes, and those that are asked for."""
    rows = {group: own[f"{group}_known"] & plain[f"{group}_known"] for group in ("labelled", "dimmed", "photoz")}
    rows = {group: seen & np.isfinite(sky.magnitude[own[f"{group}_rows"]]) for group, seen in rows.items()}
    taken = {"labelled": rows["labelled"]}
    if job.correction == DIMMED:
        taken["dimmed"] = rows["labelled"] & rows["dimmed"]
    if job.correction == PHOTOZ:
        taken["photoz"] = rows["photoz"]
    magnitude = sky.magnitude[own["asked_rows"]]
    keep = own["asked_known"] & plain["asked_known"] & np.isfinite(magnitude)
    spaces = [own, plain] if job.beside else [own]

    def of(arrays: Arrays, groups: Mapping[str, Bools]) -> Floats:
        return np.concatenate([arrays[group][kept] for group, kept in groups.items()]).astype(np.float64)

    def beside(groups: Mapping[str, Bools]) -> Floats:
        return np.concatenate([of(arrays, groups) for arrays in spaces], axis=1)

    source = np.concatenate([own[f"{group}_rows"][kept] for group, kept in taken.items()])
    z = np.concatenate([own[f"z_{'photoz' if g == 'photoz' else 'labelled'}"][kept] for g, kept in taken.items()])
    asked = {"asked": keep}
    known = Known(
        x=beside(taken),
        z=z,
        asked=beside(asked),
        names=tuple(name for arrays in spaces for name in arrays["names"].tolist()),
        observables=of(plain, taken),
        asked_observables=of(plain, asked),
        observed_names=tuple(plain["names"].tolist()),
        same=_same(source),
        magnitude=sky.magnitude[source],
        asked_magnitude=magnitude[keep],
    )
    return _Asked(known, sky.z_true[own["asked_rows"]][keep], keep)


@lru_cache(maxsize=4)
def _opened(path: Path) -> Arrays:
    """The arrays of a space; kept, for its cells follow one another."""
    if not path.is_file():
        raise BadInput(f"{path} is not there: the job of that space has not been done")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _same(source: Ints) -> Ints:
    """(L, m): for each label itself and every other row of the same source, padded with itself."""
    order = np.argsort(source, kind="stable")
    _, start, count = np.unique(source[order], return_index=True, return_counts=True)
    most = int(count.max())
    out = np.repeat(np.arange(len(source))[:, None], most, axis=1)
    for copy in range(1, most):
        several = count > copy
        group = np.stack([order[start[several] + c] for c in range(copy + 1)], axis=1)
        for column in range(copy + 1):
            others = np.delete(group, column, axis=1)
            out[group[:, column], 1 : copy + 1] = others
    return out


def _weights(job: Cell, known: Known) -> tuple[Floats | None, dict[str, Any]]:
    """Weights of the labels that the correction and class balance ask for, None for none; what there is to say."""
    weights, said = np.ones(len(known.z)), dict[str, Any]()
    if job.correction in METHODS and job.correction != "none":
        shift = METHODS[job.correction](known.observables, known.asked_observables, seed=job.space.seed)
        weights, warnings = shift.weights, shift.warnings()
        said = {"ess": shift.effective_sample_size, "mean_weight": shift.mean_weight, "warnings": warnings}
        if "auc" in shift.details:
            said["auc"] = shift.details["auc"]
        if not weights.any():
            raise BadInput(f"{job.correction}: every label has weight 0, none is near any target")
        said["weighted_mean_z"] = metrics.weighted_mean(known.z, weights)
    if job.balance and job.estimator != "head":
        target = Target.for_labels(known.z)
        prior = prior_of(known.z, target.n_bins, width=target.width)
        weights = weights * target.at(known.z, inverse_density(prior))
    return (None if (weights == 1).all() else weights), said


def _stars(own: Arrays, found: Answers) -> dict[str, Any]:
    """How many of the stars that the catalogue takes for galaxies are said to be out of support."""
    rows = own["stars_known"]
    if rows.sum() < 100 or found.flags is None:
        return {}
    inside = found.flags(np.asarray(own["stars"][rows], dtype=np.float64))
    return {"hidden_stars": {"n": int(rows.sum()), "out_of_support": float(1 - inside.mean())}}

"""One survey's redshifts asked from another's, on real catalogues: the shifts that nobody simulated.

zCOSMOS-bright to VVDS-Deep changes the photometric system with the survey: no weight can mend that, it is the
control. VVDS-Wide to VVDS-Deep is one camera a magnitude deeper. zCOSMOS bright to faint is a cut in one catalogue.
Stars are scored apart: VVDS-Wide and zCOSMOS took spectra of some thousand, which a classifier on colours must tell
from galaxies.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.ratio_choice import DEFAULT, METHODS
from redshelf.models.zphot_calibration import calibrated_points
from redshelf.service.study_answers import Answers, Known, answer
from redshelf.service.study_plan import CHOSEN, LIN, Survey
from redshelf.service.study_scores import scores

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
KEPT_LABELS = 0.7  # of the source survey's rows, another 70% a seed
FAINTEST_LABEL_I = 21.3
STARS = 0.01  # redshifts below this are of stars
FOLDS = 5
Rows = dict[str, Floats]


def _column(table: Any, name: str) -> Floats:
    return np.asarray(table[name].to_numpy(zero_copy_only=False), dtype=np.float64)


def _magnitudes(table: Any, columns: dict[str, str]) -> Rows:
    """By band, NaN where a magnitude is missing (outside 5 to 40)."""
    out = {band: _column(table, name) for band, name in columns.items()}
    return {band: np.where((m > 5) & (m < 40), m, np.nan) for band, m in out.items()}


def _read(path: Path) -> Any:
    from pyarrow import csv

    if not path.is_file():
        raise BadInput(f"{path}: no such file; --data names the folder of the real catalogues")
    return csv.read_csv(path)


def _whole(rows: Rows, *, stars: bool) -> Rows:
    """Rows with every magnitude, of stars or of galaxies."""
    good = np.logical_and.reduce([np.isfinite(values) for values in rows.values()])
    good &= (rows["z"] < STARS) if stars else (rows["z"] > STARS) & (rows["z"] < 5)
    return {name: values[good] for name, values in rows.items()}


def zcosmos(data: Path, bands: str, *, stars: bool = False) -> Rows:
    """zCOSMOS-bright: secure primary redshifts, unmasked, with magnitudes in all of `bands`. The Subaru i saturates on
    bright sources: CFHT's stands in."""
    table = _read(data / "zcosmost_bright20k.csv")
    quality = _column(table, "cc")
    good = (_column(table, "id_photzi25") != 9999999) & (quality < 10) & np.isin(np.floor(quality), [3, 4])
    for flag in "bvizd":
        good &= _column(table, f"flag_mask{flag}_photzi25") == 0
    rows = _magnitudes(table, {band: f"{band}_photzi25" for band in bands})
    if "i" in bands:
        spare = _magnitudes(table, {"i": "ic_photzi25"})["i"]
        rows["i"] = np.where(np.isfinite(rows["i"]), rows["i"], spare)
    rows["z"] = _column(table, "zpec")
    return _whole({name: values[good] for name, values in rows.items()}, stars=stars)


def vvds(data: Path, which: str, system: str, *, stars: bool = False) -> Rows:
    """VVDS "wide" or "deep": secure redshifts, in the CFH12k "BVRI" or the CFHTLS "ugriz" (Deep only)."""
    table = _read(data / f"vvds_{which}_veryreliable.csv")
    prefix = "ds_cfh12k.MAG_AUTO_" if system == "BVRI" else "MAG_AUTO_"
    rows = _magnitudes(table, {band: f"{prefix}{band.upper()}" for band in system})
    rows["z"] = _column(table, "ds_spectra.Z")
    good = np.isin(_column(table, "ds_spectra.ZFLAGS"), [3, 4])
    return _whole({name: values[good] for name, values in rows.items()}, stars=stars)


@dataclass(frozen=True)
class Experiment:
    """Labels and asked sources as magnitudes, the bands in order of wavelength, the reference band."""

    labels: Callable[[Path], Rows]
    asked: Callable[[Path], Rows]
    bands: str
    reference: str
    kind: str


def _fainter(rows: Rows, low: float, high: float) -> Rows:
    there = (rows["i"] >= low) & (rows["i"] < high)
    return {name: values[there] for name, values in rows.items()}


SURVEYS: dict[str, Experiment] = {
    "zCOSMOS to VVDS-Deep": Experiment(
        lambda data: zcosmos(data, "ugriz"),
        lambda data: vvds(data, "deep", "ugriz"),
        "ugriz",
        "i",
        "another photometric system: no covariate shift, no weight can mend it (the control)",
    ),
    "VVDS-Wide to VVDS-Deep": Experiment(
        lambda data: vvds(data, "wide", "BVRI"),
        lambda data: _deeper(vvds(data, "deep", "BVRI")),
        "BVRI",
        "I",
        "the same camera, sources of I > 22.5",
    ),
    "zCOSMOS bright to faint": Experiment(
        lambda data: _fainter(zcosmos(data, "ubgvrizjk"), 0, FAINTEST_LABEL_I),
        lambda data: _fainter(zcosmos(data, "ubgvrizjk"), FAINTEST_LABEL_I, 99),
        "ubgvrizjk",
        "i",
        f"one catalogue, labels of i < {FAINTEST_LABEL_I} alone: partly beyond the labels",
    ),
}


def _deeper(rows: Rows) -> Rows:
    there = rows["I"] > 22.5
    return {name: values[there] for name, values in rows.items()}


def _features(rows: Rows, bands: str, reference: str) -> tuple[Floats, tuple[str, ...]]:
    colours = [rows[a] - rows[b] for a, b in pairwise(bands)]
    return np.column_stack([*colours, rows[reference]]), (*(f"{a}-{b}" for a, b in pairwise(bands)), reference)


def survey(job: Survey, data: Path, *, most: int, quick: bool) -> dict[str, Any]:
    """Every estimator with and without weights, scored against the other survey's redshifts, on at most `most` labels;
    `quick` asks kNN alone."""
    began, experiment = time.monotonic(), SURVEYS[job.survey]
    labels, asked = experiment.labels(data), experiment.asked(data)
    chosen = np.random.default_rng((job.seed, 17)).permutation(len(labels["z"]))
    chosen = np.sort(chosen[: min(most, round(KEPT_LABELS * len(chosen)))])
    labels = {name: values[chosen] for name, values in labels.items()}
    x, names = _features(labels, experiment.bands, experiment.reference)
    wanted, _ = _features(asked, experiment.bands, experiment.reference)
    scale = x.std(axis=0)
    same = np.arange(len(x))[:, None]
    bright, faint = labels[experiment.reference], asked[experiment.reference]
    known = Known(x, labels["z"], wanted, names, x / scale, wanted / scale, names, same, bright, faint)
    answers: dict[str, Any] = {}
    shift = METHODS[DEFAULT](known.observables, known.asked_observables, seed=job.seed)
    for estimator in ("knn",) if quick else ("knn", "lightgbm", "network"):
        plain = answer(known, estimator, None, seed=job.seed, own=True)
        answers[f"{estimator}, none"] = plain
        answers[f"{estimator}, {DEFAULT}"] = answer(known, estimator, shift.weights, seed=job.seed)
        moved = calibrated_points(plain.own_point, known.z, bright, plain.point, faint)
        answers[f"{estimator}, {LIN}"] = Answers(None, moved, plain.in_support, {})
    if not quick:
        answers[f"redshelf, {CHOSEN}"] = answer(known, "redshelf", None, seed=job.seed)
    found = {name: scores(given, asked["z"], faint, known.z) for name, given in answers.items()}
    for given in found.values():
        del given["picture"]
    return {
        "kind": experiment.kind,
        "labels": len(x),
        "asked": len(wanted),
        "mean_z": {"labels": float(labels["z"].mean()), "asked": float(asked["z"].mean())},
        "ess": shift.effective_sample_size,
        "answers": found,
        "more": {} if quick else {"without_truth": answers[f"redshelf, {CHOSEN}"].more["without_truth"]},
        "stars": _stars(job, data),
        "seconds": time.monotonic() - began,
    }


def _stars(job: Survey, data: Path) -> dict[str, Any] | None:
    """Stars from galaxies by colours and magnitude, out of fold, on the labelled survey (real spectra of both)."""
    import lightgbm

    experiment = SURVEYS[job.survey]
    if job.survey == "zCOSMOS bright to faint":
        rows = [zcosmos(data, experiment.bands, stars=stars) for stars in (False, True)]
    elif job.survey == "VVDS-Wide to VVDS-Deep":
        rows = [vvds(data, "wide", experiment.bands, stars=stars) for stars in (False, True)]
    else:
        return None
    parts = [_features(some, experiment.bands, experiment.reference)[0] for some in rows]
    x, star = np.concatenate(parts), np.repeat([0, 1], [len(part) for part in parts])
    fold = np.random.default_rng((job.seed, 19)).permutation(len(x)) % FOLDS
    chance = np.zeros(len(x))
    for number in range(FOLDS):
        seen = fold != number
        options = {"objective": "binary", "num_leaves": 15, "verbose": -1, "seed": job.seed, "num_threads": 1}
        model = lightgbm.train({**options, "deterministic": True}, lightgbm.Dataset(x[seen], star[seen]), 200)
        chance[~seen] = np.asarray(model.predict(x[~seen], num_threads=1))
    called = chance > 0.5
    ranks = np.argsort(np.argsort(chance)) + 1.0
    n_star, n_galaxy = int(star.sum()), int((1 - star).sum())
    area = (ranks[star == 1].sum() - n_star * (n_star + 1) / 2) / (n_star * n_galaxy)
    return {
        "stars": n_star,
        "galaxies": n_galaxy,
        "auc": float(area),
        "stars_found": float(called[star == 1].mean()),
        "galaxies_lost": float(called[star == 0].mean()),
        "stars_left_among_galaxies": float((star == 1)[~called].mean()),
    }

"""The whole way on a small simulated survey: simulate, ingest, pretrain, embed, index, fit, publish, ask.

The table at the end is scored against the simulation's truth, on sources whose redshift nobody told the shelf.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.errors import Conflict
from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer
from redshelf.service.redshift import estimate, redshifts
from redshelf.service.search import neighbours
from redshelf.service.shelf import OpenShelf, open_shelf

ENCODER = "vit"
FITS = ("photometry", ENCODER, f"{ENCODER}+photometry")
MINIMUM = 100  # no figure from fewer sources


@dataclass(frozen=True)
class Score:
    """One line of the demo's table; None where fewer than 100 sources stand behind it."""

    encoder: str
    estimator: str
    sources: str  # "all", "in support", "out of support"
    n: int
    bias: float | None
    sigma_mad: float | None
    outliers: float | None


@dataclass(frozen=True)
class DemoReport:
    shelf: Path
    source_id: str
    z_true: float
    neighbours: NeighboursAnswer
    redshift: RedshiftAnswer
    scores: list[Score]
    seconds: dict[str, float]


def read_truth(survey: Path, shelf: OpenShelf) -> npt.NDArray[np.float64]:
    """True redshift of every row from the simulation's truth.fits; NaN for stars."""
    from astropy.table import Table

    truth = Table.read(survey / "truth.fits")
    z = np.full(len(shelf), np.nan)
    rows = [shelf.row(str(i)) for i in truth["ID"]]
    z[rows] = np.where(np.asarray(truth["CLASS"]).astype(str) == "star", np.nan, np.asarray(truth["Z_TRUE"]))
    return z


def score(shelf: OpenShelf, z_true: npt.NDArray[np.float64]) -> list[Score]:
    """Every fit and estimator on the unlabelled galaxies, against the truth."""
    rows = np.flatnonzero(np.isfinite(z_true) & ~np.isfinite(shelf.columns["z_spec"]))
    scores = []
    for name, fit in shelf.redshifts.items():
        for estimator in fit.published.estimators:
            prediction = estimate(fit, rows, estimator=estimator)
            inside = prediction.support.in_support
            for label, chosen in (
                ("all", np.ones(len(rows), bool)),
                ("in support", inside),
                ("out of support", ~inside),
            ):
                found = prediction.point[chosen]
                true = z_true[rows][chosen]
                values: tuple[float | None, float | None, float | None] = (None, None, None)
                if len(found) >= MINIMUM:
                    dz = metrics.delta_z(found, true)
                    values = (metrics.bias(dz), metrics.sigma_mad(dz), metrics.outlier_fraction(dz))
                scores.append(Score(name, estimator, label, len(found), *values))
    return scores


def example(shelf: OpenShelf, z_true: npt.NDArray[np.float64]) -> int:
    """The row that the demo asks about: an unlabelled galaxy in support and among the brightest twentieth."""
    fit = shelf.redshift()
    rows = np.flatnonzero(np.isfinite(z_true) & ~np.isfinite(shelf.columns["z_spec"]))
    prediction = estimate(fit, rows, estimator=shelf.generation.default_estimator or "knn")
    red = shelf.info.band_names.index(shelf.info.reference_band)
    magnitude = shelf.columns["magnitudes"][rows, red]
    good = prediction.support.in_support & np.isfinite(magnitude)
    candidates = rows[good] if good.any() else rows
    brightness = np.where(
        np.isfinite(shelf.columns["magnitudes"][candidates, red]), shelf.columns["magnitudes"][candidates, red], 99
    )
    return int(candidates[np.argsort(brightness, kind="stable")[len(candidates) // 20]])


def demo(
    folder: Path,
    *,
    sources: int = 4000,
    seed: int = 1,
    pretrain_seconds: float = 100,
    say: Callable[[str], None] = print,
    progress: bool = True,
) -> DemoReport:
    """Run the demo in `folder` (made new; `Conflict` where it exists) and return what it answered."""
    from redshelf.indexing.simulate import simulate
    from redshelf.service.embedding import embed
    from redshelf.service.fit import fit
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.mapping import make
    from redshelf.service.maps import SKY
    from redshelf.service.publish import publish
    from redshelf.service.training import Run, pretrain

    if folder.exists() and any(folder.iterdir()):
        raise Conflict(
            f"{folder} is not empty: remove it, name another one, or `redshelf serve --shelf {folder / 'shelf'}`"
        )
    folder.mkdir(parents=True, exist_ok=True)
    survey, shelf = folder / "survey", folder / "shelf"
    seconds: dict[str, float] = {}

    def step(name: str, action: Callable[[], object]) -> None:
        say(f"{name} ...")
        start = time.perf_counter()
        action()
        seconds[name] = time.perf_counter() - start

    step("simulate", lambda: simulate(survey, sources=sources, scenario="s1", seed=seed, progress=progress))
    step("ingest", lambda: ingest(survey / "survey.toml", shelf, progress=progress))
    # small batches: more steps in the time there is
    run = Run(max_seconds=pretrain_seconds, batch_size=64, progress=progress)
    step("pretrain", lambda: pretrain(shelf, name=ENCODER, run=run))
    for encoder in ("photometry", ENCODER):
        step(f"embed {encoder}", partial(embed, shelf, encoder=encoder, progress=progress))
        step(f"index {encoder}", partial(build_index, shelf, encoder=encoder))
    for name in FITS:
        step(f"fit {name}", partial(fit, shelf, encoder=name))
    step("publish", lambda: publish(shelf))
    for name in (ENCODER, SKY):
        step(f"map {name}", partial(make, shelf, name, progress=progress))
    opened = open_shelf(shelf)
    z_true = read_truth(survey, opened)
    row = example(opened, z_true)
    source_id = opened.source_id(row)
    return DemoReport(
        shelf=shelf,
        source_id=source_id,
        z_true=float(z_true[row]),
        neighbours=neighbours(opened, source_id, k=8),
        redshift=redshifts(opened, [source_id])[0],
        scores=score(opened, z_true),
        seconds=seconds,
    )

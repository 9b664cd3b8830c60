"""The scores of one cell: of all asked sources, in and out of support, by magnitude, by true and photometric redshift.

Each slice of fewer than 100 sources has none. Errors are over objects (bootstrap); those over seeds are the report's.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.density_scores import pit_histogram
from redshelf.models.pdf import Pdf
from redshelf.service.study_answers import Answers

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
MAGNITUDES = (17.0, 22.5, 24.0, 25.0)
REDSHIFTS = (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 1.8, 2.1, 2.5, 3.0, 6.0)
BOOTSTRAP = 50
KEPT = ("n", "bias", "sigma_mad", "outliers", "median")
REFERENCE_SOURCES, REFERENCE_BINS = 500, 6
MANY_BAND_ERROR, MANY_BAND_OUTLIERS = 0.015, 0.03
GRID = 60  # cells a side of the picture of z_phot against z_true, to z = 3


def scores(found: Answers, truth: Floats, magnitude: Floats, z_labels: Floats) -> dict[str, Any]:
    """`slices` by name, the number of labels by redshift, PIT histograms, and a picture of z_phot against z_true."""
    every = np.ones(len(truth), dtype=bool)
    parts = {"all": every, "in": found.in_support, "out": ~found.in_support}
    slices = {name: _of(found, truth, rows, whole=True) for name, rows in parts.items()}
    for kind, values, edges in (
        ("magnitude", magnitude, MAGNITUDES),
        ("z_true", truth, REDSHIFTS),
        ("z_phot", found.point, REDSHIFTS),
    ):
        for low, high in pairwise(edges):
            there = (values >= low) & (values < high)
            for name in ("all", "in"):
                slices[f"{name}: {kind} {low:g}-{high:g}"] = _of(found, truth, there & parts[name], whole=False)
    counts, *_ = np.histogram(z_labels, REDSHIFTS)
    picture, *_ = np.histogram2d(truth, found.point, bins=GRID, range=[[0, 3], [0, 3]])
    pit = None if found.pdf is None else found.pdf.pit(truth)
    return {
        "slices": slices,
        "labels_by_z": dict(zip((f"{a:g}-{b:g}" for a, b in pairwise(REDSHIFTS)), counts.tolist(), strict=True)),
        "in_support": float(found.in_support.mean()),
        "pit": None if pit is None else {n: pit_histogram(pit[r]).tolist() for n, r in parts.items() if r.sum() >= 100},
        "picture": picture.astype(int).tolist(),
    }


def reference(found: Answers, truth: Floats, seed: int) -> list[dict[str, float]]:
    """What a many-band photo-z of 500 random sources would show of the answers in support: the median of dz in six
    bins of z_phot and its error. The reference is drawn from the truth (`blurred`)."""
    rng = np.random.default_rng((seed, 23))
    rows = rng.permutation(np.flatnonzero(found.in_support))[:REFERENCE_SOURCES]
    z = blurred(truth[rows], rng)
    dz, point = metrics.delta_z(found.point[rows], z), found.point[rows]
    out = []
    for part in np.array_split(np.argsort(point, kind="stable"), REFERENCE_BINS):
        if len(part) > 1:
            error = 1.2533 * metrics.sigma_mad(dz[part]) / np.sqrt(len(part))
            out.append(
                {"z": float(point[part].mean()), "median": float(np.median(dz[part])), "error": max(error, 1e-6)}
            )
    return out


def blurred(z: Floats, rng: np.random.Generator) -> Floats:
    """A stand-in for many-band photo-z of true redshifts (N,): Gaussian errors of .015 (1 + z), and 3% anywhere."""
    out = z + MANY_BAND_ERROR * (1 + z) * rng.standard_normal(len(z))
    lost = rng.random(len(z)) < MANY_BAND_OUTLIERS
    out[lost] = rng.uniform(0, z.max(), lost.sum())
    return np.maximum(out, 1e-4)


def _of(found: Answers, truth: Floats, rows: Bools, *, whole: bool) -> dict[str, float] | None:
    if rows.sum() < 100:
        return None
    said = metrics.summary(found.point[rows], truth[rows], bootstrap=BOOTSTRAP)
    assert said is not None
    out = {name: value for name, value in said.items() if name.removesuffix("_error") in KEPT}
    out["mean_dz"] = float((found.point[rows] - truth[rows]).mean())
    if whole and found.pdf is not None:
        pdf = Pdf(found.pdf.edges, found.pdf.density[rows])
        pit = pdf.pit(truth[rows])
        out |= {
            "cde_loss": metrics.cde_loss(pdf, truth[rows]),
            "crps": float(metrics.crps(pdf, truth[rows]).mean()),
            "pit_ks": metrics.pit_ks(pit),
            "cover_68": float((np.abs(pit - 0.5) <= 0.34).mean()),
            "cover_95": float((np.abs(pit - 0.5) <= 0.475).mean()),
        }
    return out

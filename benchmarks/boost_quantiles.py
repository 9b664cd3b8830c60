"""LightGBM as quantiles, or as one prediction with out-of-fold residuals: which densities are better under a shift.

    python benchmarks/boost_quantiles.py [--quick] [--check] [--draws 3]

zCOSMOS E3b, the same trees and features: 21 quantile boosters, rearranged to be monotone (Chernozhukov et al. 2010),
with linear tails, beside `models/boost`. Needs $REDSHELF_DATA and says so when it is absent.
"""

from __future__ import annotations

import argparse
import sys

import lightgbm
import numpy as np
import zcosmos_draws as draws

from redshelf.models import metrics
from redshelf.models.boost import PARAMETERS, fit_boost
from redshelf.models.frame import fit_frame
from redshelf.models.pdf import Pdf, default_edges

LEVELS = np.linspace(0.025, 0.975, 21)
ROUNDS = 400
TAIL = 3.0  # of the distance between the last three levels


def quantile_pdf(x: draws.Floats, y: draws.Floats, target: draws.Floats, edges: draws.Floats) -> Pdf:
    """Densities of targets (M, D) from boosters of ln(1+z) `y` (L,), one a level."""
    found = []
    for level in LEVELS:
        settings = PARAMETERS | {"objective": "quantile", "alpha": level, "seed": 0, "num_threads": 1}
        booster = lightgbm.train(settings, lightgbm.Dataset(x, y, params=settings), ROUNDS)
        found.append(np.asarray(booster.predict(target, num_threads=1)))
    at = np.sort(np.column_stack(found), axis=1) + np.arange(len(LEVELS)) * 1e-9
    low = at[:, :1] - TAIL * (at[:, 2:3] - at[:, :1]) - 1e-3
    high = at[:, -1:] + TAIL * (at[:, -1:] - at[:, -3:-2]) + 1e-3
    nodes, levels = np.concatenate([low, at, high], axis=1), np.r_[0, LEVELS, 1]
    cdf = np.array([np.interp(np.log1p(edges), row, levels) for row in nodes])
    return Pdf.from_mass(edges, np.maximum(np.diff(cdf, axis=1), 0))


def main() -> int:
    """Print a line a draw; with --check, 1 where quantiles have the lower CDE loss."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one draw; no figure to publish")
    parser.add_argument("--check", action="store_true", help="exit 1 where quantiles are better")
    parser.add_argument("--draws", type=int, default=3)
    arguments = parser.parse_args()
    base = draws.baseline()
    x, z, magnitude = draws.rows(base)
    worse = 0
    for number, draw in enumerate(draws.e3b(base, magnitude, 1 if arguments.quick else arguments.draws)):
        (target,) = draw.targets.values()
        frame = fit_frame(x[draw.labelled], x[target], draws.NAMES)
        seen, asked, known = frame.trees(x[draw.labelled]), frame.trees(x[target]), z[draw.labelled]
        edges = default_edges(float(np.expm1(np.log1p(known.max()) + 0.15)))
        one, hidden = np.ones(len(known)), np.arange(len(known))[:, None]
        model, _ = fit_boost(seen, known, edges=edges, importance=one, exclude=hidden, shift_weights=False, threads=1)
        pdfs = {
            "21 quantiles": quantile_pdf(seen, np.log1p(known), asked, edges),
            "residuals": model.predict(asked, threads=1),
        }
        losses = {}
        for name, pdf in pdfs.items():
            score = "/".join(f"{v:+.4f}" for v in draws.score(pdf.median(), z[target]))
            losses[name] = metrics.cde_loss(pdf, z[target])
            ks = metrics.pit_ks(pdf.pit(z[target]))
            print(f"draw {number} {name:13s} {score}  CDE loss {losses[name]:.2f}  PIT KS {ks:.3f}", flush=True)
        worse += losses["21 quantiles"] < losses["residuals"]
    return 1 if arguments.check and worse else 0


if __name__ == "__main__":
    sys.exit(main())

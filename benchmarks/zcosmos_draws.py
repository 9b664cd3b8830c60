"""Redshift under a real covariate shift, on arrays: our estimators and ../shared/data/baseline.py on the same rows.

zCOSMOS-bright rows, features and the draws E3 (labels i < 21.3) and E3b (labels drawn with a known P(i)) exactly as the
baseline makes them; draw n of E3b seeds with 7 + n. Run: `python benchmarks/zcosmos_draws.py --draws 5`.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.fitting import fit_redshift
from redshelf.models.redshift import ESTIMATORS

Floats = npt.NDArray[np.float64]
BANDS = tuple("ubgvrizjk")
NAMES = (*(f"{a}-{b}" for a, b in pairwise(BANDS)), "i")
FIRST_SEED = 7


@dataclass(frozen=True)
class Draw:
    """Rows (into `rows()`) of the labels, of their hold-out, and of each target."""

    name: str
    labelled: npt.NDArray[np.int64]
    holdout: npt.NDArray[np.int64]
    targets: dict[str, npt.NDArray[np.int64]]


def data_folder() -> Path:
    """`$REDSHELF_DATA`, else ../shared/data beside the checkout; ends the program plainly where the file is absent."""
    folder = Path(os.environ.get("REDSHELF_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (folder / "zcosmost_bright20k.csv").is_file():
        sys.exit(f"zcosmost_bright20k.csv is not in {folder}: set REDSHELF_DATA to the folder of the real data")
    return folder


def baseline() -> ModuleType:
    """The baseline beside the data, imported as it is."""
    spec = importlib.util.spec_from_file_location("redshelf_baseline", data_folder() / "baseline.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(base: ModuleType) -> tuple[Floats, Floats, Floats]:
    """Features (9732, 9) in the order of `NAMES`, redshifts and i magnitudes, (9732,) each."""
    table = base.load_zcosmos(str(data_folder()), list(BANDS))
    return base.features(table, list(BANDS), "i"), table.z.to_numpy(), table.m_i.to_numpy()


def e3(base: ModuleType, magnitude: Floats, draws: int) -> Iterator[Draw]:
    """Labels brighter than i = 21.3, two fainter targets: the second is mostly out of the labels' support.

    The first draw is the baseline's own; the others hold out another 30% of the bright rows.
    """
    bright = np.where(magnitude < 21.3)[0]
    targets = {
        "21.3<=i<22": np.where((magnitude >= 21.3) & (magnitude < 22))[0],
        "i>=22": np.where(magnitude >= 22)[0],
    }
    for seed in range(draws):
        train, test = base.split(len(bright), seed=seed)
        yield Draw("E3", bright[train], bright[test], targets)


def e3b(base: ModuleType, magnitude: Floats, draws: int) -> Iterator[Draw]:
    """Labels drawn with P(i), the rest as target; the first draw is the baseline's own."""
    probability = np.clip(1 / (1 + np.exp((magnitude - 21.3) / 0.35)), 0.02, 0.95)
    for seed in range(FIRST_SEED, FIRST_SEED + draws):
        chosen = np.random.default_rng(seed).random(len(magnitude)) < probability
        drawn = np.where(chosen)[0]
        train, test = base.split(len(drawn))
        yield Draw("E3b", drawn[train], drawn[test], {"unlabelled": np.where(~chosen)[0]})


def baseline_points(base: ModuleType, x: Floats, z: Floats, target: Floats) -> dict[str, Floats]:
    """The baseline's four redshifts of `target`, (M,) each, from labels `x`, `z`."""
    near, far = base.standardise(x, target)
    weights, _ = base.lima_weights(near, far)
    y = np.log1p(z)
    return {
        "baseline knn": np.expm1(base.knn(near, y, far)),
        "baseline knn weighted": np.expm1(base.knn(near, y, far, weights)),
        "baseline lightgbm": np.expm1(base.gbm(x, y, target)),
        "baseline lightgbm weighted": np.expm1(base.gbm(x, y, target, weights + 1e-6)),
    }


def spread(scores: list[Floats]) -> str:
    """Mean of (bias, sigma_MAD, outliers), and their standard deviation over the draws where there are several."""
    mean = np.mean(scores, axis=0)
    if len(scores) == 1:
        return "  ".join(f"{value:+.4f}" for value in mean)
    return "  ".join(f"{m:+.4f} +- {s:.4f}" for m, s in zip(mean, np.std(scores, axis=0, ddof=1), strict=True))


def score(point: Floats, truth: Floats) -> Floats:
    """(bias, sigma_MAD, outlier fraction)."""
    dz = metrics.delta_z(point, truth)
    return np.array([metrics.bias(dz), metrics.sigma_mad(dz), metrics.outlier_fraction(dz)])


def our_points(x: Floats, z: Floats, target: Floats, say: Callable[[str], None]) -> tuple[dict[str, Floats], Any, Any]:
    """Our redshifts of `target` with weights by validation, forbidden and demanded; the first model and its answer."""
    points: dict[str, Floats] = {}
    first: tuple[Any, Any] | None = None
    for label, weights in (("", None), (" unweighted", False), (" weighted", True)):
        started = time.perf_counter()
        model = fit_redshift(x, z, target, names=NAMES, shift_weights=weights)
        answers = {name: model.predict(target, estimator=name) for name in ESTIMATORS}
        points |= {f"{name}{label}": answer.point for name, answer in answers.items()}
        if first is None:
            first = model, answers
            chosen = f"chosen ({model.default_estimator})"
            points["chosen"] = answers[model.default_estimator].point
            k, shift = model.report["knn"], model.shift
            say(
                f"  ESS {shift.effective_sample_size:.0f}, mean weight {shift.mean_weight:.2f}; k={k['k']} "
                f"local_linear={k['local_linear']} weights: knn {k['shift_weights']}, "
                f"lightgbm w^{model.report['lightgbm']['shift_weights']:g}; "
                f"support in {model.support_space}; {chosen}; {time.perf_counter() - started:.1f} s"
            )
    assert first is not None
    return points, *first


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=5)
    draws = parser.parse_args().draws
    base = baseline()
    x, z, magnitude = rows(base)
    results: dict[str, dict[str, list[Floats]]] = {}
    for draw in [*e3b(base, magnitude, draws), *e3(base, magnitude, 1)]:
        for name, target in draw.targets.items():
            title = f"{draw.name} {name}"
            print(f"{title}: {len(draw.labelled)} labels, {len(target)} targets", flush=True)
            points, model, answers = our_points(x[draw.labelled], z[draw.labelled], x[target], print)
            points |= baseline_points(base, x[draw.labelled], z[draw.labelled], x[target])
            for method, point in points.items():
                results.setdefault(title, {}).setdefault(method, []).append(score(point, z[target]))
            for method, answer in answers.items():
                pit = answer.pdf.pit(z[target])
                inside = answer.support.in_support
                dz = metrics.delta_z(answer.point, z[target])
                rest = metrics.outlier_fraction(dz[~inside]) if (~inside).sum() >= 100 else float("nan")
                print(
                    f"  {method}: PIT KS {metrics.pit_ks(pit):.3f}, 68% covers {np.mean(abs(pit - 0.5) <= 0.34):.3f}, "
                    f"95% {np.mean(abs(pit - 0.5) <= 0.475):.3f}; in support {inside.mean():.3f}, outliers in "
                    f"{metrics.outlier_fraction(dz[inside]):.4f}, out {rest:.4f}"
                )
            if name == "i>=22":
                print(f"  support scores on hold-outs: {model.report['support']}\n  rejection by distance ratio:")
                chosen = answers[model.default_estimator]
                dz = metrics.delta_z(chosen.point, z[target])
                for row in metrics.rejection_curve(chosen.support.distance_ratio, dz):
                    print("   " + "  ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None))
    for title, methods in results.items():
        print(f"\n{title}, {len(next(iter(methods.values())))} draw(s): bias, sigma_MAD, outliers; mean +- spread")
        for method, scores in methods.items():
            print(f"  {method:28s} {spread(scores)}")


if __name__ == "__main__":
    main()

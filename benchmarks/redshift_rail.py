"""The part `rail` of redshift.py: RAIL's estimators and ours on RAIL's DC2 tables, scored by the same code."""

from __future__ import annotations

import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.fitting import fit_redshift
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.redshift import ESTIMATORS

Floats = npt.NDArray[np.float64]
ROUNDS, QUICK_ROWS = 3, (1500, 2000)
TIMES_FASTER = 20
SCORES = ("bias", "sigma_mad", "outliers", "cde_loss", "pit_ks")
COVERAGE = ("cover_68", "cover_95")
HEADS = ("", "fit s", "objects/s", "a core", "bias", "sigma_MAD", "outliers", "CDE loss", "PIT KS", "68%", "95%")
OURS = "redshelf knn, as a stage"


def table(kind: str, rows: int | None) -> dict[str, Floats]:
    """DC2 table 9816 of RAIL, whole or `rows` spread over it."""
    import rail

    for folder in map(Path, rail.__path__):
        path = folder / "examples_data" / "testdata" / f"test_dc2_{kind}_9816.hdf5"
        if path.is_file():
            with h5py.File(path) as file:
                step = len(file["photometry/redshift"]) // rows if rows else 1
                return {name: value[::step] for name, value in file["photometry"].items()}
    raise FileNotFoundError(f"no table test_dc2_{kind}_9816.hdf5 in {list(rail.__path__)}")


def scores(pdf: Pdf, point: Floats, z: Floats) -> dict[str, float]:
    """bias, sigma_MAD and outliers of `point`; CDE loss, KS of the PIT and coverage of `pdf`."""
    dz, pit = metrics.delta_z(point, z), pdf.pit(z)
    return {
        "bias": metrics.bias(dz),
        "sigma_mad": metrics.sigma_mad(dz),
        "outliers": metrics.outlier_fraction(dz),
        "cde_loss": metrics.cde_loss(pdf, z),
        "pit_ks": metrics.pit_ks(pit),
        "cover_68": float((np.abs(pit - 0.5) <= 0.34).mean()),
        "cover_95": float((np.abs(pit - 0.5) <= 0.475).mean()),
    }


def on_edges(ensemble: Any, edges: Floats) -> Pdf:
    """A qp ensemble as masses between our edges, exact by its CDF; what lies beyond them is left out."""
    parts = [np.diff(ensemble[i : i + 1000].cdf(edges), axis=1) for i in range(0, ensemble.npdf, 1000)]
    return Pdf.from_mass(edges, np.maximum(np.concatenate(parts), 0))


def best_rate(answer: Callable[[], Any], objects: int, rounds: int) -> tuple[Any, dict[str, float]]:
    """The answer, and of the best of some rounds objects a second, and a second of one core.

    The latter is what a machine that others keep busy can tell; it leaves out processes that were begun.
    """
    seconds, cores = [], []
    for _ in range(rounds):
        began, used = time.perf_counter(), time.process_time()
        found = answer()
        seconds.append(time.perf_counter() - began)
        cores.append(time.process_time() - used)
    return found, {"rate": objects / min(seconds), "core": objects / min(cores)}


def staged(informer: Any, estimator: Any, train: dict[str, Floats], test: dict[str, Floats], rounds: int) -> Any:
    """Ensemble of an informer and an estimator of RAIL in memory, seconds of the fit, and `best_rate`."""
    began = time.perf_counter()
    inform = informer.make_stage(name=f"inform_{informer.name}", output_mode="return", hdf5_groupname="photometry")
    model = inform.inform({"photometry": {name: value.copy() for name, value in train.items()}})
    fitted = time.perf_counter() - began
    stage = estimator.make_stage(
        name=f"estimate_{estimator.name}", model=model, output_mode="return", hdf5_groupname="photometry"
    )
    type(stage.data_store).allow_overwrite = True  # several rounds
    data = {"photometry": {name: value.copy() for name, value in test.items()}}
    found, rate = best_rate(lambda: stage.estimate(data)(), len(test["redshift"]), rounds)
    return found, fitted, rate


def run(arguments: Namespace) -> list[str]:
    """Print the table and return a line for each number that falls short."""
    try:
        import ceci  # noqa: F401
        import rail
        import structlog

        from redshelf.models.rail import RedshelfKnnEstimator, RedshelfKnnInformer
    except ImportError as error:
        print(f"not measured: {error}; install the extra sim")
        return []
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))  # RAIL tells of each handle otherwise
    if arguments.rail_packages is not None:
        sys.path.append(str(arguments.rail_packages.resolve()))
    rows = QUICK_ROWS if arguments.quick else (None, None)
    train, test = table("training", rows[0]), table("validation", rows[1])
    truth, edges = test["redshift"], default_edges(3.0)
    lines: dict[str, dict[str, Any]] = {}
    print(f"{len(train['redshift']):,} to train on, {len(truth):,} to answer for\n")
    print(f"| {' | '.join(HEADS)} |\n|{'---|' * len(HEADS)}", flush=True)

    def told(name: str, line: dict[str, Any]) -> None:
        lines[name] = line
        cost = f"{line['fit']:.1f} | {line['rate']:,.0f} | {line['core']:,.0f}" if "rate" in line else " | | "
        values = " | ".join(f"{line[s]:+.4f}" if s == "bias" else f"{line[s]:.4f}" for s in (*SCORES, *COVERAGE))
        print(f"| {name} | {cost} | {values} |", flush=True)

    ours, fitted, rate = staged(RedshelfKnnInformer, RedshelfKnnEstimator, train, test, ROUNDS)
    pdf = on_edges(ours, edges)
    told(OURS, {"fit": fitted, **rate, **scores(pdf, pdf.median(), truth)})
    rivals = []
    for name, module, classes in (
        ("RAIL k nearest", "k_nearneigh", ("KNearNeighInformer", "KNearNeighEstimator")),
        ("RAIL FlexZBoost", "flexzboost", ("FlexZBoostInformer", "FlexZBoostEstimator")),
    ):
        try:
            found = __import__(f"rail.estimation.algos.{module}", fromlist=list(classes))
        except ImportError as error:
            print(f"{name} not measured: {error}; see --rail-packages (rail lies in {list(rail.__path__)})")
            continue
        theirs, fitted, rate = staged(*(getattr(found, kind) for kind in classes), train, test, ROUNDS)
        pdf = on_edges(theirs, edges)
        told(name, {"fit": fitted, **rate, **scores(pdf, pdf.median(), truth)})
        rivals.append(name)
        if theirs.ancil is not None and "zmode" in theirs.ancil:
            told(f"{name}, its mode", scores(pdf, np.squeeze(theirs.ancil["zmode"]), truth))
            rivals.append(f"{name}, its mode")
    began = time.perf_counter()
    columns = RedshelfKnnInformer.make_stage(name="columns").columns()
    features, wanted = columns.features(train), columns.features(test)
    model = fit_redshift(features, train["redshift"], wanted, names=columns.names, z_max=3.0)
    fitted = time.perf_counter() - began
    for estimator in ESTIMATORS:
        found, rate = best_rate(lambda e=estimator: model.predict(wanted, estimator=e), len(wanted), 1)  # type: ignore[misc]
        name = f"redshelf {estimator}{', chosen' if estimator == model.default_estimator else ''}"
        told(name, {"fit": fitted, **rate, **scores(found.pdf, found.point, truth)})
    print(f"\nblend {model.report['blend']}")
    return faults(lines, rivals, f"redshelf {model.default_estimator}, chosen")


def faults(lines: dict[str, dict[str, Any]], rivals: list[str], chosen: str) -> list[str]:
    """A line for each number of the issue that falls short."""
    wrong, own = [], lines[OURS]
    for name in rivals:
        theirs = lines[name]
        if "rate" in theirs and own["rate"] < TIMES_FASTER * theirs["rate"]:
            ratios = " and ".join(f"{own[kind] / theirs[kind]:.1f}" for kind in ("rate", "core"))
            wrong.append(f"our kNN is {ratios} (of one core) times as fast as {name}, wanted {TIMES_FASTER}")
        for score in SCORES:
            size = abs if score == "bias" else float
            if size(lines[chosen][score]) > size(theirs[score]):
                wrong.append(f"{chosen}: {score} {lines[chosen][score]:.4f}, {name} has {theirs[score]:.4f}")
    return wrong

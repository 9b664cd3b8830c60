"""The part `simulated` of redshift.py: known truth, known labels' probabilities, several draws of the labelled set.

A survey is simulated without images, ingested and put through the `photometry` encoder; the features are its stored
vectors, as `redshelf fit` takes them. A draw takes spectra by each source's own probability; of the rest 50,000 stand
for the target in the fit, as in `redshelf fit`, and 60,000 galaxies are answered for and scored. The catalogue takes
faint stars for galaxies, in the target too; they are not scored. *plain*: the same without shift weights and without
recalibration.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.pdf import Pdf
from redshelf.models.validate import MEMBERS

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SCENARIOS = ("s0", "s1")
SOURCES, QUICK_SOURCES = {"s0": 120_000, "s1": 500_000}, {"s0": 12_000, "s1": 20_000}
LABELS, TARGETS, SEEN = 20_000, 60_000, 50_000
DRAWS, QUICK_DRAWS = 5, 1
SEED = 21
REDSHIFTS = (0.0, 0.3, 0.6, 0.9, 1.2, 1.5, 2.0, 2.5, 3.0, 6.0)
MINIMUM = 100
COVER = {68: 0.02, 95: 0.015}


def prepare(folder: Path, scenario: str, sources: int) -> Path:
    """Features, truth and label probabilities of a simulated survey in one .npz; what is there is kept."""
    from astropy.table import Table

    from redshelf.indexing import store
    from redshelf.indexing.files import read_json
    from redshelf.indexing.layout import Layout
    from redshelf.indexing.simulate import simulate
    from redshelf.service.embedding import embed
    from redshelf.service.fit import NOT_GALAXIES
    from redshelf.service.ingest import ingest

    path = folder / f"{scenario}-{sources}.npz"
    if path.exists():
        return path
    survey, root = folder / f"survey-{scenario}-{sources}", folder / f"shelf-{scenario}-{sources}"
    if not survey.exists():
        simulate(survey, sources=sources, scenario=scenario, seed=SEED, catalogue_only=True)
    if not (root / "shelf.toml").is_file():
        ingest(survey / "survey.toml", root)
    embed(root, encoder="photometry")
    layout = Layout(root)
    revision = layout.newest("photometry")
    stored = store.open_table(layout.embeddings("photometry", revision)).to_table()
    rows = stored["row"].to_numpy()
    names = read_json(layout.model("photometry", revision) / "config.json")["config"]["features"]
    shelf = store.open_table(layout.sources).take(rows, columns=["source_id", "object_class"])
    truth = Table.read(survey / "truth.fits")
    at = {name: row for row, name in enumerate(np.asarray(truth["ID"]).astype(str))}
    order = np.array([at[name] for name in shelf["source_id"].to_pylist()])
    star = np.asarray(truth["CLASS"]).astype(str)[order] == "star"
    np.savez(
        path,
        features=store.list_values(stored["vector"]).astype(np.float32),
        names=np.array(names),
        wanted=~np.isin(np.array(shelf["object_class"].to_pylist()), NOT_GALAXIES),
        star=star,
        z=np.asarray(truth["Z_TRUE"], dtype=np.float64)[order],
        chance=np.asarray(truth["P_LABEL"], dtype=np.float64)[order],
    )
    return path


def child(path: str, scenario: str, draw: int, out: str) -> None:
    """One draw of the labels: fit with and without corrections, answer, score; the result is written whole."""
    from redshelf.indexing.files import write_json
    from redshelf.indexing.spectroscopy import draw as spectra
    from redshelf.models.fitting import fit_redshift

    with np.load(path, allow_pickle=False) as file:
        sky = {name: file[name] for name in file.files}
    labels = spectra(sky["chance"], z_true=sky["z"], star=sky["star"], seed=1000 + draw)
    rng = np.random.default_rng((SEED, draw))
    rows = np.flatnonzero(np.isfinite(labels.z_spec) & sky["wanted"])
    rows = np.sort(rng.permutation(rows)[: LABELS + LABELS // 10])
    rest = np.flatnonzero(~labels.taken & sky["wanted"])
    seen = np.sort(rng.permutation(rest)[:SEEN])
    scored = rest[~sky["star"][rest]]
    scored = np.sort(rng.permutation(scored)[:TARGETS])
    names = tuple(sky["names"].tolist())
    result: dict[str, Any] = {"scenario": scenario, "draw": draw, "labels": len(rows), "targets": len(scored)}
    z, truth, asked = labels.z_spec[rows], sky["z"][scored], sky["features"][scored]

    def fitted(weights: bool | None) -> Any:
        began = time.perf_counter()
        model = fit_redshift(
            sky["features"][rows], z, sky["features"][seen], names=names, shift_weights=weights, seed=draw, threads=2
        )
        result[f"seconds_{weights}"] = time.perf_counter() - began
        return model

    model, plain = fitted(None), fitted(False)
    began = time.perf_counter()
    answer = model.predict(asked, threads=2)
    result["predict_rate"] = len(asked) / (time.perf_counter() - began)
    ours, without = every_density(model, asked), every_density(plain, asked)
    unweighted = plain.calibrations[answer.estimator].recalibrated(without[answer.estimator])
    uncorrected = without[answer.estimator]
    inside, every = answer.support.in_support, np.ones(len(scored), dtype=bool)
    report = model.report
    result |= {
        "estimator": model.default_estimator,
        "plain_estimator": plain.default_estimator,
        "blend": report["blend"],
        "ess": report["shift"]["effective_sample_size"],
        "mean_weight": report["shift"]["mean_weight"],
        "mean_z": {
            "labels": float(z.mean()),
            "weighted": report["shift"]["weighted_mean_z"],
            "truth": float(truth.mean()),
        },
        "weights_used": {n: bool(report[n]["shift_weights"]) for n in ("knn", "lightgbm", "network")},
        "validation": {n: report["validation"][n] for n in report["validation"]},
        "support": float(inside.mean()),
        "support_space": report["support"]["space"],
        "all": scores(answer.pdf, truth, every),
        "in": scores(answer.pdf, truth, inside),
        "out": scores(answer.pdf, truth, ~inside),
        "plain": {"all": scores(uncorrected, truth, every), "in": scores(uncorrected, truth, inside)},
        "unweighted": {"all": scores(unweighted, truth, every), "in": scores(unweighted, truth, inside)},
        "by_z": by_redshift(answer.point, truth, inside),
        "plain_by_z": by_redshift(uncorrected.median(), truth, inside),
        "members": {
            name: scores(model.calibrations[name].recalibrated(pdf), truth, inside) for name, pdf in ours.items()
        },
        "interval": conformal(model, answer, truth, inside),
        "change": change(answer.point, uncorrected.median(), truth),
    }
    write_json(Path(out), result)


def every_density(model: Any, asked: Floats) -> dict[str, Pdf]:
    """Densities of each estimator as they are before recalibration."""
    members, *_ = model.members(np.asarray(asked, dtype=np.float64), np.full(len(asked), -1), frozenset(MEMBERS), 2)
    return {**members, "blend": model.blend.of(members)}


def scores(pdf: Pdf, z: Floats, rows: npt.NDArray[np.bool_]) -> dict[str, float] | None:
    """Point scores of the median, coverage and PIT of some rows; None for under 100."""
    if rows.sum() < MINIMUM:
        return None
    some, z = Pdf(pdf.edges, pdf.density[rows]), z[rows]
    dz, pit = metrics.delta_z(some.median(), z), some.pit(z)
    return {
        "n": int(rows.sum()),
        "bias": metrics.bias(dz),
        "sigma_mad": metrics.sigma_mad(dz),
        "outliers": metrics.outlier_fraction(dz),
        "cde_loss": metrics.cde_loss(some, z),
        "cover_68": float((np.abs(pit - 0.5) <= 0.34).mean()),
        "cover_95": float((np.abs(pit - 0.5) <= 0.475).mean()),
        "pit_ks": metrics.pit_ks(pit),
    }


def by_redshift(point: Floats, z: Floats, inside: npt.NDArray[np.bool_]) -> list[dict[str, Any]]:
    """Bias by bin of true redshift, of all and of those in support, with counts; None for under 100."""

    def mean(rows: npt.NDArray[np.bool_]) -> float | None:
        return metrics.bias(metrics.delta_z(point[rows], z[rows])) if rows.sum() >= MINIMUM else None

    out = []
    for low, high in itertools.pairwise(REDSHIFTS):
        there = (z >= low) & (z < high)
        n, n_in = int(there.sum()), int((there & inside).sum())
        out.append({"z": [low, high], "n": n, "bias": mean(there), "n_in": n_in, "bias_in": mean(there & inside)})
    return out


def conformal(model: Any, answer: Any, z: Floats, inside: npt.NDArray[np.bool_]) -> dict[str, float]:
    """Coverage in support of the conformal intervals, and the fraction of them that is infinite."""
    out = {}
    for level in COVER:
        low, high = model.interval(answer, level / 100)
        hit = ((z >= low) & (z <= high))[inside]
        out |= {f"cover_{level}": float(hit.mean()), f"infinite_{level}": float(np.isinf(high[inside]).mean())}
    return out


def change(ours: Floats, plain: Floats, z: Floats, *, repeats: int = 100) -> dict[str, list[float]]:
    """What corrections do to bias, sigma_MAD and outliers, each with the error of the score over galaxies."""
    pair = [metrics.delta_z(point, z) for point in (ours, plain)]
    rng, kinds = np.random.default_rng(0), (metrics.bias, metrics.sigma_mad, metrics.outlier_fraction)
    drawn = [rng.integers(len(z), size=len(z)) for _ in range(repeats)]
    out = {}
    for kind in kinds:
        error = float(np.std([kind(pair[1][rows]) for rows in drawn]))
        out[kind.__name__] = [kind(pair[0]) - kind(pair[1]), error]
    return out


def run(arguments: Namespace) -> list[str]:
    """Do the draws that are missing, print the tables, and return a line for each number that falls short."""
    out = arguments.out / "simulated"
    out.mkdir(parents=True, exist_ok=True)
    draws = arguments.draws or (QUICK_DRAWS if arguments.quick else DRAWS)
    wrong = []
    for scenario in SCENARIOS:
        sources = (QUICK_SOURCES if arguments.quick else SOURCES)[scenario]
        path = prepare(out, scenario, sources)
        results = []
        for draw in range(draws):
            done = out / f"{scenario}-{sources}-{draw}.json"
            if not done.exists():
                job = json.dumps({"path": str(path), "scenario": scenario, "draw": draw, "out": str(done)})
                script = Path(__file__).with_name("redshift.py")
                quick = ["--quick"] if arguments.quick else []
                subprocess.run([sys.executable, script, "simulated", *quick, "--child", job], check=True)
            results.append(json.loads(done.read_text()))
            print(f"{scenario} draw {draw}: {_brief(results[-1])}", flush=True)
        _print(scenario, results)
        wrong += faults(scenario, results)
    return wrong


def _brief(r: dict[str, Any]) -> str:
    return (
        f"{r['labels']:,} labels (ESS {r['ess']:,.0f}, mean weight {r['mean_weight']:.2f}), {r['targets']:,} targets; "
        f"{r['estimator']}, weights in {', '.join(n for n, used in r['weights_used'].items() if used) or 'none'}; "
        f"<z> {r['mean_z']['labels']:.3f}, weighted {r['mean_z']['weighted']:.3f}, true {r['mean_z']['truth']:.3f}; "
        f"{r['support']:.1%} in support ({r['support_space']}); fit {r['seconds_None']:.0f} s"
    )


def _mean(results: list[dict[str, Any]], *keys: str) -> tuple[float, float]:
    """Mean over draws of a number, and its standard deviation; NaN where a draw has none."""
    values = []
    for value in results:
        for key in keys:
            value = value[key] if value is not None else np.nan
        values.append(value)
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def _print(scenario: str, results: list[dict[str, Any]]) -> None:
    columns = ("bias", "sigma_mad", "outliers", "cover_68", "cover_95", "pit_ks", "cde_loss")
    print(f"\n| {scenario}, mean of {len(results)} | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    lines = {
        "chosen, all": ("all",),
        "chosen, in support": ("in",),
        "chosen, out of support": ("out",),
        "unweighted, in support": ("unweighted", "in"),
        "plain, all": ("plain", "all"),
        "plain, in support": ("plain", "in"),
    } | {f"{name}, in support": ("members", name) for name in ("knn", "lightgbm", "network", "blend")}
    for name, keys in lines.items():
        cells = ["{:.4f} +- {:.4f}".format(*_mean(results, *keys, column)) for column in columns]
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("\n| true z | n | bias | in support | bias | plain, in support |\n|---|---|---|---|---|---|")
    for number, row in enumerate(results[0]["by_z"]):
        found = [[r[which][number][key] for r in results] for which, key in KEYS]
        cells = ["–" if any(v is None for v in values) else f"{np.mean(values):+.4f}" for values in found]
        n, n_in = (int(np.mean([r["by_z"][number][key] for r in results])) for key in ("n", "n_in"))
        print(f"| {row['z'][0]:g}–{row['z'][1]:g} | {n:,} | {cells[0]} | {n_in:,} | {cells[1]} | {cells[2]} |")
    for level in COVER:
        error = np.mean([np.sqrt(level / 100 * (1 - level / 100) / max(r["ess"], 1)) for r in results])
        conformal, infinite = (_mean(results, "interval", f"{kind}_{level}")[0] for kind in ("cover", "infinite"))
        print(f"{level}%: the ESS implies {error:.3f} a draw; conformal {conformal:.3f}, {infinite:.3f} infinite")
    for score, pairs in {k: np.array([r["change"][k] for r in results]) for k in results[0]["change"]}.items():
        print(f"corrections change {score} by {pairs[:, 0].mean():+.5f}, error of the score {pairs[:, 1].mean():.5f}")


KEYS = (("by_z", "bias"), ("by_z", "bias_in"), ("plain_by_z", "bias_in"))


def faults(scenario: str, results: list[dict[str, Any]]) -> list[str]:
    """A line for each number of the issue that falls short."""
    wrong = []
    for level, room in COVER.items():
        found = _mean(results, "in", f"cover_{level}")[0]
        if not abs(found - level / 100) <= room:
            wrong.append(f"{scenario}: {level}% intervals cover {found:.3f} in support, wanted within {room}")
    if scenario == "s1":
        ours, plain = (_mean(results, *keys, "pit_ks")[0] for keys in (("in",), ("plain", "in")))
        if not ours <= plain / 2:
            wrong.append(f"s1: PIT KS {ours:.4f} in support, plain {plain:.4f}: wanted at most half")
        for score in ("sigma_mad", "outliers", "cde_loss"):
            ours, plain = (_mean(results, *keys, score)[0] for keys in (("in",), ("unweighted", "in")))
            if ours > plain:
                wrong.append(f"s1: {score} {ours:.4f} in support, without weights {plain:.4f}: wanted never worse")
        few = [r["draw"] for r in results if r["labels"] < LABELS or r["targets"] < TARGETS]
        if few:
            wrong.append(f"s1: under {LABELS:,} labels or {TARGETS:,} targets in draws {few}")
        return wrong
    for score in results[0]["change"]:
        moved, error = (float(np.mean([r["change"][score][i] for r in results])) for i in (0, 1))
        if abs(moved) > error:
            wrong.append(f"s0: corrections change {score} by {moved:+.5f}, error bar {error:.5f}")
    return wrong

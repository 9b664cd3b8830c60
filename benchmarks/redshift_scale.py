"""The part `scale` of redshift.py: 100,000 labels and a million sources in 64 dimensions, in processes of their own.

Eight hidden numbers make 64 smooth ones, as an embedding's, and the redshift; labels lie nearer than the sources. The
model is fitted in one process and stored; others read it and answer block by block, keeping three quantiles a source.
Seconds are those of the run, under the profiler, which adds little: the work is in arrays. *of cores*: the time that
all threads were given, which a machine that others keep busy can tell.
"""

from __future__ import annotations

import cProfile
import json
import pstats
import subprocess
import sys
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import peak_mb

Floats = npt.NDArray[np.float64]
LABELS, QUICK_LABELS = 100_000, 1000
SOURCES, QUICK_SOURCES = (100_000, 1_000_000), (2_000, 8_000)
DIM, HIDDEN, TARGETS = 64, 8, 50_000
BLOCK = 16_384
MINUTES = 5.0
COSTLIEST = 12


def sky(rows: int, seed: int, *, far: float) -> tuple[Floats, Floats]:
    """Embeddings (rows, 64) and redshifts (rows,); `far` moves both out."""
    rng, fixed = np.random.default_rng(seed), np.random.default_rng(1)
    hidden = rng.standard_normal((rows, HIDDEN)) + far * np.eye(HIDDEN)[0]
    first, second = fixed.standard_normal((HIDDEN, DIM)), fixed.standard_normal((DIM, DIM)) / DIM**0.5
    x = np.tanh(hidden @ first / HIDDEN**0.5) @ second + 0.05 * rng.standard_normal((rows, DIM))
    z = np.expm1(0.5 + 0.2 * np.tanh(hidden[:, 0]) + 0.1 * np.sin(hidden[:, 1]) + 0.02 * rng.standard_normal(rows))
    return x, np.maximum(z, 0.0)


def grown(model: Any, x: Floats, z: Floats) -> Any:
    """The model with all labels (L, 64) in its bank and its support, for what it costs to answer: nothing is chosen."""
    from redshelf.models.bank import fit_bank
    from redshelf.models.support import fit_support

    bank, one = fit_bank(model.frame.transform(x)), np.ones(len(x))
    support = fit_support(model.frame.spaces(x)[model.support_space], z)
    found = {"bank": bank.points, "centres": bank.centres, "probe": bank.probe}
    return replace(model, knn=replace(model.knn, log1pz=np.log1p(z), weights=one, **found), support=support)


def child(step: str, folder: str, labels: int, sources: int, fit: int) -> None:
    """Fit, or answer for `sources`, and print what it took as JSON."""
    from redshelf.models.fitting import fit_redshift
    from redshelf.models.redshift import RedshiftModel

    path, profile = Path(folder) / f"model-{labels}-{fit}.npz", cProfile.Profile()
    if step == "fit":
        x, z = sky(labels, 2, far=0.0)
        target, _ = sky(min(TARGETS, 2 * fit), 3, far=0.5)
        began, used = time.perf_counter(), time.process_time()
        profile.enable()
        model = fit_redshift(x[:fit], z[:fit], target, names=tuple(f"e{i}" for i in range(DIM)), threads=2)
        profile.disable()
        seconds, told = time.perf_counter() - began, model.default_estimator
        arrays, config = (model if fit == labels else grown(model, x, z)).to_arrays()
        np.savez(path, **arrays)  # type: ignore[arg-type]
        path.with_suffix(".json").write_text(json.dumps(config))
    else:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        model = RedshiftModel.from_arrays(arrays, json.loads(path.with_suffix(".json").read_text()))
        told, seconds, out, used = step, 0.0, np.empty((sources, 3)), time.process_time()
        for start in range(0, sources, BLOCK):
            stop = min(start + BLOCK, sources)
            x, _ = sky(stop - start, 1000 + start, far=0.5)
            began = time.perf_counter()
            profile.enable()
            answer = model.predict(x, estimator=step, threads=2)
            out[start:stop] = np.column_stack([answer.pdf.quantile(q) for q in (0.16, 0.5, 0.84)])
            profile.disable()
            seconds += time.perf_counter() - began
        assert np.isfinite(out).all()
    found = {
        "seconds": seconds,
        "core_seconds": time.process_time() - used,
        "peak_mb": peak_mb(),
        "told": told,
        "costliest": costliest(profile),
    }
    print(json.dumps(found))


def costliest(profile: cProfile.Profile) -> list[tuple[str, float, float]]:
    """Functions by their own time: name, own seconds, and seconds with what they call."""
    rows: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    ranked = sorted(rows.items(), key=lambda item: -item[1][2])[:COSTLIEST]
    return [(f"{Path(file).name}:{name}", own, whole) for (file, _, name), (_, _, own, whole, _) in ranked]


def run(arguments: Namespace) -> list[str]:
    """Print the table and the costliest functions; a line for each number that falls short."""
    folder = arguments.out / "scale"
    folder.mkdir(parents=True, exist_ok=True)
    labels = QUICK_LABELS if arguments.quick else LABELS
    fit = arguments.fit or labels
    sizes = list(QUICK_SOURCES if arguments.quick else SOURCES)
    if arguments.sources:
        sizes = [min(sizes[0], arguments.sources // 2), arguments.sources]

    def step(what: str, sources: int = 0) -> dict[str, Any]:
        job = json.dumps({"step": what, "folder": str(folder), "labels": labels, "sources": sources, "fit": fit})
        quick = ["--quick"] if arguments.quick else []
        command = [sys.executable, str(Path(__file__).with_name("redshift.py")), "scale", *quick, "--child", job]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found: dict[str, Any] = json.loads(told.stdout.splitlines()[-1])
        kind = f"fit on {fit:,} of {labels:,}" if what == "fit" else f"{what}, {sources:,} sources"
        rate = f", {sources / found['seconds']:,.0f}/s" if sources else ""
        took = f"{found['seconds']:.0f} s ({found['core_seconds']:.0f} s of cores){rate}"
        print(f"{kind}: {took}, peak {found['peak_mb']:,.0f} MB", flush=True)
        for name, own, whole in found["costliest"]:
            print(f"    {own:8.1f} s own {whole:8.1f} s in all  {name}", flush=True)
        return found

    if not (folder / f"model-{labels}-{fit}.json").exists():
        step("fit")
    default = json.loads((folder / f"model-{labels}-{fit}.json").read_text())["default_estimator"]
    print(f"chosen: {default}")
    wrong = []
    for estimator in dict.fromkeys(("knn", default)):
        small, large = (step(estimator, sources) for sources in sizes)
        minutes = large["seconds"] / 60 * 1e6 / sizes[-1]
        if minutes > MINUTES:
            wrong.append(f"scale: {estimator} takes {minutes:.1f} min for a million sources, wanted {MINUTES:g}")
        if sizes[0] >= BLOCK and large["peak_mb"] > 1.1 * small["peak_mb"]:
            wrong.append(f"scale: {estimator}, peak {small['peak_mb']:.0f} to {large['peak_mb']:.0f} MB, wanted flat")
    return wrong

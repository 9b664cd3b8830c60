"""The ways from images to redshifts, side by side on a simulated sky of 100,000 sources.

    python benchmarks/approaches.py [--quick] [--check] [--out bench-out/approaches] [--workers 2]

Scenarios: s0 labels a random sample, s1 the sources that HSC's spectroscopy favours, by i and g-z. Approaches: the
photometry network; the multi-band transformer with random weights, pretrained (masked, contrastive, semi-supervised),
frozen and specialised; direct supervised training; the inception CNN and its multimodal form; each beside photometry.
Three seeds each (training, and the draw of the labels); targets have no label in any scenario. A curve follows redshift
quality against the number of unlabelled images, at equal compute. Every job leaves its result under --out, so a run
that is ended goes on from there.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sky import Floats, Ints, Sky, open_sky, prepare

SCENARIOS = ("s0", "s1")
MAGNITUDES = (17.0, 22.5, 24.0, 25.0)
REDSHIFTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)
PATCH_PX = 8
PIXEL_ARCSEC = 0.168


@dataclass(frozen=True)
class Budget:
    """Sizes of one run. `curve`: numbers of unlabelled images; the largest is also what `pretrained` encoders see."""

    sources: int
    curve: tuple[int, ...]
    pretrain_steps: int
    label_steps: int
    cnn_steps: int
    cnn_width: float
    batch: int = 128
    seeds: tuple[int, ...] = (0, 1, 2)


FULL = Budget(100_000, (1_000, 10_000, 100_000), 500, 300, 100, 0.25)
QUICK = Budget(3_000, (300, 3_000), 20, 20, 5, 0.125, 64, seeds=(0, 1))


@dataclass(frozen=True)
class Pretraining:
    """A transformer trained without labels (`semi`: with the redshifts of the scenario's labels in its batches)."""

    objective: str
    images: int
    seed: int
    semi: str = ""

    @property
    def name(self) -> str:
        return f"{self.objective}{'-' + self.semi if self.semi else ''}-{self.images}-{self.seed}"


@dataclass(frozen=True)
class Trial:
    """One encoder scored: where it starts (`start`, a pretraining's name, a model, or nothing for photometry alone),
    what labels do to it (`mode`: frozen, or a mode of `specialise`), and with which labels."""

    approach: str
    start: str
    mode: str
    scenario: str
    seed: int
    photometry: bool = False
    fraction: float = 1.0
    options: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        extra = "+p" if self.photometry else ""
        options = "".join(f"-{value}" for _, value in self.options)
        return f"{self.start or 'photometry'}.{self.mode}{extra}{options}.{self.scenario}.{self.fraction:g}.{self.seed}"


def scores(z_phot: Floats, z_true: Floats, i_ab: Floats) -> dict[str, Any]:
    """bias, sigma_MAD, outliers of all, by magnitude and by true redshift; nothing for under 100 sources."""
    from redshelf.models.metrics import summary

    def binned(value: Floats, edges: Sequence[float]) -> dict[str, Any]:
        pairs = itertools.pairwise(edges)
        return {
            f"{a:g}-{b:g}": summary(z_phot[m], z_true[m]) for a, b in pairs if (m := (value >= a) & (value < b)).any()
        }

    return {
        "all": summary(z_phot, z_true),
        "magnitude": binned(i_ab, MAGNITUDES),
        "redshift": binned(z_true, REDSHIFTS),
    }


def by_knn(labels: Floats, z: Floats, targets: Floats, names: tuple[str, ...], seed: int) -> Floats:
    """kNN redshift (k and local slope by leave-one-out, no shift weights) in the space that redshelf would use."""
    from redshelf.models.frame import fit_frame
    from redshelf.models.knn import fit_knn
    from redshelf.models.pdf import default_edges

    frame = fit_frame(labels, targets, names)
    own = np.arange(len(z), dtype=np.int64)[:, None]
    model, _ = fit_knn(
        frame.transform(labels),
        z,
        edges=default_edges(float(z.max())),
        importance=np.ones(len(z)),
        exclude=own,
        seed=seed,
    )
    return np.asarray(model.predict(frame.transform(targets)).pdf.median())


def embed(encoder: Any, sky: Sky, rows: Ints) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Vectors of `rows` as the store would keep them (float16), and which have one."""
    import torch

    from redshelf.models.backbone import visible

    vectors, known = np.zeros((len(rows), encoder.dim)), np.zeros(len(rows), dtype=bool)
    for start in range(0, len(rows), 256):
        batch = sky.fetch(rows[start : start + 256])
        seen = visible(batch)
        known[start : start + 256] = seen.numpy()
        found = encoder.embed(batch.select(seen)).to(torch.float16).double().numpy()
        vectors[start : start + 256][seen.numpy()] = found
    return vectors, known


def start_of(name: str, sky: Sky, out: Path, seed: int, budget: Budget) -> Any:
    """The backbone that a trial starts from: a pretraining's, or one with random weights."""
    from redshelf.models import checkpoint
    from redshelf.models.fresh import MODELS, fresh
    from redshelf.models.training import seeded
    from redshelf.models.vit import sized

    if not name:
        return None
    if name not in MODELS:
        return checkpoint.load(next((out / "models").glob(f"{name}.*")))
    shape = sized("tiny", patch_px=PATCH_PX)
    with seeded(seed):
        return fresh(name, sky.bands, cutout_px=sky.cutout_px, size=shape, width=budget.cnn_width)


def do_pretraining(job: Pretraining, out: Path, budget: Budget) -> dict[str, Any]:
    from redshelf.models import checkpoint
    from redshelf.models.pretraining import pretrain
    from redshelf.models.training import flat_weights

    sky = open_sky(out)
    rows = np.sort(np.random.default_rng((job.seed, 3)).choice(len(sky), job.images, replace=False))
    redshift = None
    if job.semi:
        redshift = np.full(len(sky), np.nan)
        labelled, z = sky.labels(job.semi, job.seed)
        redshift[labelled] = z
        redshift = redshift[rows]
    encoder, report = pretrain(
        lambda positions: sky.fetch(rows[positions]),
        len(rows),
        objective=job.objective,
        bands=sky.bands,
        cutout_px=sky.cutout_px,
        name=job.name,
        size="tiny",
        patch_px=PATCH_PX,
        steps=budget.pretrain_steps,
        batch_size=budget.batch,
        weights=flat_weights(sky.i_ab[rows]),
        redshift=redshift,
        redshift_loss=bool(job.semi),
        pixel_scale_arcsec=PIXEL_ARCSEC,
        seed=job.seed,
        checkpoint=out / "work" / f"{job.name}.safetensors",
    )
    checkpoint.save(encoder, out / "models", provenance={"benchmark": "approaches", **asdict(job)})
    return {"steps": report.steps, "seconds": report.seconds, "rows": report.rows[-1:]}


def do_trial(job: Trial, out: Path, budget: Budget) -> dict[str, Any]:
    from redshelf.models.metrics import summary
    from redshelf.models.pdf import Pdf
    from redshelf.models.photometry import Photometry, fit_scaling
    from redshelf.models.specialise import specialise

    sky = open_sky(out)
    rows, z = sky.labels(job.scenario, job.seed, job.fraction)
    scaling = fit_scaling(sky.flux[rows], sky.error[rows], sky.state[rows], bands=sky.bands)
    colours = Photometry(scaling)
    began, result = time.monotonic(), dict[str, Any]()
    encoder = start_of(job.start, sky, out, job.seed, budget)
    if job.mode == "frozen":
        encoder = encoder or colours
    else:
        images = bool(job.start)
        model_steps = budget.cnn_steps if "cnn" in job.start else budget.label_steps
        encoder, report = specialise(
            lambda positions: sky.fetch(rows[positions]),
            z,
            backbone=encoder,
            photometry=scaling if job.photometry or not images else None,
            mode=job.mode,
            name="trial",
            steps=model_steps if images and job.mode != "probe" else None,
            seed=job.seed,
            **dict(job.options),
        )
        result |= {"steps": report.steps, "train_seconds": report.seconds}
    held = sky.held(job.scenario, job.seed)
    every = np.concatenate([rows, held, sky.targets])
    part = np.repeat([0, 1, 2], [len(rows), len(held), len(sky.targets)])
    vectors, known = embed(encoder, sky, every)
    asked = known & (part > 0)
    is_target = part[asked] == 2
    z, true, i_ab = z[known[: len(rows)]], sky.z_true[every[asked]], sky.i_ab[every[asked]]

    def scored(z_phot: Floats) -> dict[str, Any]:
        chosen_by = summary(z_phot[~is_target], true[~is_target])
        return {**scores(z_phot[is_target], true[is_target], i_ab[is_target]), "held": chosen_by}

    def knn(space: Floats, names: tuple[str, ...]) -> dict[str, Any]:
        return scored(by_knn(space[known & (part == 0)], z, space[asked], names, job.seed))

    names = scaling.names if encoder is colours else tuple(f"e{i}" for i in range(vectors.shape[1]))
    result["knn"] = knn(vectors, names)
    if encoder is not colours:
        beside, _ = embed(colours, sky, every)
        result["knn+photometry"] = knn(np.concatenate([vectors, beside], axis=1), (*names, *scaling.names))
    if job.mode != "frozen":
        medians, wanted = [], every[asked]
        for start in range(0, len(wanted), 256):
            batch = sky.fetch(wanted[start : start + 256])
            medians.append(Pdf.from_mass(*encoder.predict(batch)).median())
        result["head"] = scored(np.concatenate(medians))
    return {**result, "labels": len(rows), "targets": int(is_target.sum()), "seconds": time.monotonic() - began}


def _code() -> str:
    """sha256 of the sources that results depend on."""
    from redshelf.models import encoder

    parts = sorted(Path(encoder.__file__).resolve().parent.glob("*.py"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in [*parts, Path(__file__)])).hexdigest()[:12]


def _job(job: Pretraining | Trial, out: Path, budget: Budget) -> None:
    """One job in a worker, its result written whole; done ones are left alone."""
    from redshelf.indexing.files import write_json

    path = out / "results" / f"{job.name}.json"
    made = {"budget": json.loads(json.dumps(asdict(budget))), "models_sha256": _code()}
    if path.exists():
        if json.loads(path.read_text())["made"] != made:
            raise SystemExit(f"{path} was made by other code or with another budget: remove --out to start anew")
        return
    act: Callable[..., dict[str, Any]] = do_pretraining if isinstance(job, Pretraining) else do_trial  # type: ignore[assignment]
    result = act(job, out, budget)
    write_json(path, {"job": asdict(job), "made": made, **result})
    print(f"{time.strftime('%H:%M:%S')} {job.name}: {result.get('steps', '')} {_brief(result)}", flush=True)


def _brief(result: dict[str, Any]) -> str:
    found = (result.get("head") or result.get("knn") or {}).get("all")
    return "" if found is None else f"sigma {found['sigma_mad']:.4f} outliers {found['outliers']:.4f}"


def _one_thread(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def frozen(approach: str, start: str, common: dict[str, Any]) -> list[Trial]:
    """The three trials of an encoder that labels do not change."""
    return [
        Trial(f"{approach}, frozen", start, "frozen", **common),
        Trial(f"{approach}, linear probe", start, "probe", **common),
        Trial(f"{approach}, probe with photometry", start, "probe", **common, photometry=True),
    ]


def plan(budget: Budget) -> tuple[list[Pretraining], list[Trial]]:
    """Every job, the most telling ones first."""
    most = budget.curve[-1]
    pretrainings = [Pretraining("masked", n, seed) for n in reversed(budget.curve) for seed in budget.seeds]
    pretrainings[3:3] = [Pretraining("contrastive", most, seed) for seed in budget.seeds]
    pretrainings += [Pretraining("masked", most, seed, scenario) for scenario in SCENARIOS for seed in budget.seeds]
    trials = []
    for seed in budget.seeds:
        masked, contrastive = f"masked-{most}-{seed}", f"contrastive-{most}-{seed}"
        for scenario in SCENARIOS:
            common = {"scenario": scenario, "seed": seed}
            trials += [
                Trial("photometry", "", "frozen", **common),
                Trial("photometry network", "", "direct", **common),
                *frozen("vit, random weights", "vit", common),
                *frozen("masked", masked, common),
                *frozen("contrastive", contrastive, common),
                *frozen("masked with redshifts", f"masked-{scenario}-{most}-{seed}", common),
                Trial("vit, direct", "vit", "direct", **common),
                Trial("masked, fine-tuned", masked, "finetune", **common),
                Trial("masked, fine-tuned with photometry", masked, "finetune", **common, photometry=True),
                Trial("vit, direct with photometry", "vit", "direct", **common, photometry=True),
                Trial("contrastive, fine-tuned", contrastive, "finetune", **common),
                Trial("cnn, direct", "cnn", "direct", **common),
                Trial("multimodal cnn, direct", "multimodal-cnn", "direct", **common),
                Trial("masked, contrastive latent (CLAP)", masked, "contrastive", **common),
            ]
        tenth = {"scenario": "s0", "seed": seed, "fraction": 0.1}
        trials += [
            Trial("10%: photometry network", "", "direct", **tenth),
            Trial("10%: vit, direct", "vit", "direct", **tenth),
            Trial("10%: masked, fine-tuned", masked, "finetune", **tenth),
            Trial("10%: vit, random weights, linear probe", "vit", "probe", **tenth),
            Trial("10%: masked, linear probe", masked, "probe", **tenth),
        ]
        for images in budget.curve[:-1]:
            few = f"masked-{images}-{seed}"
            trials += [
                Trial(f"{images} images, linear probe", few, "probe", "s0", seed),
                Trial(f"{images} images, 10%: fine-tuned", few, "finetune", "s0", seed, fraction=0.1),
            ]
    return pretrainings, trials


def main() -> int:
    """Run what is not done yet, print the tables; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/approaches"))
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each [2]")
    arguments = parser.parse_args()
    budget = QUICK if arguments.quick else FULL
    out = arguments.out / ("quick" if arguments.quick else "full")
    prepare(out, sources=budget.sources)
    pretrainings, trials = plan(budget)
    os.environ["OMP_NUM_THREADS"] = "1"
    (out / "work").mkdir(exist_ok=True)
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), _one_thread, (1,)) as pool:
        for stage in (pretrainings, trials):
            for waiting in [pool.submit(_job, job, out, budget) for job in stage]:
                waiting.result()
    found = [json.loads((out / "results" / f"{t.name}.json").read_text()) for t in trials]
    from tables import check, grouped, plot, report

    print(report(found, budget.curve))
    plot(grouped(found), budget.curve, out / "curve.png")
    faults = check(found)
    print("\n".join(faults))
    return 1 if arguments.check and faults else 0


if __name__ == "__main__":
    sys.exit(main())

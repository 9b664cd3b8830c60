"""The ways from images to redshifts, side by side on a simulated sky of 100,000 sources.

    python benchmarks/approaches.py [--quick] [--check] [--out bench-out/approaches] [--workers 2]

Scenarios: s0 labels a random sample, s1 the sources that HSC's spectroscopy favours, by i and g-z. Approaches: the
photometry network; the multi-band transformer with random weights, pretrained (masked, contrastive, semi-supervised),
frozen and specialised; direct supervised training; the inception CNN and its multimodal form; each beside photometry.
Three seeds each (training, and the draw of the labels); targets have no label in any scenario. A curve follows redshift
quality against the number of unlabelled images, at equal compute. Every job leaves its result under --out, so a run
that is ended goes on from there. --quick: the baselines, the masked encoder and the curve, on 10,000 sources, in three
minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from sky import prepare
from trials import SCENARIOS, Budget, Pretraining, Trial, one_thread, run

FULL = Budget(100_000, (1_000, 10_000, 100_000), 500, 300, 100, 0.25)
QUICK = Budget(10_000, (1_000, 10_000), 20, 20, 5, 0.125, 64, seeds=(0, 1))
IN_QUICK = ("photometry", "photometry network", "masked, linear probe", "10%: vit, direct", "10%: masked, fine-tuned")


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
                Trial("contrastive, fine-tuned with photometry", contrastive, "finetune", **common, photometry=True),
                Trial("cnn, direct", "cnn", "direct", **common),
                Trial("multimodal cnn, direct", "multimodal-cnn", "direct", **common),
                Trial("masked, contrastive latent (CLAP)", masked, "contrastive", **common),
            ]
        tenth = {"scenario": "s0", "seed": seed, "fraction": 0.1}
        trials += [
            Trial("10%: photometry network", "", "direct", **tenth),
            Trial("10%: vit, direct", "vit", "direct", **tenth),
            Trial("10%: masked, fine-tuned", masked, "finetune", **tenth),
            Trial("10%: masked, all of it at one rate", masked, "direct", **tenth),
            Trial("10%: contrastive, fine-tuned", contrastive, "finetune", **tenth),
            Trial("10%: contrastive, all of it at one rate", contrastive, "direct", **tenth),
            Trial("10%: contrastive, linear probe", contrastive, "probe", **tenth),
            Trial("10%: vit, random weights, linear probe", "vit", "probe", **tenth),
            Trial("10%: masked, linear probe", masked, "probe", **tenth),
        ]
        for images in budget.curve[:-1]:
            few = f"masked-{images}-{seed}"
            trials += [
                Trial(f"{images} images, linear probe", few, "probe", "s0", seed),
                Trial(f"{images} images, 10%: fine-tuned", few, "finetune", "s0", seed, fraction=0.1),
            ]
    if budget is QUICK:
        trials = [trial for trial in trials if trial.approach in IN_QUICK or "images" in trial.approach]
        starts = {trial.start for trial in trials}
        pretrainings = [pretraining for pretraining in pretrainings if pretraining.name in starts]
    return pretrainings, sorted(trials, key=lambda trial: "cnn" in trial.start)  # those that take longest last


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
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), one_thread, (1,)) as pool:
        for stage in (pretrainings, trials):
            for waiting in [pool.submit(run, job, out, budget) for job in stage]:
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

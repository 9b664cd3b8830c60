"""The study, and its numbers against those that were asked for.

    python benchmarks/study.py [--quick] [--check] [--out bench-out/study] [--processes 2]

Runs `redshelf study` (what is done already is kept), then prints: on s1 the bias of the textbook's kNN, and what
redshelf's own choice leaves of it in support, in every bin of redshift that has 100 labels; what weights change on s0;
the hours it took. What helps and harms on s2, and who would have been warned, is in the report's tables.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from common import data_folder

from redshelf.service.study import study
from redshelf.service.study_plan import CHOSEN
from redshelf.service.study_results import Key, Number, Results
from redshelf.service.study_scores import REDSHIFTS

HIGH = ("1.8-2.1", "2.1-2.5", "2.5-3")
LEFT = 0.25  # of the textbook's bias, at most, in a bin
LABELS = 100
HOURS = 5.0  # of two cores


def main() -> int:
    """Run what is missing, print the numbers; the exit status of --check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("bench-out/study"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--as-it-is", action="store_true", help="read what is there, run nothing")
    arguments = parser.parse_args()
    size = "quick" if arguments.quick else "tiny"
    folder = arguments.out / size
    if not arguments.as_it_is:
        found = study(
            folder,
            size=size,
            data=data_folder(),
            processes=arguments.processes,
            progress=lambda line: print(line, file=sys.stderr, flush=True),
        )
        if found.failed:
            print(f"failed: {', '.join(found.failed)}")
            return 1
    results = Results(folder)
    faults = [
        *_size_of_the_problem(results),
        *_left(results),
        *_unchanged(results),
        *_pretrained(results),
        *_hours(results),
    ]
    for line in faults:
        print(f"MISSED {line}")
    return 1 if arguments.check and faults else 0


def _key(scenario: str, estimator: str, correction: str = "none") -> Key:
    return Key("photometry", scenario, estimator, correction)


def _show(number: Number | None) -> str:
    return "–" if number is None else str(number)


def _size_of_the_problem(results: Results) -> list[str]:
    """A 6-band kNN bias of about -.02 overall and of -.1 to -.3 at 1.8 < z < 3."""
    key = _key("s1", "knn40")
    whole = results.number(key, "bias")
    print(f"s1, mean of 40 neighbours: bias {_show(whole)}")
    faults = []
    if whole is None or not -0.03 < whole.value < -0.01:
        faults.append(f"s1: bias of the textbook's kNN {_show(whole)}, wanted about -.02")
    for name in HIGH:
        found = results.number(key, "bias", f"all: z_true {name}")
        print(f"    z {name}: {_show(found)}")
        if found is not None and not -0.3 <= found.value <= -0.1:
            faults.append(f"s1, z {name}: bias of the textbook's kNN {found}, wanted -.1 to -.3")
    return faults


def _left(results: Results) -> list[str]:
    """The bias in support that redshelf's choice leaves, in bins of true and of photometric redshift."""
    before, after, faults = _key("s1", "knn40"), _key("s1", "redshelf", CHOSEN), []
    counts = [d["found"]["labels_by_z"] for d in results.by_key.get(after, ())]
    for kind in ("z_true", "z_phot"):
        for low, high in pairwise(REDSHIFTS):
            name = f"{low:g}-{high:g}"
            labels = sum(c[name] for c in counts) / max(len(counts), 1)
            plain, ours = (
                results.number(k, "bias", f"{w}: {kind} {name}") for k, w in ((before, "all"), (after, "in"))
            )
            if plain is None or ours is None:
                continue
            share = abs(ours.value) / max(abs(plain.value), 1e-9)
            print(f"s1, {kind} {name}, {labels:,.0f} labels: {plain} -> {ours} in support ({share:.2f})")
            if labels >= LABELS and share > LEFT and abs(ours.value) > ours.error:
                faults.append(f"s1, {kind} {name}: {ours} of {plain} is left in support, wanted at most a quarter")
    return faults


def _unchanged(results: Results) -> list[str]:
    """On s0 the weights that redshelf may choose among change nothing beyond the errors."""
    faults = []
    for estimator in ("knn", "lightgbm", "network"):
        bare = _key("s0", estimator)
        for correction in ("neighbour-ratio", "classifier"):
            key = replace(bare, correction=correction)
            for measure in ("bias", "sigma_mad", "outliers"):
                change, own = results.change(key, bare, measure), results.number(bare, measure)
                if change is None or own is None:
                    continue
                if abs(change.value) > max(own.error, change.error):
                    faults.append(
                        f"s0, {estimator}, {correction}: {measure} changes by {change}, error {own.error:.4f}"
                    )
    return faults


def _pretrained(results: Results) -> list[str]:
    """With a tenth of the labels pretraining beats random weights, and with all of them the best image network with
    photometry beats the network on photometry alone (the numbers of issue 4)."""
    faults = []
    tenth = Key("ViT, direct", "s0", "head", sky="images", fraction=0.1)
    pairs = {"a tenth of the labels, s0": (replace(tenth, approach="masked, fine-tuned"), tenth)}
    for scenario in ("s0", "s1"):
        plain = Key("photometry network", scenario, "head", sky="images")
        pairs[f"with photometry, {scenario}"] = (replace(plain, approach="masked, fine-tuned with photometry"), plain)
    for name, (ours, theirs) in pairs.items():
        both = results.number(ours, "sigma_mad"), results.number(theirs, "sigma_mad")
        if both[0] is None or both[1] is None:
            continue
        print(f"{name}: {ours.approach} {both[0].plain}, {theirs.approach} {both[1].plain}")
        if not both[0].value < both[1].value:
            faults.append(f"{name}: {ours.approach} {both[0].plain}, {theirs.approach} {both[1].plain}")
    return faults


def _hours(results: Results) -> list[str]:
    hours = results.seconds / 3600 / 2
    print(f"{hours:.2f} hours of two cores, by the sum of what every job took")
    return [] if hours <= HOURS else [f"{hours:.1f} hours of two cores, wanted {HOURS}"]


if __name__ == "__main__":
    sys.exit(main())

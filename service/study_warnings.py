"""What a user who has no truth would have seen, beside what the truth says: which diagnostics warn, which are silent.

Four diagnostics: the share of sources out of support, estimators that disagree more often than on labels weighted to
the target, the PIT of such labels by photometric redshift, and a reference photo-z of some hundred random sources.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from redshelf.service.study_plan import CHOSEN, SCENARIOS
from redshelf.service.study_results import Key, Results, Table
from redshelf.service.study_scores import REDSHIFTS, REFERENCE_SOURCES

OUT_OF_SUPPORT = 0.1
DISAGREE_FACTOR = 2.0
PIT_SIGMAS = 3.5  # of the largest of six bins
REFERENCE_BIAS, REFERENCE_SIGMAS = 0.005, 3.0


def warnings(results: Results) -> Table:
    """The table of the report: a line a scenario."""
    rows = []
    for scenario in SCENARIOS:
        key = Key("photometry", scenario, "redshelf", CHOSEN)
        documents = results.by_key.get(key, [])
        if len(documents) < 2:
            continue
        seen = [d["found"]["more"]["without_truth"] for d in documents]
        bias = results.number(key, "bias", "in")
        worst = worst_bin(results, key)
        rows.append(
            (
                scenario,
                "–" if bias is None else str(bias),
                worst,
                _support(seen),
                _disagreement(seen),
                _pit(seen),
                _reference(documents),
                _hidden_stars(documents),
            )
        )
    head = (
        "scenario",
        "truth: bias in support",
        "truth: worst z_phot bin in support",
        "out of support",
        "estimators disagree",
        "PIT of labels by z_phot",
        f"reference photo-z of {REFERENCE_SOURCES}",
        "stars taken for galaxies, flagged",
    )
    note = (
        "WARNS: a user would have been warned; silent: not. Out of support warns over 10%; disagreement at twice that "
        "of labels weighted to the target; PIT where a bin's mean is 3.5 sigma from one half; the reference, drawn "
        "from the truth with a scatter of .015 (1 + z) and 3% anywhere, where a bin's median exceeds .005 and three of "
        "its errors. On s2 weighted labels say nothing of sources that were not chosen: they are chosen by redshift."
    )
    return Table("Without the truth: what would have warned (redshelf on photometry)", note, head, tuple(rows))


def worst_bin(results: Results, key: Key) -> str:
    found = {
        f"{low:g}-{high:g}": results.number(key, "bias", f"in: z_phot {low:g}-{high:g}")
        for low, high in pairwise(REDSHIFTS)
    }
    known = {name: number for name, number in found.items() if number is not None}
    if not known:
        return "–"
    name = max(known, key=lambda n: abs(known[n].value))
    return f"{known[name]} at {name}"


def _said(warns: bool, words: str) -> str:
    return f"{'WARNS' if warns else 'silent'}: {words}"


def _support(seen: list[dict[str, Any]]) -> str:
    out = float(np.mean([s["out_of_support"] for s in seen]))
    return _said(out > OUT_OF_SUPPORT, f"{out:.1%}")


def _disagreement(seen: list[dict[str, Any]]) -> str:
    asked, labels = (float(np.mean([s[name] for s in seen])) for name in ("disagree", "labels_disagree"))
    return _said(asked > DISAGREE_FACTOR * max(labels, 0.005), f"{asked:.1%} of sources, {labels:.1%} of labels")


def _pit(seen: list[dict[str, Any]]) -> str:
    worst = [max((abs(b["sigma"]) for b in s["pit_by_z_phot"]), default=0.0) for s in seen]
    return _said(float(np.mean(worst)) > PIT_SIGMAS, f"{np.mean(worst):.1f} sigma")


def _hidden_stars(documents: list[dict[str, Any]]) -> str:
    """Stars that the catalogue takes for galaxies, scored apart: how many are flagged."""
    found = [d["found"]["hidden_stars"]["out_of_support"] for d in documents if d["found"].get("hidden_stars")]
    return f"{np.mean(found):.0%} ± {np.std(found, ddof=1):.0%}" if len(found) > 1 else "–"


def _reference(documents: list[dict[str, Any]]) -> str:
    bins = [b for d in documents for b in d["found"]["reference"]]
    if not bins:
        return "–"
    warned = [
        any(abs(b["median"]) > max(REFERENCE_BIAS, REFERENCE_SIGMAS * b["error"]) for b in d["found"]["reference"])
        for d in documents
    ]
    worst = max(bins, key=lambda b: abs(b["median"]) / b["error"])
    words = f"{sum(warned)} of {len(warned)} draws; most {worst['median']:+.4f} ± {worst['error']:.4f}"
    return _said(2 * sum(warned) > len(warned), words)

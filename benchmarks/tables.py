"""The tables, the curve and the verdicts of `approaches.py`, from the results of its trials."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MEASURES = ("bias", "sigma_mad", "outliers")
WAYS = ("knn", "knn+photometry", "head")
HELD = ("held",)
Result = dict[str, Any]
Key = tuple[str, str]  # approach, scenario


def grouped(found: Iterable[Result]) -> dict[Key, list[Result]]:
    """Results by approach and scenario, a seed each."""
    out: dict[Key, list[Result]] = defaultdict(list)
    for result in found:
        out[result["job"]["approach"], result["job"]["scenario"]].append(result)
    return dict(out)


def over_seeds(results: list[Result], way: str, measure: str, cell: tuple[str, ...] = ("all",)) -> tuple[float, float]:
    """Mean and standard deviation over seeds of one number; NaN where no seed has it, or only one (not published)."""
    values = []
    for result in results:
        entry: Any = result.get(way)
        for key in cell:
            entry = None if entry is None else entry.get(key)
        if entry is not None:
            values.append(entry[measure])
    if len(values) < 2:
        return float("nan"), float("nan")
    return float(np.mean(values)), float(np.std(values, ddof=1))


def _cell(results: list[Result], way: str, cell: tuple[str, ...] = ("all",)) -> str:
    parts = [over_seeds(results, way, measure, cell) for measure in MEASURES]
    if np.isnan(parts[0][0]):
        return "–"
    bias, sigma, outliers = parts
    return f"{bias[0]:+.3f} {sigma[0]:.4f}±{sigma[1]:.4f} {outliers[0]:.3f}±{outliers[1]:.3f}"


def main_table(found: dict[Key, list[Result]], scenario: str) -> str:
    """One row an approach: bias, sigma_MAD, outliers by each way from vectors to redshifts."""
    head = "| " + " | ".join(["approach", "steps", *WAYS]) + " |\n|" + "---|" * (len(WAYS) + 2)
    lines = [head]
    for (approach, of), results in found.items():
        if of == scenario and not approach.startswith("10%") and "images" not in approach:
            steps = results[0].get("steps", "–")
            lines.append(f"| {approach} | {steps} | " + " | ".join(_cell(results, way) for way in WAYS) + " |")
    return "\n".join(lines)


def binned_table(found: dict[Key, list[Result]], scenario: str, by: str, approaches: Sequence[tuple[str, str]]) -> str:
    """The chosen (approach, way) pairs by magnitude or true redshift."""
    pairs = [pair for pair in approaches if (pair[0], scenario) in found]
    cells = sorted({c for a, w in pairs for r in found[a, scenario] for c in (r.get(w) or {}).get(by, {})}, key=_first)
    lines = ["| approach, by | " + " | ".join(cells) + " |", "|" + "---|" * (len(cells) + 1)]
    for approach, way in pairs:
        row = [_cell(found[approach, scenario], way, (by, cell)) for cell in cells]
        lines.append(f"| {approach}, {way} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def _first(label: str) -> float:
    return float(label.split("-")[0])


def best(found: dict[Key, list[Result]], scenario: str, ways: Sequence[str], *, but: Sequence[str]) -> tuple[str, str]:
    """(approach, way) of the smallest mean sigma_MAD on held-out labels: the targets have no say."""
    scores = {
        (approach, way): over_seeds(results, way, "sigma_mad", HELD)[0]
        for (approach, of), results in found.items()
        if of == scenario and approach not in but and not approach.startswith("10%") and "images" not in approach
        for way in ways
    }
    known = {key: value for key, value in scores.items() if np.isfinite(value)}
    return min(known, key=known.__getitem__)


PHOTOMETRY = ("photometry", "photometry network")
BESIDE = ("knn+photometry",)


def network(found: dict[Key, list[Result]], scenario: str) -> tuple[str, str]:
    """The photometry network with its best way, chosen as for the others."""
    return best(found, scenario, ("head", "knn"), but=[a for a, of in found if of == scenario and a != PHOTOMETRY[1]])


def with_photometry(found: dict[Key, list[Result]], scenario: str) -> tuple[str, str]:
    """The best image encoder with photometry: beside it, or trained together with it and scored by head or kNN."""
    beside = best(found, scenario, BESIDE, but=PHOTOMETRY)
    joint = [a for a, of in found if of == scenario and a.endswith("with photometry")]
    others = [a for a, of in found if of == scenario and a not in joint]
    if not joint:
        return beside
    together = best(found, scenario, ("head", "knn"), but=others)
    return min((beside, together), key=lambda pair: over_seeds(found[pair[0], scenario], pair[1], "sigma_mad", HELD)[0])


def of_size(found: dict[Key, list[Result]], sizes: Sequence[int], size: int) -> tuple[list[Result], list[Result]]:
    """The masked encoder of `size` images, by seed: frozen (linear, all labels), and fine-tuned on a tenth of them."""
    names = f"{size} images, linear probe", f"{size} images, 10%: fine-tuned"
    if size == sizes[-1]:
        names = "masked, linear probe", "10%: masked, fine-tuned"
    frozen, tuned = (found.get((name, "s0"), []) for name in names)
    return frozen, tuned


def plot(found: dict[Key, list[Result]], sizes: Sequence[int], path: Path) -> None:
    """Redshift quality by the number of images pretrained on, as a picture."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for which, label in enumerate(("frozen, linear probe", "fine-tuned on 10% of labels")):
        points = [over_seeds(of_size(found, sizes, size)[which], "head", "sigma_mad") for size in sizes]
        axes.errorbar(sizes, [p[0] for p in points], [p[1] for p in points], marker="o", capsize=3, label=label)
    direct = over_seeds(found.get(("10%: vit, direct", "s0"), []), "head", "sigma_mad")
    axes.axhline(direct[0], color="grey", linestyle="--", label="no pretraining, 10% of labels")
    axes.set(
        xscale="log",
        xlabel="unlabelled images pretrained on (equal steps)",
        ylabel=r"$\sigma_{\rm MAD}$ of $\Delta z/(1+z)$",
    )
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=120)


def report(results: Iterable[Result], sizes: Sequence[int]) -> str:
    """Everything as markdown."""
    found = grouped(results)
    parts = ["bias, sigma_MAD ± and outliers ± over seeds; head: the network's own p(z)"]
    for scenario in ("s0", "s1"):
        parts += [f"**{scenario}**", main_table(found, scenario)]
        chosen = [("photometry", "knn"), network(found, scenario), with_photometry(found, scenario)]
        for by in ("magnitude", "redshift"):
            parts += [f"{scenario} by {by}", binned_table(found, scenario, by, chosen)]
    tenth = ["| a tenth of the labels, s0 | head | knn |", "|---|---|---|"]
    for (approach, _), rows in found.items():
        if approach.startswith("10%"):
            tenth.append(f"| {approach[5:]} | {_cell(rows, 'head')} | {_cell(rows, 'knn')} |")
    line = ["| unlabelled images | frozen, linear probe | fine-tuned on 10% of the labels |", "|---|---|---|"]
    for size in sizes:
        frozen, tuned = of_size(found, sizes, size)
        line.append(f"| {size:,} | {_cell(frozen, 'head')} | {_cell(tuned, 'head')} |")
    return "\n\n".join([*parts, "\n".join(tenth), "\n".join(line)])


def check(results: Iterable[Result]) -> list[str]:
    """A line for each number of the issue that falls short."""
    found, faults = grouped(results), []
    pretrained = over_seeds(found["10%: masked, fine-tuned", "s0"], "head", "sigma_mad")[0]
    random = over_seeds(found["10%: vit, direct", "s0"], "head", "sigma_mad")[0]
    if not pretrained < random:
        faults.append(f"10% of the labels: pretrained sigma_MAD {pretrained:.4f}, random weights {random:.4f}")
    for scenario in ("s0", "s1"):
        pairs = [with_photometry(found, scenario), network(found, scenario)]
        ours, theirs = (over_seeds(found[approach, scenario], way, "sigma_mad")[0] for approach, way in pairs)
        if not ours < theirs:
            said = [f"{a} ({way}) {sigma:.4f}" for (a, way), sigma in zip(pairs, (ours, theirs), strict=True)]
            faults.append(f"{scenario}: {', '.join(said)}")
    return faults

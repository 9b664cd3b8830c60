"""The figures of a study, as PNGs: told apart by line and marker as well as by colour (Okabe & Ito 2008)."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from redshelf.service.study_plan import CHOSEN
from redshelf.service.study_results import Key, Results
from redshelf.service.study_scores import REDSHIFTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLES = (
    {"color": "#000000", "marker": "o", "linestyle": "-"},
    {"color": "#0072B2", "marker": "s", "linestyle": "--"},
    {"color": "#D55E00", "marker": "^", "linestyle": "-."},
    {"color": "#009E73", "marker": "D", "linestyle": ":"},
)
SHOWN = {"s0": "s0: representative", "s1": "s1: by i and g-z", "s2": "s2: depends on z"}
LINES = {
    "kNN, mean of 40": ("knn40", "none"),
    "kNN": ("knn", "none"),
    "LightGBM": ("lightgbm", "none"),
    "redshelf's choice": ("redshelf", CHOSEN),
}
DPI = 110


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _png(figure: Figure) -> str:
    """The figure as a data URI, so that the page needs no other file."""
    made = BytesIO()
    figure.savefig(made, format="png", metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(made.getvalue()).decode()


def _key(scenario: str, way: str) -> Key:
    estimator, correction = LINES[way]
    return Key("photometry", scenario, estimator, correction)


def bias_by_redshift(results: Results) -> str | None:
    """Bias in support against true and photometric redshift, a column a scenario."""
    figure = _figure(11, 6.2)
    grid = figure.subplots(2, len(SHOWN), sharex=True, sharey="row", squeeze=False)
    drawn = 0
    for row, kind in zip(grid, ("z_true", "z_phot"), strict=True):
        for axes, (scenario, title) in zip(row, SHOWN.items(), strict=True):
            for number, (way, style) in enumerate(zip(LINES, STYLES, strict=True)):
                drawn += _by_redshift(axes, results, _key(scenario, way), kind, way, style, 0.03 * (number - 1.5))
            axes.axhline(0, color="#888888", linewidth=0.8)
            axes.set_title(title if kind == "z_true" else "", fontsize=10)
            axes.set_xlabel("true redshift" if kind == "z_true" else "photometric redshift")
        row[0].set_ylabel(r"bias in support, $\langle\Delta z/(1+z)\rangle$")
    _legend(figure, grid.ravel())
    return _png(figure) if drawn else None


def _legend(figure: Figure, panels: Any) -> None:
    """One legend for all panels, above them: a line may be missing in some."""
    lines = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if lines:
        order = [name for name in LINES if name in lines]
        handles = [lines[name] for name in order]
        figure.legend(handles, order, loc="outside upper center", ncols=len(order), frameon=False, fontsize=9)


def _by_redshift(
    axes: Axes, results: Results, key: Key, kind: str, label: str, style: dict[str, Any], shift: float
) -> int:
    points = []
    for low, high in pairwise(REDSHIFTS):
        found = results.number(key, "bias", f"in: {kind} {low:g}-{high:g}")
        if found is not None:
            points.append((0.5 * (low + min(high, 4.0)) + shift, found.value, found.error))
    if points:
        x, y, error = np.array(points).T
        axes.errorbar(x, y, error, capsize=2, markersize=4, linewidth=1.2, label=label, **style)
    return len(points)


def photometric_against_true(results: Results) -> str | None:
    """Counts of z_phot against z_true on a grey scale, without correction and as redshelf answers."""
    ways = ("kNN, mean of 40", "redshelf's choice")
    figure = _figure(10, 6.6)
    grid = figure.subplots(len(ways), len(SHOWN), sharex=True, sharey=True, squeeze=False)
    drawn = 0
    for row, way in zip(grid, ways, strict=True):
        for axes, (scenario, title) in zip(row, SHOWN.items(), strict=True):
            pictures = [d["found"]["picture"] for d in results.by_key.get(_key(scenario, way), ())]
            axes.set_title(f"{way}; {title}", fontsize=9)
            if pictures:
                counts = np.log1p(np.sum(pictures, axis=0).T)
                axes.imshow(counts, origin="lower", extent=(0, 3, 0, 3), cmap="Greys", aspect="auto")
                drawn += 1
            else:
                axes.text(1.5, 2.6, "not measured", ha="center", fontsize=9)
            axes.plot([0, 3], [0, 3], color="#D55E00", linewidth=0.8)
        row[0].set_ylabel("photometric redshift")
    for axes in grid[-1]:
        axes.set_xlabel("true redshift")
    return _png(figure) if drawn else None


def pit_histograms(results: Results) -> str | None:
    """PIT in support: flat where the densities are calibrated."""
    figure = _figure(10, 3.2)
    row = figure.subplots(1, len(SHOWN), sharey=True, squeeze=False)[0]
    drawn = 0
    for axes, (scenario, title) in zip(row, SHOWN.items(), strict=True):
        for way, style in zip(LINES, STYLES, strict=True):
            found = [d["found"]["pit"] for d in results.by_key.get(_key(scenario, way), ())]
            heights = [pit["in"] for pit in found if pit and "in" in pit]
            if len(heights) >= 2:
                height = np.mean(heights, axis=0)
                edges = np.linspace(0, 1, len(height) + 1)
                axes.stairs(height, edges, label=way, color=style["color"], linestyle=style["linestyle"])
                drawn += 1
        axes.axhline(1, color="#888888", linewidth=0.8)
        axes.set(title=title, xlabel="PIT", ylim=(0, 2.5))
    row[0].set_ylabel("density")
    _legend(figure, row)
    return _png(figure) if drawn else None


def weights_map(results: Results) -> str | None:
    """Labels with their shift weights on the two leading components of the neighbour space, over the asked sources."""
    found = results.by_key.get(_key("s1", "redshelf's choice"))
    if not found:
        return None
    seen = found[0]["found"]["more"]["map"]
    labels, asked = np.array(seen["labels"]), np.array(seen["asked"])
    weights = np.array(seen["weights"])
    figure = _figure(6.4, 4.6)
    axes = figure.subplots()
    axes.plot(*asked.T, ".", color="#bbbbbb", markersize=2, label="asked sources", zorder=1)
    order = np.argsort(weights)
    shade = np.log10(np.clip(weights[order], 0.03, 30))
    x, y = labels[order].T
    points = axes.scatter(x, y, c=shade, s=6 + 10 * np.clip(shade + 1, 0, 3), cmap="cividis", zorder=2)
    figure.colorbar(points, label="log10 of a label's weight")
    axes.set(xlabel="first component", ylabel="second component")
    axes.legend(frameon=False, loc="upper right", markerscale=4)
    return _png(figure)


def curves(results: Results, sizes: Sequence[int]) -> str | None:
    """Scatter against the number of labels, bias against the size of the shift, scatter against pretraining images."""
    figure = _figure(11, 3.4)
    cost, shift, images = figure.subplots(1, 3)
    drawn = _label_cost(cost, results) + _shift(shift, results) + _images(images, results, sizes)
    return _png(figure) if drawn else None


def _plot(axes: Axes, points: list[tuple[float, float, float]], label: str, style: dict[str, Any]) -> int:
    if points:
        x, y, error = np.array(sorted(points)).T
        axes.errorbar(x, y, error, capsize=2, markersize=4, linewidth=1.2, label=label, **style)
        axes.legend(frameon=False, fontsize=8)
    return len(points)


def _count_axis(axes: Axes, counts: Sequence[float], label: str) -> None:
    """A logarithmic axis whose ticks are the counts that there are, in plain numbers."""
    axes.set(xscale="log", xlabel=label)
    axes.set_xticks(counts, [f"{count:,.0f}" for count in counts])
    axes.minorticks_off()


def _label_cost(axes: Axes, results: Results) -> int:
    drawn, counts = 0, set()
    ways = {"kNN on photometry": ("photometry", "knn"), "network on photometry": ("photometry network", "head")}
    for (label, (approach, estimator)), style in zip(ways.items(), STYLES, strict=False):
        points = []
        for fraction in (0.1, 0.3, 1.0):
            key = Key(approach, "s1", estimator, fraction=fraction)
            found, number = results.number(key, "sigma_mad"), results.mean(key, "labels")
            if found and number:
                points.append((number, found.value, found.error))
                counts.add(round(number))
        drawn += _plot(axes, points, label, style)
    _count_axis(axes, sorted(counts), "labels (s1)")
    axes.set_ylabel(r"$\sigma_{\rm MAD}$")
    return drawn


def _shift(axes: Axes, results: Results) -> int:
    drawn = 0
    ways = {"no weights": "none", "neighbour weights": "neighbour-ratio"}
    for (label, correction), style in zip(ways.items(), STYLES, strict=False):
        points = []
        for strength, scenario in enumerate(("s0", "s1@0.25", "s1@0.5", "s1@0.75", "s1")):
            found = results.number(Key("photometry", scenario, "knn", correction), "bias")
            if found:
                points.append((25.0 * strength, found.value, found.error))
        drawn += _plot(axes, points, label, style)
    axes.axhline(0, color="#888888", linewidth=0.8)
    axes.set(xlabel="per cent of the way from s0 to s1", ylabel="bias of kNN")
    return drawn


def _images(axes: Axes, results: Results, sizes: Sequence[int]) -> int:
    points = []
    for size in sizes:
        name = "masked, frozen" if size == sizes[-1] else f"masked on {size:,} images, frozen"
        found = results.number(Key(name, "s0", sky="images"), "sigma_mad")
        if found:
            points.append((float(size), found.value, found.error))
    _count_axis(axes, [x for x, _, _ in points], "unlabelled images pretrained on")
    axes.set_ylabel(r"$\sigma_{\rm MAD}$ of kNN")
    return _plot(axes, points, "masked, frozen (s0)", STYLES[0])

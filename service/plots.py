"""Curves of a training run as a PNG: what the loop logged, against the step."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redshelf.indexing.files import write_bytes
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TIMES = ("step", "seconds", "progress")
OWN = {
    "validation": "validation loss",
    "gradient_norm": "gradient norm\nbefore clipping",
    "skipped": "fraction of\nsteps skipped",
    "lr": "learning rate",
}
WIDTH_IN, PANEL_IN, DPI = 7.0, 1.9, 120
COLOURS = ("#1f4e79", "#c55a11", "#548235", "#7f6000", "#7030a0", "#808080")


def panels(rows: Sequence[dict[str, float]]) -> dict[str, list[str]]:
    """Which keys of the rows share a panel, by its label, from top to bottom.

    What stands in every row is the loss, a part of it, or the loop's own; what stands in some rows a monitor said, in
    whatever unit, so each of that gets a panel to itself.
    """
    keys = [key for key in dict.fromkeys(key for row in rows for key in row) if key not in TIMES]
    parts = [key for key in keys if key not in OWN and all(key in row for row in rows)]
    said = {key.replace("_", " "): [key] for key in keys if key not in (*OWN, *parts)}
    own = {label: [key] for key, label in OWN.items() if key in keys}
    validation = {label: own.pop(label) for label in [OWN["validation"]] if label in own}
    return {"training loss": parts} | validation | said | own


def training_plot(rows: Sequence[dict[str, float]], path: Path | None = None) -> bytes:
    """Loss and its parts, validation and monitor, gradient norm and learning rate against the step, as a PNG.

    `rows` are those of `models.training.Report`. Written to `path`, whole, where one is given. Raises `BadInput` for
    no rows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not rows:
        raise BadInput("no rows to draw: the run has logged nothing yet")
    drawn = panels(rows)
    figure = Figure(figsize=(WIDTH_IN, PANEL_IN * len(drawn) + 0.6), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    column = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, keys) in zip(column, drawn.items(), strict=True):
        _panel(axes, rows, label, keys)
    column[-1].set_xlabel("step (batches)")
    column[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.align_ylabels()
    hours, rest = divmod(round(rows[-1].get("seconds", 0)), 3600)
    figure.suptitle(f"{rows[-1]['step']:,.0f} steps in {hours} h {rest // 60:02d} min {rest % 60:02d} s", fontsize=10)
    made = BytesIO()
    figure.savefig(made, format="png")
    if path is not None:
        write_bytes(path, made.getvalue())
    return made.getvalue()


def _panel(axes: Axes, rows: Sequence[dict[str, float]], label: str, keys: list[str]) -> None:
    """Curves of `keys`, on a logarithmic axis where they are positive and span a decade."""
    shown: list[float] = []
    for number, key in enumerate(keys):
        points = [(row["step"], row[key]) for row in rows if key in row and isfinite(row[key])]
        shown += [value for _, value in points]
        sparse = len(points) <= max(20, len(rows) // 4)
        axes.plot(
            [step for step, _ in points],
            [value for _, value in points],
            color=COLOURS[number % len(COLOURS)],
            marker="o" if sparse else "",
            markersize=3,
            linewidth=1.6 if number == 0 else 1.0,
            label=key.replace("_", " "),
        )
    if shown and min(shown) > 0 and max(shown) > 10 * min(shown) and keys != ["lr"]:
        axes.set_yscale("log")
    axes.set_ylabel(label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if len(keys) > 1:
        place: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(keys), "borderaxespad": 0}
        axes.legend(frameon=False, fontsize=8, columnspacing=1.0, handlelength=1.2, **place)

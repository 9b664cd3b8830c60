"""The arithmetic of the page's drawings, in their own units; the templates draw them as inline SVG."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from redshelf.service.answers import RedshiftAnswer

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640.0, 250.0, 44.0, 12.0, 26.0, 40.0  # of p(z)
TAIL = 4e-3  # of the density, at either end, that is not drawn


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Plot:
    """A drawing of p(z) in its own units: `curve` and `band` are SVG paths, the others x or y positions."""

    curve: str
    band: str
    median: float | None
    z_spec: float | None
    neighbours: tuple[float, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    base: float = HEIGHT - BOTTOM


def ticks(low: float, high: float, wanted: int) -> list[float]:
    """About `wanted` round numbers between two."""
    rough = (high - low) / wanted
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def plot(answer: RedshiftAnswer, *, z_spec: float | None, neighbours: list[float]) -> Plot | None:
    """The drawing of an answer's p(z); None where it has none. `neighbours`: their spectroscopic redshifts."""
    if answer.pdf is None:
        return None
    edges, density = np.array(answer.pdf.z), np.array(answer.pdf.density)
    cumulative = np.concatenate([[0], np.cumsum(density * np.diff(edges))])
    inside = np.flatnonzero((cumulative[1:] > TAIL) & (cumulative[:-1] < cumulative[-1] - TAIL))
    low, high = edges[inside[0]], edges[inside[-1] + 1]
    if z_spec is not None:
        low, high = min(low, z_spec), max(high, z_spec)
    margin = max(0.08 * (high - low), 0.02)
    low, high = max(0.0, low - margin), high + margin
    peak = float(density.max()) * 1.08

    def x(z: float) -> float:
        return float(LEFT + (z - low) / (high - low) * (WIDTH - LEFT - RIGHT))

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / peak * (HEIGHT - TOP - BOTTOM)

    def outline(z_from: float, z_to: float) -> str:
        keep = np.flatnonzero((edges[1:] > z_from) & (edges[:-1] < z_to))
        points = [f"M{x(max(z_from, edges[keep[0]])):.1f},{y(0):.1f}"]
        for i in keep:
            points.append(f"V{y(density[i]):.1f}H{x(min(z_to, edges[i + 1])):.1f}")
        return "".join(points) + f"V{y(0):.1f}"

    median, q16, q84 = answer.z_median, answer.z_q16, answer.z_q84
    x_step = ticks(low, high, 7)
    digits = max(0, -math.floor(math.log10(x_step[1] - x_step[0]) + 1e-9)) if len(x_step) > 1 else 2
    return Plot(
        curve=outline(low, high),
        band=outline(q16, q84) + "Z" if q16 is not None and q84 is not None and q84 > q16 else "",
        median=None if median is None else x(median),
        z_spec=None if z_spec is None else x(z_spec),
        neighbours=tuple(x(z) for z in neighbours if low <= z <= high),
        x_ticks=tuple(Tick(x(z), f"{z:.{digits}f}") for z in x_step),
        y_ticks=tuple(Tick(y(v), f"{v:g}") for v in ticks(0, peak, 4)),
    )


ROW_WIDTH, ROW_HEIGHT = 320.0, 34.0  # of a density in a table


@dataclass(frozen=True)
class Row:
    """p(z) of one estimator, each to a height of its own, on the redshifts that all rows of a table share."""

    answer: RedshiftAnswer
    curve: str
    median: float


@dataclass(frozen=True)
class Rows:
    """The densities of several estimators one below the other; `neighbours` and `z_spec` are x positions."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    neighbours: tuple[float, ...]
    z_spec: float | None
    width: float = ROW_WIDTH
    height: float = ROW_HEIGHT


def rows(answers: list[RedshiftAnswer], *, z_spec: float | None, neighbours: list[float]) -> Rows | None:
    """The table of the answers that have a density; None without any. The axis
    is that of the first answer, wide enough for 68% of each. `neighbours`: their spectroscopic redshifts."""
    given = [(one, one.pdf, one.z_median) for one in answers]
    ends = [z for one, _, _ in given for z in (one.z_q16, one.z_q84) if z is not None]
    ends += [z for one, _, _ in given[:1] for z in one.interval_95 or ()]
    if not ends:
        return None
    low, high = min([*ends, z_spec or ends[0]]), max([*ends, z_spec or ends[0]])
    margin = max(0.1 * (high - low), 0.02)
    low, high = max(0.0, low - margin), high + margin

    def x(z: float) -> float:
        return (min(max(z, low), high) - low) / (high - low) * ROW_WIDTH

    drawn = []
    for one, pdf, median in given:
        if pdf is None or median is None:
            continue
        edges, density = np.array(pdf.z), np.array(pdf.density)
        seen = np.flatnonzero((edges[1:] > low) & (edges[:-1] < high))
        peak = float(density.max())
        steps = "".join(f"V{ROW_HEIGHT * (1 - 0.92 * density[i] / peak):.1f}H{x(edges[i + 1]):.1f}" for i in seen)
        drawn.append(Row(one, f"M{x(edges[seen[0]]):.1f},{ROW_HEIGHT}{steps}V{ROW_HEIGHT}Z", x(median)))
    round_z = ticks(low, high, 5)
    digits = max(0, -math.floor(math.log10(round_z[1] - round_z[0]) + 1e-9)) if len(round_z) > 1 else 2
    return Rows(
        rows=tuple(drawn),
        ticks=tuple(Tick(x(z), f"{z:.{digits}f}") for z in round_z if 0.02 * ROW_WIDTH < x(z) < 0.98 * ROW_WIDTH),
        neighbours=tuple(x(z) for z in neighbours if low <= z <= high),
        z_spec=None if z_spec is None else x(z_spec),
    )

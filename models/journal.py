"""What a training run says while it runs: rows of means, a progress bar, TensorBoard."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

Row = dict[str, float]

LOG_ROWS = 100  # a run
MONITOR_ROWS = 10  # of them with what `monitor` says


class Sums:
    """Sums of named scalars over steps, kept on the device, so that no step waits for one.

    Values that are not finite are left out: float16 has steps that are not taken.
    """

    def __init__(self, start: dict[str, list[float]] | None = None) -> None:
        self._start = start or {}  # of a resumed run
        self._sums: dict[tuple[str, ...], Tensor] = {}  # (2, names): sums and numbers

    def add(self, values: dict[str, Tensor]) -> None:
        """Count one value of each name, scalars."""
        names, device = tuple(values), next(iter(values.values())).device
        row = torch.stack([value.detach().to(device, torch.float64).reshape(()) for value in values.values()])
        good = torch.isfinite(row)
        pair = torch.stack([torch.where(good, row, 0.0), good.double()])
        self._sums[names] = self._sums[names] + pair if names in self._sums else pair

    def read(self) -> dict[str, list[float]]:
        """Sum and number of each name; waits for the device."""
        pairs = [dict(zip(names, pair.T.tolist(), strict=True)) for names, pair in self._sums.items()]
        return merged([self._start, *pairs])


def merged(parts: list[dict[str, list[float]]]) -> dict[str, list[float]]:
    """The sums of several `Sums.read`."""
    total: dict[str, list[float]] = {}
    for part in parts:
        for key, (value, number) in part.items():
            old = total.get(key, [0.0, 0.0])
            total[key] = [old[0] + value, old[1] + number]
    return total


def means(sums: dict[str, list[float]]) -> dict[str, float]:
    """The mean of each name, NaN where nothing finite was counted."""
    return {key: value / number if number else float("nan") for key, (value, number) in sums.items()}


class Journal:
    """Passes each row on: to a bar on stderr, to TensorBoard, to a function. `step` is where the run begins."""

    def __init__(
        self,
        step: int,
        progress: bool = False,
        tensorboard: Path | None = None,
        on_log: Callable[[Row], None] | None = None,
    ) -> None:
        from tqdm import tqdm

        # a terminal sees the bar move; a log gets a line every ten seconds
        quiet = 0.1 if sys.stderr.isatty() else 10.0
        self._bar = tqdm(total=LOG_ROWS, desc="training", unit="%", mininterval=quiet, disable=not progress)
        self._on_log, self._writer = on_log, None if tensorboard is None else _writer(tensorboard, step)

    def write(self, row: Row) -> None:
        """Tell `row`."""
        self._bar.update(round(row["progress"] * LOG_ROWS) - self._bar.n)
        self._bar.set_postfix(step=row["step"], loss=f"{row['loss']:.4f}")
        if self._writer is not None:
            for key in sorted(row.keys() - {"step"}):
                self._writer.add_scalar(f"training/{key}", row[key], int(row["step"]))
            self._writer.flush()
        if self._on_log is not None:
            self._on_log(row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _writer(folder: Path, step: int) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    # rows that a killed run told after its last checkpoint are told again: readers drop those from here on
    return SummaryWriter(str(folder), purge_step=step + 1)

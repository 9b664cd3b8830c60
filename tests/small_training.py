"""A small training run with everything in it that may go wrong, in this process or as a program of its own.

`python -m small_training OUT '[{"steps": 20}, ...]'` trains once for each of the options and writes what came of the
n-th to OUT.<rank>.<n>.safetensors and .json.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from redshelf.models.encoder import Batch
from redshelf.models.errors import Interrupted, RedshelfError
from redshelf.models.training import Objective, Report, Sampler, train

FLUX = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))


class Noisy(Objective):
    """Dropout, masking, batch norm, a teacher, a weight that few batches touch: all that hangs on who computes what."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Dropout(0.2), nn.Linear(16, 6))
        self.rare, self.never = nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))
        self.teacher = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("chosen", torch.tensor([True, False]))
        self.register_buffer("coarse", torch.tensor([float("-inf"), 1 / 3], dtype=torch.bfloat16))
        self.config: dict[str, Any] = {"objective": "noisy"}

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.flux_ujy is not None
        flux = batch.flux_ujy
        hidden = torch.rand(flux.shape) < 0.3
        found = self.net(torch.where(hidden, 0.0, flux))
        with torch.no_grad():
            taught = self.teacher(flux)
        loss = (found - flux).square().mean() + 0.1 * (found - taught).square().mean()
        parts = {"hidden": hidden.float().mean()}
        if (indices < 4).any():
            parts["rare"] = (self.rare * flux).square().mean()
            loss = loss + 0.1 * parts["rare"]
        return loss, parts

    def after_step(self, progress: float) -> None:
        for mine, its in zip(self.teacher.parameters(), self.net.parameters(), strict=True):
            mine.data.lerp_(its.data, 0.1 + 0.1 * progress)


class Mean(Objective):
    """No randomness and a loss that is a mean over sources: how a batch is cut changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 1))
        self.config: dict[str, Any] = {"objective": "mean"}

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.flux_ujy is not None
        return (self.net(batch.flux_ujy)[:, 0] - batch.flux_ujy.square().sum(dim=1)).square().mean(), {}


def fetch(indices: np.ndarray) -> Batch:
    return Batch(torch.ones((len(indices), 6), dtype=torch.int8), flux_ujy=FLUX[indices])


def fit(
    objective: Objective, *, pause: float = 0.0, spoil: int | None = None, stop_at: int | None = None, **options: Any
) -> Report:
    """Train on the 64 sources.

    A batch takes `pause` seconds, source `spoil` is not finite, and with the batch of number `stop_at` comes SIGUSR1.
    """
    calls = itertools.count()

    def source(indices: np.ndarray) -> Batch:
        time.sleep(pause)
        if next(calls) == stop_at:
            os.kill(os.getpid(), signal.SIGUSR1)
        batch = fetch(indices)
        assert batch.flux_ujy is not None
        batch.flux_ujy[torch.from_numpy(indices == spoil)] = float("nan")
        return batch

    known: dict[str, Any] = {"lr": 0.02, "seed": 1, "precision": "float32"}
    return train(objective, source, Sampler(64, 16, 1), **known | options)


def spawn(out: Path, runs: list[dict[str, Any]], environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """This module as a program."""
    folder = Path(__file__).parent
    paths = {"PYTHONPATH": f"{folder / 'links'}{os.pathsep}{folder}"}
    command = [sys.executable, "-m", "small_training", str(out), json.dumps(runs)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env={**os.environ, **paths, **(environment or {})}, **pipes)


def main() -> int:
    """Run each; the status of the last."""
    out, status = sys.argv[1], 0
    rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID", "0"))
    for number, options in enumerate(json.loads(sys.argv[2])):
        if "checkpoint" in options:
            options["checkpoint"] = Path(options["checkpoint"])
        objective = {"noisy": Noisy, "mean": Mean}[options.pop("objective", "noisy")]()
        own = options.pop("by_rank", [{}] * 2)[rank]
        try:
            report = fit(objective, on_log=lambda row: print(row["step"], flush=True), **options, **own)
            told: dict[str, Any] = {"steps": report.steps, "rows": report.rows, "resumed_from": report.resumed_from}
            status = 0
        except RedshelfError as error:
            print(error, file=sys.stderr)
            status = error.exit_status if isinstance(error, Interrupted) else 1
            told = {"error": str(error), "status": status}
        weights = {key: value.clone() for key, value in objective.state_dict().items()}
        save_file(weights, f"{out}.{rank}.{number}.safetensors")
        Path(f"{out}.{rank}.{number}.json").write_text(json.dumps(told))
    return status


if __name__ == "__main__":
    from redshelf.api import cli

    sys.exit(cli._leave(main()))  # as the command line does: threads of gloo may abort a regular exit

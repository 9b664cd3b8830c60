"""One training loop for every objective: AdamW, cosine schedule with warm-up, clipping, checkpoints, exact resume.

An `Objective` turns a batch into a loss, `fetch` turns source indices into a batch, a `Sampler` says which indices make
up step n. All randomness is a function of (seed, step), so a checkpoint needs the step and no generator's state. A run
ends after `steps` or `max_seconds`, whichever comes first.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, Conflict, RedshelfError

Indices = npt.NDArray[np.int64]
Fetch = Callable[[Indices], Batch]
Precision = Literal["bfloat16", "float32"]

WARM_UP = 0.05  # fraction of the run
CLIP_NORM = 1.0
LOG_ROWS = 100  # a run
FORMAT = "redshelf-training-1"


class Objective(nn.Module, ABC):
    """What is trained. `config` identifies it: a checkpoint of another config is not taken up."""

    config: dict[str, Any]

    @abstractmethod
    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of these sources and named parts of it for the log. Draws from torch's global generator."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step; `progress` from 0 to 1. For a teacher that follows its student."""


@dataclass(frozen=True)
class Sampler:
    """Which sources make up step n: shuffled epochs, or draws in proportion to `weights` (n_sources,)."""

    n_sources: int
    batch_size: int
    seed: int
    weights: npt.NDArray[np.float64] | None = None
    _epoch: dict[int, Indices] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n_sources < 1 or self.batch_size < 1:
            raise BadInput(
                f"training on {self.n_sources} sources in batches of {self.batch_size}: expected 1 or more of both"
            )
        w = self.weights
        if w is not None and (
            w.shape != (self.n_sources,) or not np.isfinite(w).all() or (w < 0).any() or w.sum() <= 0
        ):
            raise BadInput(f"sampling weights: expected {self.n_sources} finite values of 0 or more, not all 0")

    def batch(self, step: int) -> Indices:
        """Indices of step `step`, (batch_size,), or all sources if there are fewer; an epoch's rest is dropped."""
        size = min(self.batch_size, self.n_sources)
        epoch, position = divmod(step, self.n_sources // size)
        if epoch not in self._epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self._epoch.clear()
            if self.weights is None:
                self._epoch[epoch] = rng.permutation(self.n_sources)
            else:
                self._epoch[epoch] = rng.choice(self.n_sources, self.n_sources, p=self.weights / self.weights.sum())
        return self._epoch[epoch][position * size : (position + 1) * size]

    def describe(self) -> dict[str, Any]:
        """What must be equal for a resumed run to see the same batches."""
        digest = None if self.weights is None else hashlib.sha256(self.weights.tobytes()).hexdigest()
        return {"n_sources": self.n_sources, "batch_size": self.batch_size, "seed": self.seed, "weights": digest}


def flat_weights(magnitude: npt.ArrayLike, *, width_mag: float = 0.5) -> npt.NDArray[np.float64]:
    """Sampling weights that make the draw flat in magnitude, (N,), instead of following the faint-heavy counts.

    A bin's sources are weighted by at most 20 times the commonest ones, so that a lone bright star is not every batch.
    Sources without a magnitude (NaN) are drawn as often as the average source.
    """
    value = np.asarray(magnitude, dtype=np.float64)
    known = np.isfinite(value)
    if not known.any():
        return np.ones(len(value))
    bins = np.floor(value[known] / width_mag).astype(np.int64)
    _, inverse, counts = np.unique(bins, return_inverse=True, return_counts=True)
    weights = np.ones(len(value))
    drawn = np.minimum(1 / counts[inverse], 20 / counts.max())
    weights[known] = drawn / drawn.mean()
    return weights


@dataclass(frozen=True)
class Report:
    """What a run did. `rows`: step, seconds, progress, lr, loss and its parts, averaged since the row before."""

    steps: int
    seconds: float
    rows: list[dict[str, float]]
    resumed_from: int = 0
    best_validation: float | None = None

    @property
    def loss(self) -> float:
        """Mean loss of the last logged stretch."""
        return self.rows[-1]["loss"]


@dataclass
class _State:
    """Everything that a step changes beside weights and optimiser; JSON in the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    logged: int = 0  # log rows due so far
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0
    rows: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None


def _write_whole(path: Path, data: bytes) -> None:
    # indexing/files.py has the same, and lies on the other side of the house's one-way street
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(scratch).replace(path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def _pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save({key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}, metadata)


def _optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimiser.state_dict()["state"]
    return {f"optimiser.{i}.{key}": value for i, entry in state.items() for key, value in entry.items()}


def _save(
    path: Path,
    objective: Objective,
    optimiser: torch.optim.Optimizer,
    best: dict[str, Tensor],
    state: _State,
    plan: str,
) -> None:
    tensors = {f"model.{key}": value for key, value in objective.state_dict().items()}
    tensors |= {f"best.{key}": value for key, value in best.items()} | _optimiser_tensors(optimiser)
    _write_whole(path, _pack(tensors, {"format": FORMAT, "plan": plan, "state": json.dumps(asdict(state))}))


def _load(
    path: Path, objective: Objective, optimiser: torch.optim.Optimizer, plan: str
) -> tuple[_State, dict[str, Tensor]]:
    """Fill objective and optimiser from `path`; the state and the best weights. Nothing is changed on an error."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise BadInput(f"{path} is no whole training checkpoint ({error}): remove it to start anew") from error
    if metadata.get("format") != FORMAT:
        raise BadInput(f"{path} is no training checkpoint ({FORMAT}): remove it or name another")
    stored, wanted = json.loads(metadata["plan"]), json.loads(plan)
    for key in wanted:
        if stored.get(key) != wanted[key]:
            raise Conflict(f"{path} belongs to a run with {key}={stored.get(key)}, this one has {wanted[key]}")
    part = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("model.", "best.")}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimiser."):
            _, index, name = key.split(".")
            moments.setdefault(int(index), {})[name] = value
    objective.load_state_dict(part["model."])
    optimiser.load_state_dict({"state": moments, "param_groups": optimiser.state_dict()["param_groups"]})
    return _State(**json.loads(metadata["state"])), part["best."]


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Torch's global generator set to `seed` inside, as it was before outside."""
    with torch.random.fork_rng([torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def _step_seed(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


def _optimiser(objective: Objective, lr: float, weight_decay: float) -> torch.optim.AdamW:
    trained = [p for p in objective.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},  # biases and norms
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _refuse_non_finite(what: str, batch: Batch, indices: Indices, step: int, checkpoint: Path | None) -> None:
    where = "no checkpoint was asked for, so the batch is not kept"
    if checkpoint is not None:
        path = checkpoint.with_suffix(".bad-batch.safetensors")
        tensors = {f.name: value for f in fields(batch) if (value := getattr(batch, f.name)) is not None}
        _write_whole(path, _pack(tensors | {"indices": torch.from_numpy(indices)}, {"step": str(step)}))
        where = f"the batch is kept in {path}"
    raise RedshelfError(f"training stopped at step {step}: the {what} is not finite; {where}")


def train(
    objective: Objective,
    fetch: Fetch,
    sampler: Sampler,
    *,
    steps: int | None = None,
    max_seconds: float | None = None,
    lr: float,
    weight_decay: float = 0.05,
    seed: int = 0,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    device: str = "cpu",
    precision: Precision = "bfloat16",
    validate: Callable[[], float] | None = None,
    progress: bool = False,
    on_log: Callable[[dict[str, float]], None] | None = None,
) -> Report:
    """Train `objective` in place and return what happened.

    With `checkpoint` (a .safetensors file) the run continues from it where it exists, writes it every
    `checkpoint_seconds` and at the end, and keeps the log beside it as JSON lines; a run bounded by steps gives the
    same weights whether it was interrupted or not. With `validate` (lower is better, called at every log row) the best
    weights win over the last ones. Raises `BadInput` for a damaged checkpoint, `Conflict` for another run's, and
    `RedshelfError` when loss or gradient is not finite, with the batch kept beside the checkpoint.
    """
    if steps is None and max_seconds is None:
        raise BadInput("training needs an end: give steps, max_seconds or both")
    for name, bound in (("steps", steps), ("max_seconds", max_seconds)):
        if bound is not None and not bound > 0:
            raise BadInput(f"{name}={bound}: expected more than 0")
    total_steps, total_seconds = steps or math.inf, max_seconds or math.inf
    objective.to(device).train()
    optimiser = _optimiser(objective, lr, weight_decay)
    run = {"steps": steps, "max_seconds": max_seconds, "lr": lr, "weight_decay": weight_decay, "seed": seed}
    plan = json.dumps(
        {**run, "precision": precision, "sampler": sampler.describe(), "objective": objective.config}, sort_keys=True
    )
    state, best = _State(), dict[str, Tensor]()
    if checkpoint is not None and checkpoint.exists():
        state, best = _load(checkpoint, objective, optimiser, plan)
    resumed_from, began, written = state.step, time.monotonic() - state.seconds, time.monotonic()
    bar = _bar(progress, state)
    with seeded(seed, device), bar:
        while (done := max(state.step / total_steps, state.seconds / total_seconds)) < 1:
            rate = lr * min(1.0, max(done, 1 / LOG_ROWS / 10) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
            for group in optimiser.param_groups:
                group["lr"] = rate
            torch.manual_seed(_step_seed(seed, state.step))
            indices = sampler.batch(state.step)
            batch = fetch(indices).to(device)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bfloat16"):
                loss, parts = objective.loss(batch, torch.from_numpy(indices).to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(objective.parameters(), CLIP_NORM)
            if not torch.isfinite(loss):
                _refuse_non_finite("loss", batch, indices, state.step, checkpoint)
            if not torch.isfinite(norm):
                _refuse_non_finite("gradient", batch, indices, state.step, checkpoint)
            optimiser.step()
            state.step, state.seconds, state.count = state.step + 1, time.monotonic() - began, state.count + 1
            for key, value in {"loss": loss, **parts}.items():
                state.sums[key] = state.sums.get(key, 0.0) + float(value.detach())
            done = min(1.0, max(state.step / total_steps, state.seconds / total_seconds))
            if int(done * LOG_ROWS) > state.logged:
                state.logged = int(done * LOG_ROWS)
                row = {"step": state.step, "seconds": round(state.seconds, 3), "progress": round(done, 4), "lr": rate}
                row |= {key: value / state.count for key, value in state.sums.items()}
                state.sums, state.count = {}, 0
                if validate is not None:
                    row["validation"] = validate()
                    objective.train()
                    if state.best is None or row["validation"] < state.best:
                        state.best = row["validation"]
                        best = {key: value.detach().clone() for key, value in objective.state_dict().items()}
                state.rows.append(row)
                bar.update(state.logged - bar.n)
                bar.set_postfix(step=state.step, loss=f"{row['loss']:.4f}")
                if on_log is not None:
                    on_log(row)
            if checkpoint is not None and (done >= 1 or time.monotonic() - written >= checkpoint_seconds):
                _save(checkpoint, objective, optimiser, best, state, plan)
                lines = "".join(json.dumps(row) + "\n" for row in state.rows)
                _write_whole(checkpoint.with_suffix(".jsonl"), lines.encode())
                written = time.monotonic()
    if best:
        objective.load_state_dict(best)
    objective.eval()
    return Report(state.step, state.seconds, state.rows, resumed_from, state.best)


def _bar(progress: bool, state: _State) -> Any:
    import sys

    from tqdm import tqdm

    # a terminal sees the bar move; a log gets a line every ten seconds
    quiet = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=LOG_ROWS, initial=state.logged, desc="training", unit="%", mininterval=quiet, disable=not progress
    )

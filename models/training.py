"""One training loop for every objective: AdamW, cosine schedule with warm-up, clipping, checkpoints, exact resume.

An `Objective` turns a batch into a loss, `fetch` turns source indices into a batch, a `Sampler` says which indices make
up step n. All randomness is a function of (seed, step, micro-batch), so a checkpoint needs the step and no generator's
state, and a micro-batch comes out the same whichever process computes it (`models/parallel.py`). A run ends after
`steps` or `max_seconds`, whichever comes first.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from redshelf.models import parallel
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, Interrupted, RedshelfError
from redshelf.models.journal import LOG_ROWS, MONITOR_ROWS, Journal, Row, Sums, means, merged
from redshelf.models.resume import Checkpoint, State, keep_bad_batch
from redshelf.models.sampler import Fetch, Indices, Sampler, flat_weights
from redshelf.models.signals import stop_signals
from redshelf.models.threads import ahead

__all__ = ["Fetch", "Indices", "Objective", "Precision", "Report", "Sampler", "flat_weights", "seeded", "train"]

Precision = Literal["bfloat16", "float16", "float32"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
WARM_UP = 0.05  # fraction of the run
CLIP_NORM = 1.0
SKIPS = 25  # steps in a row that float16 may skip: halved so often, a scale of 2^16 is below 1 long before


class Objective(nn.Module, ABC):
    """What is trained. `config` identifies it: a checkpoint of another config is not taken up."""

    config: dict[str, Any]

    @abstractmethod
    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss of these sources and named parts of it for the log. Draws from torch's global generator."""

    def after_step(self, progress: float) -> None:
        """Called after each optimiser step; `progress` from 0 to 1. For a teacher that follows its student.

        What it changes must be in the state dict, where a resumed run finds it.
        """

    def learning_rates(self) -> list[tuple[list[nn.Parameter], float]]:
        """Parameters that do not learn at the run's rate, with the factor on it."""
        return []


@dataclass(frozen=True)
class Report:
    """What a run did.

    `rows`: step, seconds, progress, lr, and averaged since the row before the loss, its parts and the norm of the
    gradient before clipping (in float16 also the fraction of steps skipped); what `validate` and `monitor` said.
    """

    steps: int
    seconds: float
    rows: list[Row]
    resumed_from: int = 0
    best_validation: float | None = None
    micro_batches: int = 1
    stages: dict[str, int] = field(default_factory=dict)  # steps of those beside the one that `rows` are of
    kept: str = ""  # the stage whose weights were kept instead of this one's

    @property
    def loss(self) -> float:
        """Mean loss of the last logged stretch."""
        return self.rows[-1]["loss"]


@contextmanager
def seeded(seed: int, device: str = "cpu") -> Iterator[None]:
    """Torch's global generator set to `seed` inside, as it was before outside."""
    with torch.random.fork_rng([torch.device(device)] if device.startswith("cuda") else []):
        torch.manual_seed(seed)
        yield


def _place_seed(*place: int) -> int:
    return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def _optimiser(objective: Objective, lr: float, weight_decay: float) -> torch.optim.AdamW:
    factor = {p: factor for parameters, factor in objective.learning_rates() for p in parameters}
    trained = [p for p in objective.parameters() if p.requires_grad]
    groups = []
    for own in sorted({1.0, *factor.values()}, reverse=True):
        alike = [p for p in trained if factor.get(p, 1.0) == own]
        matrices, rest = [p for p in alike if p.ndim >= 2], [p for p in alike if p.ndim < 2]  # rest: biases and norms
        groups += [
            {"params": matrices, "weight_decay": weight_decay, "factor": own},
            {"params": rest, "weight_decay": 0.0, "factor": own},
        ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98))


def _rate(done: float) -> float:
    """Of the learning rate, at this fraction of the run: a linear warm-up under a cosine."""
    return min(1.0, max(done, 1 / LOG_ROWS / 10) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))


def _compiled(objective: Objective, kind: str) -> Any:
    """`objective.loss` through torch.compile; `BadInput` where there is nothing to compile with."""
    ours = os.environ.get("CC" if kind == "cuda" else "CXX")
    names = [ours] if ours else ["gcc", "clang", "cc"] if kind == "cuda" else ["g++", "clang++"]
    if not any(shutil.which(name) for name in names):
        raise BadInput(f"compile=True needs a compiler, and there is no {' or '.join(names)} on the PATH")
    return torch.compile(objective.loss)


def micro_batches_of(asked: int, world: int, size: int) -> int:
    """Micro-batches of a step: as asked, but one for each process where only one is asked for."""
    number = world if asked == 1 else asked
    if number < 1 or number % world or size % number:
        raise BadInput(
            f"micro_batches={number} on {world} processes, for batches of {size} sources: expected a multiple of the "
            "processes that divides the batch"
        )
    return number


def _check(steps: int | None, max_seconds: float | None, precision: str) -> None:
    if steps is None and max_seconds is None:
        raise BadInput("training needs an end: give steps, max_seconds or both")
    for name, bound in (("steps", steps), ("max_seconds", max_seconds)):
        if bound is not None and not bound > 0:
            raise BadInput(f"{name}={bound}: expected more than 0")
    if precision not in DTYPES:
        raise BadInput(f"precision {precision!r}: expected one of {', '.join(DTYPES)}")


def _judged(
    objective: Objective, validate: Callable[[], float] | None, monitor: Callable[[], dict[str, float]] | None
) -> Row:
    """What the two say of the objective as it is used, not as it is trained."""
    if validate is None and monitor is None:
        return {}
    objective.eval()
    row = {} if validate is None else {"validation": validate()}
    row |= {} if monitor is None else monitor()
    objective.train()
    return row


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
    micro_batches: int = 1,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 30.0,
    device: str = "cpu",
    precision: Precision = "bfloat16",
    compile: bool = False,
    validate: Callable[[], float] | None = None,
    validations: int = LOG_ROWS,
    monitor: Callable[[], dict[str, float]] | None = None,
    tensorboard: Path | None = None,
    progress: bool = False,
    on_log: Callable[[Row], None] | None = None,
) -> Report:
    """Train `objective` in place and return what happened.

    With `checkpoint` (a .safetensors file) the run continues from it where it exists, writes it every
    `checkpoint_seconds` and at the end, and keeps the log beside it as JSON lines; a run bounded by steps gives the
    same weights whether it was interrupted or not, and a longer one goes on from a shorter one. With `validate` (lower
    is better, called at `validations` of the log rows) the best weights win over the last ones; `monitor` adds its
    values to ten of the rows and chooses nothing. `fetch` is called by a thread, one batch ahead.

    A step's batch is computed in `micro_batches` equal parts, and the loss is the mean of theirs. Processes started by
    torchrun or srun share them out, one each where 1 is asked for; only the first process writes, logs and calls
    `validate`, `monitor` and `on_log`, and the report is the same in all.

    Raises `BadInput` for a damaged checkpoint, `Conflict` for another run's, `Interrupted` after SIGUSR1 or SIGTERM,
    with the checkpoint written, and `RedshelfError` when loss or gradient is not finite, with the batch kept beside the
    checkpoint; float16 skips such a step, and stops after many in a row.
    """
    _check(steps, max_seconds, precision)
    processes, kind = parallel.start(device), torch.device(device).type
    micro_batches = micro_batches_of(micro_batches, processes.world, sampler.size)
    objective.to(device).train()
    loss_of = _compiled(objective, kind) if compile else objective.loss
    optimiser, trained = _optimiser(objective, lr, weight_decay), [p for p in objective.parameters() if p.requires_grad]
    scaler = torch.amp.GradScaler(kind, enabled=precision == "float16")
    plan: dict[str, Any] = {"steps": steps, "max_seconds": max_seconds, "micro_batches": micro_batches, "seed": seed}
    plan |= {"lr": lr, "weight_decay": weight_decay, "precision": precision, "compile": compile}
    plan |= {"sampler": sampler.describe(), "objective": objective.config}
    kept = None if checkpoint is None else Checkpoint(checkpoint, objective, optimiser, scaler, plan)
    state, best = kept.load() if kept is not None and kept.path.exists() else (State(), dict[str, Tensor]())
    processes.agree("plan or checkpoint", (json.dumps(plan), state.step))
    processes.copy_first(list(objective.state_dict().values()))

    own, sums = processes.share(micro_batches), Sums(state.sums if processes.is_first else {})
    resumed_from, began, written = state.step, time.monotonic() - state.seconds, time.monotonic()
    upcoming = count(state.step) if steps is None else range(state.step, steps)
    requests = (np.split(sampler.batch(step), micro_batches)[micro] for step in upcoming for micro in own)

    def fetched(indices: Indices) -> Batch:
        batch = fetch(indices)
        return batch.pinned() if kind == "cuda" else batch

    with (
        seeded(seed, device),
        stop_signals() as signals,
        closing(ahead((partial(fetched, indices) for indices in requests), depth=1)) as batches,
        Journal(state.step, progress, tensorboard, on_log) if processes.is_first else Journal(state.step) as journal,
    ):
        while (done := _done(state, steps, max_seconds)) < 1:
            logged = _rows(done)
            rate = lr * _rate(done)
            for group in optimiser.param_groups:
                group["lr"] = rate * group["factor"]
            # the gradient of the mean loss of all micro-batches, of which this process computes its own
            indices = np.split(sampler.batch(state.step), micro_batches)
            optimiser.zero_grad(set_to_none=True)
            loss = torch.zeros((), device=device)
            buffers = parallel.Buffers(objective, idle=micro_batches == 1 and not scaler.is_enabled())
            for micro in own:
                batch = next(batches)
                torch.manual_seed(_place_seed(seed, state.step, micro))
                with torch.autocast(kind, DTYPES[precision], enabled=precision != "float32"):
                    value, parts = loss_of(batch.to(device), torch.from_numpy(indices[micro]).to(device))
                scaler.scale(value / len(own)).backward()
                buffers.collect(len(own))
                loss += value.detach() / len(own)
                sums.add({"loss": value, **parts})
            processes.mean_gradients(trained, loss, *buffers.sums())
            scaler.unscale_(optimiser)
            norm = nn.utils.clip_grad_norm_(trained, CLIP_NORM)
            # here alone a step waits for the device
            finite = bool(torch.isfinite(loss) & torch.isfinite(norm))
            state.skipped = 0 if finite else state.skipped + 1
            if finite:
                buffers.finish()
                scaler.step(optimiser)
            elif not scaler.is_enabled() or state.skipped == SKIPS:
                batches.close()
                whole, where = sampler.batch(state.step), "by the first process"
                if processes.is_first:
                    batch = batch if micro_batches == 1 else fetch(whole)
                    where = keep_bad_batch(checkpoint, batch, whole, state.step)
                processes.wait()
                what = "gradient" if torch.isfinite(loss) else "loss"
                raise RedshelfError(f"training stopped at step {state.step}: the {what} is not finite; {where}")
            scaler.update()
            skipped = {"skipped": torch.tensor(float(not finite))} if scaler.is_enabled() else {}
            sums.add({"gradient_norm": norm, **skipped})
            # all go by the first one's clock, and stop where any of them is told to
            state.step, now = state.step + 1, time.monotonic()
            clock = (now - began, now - written >= checkpoint_seconds) if processes.is_first else (0.0, 0.0)
            stop, state.seconds, due = processes.all_max(len(signals), *clock)
            done = _done(state, steps, max_seconds)
            if finite:
                objective.after_step(done)
            if (rows := _rows(done)) > logged:
                row = {"step": state.step, "seconds": round(state.seconds, 3), "progress": round(done, 4), "lr": rate}
                row |= means(merged(processes.gather(sums.read())))
                sums = Sums()
                validate_now, monitor_now = (_due(times, rows, logged) for times in (validations, MONITOR_ROWS))
                judges = validate if validate_now else None, monitor if monitor_now else None
                row |= processes.from_first(_judged(objective, *judges) if processes.is_first else {})
                if row.get("validation", math.inf) < (math.inf if state.best is None else state.best):
                    state.best = row["validation"]
                    best = {key: value.detach().clone() for key, value in objective.state_dict().items()}
                state.rows.append(row)
                journal.write(row)
            if kept is not None and (done >= 1 or stop or due):
                state.sums = merged(processes.gather(sums.read()))
                if processes.is_first:
                    kept.save(state, best)
                written = time.monotonic()
            if stop and done < 1:
                processes.wait()
                told = f"{checkpoint} is written: the same command goes on from there" if kept else "nothing is kept"
                raise Interrupted(
                    f"training stopped at step {state.step} by {signals[0] if signals else 'a signal'}; {told}"
                )
    processes.wait()
    if best:
        objective.load_state_dict(best)
    objective.eval()
    return Report(state.step, state.seconds, state.rows, resumed_from, state.best, micro_batches)


def _done(state: State, steps: int | None, max_seconds: float | None) -> float:
    """The fraction of the run that lies behind, 0 to 1."""
    return min(1.0, max(state.step / (steps or math.inf), state.seconds / (max_seconds or math.inf)))


def _due(times: int, rows: int, logged: int) -> bool:
    """Whether one of `times` moments of a run lies in the log rows after the first `logged`."""
    return rows * times // LOG_ROWS > logged * times // LOG_ROWS


def _rows(done: float) -> int:
    """Log rows that are due so far."""
    return int(done * LOG_ROWS + 1e-9)  # 29 of 100 steps are 28.999999999999996 rows

"""How a training run stops and goes on: its checkpoint, and the batch that broke it.

A checkpoint is one .safetensors file: weights, best weights and the optimiser's moments as tensors; the plan, the
state, the gradient scaler and where the code came from as JSON in its metadata. It appears whole or not at all.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, Conflict
from redshelf.models.revision import revision, version
from redshelf.models.whole import write_bytes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

FORMAT = "redshelf-training-2"
LENGTHS = {"steps": "step", "max_seconds": "seconds"}  # of the plan, against which part of the state they count
PICKLES = (b"PK\x03\x04", b"\x80")  # how files of torch.save and pickle.dump begin


@dataclass
class State:
    """Everything that a step changes beside tensors; JSON in the checkpoint."""

    step: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps in a row whose gradients float16 could not hold
    sums: dict[str, list[float]] = field(default_factory=dict)  # since the last row
    rows: list[dict[str, float]] = field(default_factory=list)
    best: float | None = None


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint file of a run. `plan` (JSON types) is all that must be equal for a run to go on from it."""

    path: Path
    objective: nn.Module
    optimiser: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    plan: dict[str, Any]

    def save(self, state: State, best: dict[str, Tensor]) -> None:
        """Write the file, and the log beside it as JSON lines."""
        moments = self.optimiser.state_dict()["state"]
        tensors = {f"model.{key}": value for key, value in self.objective.state_dict().items()}
        tensors |= {f"best.{key}": value for key, value in best.items()}
        tensors |= {f"optimiser.{i}.{key}": value for i, entry in moments.items() for key, value in entry.items()}
        documents = {
            "plan": self.plan, "state": asdict(state), "scaler": self.scaler.state_dict(), "made_by": made_by()
        }  # fmt: skip
        texts = {key: json.dumps(value) for key, value in documents.items()}
        write_bytes(self.path, pack(tensors, {"format": FORMAT, **texts}))
        lines = "".join(json.dumps(row) + "\n" for row in state.rows)
        write_bytes(self.path.with_suffix(".jsonl"), lines.encode())

    def load(self) -> tuple[State, dict[str, Tensor]]:
        """Fill objective, optimiser and scaler; the state and the best weights. Nothing is changed on an error.

        A longer run than the stored one goes on from it. Raises `BadInput` for a file that is no whole checkpoint of
        such weights, `Conflict` for one of another plan or with more behind it than is asked for.
        """
        tensors, metadata = _read(self.path)
        state = State(**json.loads(metadata["state"]))
        self._compare(json.loads(metadata["plan"]), state)
        part = {p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)} for p in ("model.", "best.")}
        wanted = {key: value.shape for key, value in self.objective.state_dict().items()}
        if {key: value.shape for key, value in part["model."].items()} != wanted:
            raise BadInput(
                f"{self.path} holds weights of other names or shapes than this model: remove it to start anew"
            )
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimiser."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        self.objective.load_state_dict(part["model."])
        self.optimiser.load_state_dict({"state": moments, "param_groups": self.optimiser.state_dict()["param_groups"]})
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(json.loads(metadata["scaler"]))
        return state, part["best."]

    def _compare(self, stored: dict[str, Any], state: State) -> None:
        ours = json.loads(json.dumps(self.plan))
        lengths = [(key, done, ours.pop(key), stored.pop(key, None)) for key, done in LENGTHS.items()]
        remedy = "ask for the same again, take another name, or remove it to start anew"
        if found := _difference(stored, ours):
            key, old, new = found
            raise Conflict(f"{self.path} belongs to a run with {key}={old}, this one has {new}: {remedy}")
        for key, done, asked, had in lengths:
            if had != asked and asked is not None and asked < getattr(state, done):
                raise Conflict(
                    f"{self.path} has {getattr(state, done):g} {key} behind it, this run has {key}={asked}: {remedy}"
                )


def _difference(stored: Any, wanted: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first entry of two JSON documents that differs: its dotted key and both values."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        pairs = ((name, stored.get(name), wanted.get(name)) for name in sorted({*stored, *wanted}))
        return next((d for name, s, w in pairs if (d := _difference(s, w, f"{key}.{name}".lstrip(".")))), None)
    return None if stored == wanted else (key, stored, wanted)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a checkpoint."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        if path.is_file() and _is_pickle(path):
            raise BadInput(
                f"{path} is a pickle, which could run code, so it was not read: expected safetensors; remove it to "
                "start anew"
            ) from error
        raise BadInput(f"{path} is no whole training checkpoint ({error}): remove it to start anew") from error
    if metadata.get("format") != FORMAT:
        raise BadInput(
            f"{path} is no training checkpoint of this version (format {metadata.get('format')}, expected {FORMAT}): "
            "remove it or name another"
        )
    return tensors, metadata


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(9)
    return begin.startswith(PICKLES) and not begin.endswith(b"{")  # as JSON begins behind a length, which may be any


def pack(tensors: dict[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Tensors as the bytes of a safetensors file."""
    from safetensors.torch import save

    return save({key: t.detach().to("cpu", copy=True).contiguous() for key, t in tensors.items()}, metadata)


def keep_bad_batch(checkpoint: Path | None, batch: Batch, indices: npt.NDArray[np.int64], step: int) -> str:
    """Write the batch that broke the run beside the checkpoint; a sentence part that says where it is."""
    if checkpoint is None:
        return "no checkpoint was asked for, so the batch is not kept"
    path = checkpoint.with_suffix(".bad-batch.safetensors")
    tensors = batch.tensors()
    write_bytes(path, pack(tensors | {"indices": torch.from_numpy(indices)}, {"step": str(step)}))
    return f"the batch is kept in {path}"


def made_by() -> dict[str, str | None]:
    """Versions of redshelf and torch, and the git revision, if any."""
    return {"redshelf": version(), "git": revision(), "torch": str(torch.__version__)}

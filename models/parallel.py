"""Several processes that train one model together: who they are, and what they tell one another.

    srun --ntasks 4 redshelf pretrain ...          torchrun --nproc-per-node 4 --no-python redshelf pretrain ...

Each process computes some of a step's micro-batches; gradients are averaged over all of them in one message (plain
data parallelism, Li et al. 2020, without the overlap). Collectives use gloo on the CPU and NCCL between GPUs.
"""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from redshelf.models.errors import BadInput, Conflict

if TYPE_CHECKING:
    from torch import Tensor, nn

    Value = TypeVar("Value")

PATIENCE = timedelta(minutes=30)  # the others wait so long for one that validates or writes
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# of a step, which only srun starts: in an sbatch script SLURM_NTASKS counts tasks that nobody has started
SRUN = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")


@dataclass(frozen=True)
class Processes:
    """This process among those that train together; alone, nothing is sent."""

    rank: int = 0
    world: int = 1
    local: int = 0  # rank on this machine

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world or self.local < 0:
            raise BadInput(
                f"process {self.rank} of {self.world}, {self.local} on its machine: expected 0 or more, below"
            )

    @property
    def is_first(self) -> bool:
        """Whether this process writes, logs and decides."""
        return self.rank == 0

    def share(self, micro_batches: int) -> range:
        """The micro-batches of a step that are this process's."""
        return range(self.rank, micro_batches, self.world)

    def all_mean(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes, all in one float32 message."""
        import torch

        if self.world == 1 or not tensors:
            return
        flat = torch.cat([tensor.detach().reshape(-1).float() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        pieces = (flat / self.world).split([tensor.numel() for tensor in tensors])  # type: ignore[no-untyped-call]
        for tensor, piece in zip(tensors, pieces, strict=True):
            tensor.detach().copy_(piece.view_as(tensor))

    def mean_gradients(self, parameters: Sequence[nn.Parameter], *also: Tensor) -> None:
        """`all_mean` of the gradients and of tensors beside them.

        No gradient counts as zero, and stays none where no process has one: the optimiser leaves such weights alone.
        """
        import torch

        if self.world == 1 or not parameters:
            return
        given = torch.tensor([p.grad is not None for p in parameters], dtype=torch.float32, device=parameters[0].device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        self.all_mean([*gradients, given, *also])
        if any(p.grad is None for p in parameters):
            for parameter, gradient, known in zip(parameters, gradients, given.tolist(), strict=True):
                parameter.grad = gradient if known > 0 else None

    def all_max(self, *values: float) -> list[float]:
        """The largest of each value over the processes: a flag that one raised, a clock that only one has."""
        import torch

        told = torch.tensor(values, dtype=torch.float64)
        if self.world > 1:
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
        return list(told.tolist())

    def gather(self, value: Value) -> list[Value]:
        """Everybody's value, in the order of the ranks."""
        import torch

        if self.world == 1:
            return [value]
        found: list[Value] = [value] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def from_first(self, value: Value) -> Value:
        """The first process's value."""
        import torch

        told = [value]
        if self.world > 1:
            torch.distributed.broadcast_object_list(told, src=0)
        return told[0]

    def copy_first(self, tensors: Sequence[Tensor]) -> None:
        """Fill each tensor with the first process's."""
        import torch

        for tensor in tensors if self.world > 1 else ():
            flat = tensor.detach().contiguous().reshape(-1)
            torch.distributed.broadcast(flat.view(torch.uint8), src=0)  # bytes: gloo does not know every type
            tensor.detach().copy_(flat.view_as(tensor))

    def agree(self, what: str, value: object) -> None:
        """Raise `Conflict` in every process unless all have the same `value`."""
        values = self.gather(value)
        for rank, other in enumerate(values):
            if other != values[0]:
                raise Conflict(f"process {rank} has another {what} than process 0: start all with the same arguments")

    def wait(self) -> None:
        """Until all processes are here."""
        self.all_max(0.0)


def usable_device(name: str | None) -> str:
    """`name`, or "cuda" where there is one and else "cpu"; `BadInput` for a device that torch does not have here."""
    import torch

    wanted = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted.startswith("cuda") and not torch.cuda.is_available():
        raise BadInput(f"device {wanted!r}: this machine has no GPU that torch can use")
    try:
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise BadInput(f"device {wanted!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return wanted


def first_host(nodes: str) -> str:
    """The first host of a SLURM node list such as `r7i2n[03-05,8],r8i0n1`."""
    first = re.split(r",(?![^\[]*\])", nodes, maxsplit=1)[0]
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", first)


def find_processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """Who this process is by the variables of torchrun, or of srun, or alone.

    Raises `BadInput` naming the variable that is missing or no number.
    """
    names = next((n for n in (TORCHRUN, SRUN) if n[1] in environment), None)
    if names is None:
        return Processes()
    for name in names:
        if not environment.get(name, "").isdecimal():
            raise BadInput(
                f"{name}={environment.get(name)!r} beside {names[1]}: expected a number, as {names} go together"
            )
    rank, world, local = (int(environment[name]) for name in names)
    return Processes(rank, world, local)


def meeting_point(environment: Mapping[str, str] = os.environ) -> tuple[str, str]:
    """Address and port at which the first process waits: as torchrun says, else the step's first host.

    The port is made of job and step, so that two jobs on one node do not meet.
    """
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    address = environment.get("MASTER_ADDR") or (first_host(nodes) if nodes else None)
    if address is None:
        raise BadInput("MASTER_ADDR is not set: start several processes with torchrun or srun")
    job, step = environment.get("SLURM_JOB_ID", "0"), environment.get("SLURM_STEP_ID", "0")
    return address, environment.get("MASTER_PORT") or str(20_000 + (int(job) * 7 + int(step)) % 10_000)


def start(device: str) -> Processes:
    """Join the other processes, if there are any; a second call finds the group that there is.

    With device "cuda" the process takes the GPU of its local rank.
    """
    processes = find_processes()
    if processes.world == 1:
        return processes
    import torch
    from torch import distributed

    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(processes.local % torch.cuda.device_count())  # srun may show each task its own GPU alone
    if not distributed.is_initialized():
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = meeting_point()
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            rank=processes.rank,
            world_size=processes.world,
            timeout=PATIENCE,
        )
        atexit.register(distributed.destroy_process_group)
    return processes


class Buffers:
    """The buffers of a module (running means, a centre) in a step of several micro-batches, or in one that may fail.

    Each micro-batch finds them as they were before the step, and `finish` sets them to the mean of what the
    micro-batches made of them: so no micro-batch depends on who computed another one before. `idle` leaves them alone.
    """

    def __init__(self, module: nn.Module, *, idle: bool) -> None:
        import torch

        self._module = None if idle else module
        self._before = [buffer.clone() for buffer in self._live()]
        # counters too: float32 holds them exactly far beyond the steps of a run
        self._total = [torch.zeros_like(b, dtype=torch.promote_types(b.dtype, torch.float32)) for b in self._before]
        self._changed = [torch.zeros_like(total) for total in self._total]

    def _live(self) -> list[Tensor]:
        # looked up each time: a loss may put a new tensor in a buffer's place
        return [] if self._module is None else list(self._module.buffers())

    def collect(self, share: int) -> None:
        """Note what a micro-batch, one of `share`, left, and put everything back."""
        for live, before, total, changed in zip(self._live(), self._before, self._total, self._changed, strict=True):
            total += live / share
            changed += live != before  # what stays may be infinite, and is not to be rounded
            live.copy_(before)

    def sums(self) -> list[Tensor]:
        """What has to be averaged over the processes before `finish`."""
        return [*self._total, *self._changed]

    def finish(self) -> None:
        """The mean becomes the buffer."""
        import torch

        for live, total, changed in zip(self._live(), self._total, self._changed, strict=True):
            live.copy_(torch.where(changed > 0, total if live.is_floating_point() else total.round(), live))

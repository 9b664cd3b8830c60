"""Work in numbered parts that any process of any machine may do, as whoever hands the parts out sees it.

A plan (`partition`, `outputs`, `assembly`, `cutting`) says what the parts are; a runner (`runners`, `slurm`) needs no
more than this.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

from redshelf.indexing.files import read_json, write_json
from redshelf.models.errors import BadInput

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

PLAN_FILE = "plan.json"
Do = Callable[[Sequence[int]], int]  # does these parts, and returns their rows
Begin = Callable[[str, int], Do]  # in a new process, on a device, with so many threads (0: as many as there are)
Progress = Callable[[int], object]  # is told of rows
Run = Callable[[Sequence[Sequence[int]], Progress], None]  # has parts done, those of a group by one worker


class Parts(ABC):
    """Parts, and tasks of `task_parts` of them; both count from 0."""

    if TYPE_CHECKING:

        @property
        def task_parts(self) -> int: ...

    @property
    @abstractmethod
    def parts(self) -> int:
        """How many there are."""

    @abstractmethod
    def rows_of(self, parts: Iterable[int]) -> int:
        """How many rows `parts` have together; `BadInput` for one that there is not."""

    @property
    def tasks(self) -> int:
        return math.ceil(self.parts / self.task_parts)

    def check_part(self, part: int) -> None:
        """Raise `BadInput` for a part that there is not."""
        if not 0 <= part < self.parts:
            raise BadInput(f"part {part}: the plan has parts 0 to {self.parts - 1}")

    def parts_of(self, task: int) -> range:
        """The parts of a task; `BadInput` for one that there is not."""
        if not 0 <= task < self.tasks:
            raise BadInput(f"task {task}: the plan has tasks 0 to {self.tasks - 1}")
        return range(task * self.task_parts, min((task + 1) * self.task_parts, self.parts))

    def asked(self, part: int | None, task: int | None) -> list[int]:
        """The parts that one of `part` and `task` names."""
        if (part is None) == (task is None):
            raise BadInput("give a part or a task, not both")
        return [part] if part is not None else list(self.parts_of(task or 0))

    def tasks_of(self, parts: set[int]) -> list[int]:
        """The tasks that any of `parts` belongs to."""
        return sorted({part // self.task_parts for part in parts})


class _Identified(Protocol):
    @property
    def id(self) -> str: ...


P = TypeVar("P", bound=_Identified)


def id_of(plan: DataclassInstance) -> str:
    """16 hex digits that no other plan has."""
    return hashlib.sha256(json.dumps(asdict(plan), sort_keys=True).encode()).hexdigest()[:16]


def check_least(plan: object, **least: int) -> None:
    """Raise `BadInput` for a field of a plan that is less than it may be."""
    for name, value in least.items():
        if getattr(plan, name) < value:
            raise BadInput(f"{name}={getattr(plan, name)}: expected at least {value}")


def read_plan(path: Path, make: Callable[..., P], *, told: Sequence[str]) -> P:
    """The plan that `make` makes of the fields in the file, without those that are `told` of it: its id first, and what
    follows from the fields too. `BadInput` where it was altered."""
    document = read_json(path)
    try:
        said = [document.pop(name) for name in told]
        plan = make(**document)
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise BadInput(f"{path} is no plan of this redshelf: {error}") from error
    if said != [getattr(plan, name) for name in told]:
        raise BadInput(f"{path} was altered: its content gives id {plan.id}, it says {said[0]}")
    return plan


Span = tuple[int, int]  # first row, past the last


@dataclass(frozen=True, kw_only=True)
class Spans(Parts):
    """Rows `first_row` to `rows` in parts of `part_rows`, `task_parts` of them a task."""

    first_row: int = 0
    rows: int
    part_rows: int
    task_parts: int

    def __post_init__(self) -> None:
        check_least(self, first_row=0, rows=self.first_row, part_rows=1, task_parts=1)

    @property
    def id(self) -> str:
        """16 hex digits that no other plan has."""
        return id_of(self)

    @property
    def parts(self) -> int:
        return math.ceil((self.rows - self.first_row) / self.part_rows)

    def span(self, part: int) -> Span:
        """The rows of a part; `BadInput` for one that there is not."""
        self.check_part(part)
        first = self.first_row + part * self.part_rows
        return first, min(first + self.part_rows, self.rows)

    def rows_of(self, parts: Iterable[int]) -> int:
        return sum(past - first for first, past in map(self.span, parts))

    def write(self, path: Path) -> None:
        """Write the plan as JSON, whole."""
        write_json(path, {**asdict(self), "id": self.id, "parts": self.parts, "tasks": self.tasks})

    @classmethod
    def read(cls, path: Path) -> Self:
        """The plan at `path`; `BadInput` where it was altered."""
        return read_plan(path, cls, told=("id", "parts", "tasks"))

    def lies_at(self, path: Path) -> bool:
        """Whether it is this very plan that is there."""
        try:
            return self.read(path).id == self.id
        except (BadInput, OSError):
            return False


def discard(home: Path) -> None:
    """Remove the plan that lies in `home`, first, and what its parts have left: a kill in between leaves no plan."""
    (home / PLAN_FILE).unlink(missing_ok=True)
    shutil.rmtree(home, ignore_errors=True)


@dataclass(frozen=True)
class Job:
    """An open plan for a scheduler: `words` are the command of its steps (embed --encoder vit), `home` is where the
    plan lies, `missing` says which parts have no receipt, and the steps of an encoder are told a `batch_size`."""

    name: str
    words: tuple[str, ...]
    id: str
    home: Path
    split: Parts
    missing: Callable[[], set[int]]
    batch_size: bool

    @property
    def tasks_missing(self) -> list[int]:
        return self.split.tasks_of(self.missing())

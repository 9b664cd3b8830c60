"""A job of parts on SLURM: an array of tasks over its plan, then a job that commits, or sends what is missing.

A task has one GPU, or, of the kind "cpu", none. Account, constraint, QoS and modules come from a settings file
(`deploy/slurm/jeanzay.toml`); the scripts are templates beside this module. Limits are checked before anything is
written. Tasks that are killed need no one: the commit runs after any end of the array, and resubmits only the tasks
that miss parts, at most `ATTEMPTS` times.
"""

from __future__ import annotations

import getpass
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from redshelf.indexing.files import read_json, write_json
from redshelf.indexing.jobs import Job, Parts
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import ranges
from redshelf.models.errors import BadInput, Conflict, nearest

ATTEMPTS = 3  # resubmissions of tasks that miss parts, after each submission by hand
PATIENCE_S = 120.0
RECORD = "slurm.json"
TEMPLATES = Path(__file__).parent / "templates"
PLACEHOLDER = "xxx@"  # of the settings file that comes with redshelf
CPU = "cpu"  # the kind of task that asks for no GPU

Duration = Annotated[str, Field(pattern=r"^(\d+-)?\d{1,3}:\d\d:\d\d$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Resources(_Section):
    """What one kind of job asks for. `arch` is a line of setup of its own; `extra` are further sbatch options."""

    account: str | None = None
    partition: str | None = None
    constraint: str | None = None
    qos: str | None = None
    time: Duration
    cpus_per_task: int = Field(ge=1)
    arch: str = ""
    batch_size: int | None = Field(default=None, ge=1)
    extra: list[str] = []


class Limit(_Section):
    time: Duration
    jobs: int = Field(ge=1)


class SlurmSettings(_Section):
    """The settings file. `setup`: shell lines before the command, in which {arch} stands for the kind's own."""

    setup: list[str] = []
    command: str = "redshelf"
    hint: Literal["nomultithread", ""] = ""
    signal_seconds: int = Field(default=360, ge=60)
    at_once: int | None = Field(default=None, ge=1)
    gres: str = "gpu:1"
    gpu: dict[str, Resources] = Field(min_length=1)
    cpu: Resources | None = None
    commit: Resources
    limits: dict[str, Limit] = {}


def load(path: Path) -> SlurmSettings:
    """Read and check a settings file; `BadInput` naming the key, its value and what was expected."""
    if not path.is_file():
        raise BadInput(f"SLURM settings {path} do not exist: copy deploy/slurm/jeanzay.toml")
    try:
        return SlurmSettings.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: not valid TOML: {error}") from error
    except ValidationError as error:
        fault = error.errors()[0]
        key = ".".join(str(part) for part in fault["loc"])
        said = f"{key}={fault['input']!r}: {fault['msg']}"
        if fault["type"] == "extra_forbidden":
            said = f"unknown setting {key!r}; {nearest(str(fault['loc'][-1]), _known(fault['loc']))}"
        raise BadInput(f"{path}: {said}") from error


def _known(place: tuple[int | str, ...]) -> list[str]:
    sections: dict[str, type[BaseModel]] = {"gpu": Resources, "cpu": Resources, "commit": Resources, "limits": Limit}
    return list(sections.get(str(place[0]) if len(place) > 1 else "", SlurmSettings).model_fields)


def seconds(duration: str) -> int:
    """Of a wall time like 20:00:00 or 1-00:00:00."""
    days, _, clock = duration.rpartition("-")
    hours, minutes, rest = (int(part) for part in clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def _directives(settings: SlurmSettings, wants: Resources, *, gpu: bool) -> list[str]:
    options = {
        "account": wants.account,
        "partition": wants.partition,
        "constraint": wants.constraint,
        "qos": wants.qos,
        "time": wants.time,
        "cpus-per-task": wants.cpus_per_task,
        "gres": settings.gres if gpu and settings.gres else None,
        "hint": settings.hint or None,
    }
    return [f"--{name}={value}" for name, value in options.items() if value is not None] + wants.extra


def _setup(settings: SlurmSettings, wants: Resources) -> list[str]:
    return [line.replace("{arch}", wants.arch) for line in settings.setup if line != "{arch}" or wants.arch]


def _render(template: str, **values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string((TEMPLATES / template).read_text(encoding="utf-8")).render(**values)


def _ask(command: list[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
    """Ask a program of SLURM. A job that submits another does not hand its own resources on to it."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name == "SLURM_CONF" or not name.startswith(("SLURM_", "SRUN_", "SBATCH_"))
    }
    try:
        return subprocess.run(
            command, input=script, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_S
        )
    except (subprocess.TimeoutExpired, FileNotFoundError) as error:
        raise Conflict(f"{command[0]} does not answer: {error}") from error


def _sbatch(script: str, *options: str) -> str:
    """What sbatch answers; `BadInput` with what it says where it refuses."""
    told = _ask(["sbatch", "--parsable", *options], script)
    if told.returncode:
        raise BadInput(f"sbatch refuses: {(told.stderr or told.stdout).strip()}")
    return told.stdout.strip().partition(";")[0]


def choose(settings: SlurmSettings, kind: str | None) -> tuple[str, Resources]:
    """The kind of GPU to ask for, or "cpu"; `BadInput` where the name is unknown, or lacks and there are several."""
    if kind == CPU:
        if settings.cpu is None:
            raise BadInput("the settings have no section [cpu]: what a task without a GPU asks for")
        return kind, settings.cpu
    if kind is None and len(settings.gpu) == 1:
        kind = next(iter(settings.gpu))
    if kind is None or kind not in settings.gpu:
        raise BadInput(f"GPU {kind!r}: the settings have {', '.join(sorted(settings.gpu))}; name one with --gpu")
    return kind, settings.gpu[kind]


def check_site(settings: SlurmSettings, kind: str | None) -> None:
    """Raise `BadInput` unless SLURM is here, knows accounts, QoS and partitions, and the wall times are allowed."""
    kind, wants = choose(settings, kind)
    if not shutil.which("sbatch"):
        raise BadInput("there is no sbatch on the PATH: SLURM is not installed here, or its module is not loaded")
    for of_kind, resources in ((kind, wants), (CPU, settings.commit)):
        if (resources.account or "").startswith(PLACEHOLDER):
            raise BadInput(f"account {resources.account!r}: put your project in the place of 'xxx' in the settings")
        limit = settings.limits.get(resources.qos or "")
        if limit is not None and seconds(resources.time) > seconds(limit.time):
            raise BadInput(f"time {resources.time}: QoS {resources.qos} allows {limit.time}")
        lines = "".join(f"#SBATCH {line}\n" for line in _directives(settings, resources, gpu=of_kind != CPU))
        _sbatch(f"#!/bin/bash\n{lines}true\n", "--test-only")
    if seconds(wants.time) <= settings.signal_seconds:
        raise BadInput(
            f"time {wants.time}: a task is told to end {settings.signal_seconds} s before, so nothing is left"
        )


def check_size(settings: SlurmSettings, kind: str | None, split: Parts) -> None:
    """Raise `BadInput` for a plan of more tasks than the QoS or the cluster takes at once."""
    _, wants = choose(settings, kind)
    limit = settings.limits.get(wants.qos or "")
    if limit is not None and split.tasks + 1 > limit.jobs:
        raise BadInput(
            f"{split.tasks} tasks and a commit: QoS {wants.qos} takes {limit.jobs} jobs; ask for larger tasks "
            f"(--task-parts {-(-split.parts // max(1, limit.jobs - 1))})"
        )
    told = _ask(["scontrol", "show", "config"])
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", told.stdout)
    if found and split.tasks > int(found[1]):
        raise BadInput(
            f"{split.tasks} tasks: this cluster's arrays have at most {found[1]}; ask for larger tasks "
            f"(--task-parts {-(-split.parts // int(found[1]))})"
        )


def _active(jobs: list[str]) -> list[str]:
    """Those of our jobs that SLURM still has in its queue."""
    told = _ask(["squeue", "--noheader", "--format=%A %F", f"--user={getpass.getuser()}"])
    if told.returncode:
        raise Conflict(f"squeue does not answer, so nothing is submitted: {told.stderr.strip()}")
    queued = set(told.stdout.split())
    return [job for job in jobs if job in queued]


def read_record(home: Path) -> dict[str, Any]:
    """{"settings", "kind", "submitted": [{"array", "commit", "tasks", "by_hand"}]} of a plan; empty for none.

    The last `commit` is "" where the submission was killed before its id was known.
    """
    path = home / RECORD
    return dict(read_json(path)) if path.is_file() else {}


def _put_back(home: Path, record: dict[str, Any]) -> None:
    """The record as it was before a submission that has come to nothing."""
    if record["submitted"]:
        write_json(home / RECORD, record)
    else:
        (home / RECORD).unlink(missing_ok=True)


def submit(
    layout: Layout, job: Job, settings: SlurmSettings, *, kind: str | None, by_hand: bool = True, own_job: str = ""
) -> dict[str, Any]:
    """Submit the tasks that miss parts, and the commit after them; returns {"array", "commit", "tasks"}.

    `Conflict` where jobs of this plan are still queued or run. A commit that submits them anew
    does so not `by_hand`, and from `own_job`, which is still in the queue.
    """
    kind, wants = choose(settings, kind)
    record = read_record(job.home) or {"submitted": []}
    before = [e[what] for e in record["submitted"] for what in ("array", "commit") if e[what] not in ("", own_job)]
    if active := _active(before):
        raise Conflict(
            f"plan {job.id} is already in the queue as job {' and '.join(active)}: let it end, or "
            f"`scancel {' '.join(active)}`"
        )
    tasks = job.tasks_missing
    logs = layout.work("logs") / f"slurm-{job.name}.{job.id}"
    logs.mkdir(parents=True, exist_ok=True)
    common = {
        "name": job.name,
        "logs": str(logs.resolve()).replace("%", "%%"),
        "command": f"{settings.command} {shlex.join([*job.words, '--shelf', str(layout.root.resolve())])}",
    }
    entry: dict[str, Any] = {"array": "", "commit": "", "tasks": ranges(tasks), "by_hand": by_hand}
    dependency: tuple[str, ...] = ()
    if tasks:
        script = _render(
            "slurm-array.sh",
            **common,
            tasks=ranges(tasks),
            at_once=settings.at_once,
            directives=_directives(settings, wants, gpu=kind != CPU),
            signal_seconds=settings.signal_seconds,
            setup=_setup(settings, wants),
            options=f" --batch-size {wants.batch_size}" if wants.batch_size and job.batch_size else "",
        )
        entry["array"] = _sbatch(script)
    told = {"settings": settings.model_dump(), "kind": kind, "submitted": [*record["submitted"], entry]}
    try:
        if tasks:  # so that a kill from here on leaves no array that nobody knows
            write_json(job.home / RECORD, record | told)
            dependency = (f"--dependency=afterany:{entry['array']}",)
        entry["commit"] = _sbatch(
            _render(
                "slurm-commit.sh",
                **common,
                directives=_directives(settings, settings.commit, gpu=False),
                setup=_setup(settings, settings.commit),
            ),
            *dependency,
        )
    except BaseException:
        if tasks and not _ask(["scancel", entry["array"]]).returncode:  # nobody would commit what it does
            _put_back(job.home, record)
        raise
    write_json(job.home / RECORD, record | told)
    return entry


def resubmit(layout: Layout, job: Job, *, own_job: str) -> dict[str, Any] | None:
    """Send the tasks that miss parts once more; None where there are none.

    `Conflict` naming the parts `ATTEMPTS` times after the last submission by hand, and where there was none.
    """
    missing = job.missing()
    if not missing:
        return None
    record = read_record(job.home)
    submitted = record.get("submitted", [])
    if not submitted:
        raise Conflict(f"plan {job.id}: parts {ranges(missing)} miss, and it was never submitted to SLURM")
    attempts = next(n for n, entry in enumerate(reversed(submitted)) if entry["by_hand"])
    if attempts >= ATTEMPTS:
        raise Conflict(
            f"plan {job.id}: parts {ranges(missing)} miss after {attempts} resubmissions; see the logs in "
            f"{layout.work('logs')}, then submit again"
        )
    settings = SlurmSettings.model_validate(record["settings"])
    return submit(layout, job, settings, kind=record["kind"], by_hand=False, own_job=own_job)

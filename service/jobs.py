"""Jobs over long lists, kept in `state_dir`: made, looked at, run by exactly one worker, aborted, destroyed.

A job is a folder that appears whole, by a rename: `asked.json` never changes, `job.json` is replaced by whoever holds
the lock of the job, the result appears before the phase that tells of it. A lock ends with its process, so that a job
whose worker was killed is found as EXECUTING and not locked, and is done again. Jobs of other shelves, which may share
a `state_dir`, are in folders of their own.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal

from filelock import FileLock, Timeout

from redshelf.indexing.files import read_json, write_json, write_with
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service.answers import JobAnswer, Phase

log = logging.getLogger("redshelf")

What = Literal["neighbours", "redshifts"]
JOB_ID = re.compile(r"[0-9a-f]{32}")
OPEN: tuple[Phase, ...] = ("PENDING", "QUEUED", "EXECUTING")
OWNER_ONLY = 0o600
MAX_BEGINNINGS = 3  # of a job whose worker dies each time
SPARE_BYTES = 1 << 16  # given up to tell that the disk is full
LEFT_OVER_S = 3600  # after which what a kill has left is deleted
LOCK_S = 5.0


@dataclass(frozen=True)
class Asked:
    """What a job does: `what` of each of `ids`, with the arguments `how` of the service's function, in a `format`."""

    what: What
    ids: tuple[str, ...]
    format: str
    how: dict[str, Any]


@dataclass(frozen=True)
class Job:
    """What is known of a job now. Times are ISO 8601, UTC; `owner`: sha256 of the key that made it, None without."""

    job_id: str
    owner: str | None
    phase: Phase
    what: What
    format: str
    n_ids: int
    created: str
    destruction: str
    n_done: int = 0
    started: str | None = None
    ended: str | None = None
    generation: int | None = None
    error: str | None = None
    result: str | None = None  # the name of its file
    result_bytes: int | None = None
    beginnings: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.phase in OPEN

    def answer(self) -> JobAnswer:
        """As it is told."""
        told = {name: value for name, value in asdict(self).items() if name in JobAnswer.model_fields}
        here = f"/v1/jobs/{self.job_id}"
        links = {"self": here, **({"result": f"{here}/result"} if self.phase == "COMPLETED" else {})}
        return JobAnswer(**told, links=links)


def now() -> str:
    """This moment, to the microsecond so that jobs have an order."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Gone(Exception):
    """The job was deleted while it was worked on."""


class Full(Exception):
    """An owner has as many jobs as are kept for one."""


def _none_here(job_id: str) -> NotFound:
    return NotFound(f"no job {job_id[:80]!r} here; a job is seen with the key that made it, until its destruction")


def _refuse_more(known: list[Job], *, max_open: int, max_kept: int) -> None:
    """Raise `Full` unless one more than `known`, the newest first, is allowed."""
    if sum(job.is_open for job in known) >= max_open:
        raise Full(f"{max_open} of your jobs have not ended: wait for one, or abort or delete it")
    if len(known) >= max_kept:
        oldest = next((job for job in reversed(known) if not job.is_open), known[-1])
        raise Full(
            f"{max_kept} of your jobs are kept, those that have ended included: delete those whose results you have "
            f"(DELETE /v1/jobs/JOB), first {oldest.job_id}, {oldest.phase} since {oldest.ended or oldest.created}"
        )


@contextmanager
def _unless_gone(home: Path) -> Iterator[None]:
    """`Gone` where the folder of a job is not there, or goes meanwhile: a DELETE renames it, whoever works on it."""
    if not (home / "job.json").is_file():
        raise Gone
    try:
        yield
    except FileNotFoundError as error:
        raise Gone from error


class Jobs:
    """The jobs on one shelf, for all workers; every method looks at the disk."""

    def __init__(self, state_dir: Path, shelf: Path) -> None:
        name = hashlib.sha256(str(shelf.resolve()).encode("utf-8", "surrogateescape")).hexdigest()[:12]
        self.folder = state_dir / "jobs" / name

    def _home(self, job_id: str) -> Path:
        return self.folder / job_id

    def create(
        self, asked: Asked, *, owner: str | None, run: bool, max_open: int, max_kept: int, keep_seconds: float
    ) -> Job:
        """A new job, PENDING, or QUEUED with `run`; `Full` where `owner` has `max_open` that have not ended, or
        `max_kept` with those that have."""
        job_id, created = uuid.uuid4().hex, now()
        ends = datetime.fromisoformat(created) + timedelta(seconds=keep_seconds)
        facts: dict[str, Any] = {"what": asked.what, "format": asked.format, "n_ids": len(asked.ids)}
        times: dict[str, Any] = {"created": created, "destruction": ends.isoformat(timespec="microseconds")}
        job = Job(job_id, owner, "QUEUED" if run else "PENDING", **facts, **times)
        made = self.folder / f".new-{job_id}"
        made.mkdir(parents=True, mode=0o700)
        try:
            write_json(made / "asked.json", asdict(asked), mode=OWNER_ONLY)
            (made / "spare").write_bytes(os.urandom(SPARE_BYTES))  # which no file system makes shorter
            write_json(made / "job.json", asdict(job), mode=OWNER_ONLY)
            with self._locked("new"):  # so that two at the same time do not both find room
                _refuse_more(self.of(owner), max_open=max_open, max_kept=max_kept)
                made.rename(self._home(job_id))
        finally:
            shutil.rmtree(made, ignore_errors=True)
        return job

    def _read(self, job_id: str) -> Job | None:
        try:
            return Job(**read_json(self._home(job_id) / "job.json"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (BadInput, TypeError) as error:
            log.error("job %s is damaged: %s", job_id, error)
            return None

    def read(self, job_id: str, owner: str | None) -> Job:
        """A job; `NotFound` where there is none of this owner."""
        job = self._read(job_id) if JOB_ID.fullmatch(job_id) else None
        if job is None or job.owner != owner:
            raise _none_here(job_id)
        return job

    def asked(self, job: Job) -> Asked:
        """What it is to do."""
        told = read_json(self._home(job.job_id) / "asked.json")
        return Asked(**{**told, "ids": tuple(told["ids"])})

    def all(self) -> list[Job]:
        """Every job, the oldest first."""
        try:
            names = [entry.name for entry in os.scandir(self.folder) if JOB_ID.fullmatch(entry.name)]
        except FileNotFoundError:
            return []
        found = [job for name in names if (job := self._read(name)) is not None]
        return sorted(found, key=lambda job: (job.created, job.job_id))

    def of(self, owner: str | None) -> list[Job]:
        """Those of one owner, the newest first."""
        return [job for job in reversed(self.all()) if job.owner == owner]

    @contextmanager
    def _locked(self, name: str, timeout: float = LOCK_S) -> Iterator[None]:
        """Alone, of all processes and threads; filelock's `Timeout` where another is, for so long."""
        folder = self.folder / ".locks"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(folder / f"{name}.lock", timeout=timeout, thread_local=False):
            yield

    @contextmanager
    def hold(self, job_id: str) -> Iterator[Job | None]:
        """The job as it is now, alone; None where it is gone or another holds it."""
        try:
            with self._locked(job_id, 0):
                yield self._read(job_id)
        except Timeout:
            yield None

    def write(self, job: Job) -> None:
        """Replace what is known of a job that is held; `Gone` where it was deleted. Where the disk is full, by what was
        kept for that."""
        home = self._home(job.job_id)
        with _unless_gone(home):
            try:
                write_json(home / "job.json", asdict(job), mode=OWNER_ONLY, make_folder=False)
            except FileNotFoundError:
                raise
            except OSError:
                (home / "spare").unlink(missing_ok=True)
                write_json(home / "job.json", asdict(job), mode=OWNER_ONLY, make_folder=False)

    def write_result(self, job: Job, name: str, writer: Callable[[BinaryIO], None]) -> int:
        """The bytes of the result, which appears whole; `Gone` as above."""
        home = self._home(job.job_id)
        with _unless_gone(home):
            for left in home.glob(f".{name}.*"):  # by a worker that was killed
                left.unlink(missing_ok=True)
            write_with(home / name, writer, mode=OWNER_ONLY, make_folder=False)
            return (home / name).stat().st_size

    def result(self, job: Job) -> Path:
        """The file of its result; `Conflict` where there is none yet, or none any more."""
        if job.phase != "COMPLETED" or job.result is None:
            why = f": {job.error}" if job.error else ""
            raise Conflict(f"job {job.job_id} is {job.phase}{why}: there is a result once it is COMPLETED")
        return self._home(job.job_id) / job.result

    def is_unwanted(self, job_id: str) -> bool:
        """Whether it was deleted, or is to be aborted."""
        home = self._home(job_id)
        return (home / "abort").exists() or not (home / "job.json").is_file()

    def start(self, job: Job) -> None:
        """QUEUED, from PENDING; `Conflict` from any other phase, `NotFound` where it was deleted meanwhile."""
        with self.hold(job.job_id) as held:
            known = held or self._read(job.job_id)
            if known is None:
                raise _none_here(job.job_id)
            if held is None or held.phase != "PENDING":
                raise Conflict(f"job {job.job_id} is {known.phase}: expected PENDING, to run it")
            try:
                self.write(replace(held, phase="QUEUED"))
            except Gone as error:
                raise _none_here(job.job_id) from error

    def abort(self, job: Job) -> None:
        """ABORTED, at once or as soon as who works on it looks; a job that has ended stays what it is. `NotFound` where
        it was deleted meanwhile."""
        if not job.is_open:
            return
        try:
            (self._home(job.job_id) / "abort").touch(mode=OWNER_ONLY)
            with self.hold(job.job_id) as held:
                if held is not None and held.is_open:
                    self.write(replace(held, phase="ABORTED", ended=now()))
        except (FileNotFoundError, Gone) as error:
            raise _none_here(job.job_id) from error

    def forget(self, job: Job) -> None:
        """Forget a job and its result; who works on it stops."""
        gone = self.folder / f".gone-{job.job_id}"
        try:
            self._home(job.job_id).rename(gone)
        except FileNotFoundError:  # somebody else was quicker
            return
        shutil.rmtree(gone, ignore_errors=True)
        (self.folder / ".locks" / f"{job.job_id}.lock").unlink(missing_ok=True)

    def sweep(self) -> None:
        """Delete the jobs whose time has come, and what killed processes have left."""
        moment = now()
        for job in self.all():
            if job.destruction <= moment:
                self.forget(job)
        if not self.folder.is_dir():
            return
        for path in self.folder.iterdir():
            if path.name == ".locks" or (JOB_ID.fullmatch(path.name) and (path / "job.json").is_file()):
                continue
            try:
                changed = path.stat().st_mtime
            except FileNotFoundError:  # another worker was quicker, or it has its name now
                continue
            if changed <= datetime.now().timestamp() - LEFT_OVER_S:
                shutil.rmtree(path, ignore_errors=True)

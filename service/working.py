"""Working on jobs: a thread of each worker takes the oldest that waits, answers its list by pieces, writes the result.

The answers are those of `service/search` and `service/redshift`, from one generation, whatever is published meanwhile.
Between pieces the thread looks whether the job is still wanted and the server still runs.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, BinaryIO

import pyarrow as pa

from redshelf.indexing import tabular
from redshelf.indexing.filters import Filters
from redshelf.models.errors import BadInput, RedshelfError
from redshelf.service import redshift, search, tables
from redshelf.service.answers import NeighboursAnswer, Phase, RedshiftAnswer
from redshelf.service.jobs import MAX_BEGINNINGS, Asked, Gone, Job, Jobs, now
from redshelf.service.shelf import OpenShelf

log = logging.getLogger("redshelf")

AT_ONCE = {"neighbours": 20, "redshifts": 100}  # sources between two looks
TELL_S = 1.0  # between two notes of how far a job is
JSON_LIST = {"neighbours": "answers", "redshifts": "redshifts"}
Answers = list[NeighboursAnswer] | list[RedshiftAnswer]


class Stopped(Exception):
    """The server ends, or the job is no longer wanted."""


def checked(shelf: OpenShelf, asked: Asked) -> Asked:
    """The same with the encoder and estimator that are meant by default now. Raises what the job would end with:
    `NotFound` for unknown ids, encoders and estimators, `BadInput` for what does not go together."""
    how = dict(asked.how)
    if asked.what == "redshifts":
        for source_id in asked.ids:
            shelf.row(source_id)
        fit, name = redshift.choose(shelf, how.get("encoder"), how.get("estimator"))
        return replace(asked, how=how | {"encoder": fit.published.encoder, "estimator": name})
    chosen = shelf.encoder(how.get("encoder"))
    rows = [search.known_row(shelf, chosen, source_id) for source_id in asked.ids]
    filters = Filters(**how["filters"])
    search.Wanted(filters=filters, **{name: how[name] for name in ("k", "exact", "max_distance", "mutual")})
    search.scope(shelf, chosen, filters, row=rows[0])
    return replace(asked, how=how | {"encoder": chosen.name})


def _answers(shelf: OpenShelf, asked: Asked, ids: list[str]) -> Answers:
    if asked.what == "redshifts":
        return redshift.redshifts(shelf, ids, **asked.how)
    how = {**asked.how, "filters": Filters(**asked.how["filters"])}
    return [search.neighbours(shelf, source_id, **how) for source_id in ids]


def _table(shelf: OpenShelf, asked: Asked, answers: Any) -> pa.Table:
    if asked.what == "neighbours":
        return tables.of_neighbours(answers, shelf.info.survey)
    edges = shelf.redshift(asked.how["encoder"]).model.knn.edges
    sizes = {"pdf_z": len(edges), "pdf_density": len(edges) - 1}
    return tables.of_redshifts(answers, shelf.info.survey, pdf=asked.how["pdf"], sizes=sizes)


class _Result:
    """What there is of a result: parts of JSON, or of a table, of at most `max_bytes` here and as it is written."""

    def __init__(self, shelf: OpenShelf, asked: Asked, max_bytes: int) -> None:
        self.shelf, self.asked, self.max_bytes = shelf, asked, max_bytes
        self._json: list[bytes] = []
        self._tables: list[pa.Table] = []
        self.bytes = 0

    def add(self, answers: Answers) -> None:
        if self.asked.format == "json":
            self._json.append(b",".join(answer.model_dump_json().encode() for answer in answers))
            self.bytes += len(self._json[-1])
        else:
            self._tables.append(_table(self.shelf, self.asked, answers))
            self.bytes += self._tables[-1].nbytes
        if self.bytes > self.max_bytes:
            raise BadInput(f"the result is longer than the {self.max_bytes} bytes that this server keeps: ask for less")

    @property
    def ending(self) -> str:
        return "json" if self.asked.format == "json" else tabular.FORMATS[self.asked.format].ending

    def write(self, stream: BinaryIO) -> None:
        """Write it; `BadInput` where that is longer than `max_bytes`: VOTable is twice what there is in memory."""
        if self.asked.format == "json":
            self._write_json(stream)
        else:
            stream.write(tabular.FORMATS[self.asked.format].write(pa.concat_tables(self._tables).combine_chunks()))
        if (written := stream.tell()) > self.max_bytes:
            raise BadInput(
                f"the result is {written} bytes as {self.asked.format}, and this server keeps at most "
                f"{self.max_bytes}: ask for less"
            )

    def _write_json(self, stream: BinaryIO) -> None:
        stream.write(f'{{"{JSON_LIST[self.asked.what]}":['.encode())
        for number, part in enumerate(self._json):
            stream.write(part if number == 0 else b"," + part)
        stream.write(b"]}")


def work(
    shelf: OpenShelf, asked: Asked, *, max_bytes: int, done: Callable[[int], object], go_on: Callable[[], bool]
) -> _Result:
    """Answer the whole list. `done` is told how many, `go_on` asked whether to; `Stopped` where not."""
    result, ids, step = _Result(shelf, asked, max_bytes), asked.ids, AT_ONCE[asked.what]
    for start in range(0, len(ids), step):
        if not go_on():
            raise Stopped
        result.add(_answers(shelf, asked, list(ids[start : start + step])))
        done(min(start + step, len(ids)))
    return result


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"the result could not be written: {error.strerror}"
    if isinstance(error, RedshelfError):
        return str(error)
    return f"an unexpected error, {type(error).__name__}: the operator finds it in the log under the id of the job"


class Working:
    """Does the jobs of a server, one at a time, in a thread. `shelf` gives the generation that is served; `ended` is
    told the phase that each has come to."""

    def __init__(
        self,
        jobs: Jobs,
        shelf: Callable[[], OpenShelf],
        *,
        max_bytes: int,
        look_seconds: float,
        ended: Callable[[Phase], object] = lambda phase: None,
    ) -> None:
        self.jobs, self._shelf, self._max_bytes, self._ended = jobs, shelf, max_bytes, ended
        self._look_seconds = look_seconds
        self._stop, self._wake = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look for jobs now, and every `look_seconds`: of several workers each does."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._look, name="redshelf-jobs", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Look at once: there is a job."""
        self._wake.set()

    def stop(self) -> None:
        """End; what is being worked on is put back in the queue, as soon as a piece of it is done."""
        self._stop.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _look(self) -> None:
        said = ""
        while not self._stop.is_set():
            self._wake.clear()
            try:
                self.jobs.sweep()
                while not self._stop.is_set() and self.one():
                    pass
                said = ""
            except Exception as error:  # a disk that is away for a while must not end the looking
                if str(error) != said:
                    log.exception("cannot work on jobs; the looking for them goes on")
                said = str(error)
            self._wake.wait(self._look_seconds)

    def one(self) -> bool:
        """Work on the oldest job that waits and that nobody works on; whether there was one."""
        for job in self.jobs.all():
            if job.phase not in ("QUEUED", "EXECUTING"):
                continue
            with self.jobs.hold(job.job_id) as held:
                if held is None or held.phase not in ("QUEUED", "EXECUTING"):
                    continue
                with suppress(Gone):
                    self._do(held)
                return True
        return False

    def _end(self, job: Job, phase: Phase, **facts: Any) -> None:
        self.jobs.write(replace(job, phase=phase, ended=now(), **facts))
        self._ended(phase)
        log.info("job %s is %s%s", job.job_id, phase, f": {facts['error']}" if facts.get("error") else "")

    def _do(self, job: Job) -> None:
        shelf = self._shelf()
        if self.jobs.is_unwanted(job.job_id):
            return self._end(job, "ABORTED")
        if job.beginnings >= MAX_BEGINNINGS:
            told = f"it was begun {job.beginnings} times, and each time the server ended before it did"
            return self._end(job, "ERROR", error=told)
        begun = replace(
            job,
            phase="EXECUTING",
            started=now(),
            n_done=0,
            generation=shelf.generation.number,
            beginnings=job.beginnings + 1,
        )
        self.jobs.write(begun)
        told_at, known = time.monotonic(), begun

        def done(count: int) -> None:
            nonlocal told_at, known
            known = replace(known, n_done=count)
            if time.monotonic() > told_at + TELL_S:
                told_at = time.monotonic()
                self.jobs.write(known)

        def go_on() -> bool:
            return not self._stop.is_set() and not self.jobs.is_unwanted(job.job_id)

        try:
            asked = self.jobs.asked(job)
            result = work(shelf, asked, max_bytes=self._max_bytes, done=done, go_on=go_on)
            name = f"result.{result.ending}"
            size = self.jobs.write_result(known, name, result.write)
        except Stopped:
            if self._stop.is_set():
                self.jobs.write(replace(job, phase="QUEUED", started=None, n_done=0))
                return None
            return self._end(known, "ABORTED")
        except Gone:
            raise
        except Exception as error:
            if not isinstance(error, (RedshelfError, OSError)):
                log.exception("job %s failed", job.job_id)
            return self._end(known, "ERROR", error=_reason(error))
        return self._end(known, "COMPLETED", result=name, result_bytes=size)

"""What a client asks about jobs, which take lists that are too long for one request; generators as in `calls.py`."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from redshelf.api.calls import Asking, Call, Pause, answer
from redshelf.models.errors import BadInput, Conflict, RedshelfError
from redshelf.service.answers import JobAnswer, JobsAnswer, Phase

if TYPE_CHECKING:
    from astropy.table import Table

FIRST_LOOK_S, LONGEST_LOOK_S = 0.1, 5.0  # between two looks at a job
OPEN: tuple[Phase, ...] = ("PENDING", "QUEUED", "EXECUTING")


def of_job(job_id: str, what: str = "") -> str:
    """The address of a job, or of what belongs to it."""
    return f"/v1/jobs/{quote(job_id, safe='')}{what and '/'}{what}"


def submit(what: Literal["neighbours", "redshifts"], source_ids: Sequence[str], **asked: Any) -> Asking[str]:
    """The id of a job over a list of any length that the server takes. `asked`: the fields of `POST /v1/jobs`, such as
    encoder, k and filters, or estimator and pdf; `run=False` leaves it PENDING; `format` of the result is Parquet."""
    if isinstance(source_ids, str):
        raise BadInput("expected a list of source ids")
    body = {"what": what, "ids": list(source_ids), "format": "parquet", **asked}
    response = yield Call("POST", "/v1/jobs", json=body, expected=303)
    return str(response.headers["location"].rpartition("/")[2])


def job(job_id: str) -> Asking[JobAnswer]:
    """How far a job is."""
    return answer(JobAnswer, Call("GET", of_job(job_id)))


def jobs(phase: Phase | None = None) -> Asking[list[JobAnswer]]:
    """The jobs of the key that is sent, the newest first."""
    found = yield from answer(JobsAnswer, Call("GET", "/v1/jobs", {"phase": phase}))
    return found.jobs


def wait(job_id: str, *, progress: bool = False, timeout_s: float | None = None) -> Asking[JobAnswer]:
    """The job once it is COMPLETED. Raises `RedshelfError` saying why where it ended as ERROR, or did not end in time;
    `Conflict` where it was aborted."""
    from tqdm import tqdm

    waited, step = 0.0, FIRST_LOOK_S
    with tqdm(unit=" sources", desc=f"job {job_id[:8]}", disable=not progress) as bar:
        while True:
            found = yield from job(job_id)
            bar.total = found.n_ids
            bar.update(found.n_done - bar.n)
            if found.phase not in OPEN:
                break
            if timeout_s is not None and waited >= timeout_s:
                raise RedshelfError(f"job {job_id} is {found.phase} after {timeout_s:g} s")
            yield Pause(step)
            waited, step = waited + step, min(2 * step, LONGEST_LOOK_S)
    if found.phase == "ERROR":
        raise RedshelfError(f"job {job_id}: {found.error}")
    if found.phase == "ABORTED":
        raise Conflict(f"job {job_id} was aborted")
    return found


def result_bytes(job_id: str) -> Asking[bytes]:
    """The result of a job as it was asked for; `Conflict` where there is none."""
    response = yield Call("GET", of_job(job_id, "result"))
    return bytes(response.content)


def result(job_id: str) -> Asking[Table]:
    """The result of a job that was asked for as Parquet, as a table; that of neighbours has the source that each line
    is a neighbour of as `query`."""
    import pyarrow.parquet as pq

    from redshelf.indexing import tabular

    found = yield from job(job_id)
    if found.format != "parquet":
        raise BadInput(f"the result of job {job_id} is {found.format}: take result_bytes, or ask for parquet")
    content = yield from result_bytes(job_id)
    return tabular.to_astropy(pq.read_table(BytesIO(content)))


def abort(job_id: str) -> Asking[None]:
    """Work no more on a job."""
    yield Call("POST", of_job(job_id, "phase"), json={"phase": "ABORT"}, expected=303)


def forget(job_id: str) -> Asking[None]:
    """Forget a job and its result."""
    yield Call("DELETE", of_job(job_id), expected=204)


def long_list(
    what: Literal["neighbours", "redshifts"], source_ids: Sequence[str], *, progress: bool = False, **asked: Any
) -> Asking[Table]:
    """Submit a job, wait for it, read its result, and delete it."""
    job_id = yield from submit(what, source_ids, **asked, format="parquet")
    yield from wait(job_id, progress=progress)
    found = yield from result(job_id)
    yield from forget(job_id)
    return found

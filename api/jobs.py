"""Jobs over long lists, after the VO's Universal Worker Service: POST -> 303 -> the job, its phase, its result.

A job is seen with the key that made it, and by whoever may read where it was made without one. `service/jobs` keeps
them, `service/working` does them.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse

from redshelf.api.queries import InForce, JobBody, JobPhase, JobsQuery, NoQuery, Shelf, at_most
from redshelf.api.routes import Route
from redshelf.api.tables import JSON, MEDIA, TABLES, file_name
from redshelf.models.errors import Busy
from redshelf.service import working
from redshelf.service.answers import JobAnswer, JobsAnswer, ManyNeighboursAnswer, RedshiftsAnswer
from redshelf.service.jobs import Full, Job
from redshelf.service.working import Working

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)
FULL_RETRY_S = 60
EXAMPLES: dict[str, Any] = {
    "redshifts": {
        "summary": "Redshifts of a list, as a table",
        "value": {"what": "redshifts", "ids": ["SIM00000001", "SIM00000007"], "format": "parquet"},
    },
    "neighbours": {
        "summary": "The five most similar galaxies of each of a list",
        "value": {"what": "neighbours", "ids": ["SIM00000001"], "k": 5, "z_max": 0.8, "format": "votable"},
    },
}
SEE_OTHER: dict[int | str, dict[str, Any]] = {
    303: {
        "description": "See the job",
        "headers": {"Location": {"description": "its address", "schema": {"type": "string"}}},
    }
}
RESULT: dict[int | str, dict[str, Any]] = {
    200: {**TABLES[200], "description": "What was asked for, in the format that was asked for"}
}


async def _working(request: Request) -> Working:
    working: Working = request.app.state.working
    return working


async def _owner(request: Request) -> str | None:
    owner: str | None = getattr(request.state, "owner", None)
    return owner


AtWork = Annotated[Working, Depends(_working)]
Owner = Annotated[str | None, Depends(_owner)]


def _job(job_id: str, at_work: AtWork, owner: Owner) -> Job:
    return at_work.jobs.read(job_id, owner)


Named = Annotated[Job, Depends(_job)]


def _see(job: Job) -> Response:
    return Response(status_code=303, headers={"location": f"/v1/jobs/{job.job_id}"})


@router.post("", status_code=303, response_class=Response, responses=SEE_OTHER)
def create(
    query: Annotated[NoQuery, Query()],
    body: Annotated[JobBody, Body(openapi_examples=EXAMPLES)],
    shelf: Shelf,
    settings: InForce,
    at_work: AtWork,
    owner: Owner,
) -> Response:
    """Neighbours or redshifts of a long list, done while nobody waits. What is wrong with the question is said at once:
    one unknown id is a 404 for all. 429 where `max_jobs` with the same key have not ended, or `max_kept_jobs` are
    kept."""
    at_most("number of ids", len(body.ids), settings.max_job_ids)
    asked = body.asked(settings)
    asked = working.checked(shelf, asked)
    told: dict[str, Any] = {
        "max_open": settings.max_jobs, "max_kept": settings.max_kept_jobs, "keep_seconds": settings.job_seconds
    }  # fmt: skip
    try:
        job = at_work.jobs.create(asked, owner=owner, run=body.run, **told)
    except OSError as error:
        raise Busy(f"the job could not be stored: {error.strerror or error}") from error
    except Full as error:
        raise HTTPException(429, str(error), {"retry-after": str(FULL_RETRY_S)}) from error
    at_work.wake()
    return _see(job)


@router.get("", response_model=JobsAnswer)
def every(query: Annotated[JobsQuery, Query()], at_work: AtWork, owner: Owner) -> JobsAnswer:
    """The jobs of the key that asks, the newest first."""
    return JobsAnswer(
        jobs=[job.answer() for job in at_work.jobs.of(owner) if query.phase is None or job.phase == query.phase]
    )


@router.get("/{job_id}", response_model=JobAnswer)
def one(query: Annotated[NoQuery, Query()], job: Named) -> JobAnswer:
    """How far it is. PENDING, QUEUED and EXECUTING go on; COMPLETED, ERROR and ABORTED stay until `destruction`."""
    return job.answer()


@router.delete("/{job_id}", status_code=204, response_class=Response)
def delete(query: Annotated[NoQuery, Query()], job: Named, at_work: AtWork) -> Response:
    """Forget the job and its result; one that is being worked on is stopped."""
    at_work.jobs.forget(job)
    return Response(status_code=204)


@router.post("/{job_id}/phase", status_code=303, response_class=Response, responses=SEE_OTHER)
def change(query: Annotated[NoQuery, Query()], body: JobPhase, job: Named, at_work: AtWork) -> Response:
    """RUN a job that is PENDING, or ABORT one; one that has ended stays as it is."""
    if body.phase == "ABORT":
        at_work.jobs.abort(job)
    else:
        at_work.jobs.start(job)
        at_work.wake()
    return _see(job)


@router.get("/{job_id}/result", response_model=RedshiftsAnswer | ManyNeighboursAnswer, responses=RESULT)
def result(query: Annotated[NoQuery, Query()], job: Named, at_work: AtWork) -> FileResponse:
    """What was asked for, once the job is COMPLETED; 409 before."""
    path = at_work.jobs.result(job)
    media = MEDIA[job.format][0]  # type: ignore[index]  # checked when the job was made
    name = f"{file_name(job.what, job.job_id[:8], f'generation{job.generation}')}{path.suffix}"
    return FileResponse(path, media_type=media, filename=None if media == JSON else name)

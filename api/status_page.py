"""What is served and how well, in words a person reads; and the report of `redshelf study`, from `study_dir` alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, Response

from redshelf.api.observability import Metrics
from redshelf.api.pages import policy, render
from redshelf.api.queries import InForce, InService, NoQuery, Shelf
from redshelf.models.errors import NotFound
from redshelf.service import maps, sources
from redshelf.service.settings import Settings
from redshelf.service.stages import STAGES
from redshelf.service.study_report import CSV, PAGE

router = APIRouter()
WORDS = {
    "decode": "an upload's bytes become pixels",
    "encode": "pixels become a vector",
    "search": "the nearest vectors are found",
    "estimate": "densities of redshift are worked out",
    "hydrate": "rows become the fields of an answer",
    "render": "pictures and pages are drawn",
}
BUCKET = "redshelf_stage_seconds_bucket"
STUDY_POLICY = policy(frame="'self'")
# the report is one file with its style and its figures inside; no script runs in it
REPORT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox"
)


@dataclass(frozen=True)
class Latency:
    """How long a stage takes, in milliseconds, as far as the buckets of a histogram tell."""

    stage: str
    does: str
    n: int
    median_ms: float
    p95_ms: float


def quantile(edges: Sequence[float], counts: Sequence[float], level: float) -> float:
    """The quantile of a histogram whose `counts` are cumulative up to each of `edges`, the last of which is infinite:
    a straight line within a bucket, its lower edge where it has no upper one. NaN of nothing."""
    if not counts or counts[-1] <= 0:
        return math.nan
    wanted, before, low = level * counts[-1], 0.0, 0.0
    for edge, count in zip(edges, counts, strict=True):
        if count >= wanted:
            return (
                low
                if math.isinf(edge) or count == before
                else low + (edge - low) * (wanted - before) / (count - before)
            )
        before, low = count, edge
    return low


def latencies(metrics: Metrics) -> Iterator[Latency]:
    """Of every stage that has been asked for since the server began, all workers together."""
    from prometheus_client.parser import text_string_to_metric_families

    found: dict[str, dict[float, float]] = {stage: {} for stage in STAGES}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            if sample.name == BUCKET:
                found[sample.labels["stage"]][float(sample.labels["le"])] = sample.value
    for stage, buckets in found.items():
        edges = sorted(buckets)
        counts = [buckets[edge] for edge in edges]
        if counts and counts[-1] > 0:
            middle, high = (1000 * quantile(edges, counts, level) for level in (0.5, 0.95))
            yield Latency(stage, WORDS[stage], int(counts[-1]), middle, high)


@router.get("/status", response_class=HTMLResponse)
def status(
    query: Annotated[NoQuery, Query()], request: Request, shelf: Shelf, serving: InService, settings: InForce
) -> Response:
    """The generation that is served, its encoders and fits, and how long answers take."""
    return render(
        shelf.info,
        "status.html",
        headers={"cache-control": "no-store"},
        shelf=sources.describe(shelf, settings),
        refused=serving.refused,
        maps=maps.made(shelf),
        latencies=list(latencies(request.app.state.metrics)),
        workers=settings.workers,
    )


def _file(settings: Settings, name: str) -> Path | None:
    """A file of the study that the settings name; None where there is none."""
    path = settings.study_dir / name if settings.study_dir is not None else None
    return path if path is not None and path.is_file() else None


@router.get("/study", response_class=HTMLResponse)
def study(query: Annotated[NoQuery, Query()], shelf: Shelf, settings: InForce) -> Response:
    """The report of the study inside the site; how to make one where there is none."""
    told = {"made": _file(settings, PAGE) is not None, "table": _file(settings, CSV) is not None}
    headers = {"content-security-policy": STUDY_POLICY, "cache-control": "no-cache"}
    return render(shelf.info, "study_page.html", headers=headers, set=settings.study_dir is not None, **told)


@router.get("/study/report", response_class=HTMLResponse)
def report(query: Annotated[NoQuery, Query()], settings: InForce) -> Response:
    """The report itself, as it was written."""
    path = _file(settings, PAGE)
    if path is None:
        raise NotFound("there is no report of a study: run `redshelf study -o DIR` and set study_dir = DIR")
    headers = {"content-security-policy": REPORT_POLICY, "cache-control": "no-cache"}
    return HTMLResponse(path.read_bytes(), headers=headers)


@router.get("/study/numbers")
def numbers(query: Annotated[NoQuery, Query()], settings: InForce) -> Response:
    """Every number of the report as CSV."""
    path = _file(settings, CSV)
    if path is None:
        raise NotFound("there are no numbers of a study: run `redshelf study -o DIR` and set study_dir = DIR")
    headers = {"content-disposition": f'attachment; filename="{CSV}"', "cache-control": "no-cache"}
    return Response(path.read_bytes(), media_type="text/csv; charset=utf-8", headers=headers)

"""Seen from outside: a line of log a request, and what `/metrics` tells Prometheus.

With several workers the numbers of all of them are added up, by files in a folder that `$PROMETHEUS_MULTIPROC_DIR`
names and that ends with the server; of those in force now, such as the generation, only living workers count.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from redshelf.service.serving import Serving
from redshelf.service.settings import Settings
from redshelf.service.stages import STAGES, Stage

FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # read by prometheus_client when it is imported
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"  # in place of an address that is no route: a label takes no text of a user
REASONS = ("key", "rate", "busy", "late", "size")  # why a request was turned away
BATCH_EDGES = (1, 2, 4, 8, 16, 32, 64, 128)
DECODING_ENDED = ("time", "memory", "crash")  # why a process that decodes uploads was replaced
JOBS_ENDED = ("COMPLETED", "ERROR", "ABORTED")
STAGE_EDGES_S = (0.0001, 0.0003, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 16)


@dataclass(frozen=True)
class Told:
    """One request, as it is logged and counted. `key`: its name, never the key; `route`: the template."""

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    key: str | None
    generation: int | None
    turned_away: str | None


disable_created_metrics()  # type: ignore[no-untyped-call]  # when each number began: as many lines again, and nobody asks


class Metrics:
    """The numbers of one app."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        told: dict[str, Any] = {"registry": self.registry}
        labels = ("method", "route", "status")
        self._requests = Counter("redshelf_requests", "Requests by route and status.", labels, **told)
        self._seconds = Histogram(
            "redshelf_request_seconds", "Time to answer, by route.", ("route",), buckets=STAGE_EDGES_S, **told
        )
        stages = Histogram("redshelf_stage_seconds", "Time of a stage.", ("stage",), buckets=STAGE_EDGES_S, **told)
        self._stages = {stage: stages.labels(stage) for stage in STAGES}
        away = Counter("redshelf_turned_away", "Requests turned away, by reason.", ("reason",), **told)
        self._away = {reason: away.labels(reason) for reason in REASONS}
        self.encode_batch = Histogram(
            "redshelf_encode_batch", "Uploads that were encoded together.", buckets=BATCH_EDGES, **told
        )
        ended = Counter("redshelf_decoding_ended", "Uploads that ended the process that decodes.", ("reason",), **told)
        self.decoding_ended = {reason: ended.labels(reason) for reason in DECODING_ENDED}
        jobs = Counter("redshelf_jobs", "Jobs that have ended, by the phase that they came to.", ("phase",), **told)
        self.jobs = {phase: jobs.labels(phase) for phase in JOBS_ENDED}
        live = {**told, "multiprocess_mode": "livesum"}
        self.encode_queue = Gauge("redshelf_encode_queue", "Uploads that wait to be encoded.", **live)
        self.in_flight = Gauge("redshelf_in_flight", "Requests that are being answered.", **live)
        self._room = Gauge("redshelf_max_concurrent", "Requests that may be answered at a time.", **live)
        self._workers = Gauge("redshelf_workers", "Processes that answer.", **live)
        lowest = {**told, "multiprocess_mode": "livemin"}
        self._generation = Gauge("redshelf_generation", "The generation served; the oldest of the workers'.", **lowest)
        self._sources = Gauge("redshelf_sources", "Sources of that generation.", **lowest)
        self._recall = Gauge(
            "redshelf_index_recall", "Recall@10 of an index, as measured when it was built.", ("encoder",), **lowest
        )
        highest = {**told, "multiprocess_mode": "livemax"}
        self._refused = Gauge("redshelf_generation_refused", "1 where a newer generation is not served.", **highest)
        self._known: dict[tuple[str, str, int], Any] = {}  # children: to look one up by labels is slow
        if FOLDER not in os.environ:  # of one process; those of several cannot be added up
            ProcessCollector(registry=self.registry)
            PlatformCollector(registry=self.registry)

    def start(self, settings: Settings) -> None:
        """What does not change."""
        self._workers.set(1)
        self._room.set(settings.max_concurrent)

    def looked(self, serving: Serving) -> None:
        """After a look for a newer generation: what is served now."""
        shelf = serving.current
        self._generation.set(shelf.generation.number)
        self._sources.set(shelf.n_sources)
        self._refused.set(serving.refused is not None)
        for name, encoder in shelf.encoders.items():
            self._recall.labels(name).set(encoder.index.recall)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A stage of an answer has ended."""
        self._stages[stage].observe(seconds)

    def count(self, told: Told) -> None:
        """A request has been answered."""
        method = told.method if told.method in METHODS else "other"
        known = self._known.get((method, told.route, told.status))
        if known is None:
            known = self._requests.labels(method, told.route, str(told.status)), self._seconds.labels(told.route)
            self._known[method, told.route, told.status] = known
        known[0].inc()
        known[1].observe(told.seconds)
        if told.turned_away is not None:
            self._away[told.turned_away].inc()

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        folder = os.environ.get(FOLDER)
        if folder is None:
            return generate_latest(self.registry)
        _bury(Path(folder))
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _bury(folder: Path) -> None:
    """Forget what is in force in workers that were killed; what they have counted stays."""
    for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*_*.db")}:
        if not Path(f"/proc/{pid}").exists():
            with suppress(FileNotFoundError):  # another worker has buried it meanwhile
                mark_process_dead(pid)  # type: ignore[no-untyped-call]


def as_json(settings: Settings) -> bool:
    """Whether the log is JSON: as the settings say, else where nobody reads it on a terminal."""
    return settings.log_format == "json" or (settings.log_format == "auto" and not sys.stderr.isatty())


def _quoted(value: Any) -> str:
    text = str(value)
    return text if text.isascii() and text.isprintable() and " " not in text else json.dumps(text)


def _as_text(_: Any, __: str, event: dict[str, Any]) -> str:
    """One line: when, how grave, what, and the rest as name=value; what is no plain word is quoted."""
    head = f"{event.pop('timestamp')} {event.pop('level'):<7} {_one_line(str(event.pop('event')))}"
    exception = event.pop("exception", None)
    line = " ".join([head, *(f"{name}={_quoted(value)}" for name, value in event.items() if value is not None)])
    return line if exception is None else line + "\n" + "\n".join(f"  | {part}" for part in exception.splitlines())


def _one_line(text: str) -> str:
    """Text of a user can hold anything: here it can neither end a line nor move the cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def processors(json_lines: bool) -> list[Any]:
    """How structlog writes a line."""
    render = structlog.processors.JSONRenderer() if json_lines else _as_text
    return [structlog.processors.TimeStamper(fmt="iso", utc=True), structlog.processors.add_log_level, render]


class Formatter(logging.Formatter):
    """The lines of the standard library's loggers, ours and uvicorn's, in the form of those of requests."""

    def __init__(self, json_lines: bool = True) -> None:
        super().__init__()
        self._json = json_lines
        self._processors = [structlog.processors.TimeStamper(fmt="iso", utc=True), processors(json_lines)[-1]]

    def format(self, record: logging.LogRecord) -> str:
        event: Any = {"event": record.getMessage(), "level": record.levelname.lower(), "logger": record.name}
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        for processor in self._processors:
            event = processor(None, record.levelname.lower(), event)
        return str(event)


def log_config(settings: Settings) -> dict[str, Any]:
    """For uvicorn and `logging.config.dictConfig`: everything to stderr; requests are logged by us, once."""
    formatter = {"()": "redshelf.api.observability.Formatter", "json_lines": as_json(settings)}
    handler = {"class": "logging.StreamHandler", "formatter": "line", "stream": "ext://sys.stderr"}
    told = {"handlers": ["stderr"], "level": "INFO", "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "handlers": {"stderr": handler},
        "loggers": {"redshelf": told, "uvicorn": told},
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    }


def request_log(settings: Settings) -> Any:
    """What writes a line a request."""
    log = structlog.wrap_logger(
        structlog.WriteLogger(sys.stderr), processors=processors(as_json(settings)), wrapper_class=structlog.BoundLogger
    )
    return log.bind()  # put together now: else it is for every line


def line(log: Any, told: Told) -> None:
    """Log a request."""
    log.info(
        "request",
        request_id=told.request_id,
        method=told.method,
        route=told.route,
        status=told.status,
        ms=round(told.seconds * 1000, 2),
        key=told.key,
        generation=told.generation,
        **({} if told.turned_away is None else {"turned_away": told.turned_away}),
    )

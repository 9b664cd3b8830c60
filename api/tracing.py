"""Traces for OpenTelemetry, off unless `otlp_endpoint` names a collector: a span a request, and one for each stage.

Needs the extra `otel`. The stages are those of `service/stages` and of the histogram in `/metrics`, by the same names.
A request that comes with a `traceparent` is a part of that trace. Nothing a user typed is sent: of an address only its
template, of a key not even its name. What else OpenTelemetry knows (sampling, headers for the collector, attributes of
the process) is set by its own `OTEL_*` variables.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.datastructures import Headers

from redshelf.api.limits import NOT_COUNTED
from redshelf.api.observability import METHODS, Metrics, Told
from redshelf.models.errors import Conflict
from redshelf.service import stages
from redshelf.service.settings import Settings
from redshelf.service.stages import Stage

if TYPE_CHECKING:
    from opentelemetry.trace import Span

EXPORT_SECONDS = 5.0  # that a collector may take; without one in reach what was traced is dropped


class Trace:
    """The span of one request, under which its stages stand as they end."""

    def __init__(self, tracer: Any, parent: Any) -> None:
        from opentelemetry import trace

        self._tracer = tracer
        self._span: Span = tracer.start_span("request", context=parent, kind=trace.SpanKind.SERVER)
        self._inside = trace.set_span_in_context(self._span, parent)

    def stage(self, stage: Stage, seconds: float) -> None:
        """A stage that has just ended."""
        now = time.time_ns()
        self._tracer.start_span(stage, context=self._inside, start_time=now - int(seconds * 1e9)).end(now)

    def end(self, told: Told) -> None:
        """The request has been answered."""
        from opentelemetry.trace import StatusCode

        method = told.method if told.method in METHODS else "_OTHER"  # as OpenTelemetry has it
        self._span.update_name(f"{method} {told.route}")
        attributes = {
            "http.request.method": method,
            "http.route": told.route,
            "http.response.status_code": told.status,
            "redshelf.request_id": told.request_id,
            "redshelf.generation": told.generation,
            "redshelf.turned_away": told.turned_away,
        }
        self._span.set_attributes({name: value for name, value in attributes.items() if value is not None})
        if told.status >= 500:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class Tracing:
    """What makes the traces of one process and sends them, a batch at a time, in a thread of its own."""

    def __init__(self, settings: Settings, *, version: str) -> None:
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError as error:
            raise Conflict(
                f"otlp_endpoint={settings.otlp_endpoint!r} needs OpenTelemetry, which is not installed: "
                "expected the extra `otel`, pip install 'redshelf[otel]'"
            ) from error
        endpoint = f"{settings.otlp_endpoint.rstrip('/')}/v1/traces"
        resource = Resource.create({"service.name": "redshelf", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_SECONDS))
        )
        self._tracer = self._provider.get_tracer("redshelf", version)
        self._propagator = TraceContextTextMapPropagator()

    def begin(self, path: str, headers: Headers) -> Trace | None:
        """The trace of a request; None of what looks after the process, which would drown the rest."""
        if path in NOT_COUNTED:
            return None
        return Trace(self._tracer, self._propagator.extract(headers))

    def stop(self) -> None:
        """Send what has not been sent."""
        self._provider.shutdown()


def listen(metrics: Metrics, trace: Trace | None) -> None:
    """Tell the metrics, and the trace where there is one, of the stages of this request."""
    if trace is None:
        stages.listen(metrics.stage)
        return
    of_request = trace

    def both(stage: Stage, seconds: float) -> None:
        metrics.stage(stage, seconds)
        of_request.stage(stage, seconds)

    stages.listen(both)

"""OpenTelemetry: what a collector on loopback is sent of a request, and that nothing is without a collector."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.settings import load
from redshelf.service.stages import STAGES

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """A collector of OTLP over HTTP, and the spans that it was sent."""

    def __init__(self) -> None:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        spans: list[Any] = []
        self.spans, self.resources, self.paths = spans, list[dict[str, str]](), set[str]()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    import gzip

                    body = gzip.decompress(body)
                collector.paths.add(self.path)
                for sent in ExportTraceServiceRequest.FromString(body).resource_spans:
                    collector.resources.append({a.key: a.value.string_value for a in sent.resource.attributes})
                    for scope in sent.scope_spans:
                        spans.extend(scope.spans)
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def collector() -> Iterator[Collector]:
    pytest.importorskip("opentelemetry.sdk", reason="the `otel` extra is not installed")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the `otel` extra is not installed")
    found = Collector()
    yield found
    found.close()


@contextmanager
def asking(shelf: Path, **settings: Any) -> Iterator[TestClient]:
    """A client of an app whose traces have all been sent when the block ends."""
    with TestClient(create_app(load(environ={}, shelf=shelf, **settings)), raise_server_exceptions=False) as client:
        yield client


def attributes(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


def test_a_request_is_a_span_with_its_stages_under_it_and_holds_nothing_that_was_typed(
    collector: Collector, tiny_shelf: Path
) -> None:
    with asking(tiny_shelf, otlp_endpoint=collector.url) as client:
        told = client.get("/v1/sources/s0010/neighbours?k=3&z_max=0.8", headers={"traceparent": PARENT})
        page = client.get("/source/s0011")
    assert told.status_code == page.status_code == 200
    assert collector.paths == {"/v1/traces"} and collector.resources[0]["service.name"] == "redshelf"
    by_name = {span.name: span for span in collector.spans if span.name.startswith("GET ")}
    asked = by_name["GET /v1/sources/{source_id}/neighbours"]
    assert asked.trace_id.hex() == PARENT.split("-")[1] and asked.parent_span_id.hex() == PARENT.split("-")[2]
    said = attributes(asked)
    assert said == {
        "http.request.method": "GET",
        "http.route": "/v1/sources/{source_id}/neighbours",
        "http.response.status_code": 200,
        "redshelf.request_id": told.headers["x-request-id"],
        "redshelf.generation": 1,
    }
    assert "s0010" not in repr(collector.spans) and "0.8" not in repr(said)
    stages = {span.name for span in collector.spans if span.parent_span_id == asked.span_id}
    assert stages == {"search", "hydrate"}
    of_page = by_name["GET /source/{source_id}"]
    stages = {span.name for span in collector.spans if span.parent_span_id == of_page.span_id}
    assert {"search", "estimate", "hydrate", "render"} <= stages <= set(STAGES)
    for span in collector.spans:
        if span.parent_span_id == of_page.span_id:
            assert of_page.start_time_unix_nano <= span.start_time_unix_nano <= span.end_time_unix_nano
            assert span.end_time_unix_nano <= of_page.end_time_unix_nano and span.trace_id == of_page.trace_id


def test_an_upload_is_decoded_and_encoded_in_its_own_trace(collector: Collector, tiny_shelf: Path) -> None:
    blob = BytesIO()
    np.save(blob, np.ones((3, 32, 32), np.float32))
    with asking(tiny_shelf, otlp_endpoint=collector.url) as client:
        path, file = "/v1/cutouts/neighbours?encoder=vit", {"file": ("a.npy", blob.getvalue())}
        answer = client.post(path, files=file, data={"bands": "g,r,i"})
    assert answer.status_code == 200, answer.text
    (asked,) = (span for span in collector.spans if span.name == "POST /v1/cutouts/neighbours")
    stages = {span.name for span in collector.spans if span.parent_span_id == asked.span_id}
    assert stages == {"decode", "encode", "search", "hydrate"}


def test_a_failure_is_an_error_a_refusal_is_none_and_what_looks_after_the_process_is_not_traced(
    collector: Collector, tiny_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redshelf.service import search

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    with asking(tiny_shelf, otlp_endpoint=collector.url) as client:
        monkeypatch.setattr(search, "neighbours", broken)
        assert client.get("/v1/sources/s0010/neighbours").status_code == 500
        assert client.get("/v1/sources/nope").status_code == 404
        assert client.request("NONSENSE", "/v1/shelf").status_code == 405
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200
    whole = {span.name: span for span in collector.spans if not span.parent_span_id}
    statuses = {name: (attributes(span)["http.response.status_code"], span.status.code) for name, span in whole.items()}
    assert statuses == {
        "GET /v1/sources/{source_id}/neighbours": (500, 2),
        "GET /v1/sources/{source_id}": (404, 0),
        "_OTHER /v1/shelf": (405, 0),
    }


def test_a_collector_that_is_away_keeps_no_request_waiting(
    collector: Collector, tiny_shelf: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector.close()
    with asking(tiny_shelf, otlp_endpoint=collector.url) as client:
        assert client.get("/v1/shelf").status_code == 200


def test_without_an_endpoint_nothing_of_it_is_loaded(bare_shelf: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from redshelf.api.app import create_app; "
        "from redshelf.service.settings import load; create_app(load(environ={}, shelf=Path(sys.argv[1]))); "
        "assert 'opentelemetry.sdk' not in sys.modules and 'redshelf.api.tracing' in sys.modules"
    )
    links = str(Path(__file__).parent / "links")
    subprocess.run([sys.executable, "-c", code, str(bare_shelf)], env={"PYTHONPATH": links}, check=True)


def test_an_endpoint_without_the_extra_is_refused_and_names_it(
    bare_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(Conflict, match=r"otlp_endpoint='http://127\.0\.0\.1:4318' needs .* expected the extra `otel`"):
        create_app(load(environ={}, shelf=bare_shelf, otlp_endpoint="http://127.0.0.1:4318"))
    for wrong in ("localhost:4318", "file:///tmp/a", "http://a b"):
        with pytest.raises(BadInput, match="otlp_endpoint"):
            load(environ={}, otlp_endpoint=wrong)

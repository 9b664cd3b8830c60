"""What is seen from outside: a line of log a request, numbers for Prometheus, and files in `deploy/` that know them."""

from __future__ import annotations

import io
import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import server as servers
import yaml
from fastapi.testclient import TestClient

from redshelf.api import observability
from redshelf.api.app import create_app
from redshelf.service import keys, stages
from redshelf.service.publish import publish
from redshelf.service.settings import Settings, load

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def logged(
    shelf: Path, state: Path, monkeypatch: pytest.MonkeyPatch, **given: object
) -> tuple[TestClient, io.StringIO]:
    """A client of an app, and where its log goes."""
    settings = load(environ={}, shelf=shelf, state_dir=state, **given)
    stream = io.StringIO()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        app = create_app(settings, log=observability.request_log(settings))
    return TestClient(app, raise_server_exceptions=False), stream


def numbers(text: str) -> dict[str, float]:
    """The samples of Prometheus' text format."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_a_request_is_one_line_of_json(tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = keys.add(tmp_path, "alice", "read")
    client, stream = logged(tiny_shelf, tmp_path, monkeypatch)
    client.get("/v1/sources/s0003/neighbours?k=3", headers={"x-api-key": key, "x-request-id": "abc-1"})
    client.get("/healthz")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first.pop("timestamp").startswith("20") and first.pop("ms") > 0
    assert first == {
        "event": "request", "level": "info", "request_id": "abc-1", "method": "GET", "status": 200, "key": "alice",
        "route": "/v1/sources/{source_id}/neighbours", "generation": 1,
    }  # fmt: skip
    assert (second["route"], second["key"], second["generation"]) == ("/healthz", None, None)
    assert key not in stream.getvalue()


@pytest.mark.security
@pytest.mark.parametrize("form", ["json", "text"])
def test_text_of_a_user_never_breaks_a_line(
    tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    client, stream = logged(tiny_shelf, tmp_path, monkeypatch, log_format=form)
    hostile = "x%0A{%22event%22:%22forged%22}%0D%1b[2J%E2%80%A8"
    asked = [
        client.get(f"/v1/sources/{hostile}"),
        client.get(f"/{hostile}"),
        client.get(f"/v1/shelf?{hostile}=1"),
        client.get("/v1/shelf", headers={"x-request-id": "a\tb", "x-api-key": "forged\tkey"}),
        client.request("FORGED", "/v1/shelf"),
    ]
    lines = stream.getvalue().split("\n")
    assert len(lines) == len(asked) + 1 and lines[-1] == ""
    assert "forged" not in stream.getvalue() and stream.getvalue().replace("\n", "").isprintable()
    if form == "json":
        assert [json.loads(line)["status"] for line in lines[:-1]] == [answer.status_code for answer in asked]


@pytest.mark.parametrize("json_lines", [True, False])
def test_an_error_is_logged_with_where_it_happened(json_lines: bool) -> None:
    formatter = observability.Formatter(json_lines)
    try:
        raise ValueError("wrong\nINFO forged")
    except ValueError:
        import sys

        record = logging.LogRecord("redshelf", logging.ERROR, "x.py", 1, "request %s\nfailed", ("r1",), sys.exc_info())
    written = formatter.format(record)
    if json_lines:
        told = json.loads(written)
        assert (told["event"], told["level"], told["logger"]) == ("request r1\nfailed", "error", "redshelf")
        assert "ValueError: wrong" in told["exception"] and "\n" not in written
    else:
        head, *rest = written.splitlines()
        assert r"error   request r1\nfailed logger=redshelf" in head
        assert all(line.startswith("  | ") for line in rest)  # no line of it looks like one of the log


def test_an_unexpected_error_is_counted_and_logged_as_500(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redshelf.api import sources

    client, stream = logged(bare_shelf, tmp_path, monkeypatch)
    monkeypatch.setattr(sources.service, "source", lambda *_: 1 / 0)
    answer = client.get("/v1/sources/s0003")
    assert answer.status_code == 500 and answer.headers["x-content-type-options"] == "nosniff"
    line = json.loads(stream.getvalue())
    assert (line["status"], line["request_id"]) == (500, answer.json()["request_id"])
    assert 'route="/v1/sources/{source_id}",status="500"} 1.0' in client.get("/metrics").text


def test_requests_are_counted_by_route_and_status_and_turned_away_by_reason(
    tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, _ = logged(tiny_shelf, tmp_path, monkeypatch, max_upload_bytes=1024)
    for path in ("/v1/sources/s0003", "/v1/sources/s0004", "/v1/sources/nope", "/no/such", "/static/page.css"):
        client.get(path)
    client.get("/v1/shelf", headers={"x-api-key": "wrong"})
    client.request("FORGED", "/v1/shelf")
    client.post("/v1/cutouts/redshift", content=b"x" * 40_000)
    found = numbers(client.get("/metrics").text)

    def requests(method: str, route: str, status: int) -> float:
        return found[f'redshelf_requests_total{{method="{method}",route="{route}",status="{status}"}}']

    assert requests("GET", "/v1/sources/{source_id}", 200) == 2 and requests("GET", "/v1/sources/{source_id}", 404) == 1
    assert requests("GET", "unmatched", 404) == 1 and requests("GET", "/static", 200) == 1
    assert requests("other", "/v1/shelf", 405) == 1
    assert found['redshelf_turned_away_total{reason="key"}'] == 1
    assert found['redshelf_turned_away_total{reason="size"}'] == 1
    assert found['redshelf_request_seconds_count{route="/v1/sources/{source_id}"}'] == 3
    assert found["redshelf_in_flight"] == 1, "this one"


def test_every_stage_is_timed(tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    client, _ = logged(tiny_shelf, tmp_path, monkeypatch)
    before = numbers(client.get("/metrics").text)
    assert all(before[f'redshelf_stage_seconds_count{{stage="{stage}"}}'] == 0 for stage in stages.STAGES)
    client.get("/v1/sources/s0003/neighbours")
    cutout = client.get("/v1/sources/s0003/cutout?format=fits").content
    client.post("/v1/cutouts/redshift", files={"file": cutout})
    client.post("/v1/cutouts/redshift", files={"file": b"no image"})
    found = numbers(client.get("/metrics").text)
    counted = {stage: found[f'redshelf_stage_seconds_count{{stage="{stage}"}}'] for stage in stages.STAGES}
    assert counted == {"decode": 2, "encode": 1, "search": 1, "estimate": 1, "hydrate": 2, "render": 1}
    assert 0 < found['redshelf_stage_seconds_sum{stage="search"}'] < 5


def test_nobody_is_told_of_a_stage_who_does_not_listen() -> None:
    told: list[str] = []

    @stages.timed("search")
    def work(n: int) -> int:
        return n + 1

    assert work(1) == 2 and not told
    import contextvars

    def listening() -> None:
        stages.listen(lambda stage, seconds: told.append(stage))
        assert work(2) == 3

    contextvars.copy_context().run(listening)
    assert told == ["search"] and work(3) == 4 and told == ["search"]


def test_the_generation_that_is_served_its_recall_and_a_refused_one_are_told(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)
    client, _ = logged(root, tmp_path / "state", monkeypatch, refresh_seconds=60)

    def told() -> tuple[float, ...]:
        found = numbers(client.get("/metrics").text)
        names = ("generation", "generation_refused", "sources", 'index_recall{encoder="photometry"}')
        return tuple(found[f"redshelf_{name}"] for name in names)

    assert told() == (1, 0, 60, 1)
    publish(root)
    client.post("/admin/generation")
    assert told() == (2, 0, 60, 1)
    publish(root)
    (root / "columns" / "3" / "ra.npy").write_bytes(b"")
    client.post("/admin/generation")
    assert told() == (2, 1, 60, 1)


def _queries(document: Any) -> list[str]:
    """Every `expr` in a document, however deep."""
    if isinstance(document, dict):
        own = [document["expr"]] if isinstance(document.get("expr"), str) else []
        return own + [query for value in document.values() for query in _queries(value)]
    return [query for value in document for query in _queries(value)] if isinstance(document, list) else []


def _names(query: str) -> set[str]:
    """The metrics of a PromQL query: what stands before a selector, a range or an operator, and is no function."""
    bare = re.sub(r'"[^"]*"|\{[^}]*\}|\[[^\]]*\]', " ", query)
    bare = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", bare)
    words = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()\b", bare)) - {"and", "or", "unless", "bool", "offset"}
    return words - set(re.findall(r"([a-zA-Z_]+)\s*\(", bare))


def test_the_names_in_a_query_are_found() -> None:
    query = 'histogram_quantile(0.99, sum by (le) (rate(redshelf_a_bucket{x="y"}[5m]))) > 2 and up == 0'
    assert _names(query) == {"redshelf_a_bucket", "up"}


@pytest.mark.parametrize("name", ["grafana-dashboard.json", "alerts.yaml"])
def test_the_queries_in_deploy_ask_for_what_there_is(
    tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text = (DEPLOY / name).read_text(encoding="utf-8")
    queries = _queries(json.loads(text) if name.endswith("json") else yaml.safe_load(text))
    assert len(queries) >= 6
    client, _ = logged(tiny_shelf, tmp_path, monkeypatch)
    client.get("/v1/shelf")
    known = {re.split(r"[{ ]", sample)[0] for sample in numbers(client.get("/metrics").text)}
    known.add("up")  # Prometheus' own
    asked = set().union(*(_names(query) for query in queries))
    assert asked <= known, asked - known
    selectors = re.findall(r"(redshelf_\w+)\{([^}]*)\}", " ".join(queries))
    labels = {(metric, label) for metric, given in selectors for label in re.findall(r"(\w+)\s*[!=]", given)}
    told = client.get("/metrics").text
    for metric, label in labels:
        own = label in ("instance", "job")  # which Prometheus adds
        assert own or re.search(rf"^{metric}\{{.*{label}=", told, re.MULTILINE), (metric, label)


def test_every_alert_says_what_is_wrong_and_what_to_do() -> None:
    rules = [
        rule for group in yaml.safe_load((DEPLOY / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert set(rule) == {"alert", "expr", "for", "labels", "annotations"}
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "description"}


@pytest.mark.slow
def test_the_numbers_of_two_workers_are_added_up_and_a_killed_one_leaves_what_it_has_counted(
    bare_shelf: Path, tmp_path: Path
) -> None:
    import os
    import signal

    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)

    def metrics() -> dict[str, float]:
        connection = server.connect()
        connection.request("GET", "/metrics")
        answer = connection.getresponse()
        text = answer.read().decode()
        connection.close()
        assert answer.status == 200, f"{text}\n{server.log.read_text()}"
        return numbers(text)

    asked = 'redshelf_requests_total{method="GET",route="/v1/shelf",status="200"}'
    with servers.serve(root, tmp_path, "--workers", "2", refresh_seconds=0.1) as server:
        servers.wait_for(lambda: metrics()["redshelf_workers"] == 2, "both to serve")
        for _ in range(60):
            server.get("/v1/shelf")
        assert {metrics()[asked] for _ in range(10)} == {60}, "whichever answers"
        assert metrics()["redshelf_max_concurrent"] == 128 and metrics()["redshelf_generation"] == 1
        before = server.workers()
        os.kill(before[0], signal.SIGKILL)
        servers.wait_for(lambda: metrics()["redshelf_workers"] == 1, "the killed one to be forgotten")
        servers.wait_for(lambda: metrics()["redshelf_workers"] == 2, "another one")
        assert metrics()[asked] == 60
        servers.wait_for(lambda: metrics()["redshelf_in_flight"] == 1, "the one that asks alone")
        publish(root)
        servers.wait_for(lambda: metrics()["redshelf_generation"] == 2, "both to take it up")
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        assert sum(line["event"] == "request" and line.get("route") == "/v1/shelf" for line in lines) == 60
        given = Path(f"/proc/{before[1]}/environ").read_bytes().split(b"\0")
        folder = next(Path(word.partition(b"=")[2].decode()) for word in given if word.startswith(b"PROMETHEUS_"))
        assert list(folder.glob("*.db"))
    assert not folder.exists()


def test_the_log_is_text_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert not observability.as_json(Settings()) and observability.as_json(Settings(log_format="json"))
    monkeypatch.setattr("sys.stderr.isatty", lambda: False, raising=False)
    assert observability.as_json(Settings()) and not observability.as_json(Settings(log_format="text"))

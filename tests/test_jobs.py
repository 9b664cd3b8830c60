"""Jobs over long lists: made, run, told, aborted, deleted, seen by their owner alone; the answers are the routes'."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import server as servers
from astropy.io import votable
from astropy.table import Table
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.models.errors import BadInput, NotFound
from redshelf.service import jobs as stored
from redshelf.service import keys, working
from redshelf.service.jobs import Asked, Jobs
from redshelf.service.settings import load

IDS = [f"s{n % 300:04d}" for n in range(1, 1100, 7)]


@pytest.fixture(scope="module")
def client(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """Of a server that works on jobs."""
    state = tmp_path_factory.mktemp("jobs")
    app = create_app(load(environ={}, shelf=tiny_shelf, state_dir=state, max_job_bytes=1 << 22, max_job_ids=500))
    with TestClient(app, raise_server_exceptions=False) as opened:
        yield opened


@pytest.fixture
def idle(tiny_shelf: Path, tmp_path: Path) -> TestClient:
    """Of one that does not, until it is told to."""
    return TestClient(create_app(load(environ={}, shelf=tiny_shelf, state_dir=tmp_path, max_jobs=4)))


def submit(client: TestClient, **body: Any) -> str:
    answer = client.post("/v1/jobs", json=body, follow_redirects=False)
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def ended(client: TestClient, at: str) -> dict[str, Any]:
    end = time.monotonic() + 120
    while (job := client.get(at).json())["phase"] in ("PENDING", "QUEUED", "EXECUTING"):
        assert time.monotonic() < end
        time.sleep(0.02)
    return job  # type: ignore[no-any-return]


def test_a_job_of_redshifts_gives_what_the_route_gives(client: TestClient) -> None:
    at = submit(client, what="redshifts", ids=IDS, pdf=True)
    job = ended(client, at)
    assert (job["phase"], job["n_done"], job["n_ids"], job["generation"]) == ("COMPLETED", len(IDS), len(IDS), 1)
    assert job["created"] <= job["started"] <= job["ended"] < job["destruction"] and job["error"] is None
    assert job["links"] == {"self": at, "result": f"{at}/result"}
    result = client.get(job["links"]["result"])
    assert result.headers["content-type"] == "application/json" and job["result_bytes"] == len(result.content)
    expected = client.post("/v1/redshifts", json={"ids": IDS}).json()["redshifts"]
    found = result.json()["redshifts"]
    assert [one["source_id"] for one in found] == IDS
    for one, other in zip(found, expected, strict=True):
        assert one["support"]["reasons"] == other["support"]["reasons"]
        if one["z_median"] is not None:
            assert one["z_median"] == pytest.approx(other["z_median"], abs=1e-6)
            np.testing.assert_allclose(one["pdf"]["density"], other["pdf"]["density"], atol=1e-6)


def test_a_job_of_neighbours_gives_what_the_route_gives(client: TestClient) -> None:
    at = submit(client, what="neighbours", ids=IDS[:50], k=3, z_max=0.8, encoder="vit")
    assert ended(client, at)["phase"] == "COMPLETED"
    found = client.get(f"{at}/result").json()["answers"]
    assert found == [client.get(f"/v1/sources/{name}/neighbours?k=3&z_max=0.8&encoder=vit").json() for name in IDS[:50]]


@pytest.mark.parametrize("format", ["votable", "csv", "parquet", "fits"])
@pytest.mark.parametrize("what", ["neighbours", "redshifts"])
def test_a_result_is_a_table_in_every_format(client: TestClient, what: str, format: str) -> None:
    ids, more = IDS[:45], {"k": 3} if what == "neighbours" else {"pdf": format != "csv"}
    ids = [*ids, "s0049"]  # a star, which has no redshift
    at = submit(client, what=what, ids=ids, format=format, **more)
    assert ended(client, at)["phase"] == "COMPLETED"
    result = client.get(f"{at}/result")
    stream = BytesIO(result.content)
    if format == "votable":
        table = votable.parse_single_table(stream).to_table()
    elif format == "parquet":
        table = Table.from_pandas(pq.read_table(stream).to_pandas())
    else:
        table = Table.read(stream, format=format)
    name = "query" if what == "neighbours" else "source_id"
    assert [str(one) for one in table[name]] == [one for one in ids for _ in range(3 if what == "neighbours" else 1)]
    assert f"redshelf-{what}-" in result.headers["content-disposition"]
    if what == "redshifts" and format != "csv":
        density = np.stack([np.asarray(one, dtype=float) for one in table["pdf_density"]])
        assert np.isnan(density[-1]).all() and np.isfinite(density[0]).all()


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"what": "redshifts", "ids": ["s0003", "nope"]}, 404, "no source 'nope'"),
        ({"what": "redshifts", "ids": []}, 422, "ids"),
        ({"what": "redshifts", "ids": ["s0003"], "k": 3}, 422, "k does not go with what=redshifts"),
        ({"what": "neighbours", "ids": ["s0003"], "pdf": True}, 422, "pdf does not go with what=neighbours"),
        ({"what": "neighbours", "ids": ["s0003"], "mutual": True, "k": 300}, 422, "k=300: with mutual"),
        ({"what": "neighbours", "ids": ["s0003"], "z_min": 2, "z_max": 1}, 422, "z_min=2.0 is above z_max=1.0"),
        ({"what": "neighbours", "ids": ["s0003"], "mag_min": 2}, 422, "mag_min and mag_max need mag_band"),
        ({"what": "neighbours", "ids": ["s0003"], "encoder": "dino"}, 404, "no encoder 'dino'"),
        ({"what": "redshifts", "ids": ["s0003"], "estimator": "dino"}, 404, "no estimator 'dino'"),
        ({"what": "redshifts", "ids": ["s0003"], "pdf": True, "format": "csv"}, 422, "which CSV cannot hold"),
        ({"what": "redshift", "ids": ["s0003"]}, 422, "what='redshift'"),
        ({"what": "redshifts", "id": ["s0003"]}, 422, "unknown field 'id'; nearest: ids"),
        ({"what": "redshifts", "ids": ["s0003"] * 501}, 422, "number of ids=501: this server takes at most 500"),
    ],
)
def test_what_a_job_would_end_with_is_said_at_once(
    client: TestClient, body: dict[str, Any], status: int, words: str
) -> None:
    before = client.get("/v1/jobs").json()
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text
    assert client.get("/v1/jobs").json() == before


def test_a_job_waits_until_it_is_run_and_one_that_waits_can_be_aborted(idle: TestClient) -> None:
    first, second = (submit(idle, what="redshifts", ids=IDS, run=run) for run in (False, True))
    assert [idle.get(at).json()["phase"] for at in (first, second)] == ["PENDING", "QUEUED"]
    refused = idle.get(f"{second}/result")
    assert (
        refused.status_code == 409 and "is QUEUED: there is a result once it is COMPLETED" in refused.json()["detail"]
    )
    for at, phase, expected in ((first, "RUN", "QUEUED"), (second, "ABORT", "ABORTED"), (second, "ABORT", "ABORTED")):
        answer = idle.post(f"{at}/phase", json={"phase": phase}, follow_redirects=False)
        assert (answer.status_code, answer.headers["location"]) == (303, at)
        assert idle.get(at).json()["phase"] == expected
    assert idle.post(f"{first}/phase", json={"phase": "RUN"}).status_code == 409
    told = idle.get("/v1/jobs").json()["jobs"]
    assert [job["links"]["self"] for job in told] == [second, first]
    assert [job["phase"] for job in idle.get("/v1/jobs?phase=ABORTED").json()["jobs"]] == ["ABORTED"]


def test_so_many_jobs_at_a_time_and_no_more(idle: TestClient) -> None:
    made = [submit(idle, what="redshifts", ids=IDS[:2]) for _ in range(4)]
    refused = idle.post("/v1/jobs", json={"what": "redshifts", "ids": IDS[:2]})
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    assert "4 of your jobs have not ended" in refused.json()["detail"]
    assert idle.delete(made[0]).status_code == 204
    assert idle.get(made[0]).status_code == 404 and idle.delete(made[0]).status_code == 404
    submit(idle, what="redshifts", ids=IDS[:2])
    assert len(idle.get("/v1/jobs").json()["jobs"]) == 4


def test_a_job_is_seen_with_the_key_that_made_it_alone(tiny_shelf: Path, tmp_path: Path) -> None:
    made = {name: {"x-api-key": keys.add(tmp_path, name, "write")} for name in ("alice", "bob")}
    reader, admin = ({"x-api-key": keys.add(tmp_path, name, name)} for name in ("read", "admin"))
    client = TestClient(create_app(load(environ={}, shelf=tiny_shelf, state_dir=tmp_path, max_jobs=1)))
    body = {"what": "redshifts", "ids": ["s0003"]}
    assert client.post("/v1/jobs", json=body).status_code == 401
    assert client.post("/v1/jobs", json=body, headers=reader).status_code == 403
    at = client.post("/v1/jobs", json=body, headers=made["alice"], follow_redirects=False).headers["location"]
    assert client.get(at, headers=made["alice"]).json()["phase"] == "QUEUED"
    for other in (made["bob"], reader, admin, {}):
        for answer in (client.get(at, headers=other), client.get(f"{at}/result", headers=other)):
            assert answer.status_code == 404 and "a job is seen with the key that made it" in answer.json()["detail"]
        assert client.get("/v1/jobs", headers=other).json() == {"jobs": []}
    assert client.delete(at, headers=made["bob"]).status_code == 404
    assert client.post(f"{at}/phase", json={"phase": "ABORT"}, headers=made["bob"]).status_code == 404
    assert client.post("/v1/jobs", json=body, headers=made["bob"], follow_redirects=False).status_code == 303
    keys.revoke(tmp_path, "alice")  # another one of this name is somebody else
    again = {"x-api-key": keys.add(tmp_path, "alice", "write")}
    client = TestClient(create_app(load(environ={}, shelf=tiny_shelf, state_dir=tmp_path)))
    assert client.get(at, headers=again).status_code == 404
    modes = {path.stat().st_mode & 0o777 for path in (tmp_path / "jobs").rglob("*.json")}
    assert modes == {0o600}


@pytest.mark.security
@pytest.mark.parametrize("job_id", ["..", "%2e%2e", "x" * 500, "0" * 32, ".locks", "../keys.json", "%00", "ABCDEF" * 6])
def test_an_id_that_is_none_names_no_job(idle: TestClient, job_id: str) -> None:
    submit(idle, what="redshifts", ids=IDS[:2])
    for answer in (
        idle.get(f"/v1/jobs/{job_id}"),
        idle.get(f"/v1/jobs/{job_id}/result"),
        idle.delete(f"/v1/jobs/{job_id}"),
    ):
        assert answer.status_code in (404, 405), answer.text


def test_two_shelves_that_share_a_folder_do_not_see_one_anothers_jobs(
    tiny_shelf: Path, bare_shelf: Path, tmp_path: Path
) -> None:
    one, other = (
        TestClient(create_app(load(environ={}, shelf=s, state_dir=tmp_path))) for s in (tiny_shelf, bare_shelf)
    )
    at = submit(one, what="neighbours", ids=["s0003"])
    assert one.get(at).status_code == 200 and other.get(at).status_code == 404
    assert not other.app.state.working.one()  # type: ignore[attr-defined]


def test_a_result_that_is_too_long_is_an_error_that_says_so(client: TestClient) -> None:
    at = submit(client, what="neighbours", ids=[f"s{n:04d}" for n in range(1, 290)], k=200)
    job = ended(client, at)
    assert job["phase"] == "ERROR" and "longer than the 4194304 bytes that this server keeps" in job["error"]
    assert client.get(f"{at}/result").status_code == 409


class Paused:
    """Work whose pieces wait until they are let go."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, then: Any = None) -> None:
        self.begun, self.go = threading.Semaphore(0), threading.Event()
        usual = working._answers

        def paused(*given: Any) -> Any:
            self.begun.release()
            assert self.go.wait(30)
            return usual(*given) if then is None else then()

        monkeypatch.setattr(working, "_answers", paused)


def test_one_that_is_worked_on_is_aborted_or_deleted_between_two_pieces(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> list[float]:
        told = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines())
        return [float(told[f'redshelf_jobs_total{{phase="{phase}"}}']) for phase in ("COMPLETED", "ABORTED")]

    before, paused = counted(), Paused(monkeypatch)
    first = submit(client, what="neighbours", ids=IDS)
    assert paused.begun.acquire(timeout=30) and client.get(first).json()["phase"] == "EXECUTING"
    client.post(f"{first}/phase", json={"phase": "ABORT"})
    second = submit(client, what="neighbours", ids=IDS)
    paused.go.set()
    job = ended(client, first)
    assert job["phase"] == "ABORTED" and 0 < job["n_done"] < len(IDS)
    assert ended(client, second)["phase"] == "COMPLETED"
    paused.go.clear()
    while paused.begun.acquire(blocking=False):
        pass
    third = submit(client, what="neighbours", ids=IDS)
    assert paused.begun.acquire(timeout=30)
    assert client.delete(third).status_code == 204 and client.get(third).status_code == 404
    paused.go.set()
    fourth = submit(client, what="neighbours", ids=IDS)
    assert ended(client, fourth)["phase"] == "COMPLETED"
    folders = {path.name for path in client.app.state.working.jobs.folder.iterdir()}  # type: ignore[attr-defined]
    assert third.rpartition("/")[2] not in folders
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [2, 1]


def test_an_unexpected_error_ends_a_job_and_not_the_next(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    paused = Paused(monkeypatch, then=lambda: 1 / 0)
    paused.go.set()
    job = ended(client, submit(client, what="neighbours", ids=IDS))
    assert job["phase"] == "ERROR" and "ZeroDivisionError: the operator finds it in the log" in job["error"]
    monkeypatch.undo()
    assert ended(client, submit(client, what="neighbours", ids=IDS[:3]))["phase"] == "COMPLETED"


def test_jobs_of_a_server_that_ends_go_on_with_the_next(
    tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(environ={}, shelf=tiny_shelf, state_dir=tmp_path)
    paused = Paused(monkeypatch)
    with TestClient(create_app(settings)) as first:
        at = submit(first, what="neighbours", ids=IDS)
        assert paused.begun.acquire(timeout=30)
        threading.Timer(0.1, paused.go.set).start()
    with TestClient(create_app(settings)) as second:
        job = ended(second, at)
        assert job["phase"] == "COMPLETED"
    assert json.loads(next((tmp_path / "jobs").rglob("job.json")).read_bytes())["beginnings"] == 1


def make(
    jobs: Jobs, owner: str | None = None, keep_seconds: float = 60, run: bool = True, max_kept: int = 100, **how: Any
) -> stored.Job:
    asked = Asked("redshifts", ("s0003",), "json", {"encoder": None, "estimator": None, "pdf": False, **how})
    job = jobs.create(asked, owner=owner, run=run, max_open=100, max_kept=max_kept, keep_seconds=keep_seconds)
    assert jobs.asked(job) == asked
    return job


def test_a_job_whose_server_dies_each_time_is_given_up(tiny_shelf: Path, tmp_path: Path, idle: TestClient) -> None:
    at_work = idle.app.state.working  # type: ignore[attr-defined]
    job = make(at_work.jobs)
    for _ in range(stored.MAX_BEGINNINGS):
        begun = at_work.jobs._read(job.job_id)
        at_work.jobs.write(stored.replace(begun, phase="EXECUTING", beginnings=begun.beginnings + 1))
    assert at_work.one()
    told = idle.get(f"/v1/jobs/{job.job_id}").json()
    assert told["phase"] == "ERROR" and told["error"].startswith("it was begun 3 times")
    assert not at_work.one()


def test_of_many_that_want_to_do_a_job_one_does(idle: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    usual = working.work
    monkeypatch.setattr(working, "work", lambda *given, **how: (done.append(given[1].ids), usual(*given, **how))[1])
    jobs: Jobs = idle.app.state.working.jobs  # type: ignore[attr-defined]
    for _ in range(6):
        make(jobs)
    shelf = idle.app.state.serving.current  # type: ignore[attr-defined]
    several = [
        working.Working(
            Jobs(jobs.folder.parent.parent, shelf.layout.root), lambda: shelf, max_bytes=1 << 20, look_seconds=9
        )
        for _ in range(4)
    ]
    for one in several:
        one.start()
    end = time.monotonic() + 60
    while any(job.is_open for job in jobs.all()) and time.monotonic() < end:
        time.sleep(0.02)
    for one in several:
        one.stop()
    assert {job.phase for job in jobs.all()} == {"COMPLETED"} and len(done) == 6


def test_a_job_is_destroyed_when_its_time_has_come_and_what_was_left_is_swept(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, tmp_path / "shelf")
    kept, over = make(jobs), make(jobs, keep_seconds=0.01)
    for name in (".new-x", ".gone-y"):
        (jobs.folder / name).mkdir()
    time.sleep(0.02)
    jobs.sweep()
    assert [job.job_id for job in jobs.all()] == [kept.job_id] and over.job_id != kept.job_id
    assert (jobs.folder / ".new-x").exists()  # it may be somebody's who is making it
    old = (datetime.now(UTC) - timedelta(hours=2)).timestamp()
    for name in (".new-x", ".gone-y"):
        os.utime(jobs.folder / name, (old, old))
    jobs.sweep()
    assert {path.name for path in jobs.folder.iterdir()} == {kept.job_id, ".locks"}


def test_what_is_gone_before_the_sweep_looks_at_it_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs(tmp_path, tmp_path / "shelf")
    kept, usual = make(jobs), Path.iterdir
    gone = [jobs.folder / ".new-x", jobs.folder / ("0" * 32)]  # one that is made elsewhere, one that is deleted there
    monkeypatch.setattr(Path, "iterdir", lambda folder: iter([*gone, *usual(folder)]))
    jobs.sweep()
    assert [job.job_id for job in jobs.all()] == [kept.job_id]


def test_who_has_as_many_jobs_as_are_kept_is_told_which_to_delete(bare_shelf: Path, tmp_path: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=bare_shelf, state_dir=tmp_path, max_kept_jobs=2)))
    assert client.get("/v1/shelf").json()["limits"]["max_kept_jobs"] == 2
    body = {"what": "neighbours", "ids": ["s0003"], "format": "votable"}
    first, second = (submit(client, **body) for _ in range(2))
    assert client.app.state.working.one()  # type: ignore[attr-defined]
    assert [client.get(at).json()["phase"] for at in (first, second)] == ["COMPLETED", "QUEUED"]
    refused = client.post("/v1/jobs", json=body)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "60")
    detail = refused.json()["detail"]
    assert "2 of your jobs are kept" in detail and f"first {first.rpartition('/')[2]}, COMPLETED since" in detail
    assert client.delete(first).status_code == 204
    submit(client, **body)


def test_jobs_that_have_ended_are_bounded_too_and_the_oldest_is_named(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, tmp_path / "shelf")
    first, second, third = (make(jobs, max_kept=3) for _ in range(3))
    for job in (third, second):
        jobs.abort(job)
    with pytest.raises(stored.Full, match=f"3 of your jobs are kept.*delete.*{second.job_id}, ABORTED since"):
        make(jobs, max_kept=3)
    make(jobs, owner="another", max_kept=3)
    jobs.forget(second)
    make(jobs, max_kept=3)
    assert jobs._read(first.job_id) is not None and len(jobs.of(None)) == 3


def test_a_table_that_is_longer_when_it_is_written_is_an_error_that_says_so() -> None:
    asked = Asked("redshifts", ("s0003",), "votable", {})
    table = pa.table({"source_id": ["s0003"] * 1000, "z": [0.5] * 1000})
    result = working._Result(None, asked, table.nbytes)  # type: ignore[arg-type]  # no shelf is asked
    result._tables.append(table)
    stream = BytesIO()
    with pytest.raises(BadInput, match=r"is \d+ bytes as votable.*keeps at most \d+") as refused:
        result.write(stream)
    assert f"is {len(stream.getvalue())} bytes" in str(refused.value) and str(table.nbytes) in str(refused.value)


def delete_while(jobs: Jobs, job: stored.Job, call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have somebody delete the job while this process is in `call` of the module os."""
    usual = getattr(os, call)

    def deleted(*given: Any) -> Any:
        monkeypatch.setattr(os, call, usual)
        jobs.forget(job)
        return usual(*given)

    monkeypatch.setattr(os, call, deleted)


def test_a_job_that_is_deleted_while_it_is_written_does_not_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, is_file = Jobs(tmp_path, tmp_path / "shelf"), Path.is_file
    for number in range(3):
        job = make(jobs)
        delete_while(jobs, job, "fsync", monkeypatch)
        with pytest.raises(stored.Gone):
            if number == 0:
                jobs.write(stored.replace(job, n_done=1))
            elif number == 1:
                jobs.write_result(job, "result.json", lambda stream: None)
            else:  # after the look whether it is there, and before the folder is written to
                monkeypatch.undo()
                monkeypatch.setattr(Path, "is_file", lambda path, job=job: (is_file(path), jobs.forget(job))[0])
                jobs.write(stored.replace(job, n_done=1))
        monkeypatch.undo()
        assert jobs.all() == [] and {path.name for path in jobs.folder.iterdir()} == {".locks"}


@pytest.mark.parametrize("change", [Jobs.start, Jobs.abort])
@pytest.mark.parametrize("written", [False, True])
def test_a_job_that_is_deleted_before_its_phase_is_changed_is_not_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Jobs, stored.Job], None], written: bool
) -> None:
    jobs = Jobs(tmp_path, tmp_path / "shelf")
    job = make(jobs, run=False)
    if written:
        delete_while(jobs, job, "fsync", monkeypatch)
    else:
        jobs.forget(job)
    with pytest.raises(NotFound, match="a job is seen with the key that made it"):
        change(jobs, job)
    assert jobs.all() == []


def test_a_full_disk_ends_a_job_as_an_error_that_says_so_and_leaves_nothing_half_written(
    tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk of 640 kB, where this process may mount one; else where every write of a result finds it full."""
    state = tmp_path / "small"
    state.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=640k", "none", state], capture_output=True, check=False
    )
    if mounted.returncode:

        def full(path: Path, *given: Any, **how: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

        monkeypatch.setattr(stored, "write_with", full)
    try:
        client = TestClient(create_app(load(environ={}, shelf=tiny_shelf, state_dir=state)))
        at_work = client.app.state.working  # type: ignore[attr-defined]
        at = submit(client, what="neighbours", ids=IDS, k=50)  # two megabytes
        filler = state / "filler"
        if not mounted.returncode:  # to the last block
            with suppress(OSError), filler.open("wb") as stream:
                while True:
                    stream.write(bytes(1 << 12))
                    stream.flush()
        assert at_work.one()
        job = client.get(at).json()
        assert job["phase"] == "ERROR" and "No space left on device" in job["error"], job
        home = at_work.jobs.folder / job["job_id"]
        assert {path.name for path in home.iterdir()} <= {"asked.json", "job.json", "spare"}
        if not mounted.returncode:
            refused = client.post("/v1/jobs", json={"what": "redshifts", "ids": IDS * 100})
            assert refused.status_code == 503 and "could not be stored: No space left" in refused.json()["detail"]
            assert {path.name for path in at_work.jobs.folder.iterdir()} == {job["job_id"], ".locks"}
        filler.unlink(missing_ok=True)
        monkeypatch.undo()
        again = submit(client, what="redshifts", ids=IDS[:20])
        assert at_work.one() and client.get(again).json()["phase"] == "COMPLETED"
    finally:
        if not mounted.returncode:
            subprocess.run(["umount", "-l", state], check=True)


@pytest.mark.slow
def test_a_job_whose_worker_is_killed_is_done_again_by_another_and_by_no_two(tiny_shelf: Path, tmp_path: Path) -> None:
    ids = [f"s{n % 300:04d}" for n in range(1, 140_000, 7)]  # long enough to be killed while it is done
    told = {"state_dir": tmp_path / "state", "refresh_seconds": 0.1}
    with (
        servers.serve(tiny_shelf, tmp_path, "--workers", "2", **told) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=120) as client,
    ):
        answer = client.post("/v1/jobs", json={"what": "neighbours", "ids": ids, "k": 2, "format": "parquet"})
        at = answer.headers["location"]
        servers.wait_for(lambda: client.get(at).json()["n_done"] > 0, "it to be worked on")
        folder = next((tmp_path / "state" / "jobs").iterdir())
        lock = next(path for path in (folder / ".locks").iterdir() if path.name != "new.lock")
        holder = next(pid for pid in server.workers() if _holds(pid, lock))
        os.kill(holder, signal.SIGKILL)
        servers.wait_for(lambda: server.get(at)["phase"] == "COMPLETED", "another to do it")
        job = server.get(at)
        assert (job["n_done"], job["error"]) == (len(ids), None)
        assert json.loads((folder / job["job_id"] / "job.json").read_bytes())["beginnings"] == 2
        client.close()
    with servers.serve(
        tiny_shelf, tmp_path, **told
    ) as server:  # killed with all its workers, or ended: it is still there
        assert server.get(at) == job
        result = httpx.get(f"http://127.0.0.1:{server.port}{at}/result", timeout=120)
        table = pq.read_table(BytesIO(result.content))
        assert table["query"].to_pylist() == [one for one in ids for _ in range(2)]
        assert not list(folder.rglob("*.tmp")) and len(list((folder / job["job_id"]).iterdir())) == 4


def _holds(pid: int, path: Path) -> bool:
    """Whether a process has a file open."""
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            if entry.readlink() == path:
                return True
    return False

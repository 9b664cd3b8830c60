"""Embedding on SLURM: what is refused before anything is written, and runs on a SLURM of one node on loopback."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import small_survey
import torture
from shelves import assert_same_rows, cut_parts
from tiled_survey import write_survey

from redshelf.api.cli import main
from redshelf.indexing import partition, slurm, store
from redshelf.indexing.jobs import Parts
from redshelf.indexing.layout import Layout
from redshelf.indexing.outputs import find as find_plan
from redshelf.indexing.outputs import folder
from redshelf.indexing.outputs import missing as plan_missing
from redshelf.models.errors import BadInput, Conflict
from redshelf.service import bulk, index, outputs
from redshelf.service import ingest as service
from redshelf.service.embedding import embed
from redshelf.service.ingest import ingest
from redshelf.service.outputs import Asked

N = 60
ROOT = Path(__file__).resolve().parents[1]
JEAN_ZAY = ROOT / "deploy" / "slurm" / "jeanzay.toml"
SETTINGS = """
command = "{command}"
signal_seconds = 60
at_once = 2
gres = "gpu:1"
[gpu.a100]
account = "abc@a100"
constraint = "{constraint}"
qos = "dev"
time = "{time}"
cpus_per_task = 1
extra = ["--mem=2000"]
[cpu]
account = "abc@a100"
time = "{time}"
cpus_per_task = 1
extra = ["--mem=2000"]
[commit]
partition = "prepost"
time = "00:10:00"
cpus_per_task = 1
extra = ["--mem=2000"]
[limits]
dev = {{ time = "02:00:00", jobs = {jobs} }}
"""


def settings(
    folder: Path, *, command: str = "true", constraint: str = "a100", time: str = "00:10:00", jobs: int = 10
) -> Path:
    path = folder / "lab.toml"
    path.write_text(SETTINGS.format(command=command, constraint=constraint, time=time, jobs=jobs))
    return path


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = tmp_path / "shelf"
    ingest(small_survey.write(tmp_path, sources=N, images=False, labels=False), root)
    return root


def written(root: Path) -> list[Path]:
    return [path for path in [*root.glob("models/*"), *root.glob("work/embed*")] if not path.name.endswith(".lock")]


def fake(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Programs of these names, and no other place to find programs of SLURM."""
    folder.mkdir()
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))


def test_the_settings_that_come_with_redshelf_are_read_and_wait_for_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = slurm.load(JEAN_ZAY)
    assert set(known.gpu) == {"v100", "a100", "h100"} and known.hint == "nomultithread"
    assert all(slurm.seconds(r.time) <= slurm.seconds(known.limits[r.qos or ""].time) for r in known.gpu.values())
    fake(tmp_path / "bin", monkeypatch, sbatch="exit 0")
    with pytest.raises(BadInput, match="account 'xxx@a100': put your project in the place of 'xxx'"):
        slurm.check_site(known, "a100")
    with pytest.raises(BadInput, match="account 'xxx@cpu': put your project"):
        slurm.check_site(known, "cpu")
    with pytest.raises(BadInput, match="GPU None: the settings have a100, h100, v100; name one with --gpu"):
        slurm.choose(known, None)
    with pytest.raises(BadInput, match=r"the settings have no section \[cpu\]"):
        slurm.choose(known.model_copy(update={"cpu": None}), "cpu")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ("color = 1", r"unknown setting 'color'; .*command"),
        ("gpu.a100.acount = 'x'", r"unknown setting 'gpu.a100.acount'; .*account"),
        ("gpu.a100.time = 'soon'", "gpu.a100.time='soon'"),
        ("at_once = 0", "at_once=0"),
        ("= 3", "not valid TOML"),
    ],
)
def test_settings_that_are_wrong_are_named(tmp_path: Path, wrong: str, says: str) -> None:
    path = tmp_path / "s.toml"
    least = {
        "gpu.a100.time": '"01:00:00"',
        "gpu.a100.cpus_per_task": 1,
        "commit.time": '"01:00:00"',
        "commit.cpus_per_task": 1,
    }
    lines = [f"{key} = {value}" for key, value in least.items() if not wrong.startswith(f"{key} ")]
    path.write_text("\n".join([*lines, wrong]) if "." in wrong else "\n".join([wrong, *lines]))
    with pytest.raises(BadInput, match=says):
        slurm.load(path)


def test_a_machine_without_slurm_is_told_before_anything_is_written(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", monkeypatch)
    with pytest.raises(BadInput, match="there is no sbatch on the PATH"):
        bulk.submit(shelf, encoder="photometry", settings=settings(tmp_path))
    assert not written(shelf)


def test_an_account_that_slurm_does_not_know_is_told_before_anything_is_written(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    says = "echo 'allocation failure: Invalid account or account/partition combination specified' >&2; exit 1"
    fake(tmp_path / "bin", monkeypatch, sbatch=says)
    with pytest.raises(BadInput, match="sbatch refuses: allocation failure: Invalid account"):
        bulk.submit(shelf, encoder="photometry", settings=settings(tmp_path))
    assert not written(shelf)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"time": "03:00:00"}, "time 03:00:00: QoS dev allows 02:00:00"),
        ({"time": "00:01:00"}, "time 00:01:00: a task is told to end 60 s before"),
        ({"jobs": 5}, r"5 tasks and a commit: QoS dev takes 5 jobs; ask for larger tasks \(--task-parts 4\)"),
    ],
)
def test_limits_are_checked_before_anything_is_planned(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], says: str
) -> None:
    fake(tmp_path / "bin", monkeypatch, sbatch="exit 0", scontrol="exit 0")
    sizes = {"part_rows": 4, "task_parts": 3}  # 15 parts, 5 tasks
    with pytest.raises(BadInput, match=says):
        bulk.submit(shelf, encoder="photometry", settings=settings(tmp_path, **given), **sizes)  # type: ignore[arg-type]
    assert not list(shelf.glob("work/embed*/plan.json"))


def test_the_limits_of_an_output_are_checked_before_anything_is_planned(
    bare_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", monkeypatch, sbatch="exit 0", scontrol="echo 'MaxArraySize = 4'")
    where = settings(tmp_path)
    with pytest.raises(BadInput, match=r"5 tasks: this cluster's arrays have at most 4; .*\(--task-parts 4\)"):
        asked = Asked("neighbours", part_rows=4)
        outputs.submit(bare_shelf, tmp_path / "n.parquet", asked, task_parts=3, settings=where)
    assert {path.name for path in tmp_path.iterdir()} == {"bin", where.name}


def test_an_array_larger_than_the_cluster_takes_is_refused(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(tmp_path / "bin", monkeypatch, sbatch="exit 0", scontrol="echo 'MaxArraySize = 4'")
    with pytest.raises(BadInput, match=r"5 tasks: this cluster's arrays have at most 4; .*\(--task-parts 4\)"):
        bulk.submit(shelf, encoder="photometry", settings=settings(tmp_path), part_rows=4, task_parts=3)


class Two(Parts):
    """Two parts, a task each."""

    parts, task_parts = 2, 1

    def rows_of(self, parts: Iterable[int]) -> int:
        return len(list(parts))


@pytest.mark.parametrize("refused", [False, True])  # scancel
@pytest.mark.parametrize("error", [KeyboardInterrupt, Conflict])
def test_an_array_whose_commit_is_not_submitted_is_cancelled_and_known_until_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], refused: bool
) -> None:
    asked: list[str] = []
    home, known = tmp_path / "home", slurm.load(settings(tmp_path))
    work = slurm.Job("embed", ("embed",), "1234", home, Two(), lambda: {0, 1}, False)

    def ask(command: list[str], script: str | None = None) -> subprocess.CompletedProcess[str]:
        asked.append(command[0])
        if "--dependency=afterany:7" in command:
            entry = {"array": "7", "commit": "", "tasks": "0-1", "by_hand": True}
            assert slurm.read_record(home)["submitted"] == [entry]  # a kill would leave this
            raise error
        return subprocess.CompletedProcess(command, int(refused and command[0] == "scancel"), "7\n", "")

    monkeypatch.setattr(slurm, "_ask", ask)
    with pytest.raises(error):
        slurm.submit(Layout(tmp_path), work, known, kind=None)
    assert asked == ["squeue", "sbatch", "sbatch", "scancel"]
    assert bool(slurm.read_record(home)) == refused
    if refused:  # it may run still, so that another submission waits for it
        with pytest.raises(Conflict, match="plan 1234 is already in the queue as job 7: let it end"):
            slurm.submit(Layout(tmp_path), work, known, kind=None)


def test_times_are_read_as_slurm_writes_them() -> None:
    assert slurm.seconds("20:00:00") == 72_000 and slurm.seconds("1-02:03:04") == 93_784


# -- a real SLURM ------------------------------------------------------------------------------------------------------

SLOW = textwrap.dedent(
    """
    # redshelf, and some seconds before every part is written
    import sys, time
    sys.path.insert(0, {links!r})
    from redshelf.indexing import embed
    write = embed.write_part
    def slow(*args, **kwargs):
        time.sleep({seconds})
        return write(*args, **kwargs)
    embed.write_part = slow
    from redshelf.api.cli import main
    sys.exit(main())
    """
)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """SLURM on loopback, two pretend GPUs; ended with the tests."""
    programs = ("slurmctld", "slurmd", "munged", "sbatch")
    path = f"{os.environ['PATH']}:/usr/sbin"
    missing = [name for name in programs if not shutil.which(name, path=path)]
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root and slurm-wlm and munge; lacks {', '.join(missing) or 'root'}")
    folder, script = tmp_path_factory.mktemp("slurm"), str(Path(__file__).parent / "onenode_slurm.sh")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", path)
        subprocess.run(["bash", script, "up", str(folder)], check=True, capture_output=True, timeout=120)
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        yield
        subprocess.run(["bash", script, "down", str(folder)], check=False, capture_output=True, timeout=120)


@dataclass(frozen=True)
class Job:
    """An embedding of 15 parts in 3 tasks that was submitted, and what an undisturbed one gives."""

    root: Path
    array: str
    settings: Path
    expected: np.ndarray

    @property
    def layout(self) -> Layout:
        return Layout(self.root)

    def done(self) -> int:
        return sum(1 for _ in self.root.glob("work/embed.photometry.*/*/part-*.json"))

    def finished(self) -> bool:
        """Whether the table is there; hurries what waits to be requeued, and does what an operator would."""
        for line in _said("squeue", "--noheader", "--format=%i %T %r").splitlines():
            job, state, reason = line.split(maxsplit=2)
            if state == "PENDING" and "BeginTime" in reason:
                time.sleep(2)  # slurmd refuses a job that it killed in the same second
                subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=False)
            if "held" in reason:
                subprocess.run(["scontrol", "release", job], check=False)
        for line in _said("sinfo", "--noheader", "--Node", "--format=%n %T").splitlines():
            node, state = line.split()
            if state.startswith(("down", "drained")):
                subprocess.run(["scontrol", "update", f"NodeName={node}", "State=RESUME"], check=False)
        return store.count_rows(self.layout.embeddings("photometry", self.layout.newest("photometry"))) == N

    def wait(self, until: Callable[[], bool], seconds: float = 400) -> None:
        deadline = time.monotonic() + seconds
        while not until():
            logs = "\n".join(path.read_text() for path in self.root.glob("work/logs/*/*"))
            assert time.monotonic() < deadline, _said("squeue") + logs
            time.sleep(0.3)

    def check(self) -> None:
        self.wait(self.finished)
        table = store.open_table(self.layout.embeddings("photometry", self.layout.newest("photometry"))).to_table()
        assert table["row"].to_pylist() == list(range(N))
        np.testing.assert_array_equal(store.list_values(table["vector"]), self.expected)


@pytest.fixture
def job(cluster: None, shelf: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Job]:
    """Half a second a part, and ten minutes a task; a test may ask for other figures."""
    seconds, limit = getattr(request, "param", (0.5, "00:10:00"))
    other = tmp_path / "undisturbed"
    shutil.copytree(shelf, other)
    revision, _ = embed(other, encoder="photometry")
    expected = store.list_values(
        store.open_table(Layout(other).embeddings("photometry", revision)).to_table()["vector"]
    )
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW.format(links=str(Path(__file__).parent / "links"), seconds=seconds))
    where = settings(tmp_path, command=f"{sys.executable} {slow}", time=limit)
    told = bulk.submit(shelf, encoder="photometry", settings=where, part_rows=4, task_parts=5)
    assert (told["parts"], told["tasks"], told["submitted"]["tasks"]) == (15, 3, "0-2")
    yield Job(shelf, told["submitted"]["array"], where, expected)
    subprocess.run(["scancel", "--user=root"], check=False)
    for _ in range(120):  # a step that outlives its SLURM takes the next one's node down
        if not _said("squeue", "--noheader"):
            break
        time.sleep(0.5)


torture_only = pytest.mark.skipif(not torture.count(0, 1), reason="waits minutes for SLURM's own times: `make torture`")


def submitted(job: Job) -> list[dict[str, str]]:
    (home,) = partition.open_plans(job.layout)
    return list(slurm.read_record(home)["submitted"])


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_array_job_embeds_everything_and_a_second_submission_waits(job: Job) -> None:
    with pytest.raises(Conflict, match=f"already in the queue as job {job.array}"):
        bulk.submit(job.root, encoder="photometry", settings=job.settings)
    job.check()
    assert bulk.submit(job.root, encoder="photometry", settings=job.settings) == {"rows": N, "submitted": None}


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_constraint_that_no_node_has_is_told_before_anything_is_written(
    cluster: None, shelf: Path, tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=r"sbatch refuses: .*feature"):
        bulk.submit(shelf, encoder="photometry", settings=settings(tmp_path, constraint="b200"))
    assert not written(shelf)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_whose_time_is_up_goes_back_into_the_queue_and_on(job: Job) -> None:
    job.wait(lambda: job.done() >= 1)
    # what --signal=B:USR1@N sends when the time is nearly up
    subprocess.run(["scancel", "--batch", "--signal=USR1", "--state=RUNNING", job.array], check=False)
    requeued = f"squeue --noheader --array --jobs={job.array} --format=%r"
    job.wait(lambda: "BeginTime" in _said(*requeued.split()) or job.done() == 15)
    job.check()
    assert "embedding stopped by SIGUSR1" in "".join(p.read_text() for p in job.root.glob("work/logs/*/*.out"))


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(900)
@torture_only
@pytest.mark.parametrize("job", [(18.0, "00:02:00")], indirect=True)
def test_a_task_whose_limit_comes_near_is_told_by_slurm_itself(job: Job) -> None:
    job.wait(job.finished, seconds=800)
    job.check()
    logs = [path.read_text() for path in job.root.glob("work/logs/*/*.out")]
    assert any("embedding stopped by SIGUSR1" in log for log in logs)
    assert not any("DUE TO TIME LIMIT" in log for log in logs)


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
@torture_only
def test_a_controller_that_ends_and_comes_back_loses_nothing(job: Job) -> None:
    job.wait(lambda: job.done() >= 1)
    configuration = Path(os.environ["SLURM_CONF"])
    controller = int((configuration.parent / "slurmctld.pid").read_text())
    os.kill(controller, signal.SIGTERM)
    for _ in range(300):
        if not Path(f"/proc/{controller}").exists():
            break
        time.sleep(0.1)
    with pytest.raises(BadInput, match=r"sbatch refuses: .*Unable to contact slurm controller"):
        bulk.submit(job.root, encoder="photometry", settings=job.settings)
    subprocess.run(["slurmctld", "-f", str(configuration)], check=True, capture_output=True, timeout=60)
    job.check()


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_that_is_killed_is_sent_again_alone(job: Job) -> None:
    waiting = ["squeue", "--noheader", "--states=PENDING", f"--jobs={job.array}", "--format=%K"]
    # a task that waits beside others is one record with them, and whoever kills it kills them all
    job.wait(lambda: job.done() >= 1 and _said(*waiting).strip() in {"2", ""})
    subprocess.run(["scancel", "--signal=KILL", "--full", f"{job.array}_0"], check=False)
    subprocess.run(["scancel", "--signal=KILL", "--full", f"{job.array}_2"], check=False)
    job.wait(lambda: job.finished() or len(submitted(job)) == 2)
    if not job.finished():
        assert submitted(job)[1]["tasks"] in {"0", "2", "0,2"}
    job.check()


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_goes_down_and_comes_back_loses_nothing(job: Job) -> None:
    job.wait(lambda: job.done() >= 1)
    node = _said("sinfo", "--noheader", "--format=%n").split()[0]
    subprocess.run(["scontrol", "update", f"NodeName={node}", "State=DOWN", "Reason=test"], check=True)
    job.wait(lambda: not _said("squeue", "--noheader", "--states=RUNNING,COMPLETING"))
    job.check()


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_ingest_is_cut_by_an_array_of_tasks_and_what_is_killed_is_sent_again(cluster: None, tmp_path: Path) -> None:
    survey, root = write_survey(tmp_path / "my survey"), tmp_path / "s"
    ingest(survey, tmp_path / "undisturbed")
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW.format(links=str(Path(__file__).parent / "links"), seconds=0.5).replace("embed", "cutting"))
    where = settings(tmp_path, command=f"{sys.executable} {slow}")
    told = service.submit(survey, root, settings=where, part_rows=8, task_parts=3)
    assert told["submitted"]["tasks"] == f"0-{told['tasks'] - 1}"
    with pytest.raises(Conflict, match="already in the queue as job"):
        service.submit(survey, root, settings=where, part_rows=8, task_parts=3)
    found = Job(root, told["submitted"]["array"], where, np.empty(0))
    found.wait(lambda: bool(cut_parts(root)))
    subprocess.run(["scancel", "--signal=KILL", "--full", f"{found.array}_0"], check=False)
    found.wait(lambda: not (root / "work" / "ingest").exists())
    assert_same_rows(root, tmp_path / "undisturbed")
    logs = "".join(path.read_text() for path in root.glob("work/logs/*/*.out"))
    assert "Traceback" not in logs
    found.wait(lambda: not _said("squeue", "--noheader"))


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_index_is_made_by_an_array_of_tasks(cluster: None, shelf: Path, tmp_path: Path) -> None:
    embed(shelf, encoder="photometry")
    links = str(Path(__file__).parent / "links")
    lists = tmp_path / "lists.py"  # the command line, with inverted lists also for so few vectors
    lists.write_text(
        f"import sys\nsys.path.insert(0, {links!r})\nimport redshelf.indexing.ann as ann\nann.EXACT_VALUES = 100\n"
        "from redshelf.api.cli import main\nsys.exit(main())\n"
    )
    told = index.submit(
        shelf, encoder="photometry", settings=settings(tmp_path, command=f"{sys.executable} {lists}"), part_rows=20
    )
    assert (told["parts"], told["tasks"]) == (3, 1)
    found = Job(shelf, told["submitted"]["array"], tmp_path, np.empty(0))
    found.wait(lambda: not (shelf / "work" / f"index.photometry.{Layout(shelf).newest('photometry')}").exists())
    _, built = index.build_index(shelf, encoder="photometry", part_rows=20)
    assert (built["kind"], built["rows"]) == ("ivf", N)
    assert "Traceback" not in "".join(path.read_text() for path in shelf.glob("work/logs/*/*.out"))
    found.wait(lambda: not _said("squeue", "--noheader"))


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_neighbours_of_every_source_are_found_by_an_array_of_tasks_and_what_is_killed_is_sent_again(
    cluster: None, bare_shelf: Path, tmp_path: Path
) -> None:
    root, path = tmp_path / "a shelf", tmp_path / "my neighbours.parquet"
    shutil.copytree(bare_shelf, root)
    outputs.write(root, tmp_path / "undisturbed.parquet", Asked("neighbours", k=5, part_rows=4))
    slow = tmp_path / "slow.py"
    program = SLOW.format(links=str(Path(__file__).parent / "links"), seconds=0.5)
    slow.write_text(program.replace("embed", "outputs").replace("write_part", "_write_part"))
    where = settings(tmp_path, command=f"{sys.executable} {slow}")
    words = ["neighbours", "-k", "5", "-o", str(path), "--part-rows", "4", "--task-parts", "5", "--shelf", str(root)]
    assert main([*words, "--runner", "slurm", "--slurm", str(where)]) == 0
    with pytest.raises(Conflict, match="already in the queue as job"):
        outputs.submit(root, path, Asked("neighbours"), settings=where)
    plan = find_plan(path, "neighbours")
    assert plan is not None and (plan.parts, plan.tasks) == (15, 3)
    (sent,) = slurm.read_record(folder(path))["submitted"]
    found = Job(root, sent["array"], where, np.empty(0))
    found.wait(lambda: len(plan_missing(plan)) < 15)
    subprocess.run(["scancel", "--signal=KILL", "--full", f"{found.array}_0"], check=False)
    found.wait(path.exists)
    assert pq.read_table(path).equals(pq.read_table(tmp_path / "undisturbed.parquet"))
    found.wait(lambda: not _said("squeue", "--noheader"))
    assert not folder(path).exists()
    assert "Traceback" not in "".join(log.read_text() for log in root.glob("work/logs/*/*.out"))


@pytest.mark.slurm
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_script_for_pretraining_goes_back_into_the_queue_and_ends_with_weights(
    cluster: None, tmp_path: Path
) -> None:
    root = tmp_path / "a shelf"
    ingest(small_survey.write(tmp_path, sources=100, labels=False), root)
    environment = {
        "SHELF": str(root),
        "REDSHELF": f"{sys.executable} -m redshelf.api.cli",
        "OPTIONS": "--objective masked --name vit --max-seconds 12 --batch-size 16",
        "PYTHONPATH": str(Path(__file__).parent / "links"),
        "OMP_NUM_THREADS": "1",
    }
    here = "--ntasks-per-node=1 --gres=gpu:1 --cpus-per-task=1 --time=00:10:00 --account=abc@a100 --mem=4000"
    script = str(ROOT / "deploy" / "slurm" / "pretrain.sh")
    command = ["sbatch", "--parsable", *here.split(), f"--output={tmp_path}/log", script]
    told = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    job, deadline = told.stdout.strip(), time.monotonic() + 400

    def wait(until: Callable[[], bool]) -> None:
        while not until():
            log = (tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""
            assert time.monotonic() < deadline and "Exited with exit code 1" not in log, _said("squeue") + log
            time.sleep(0.3)

    wait(lambda: any(root.glob("work/train.vit*/*.safetensors")) or any(root.glob("work/**/*.jsonl")))
    subprocess.run(["scancel", "--batch", "--signal=USR1", job], check=True)
    wait(lambda: "BeginTime" in _said("squeue", "--noheader", f"--jobs={job}", "--format=%r"))
    time.sleep(2)  # slurmd refuses a job that it killed in the same second
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)
    wait(lambda: Layout(root).encoders().get("vit") is not None)
    log = (tmp_path / "log").read_text()
    assert "by SIGUSR1" in log
    wait(lambda: not _said("squeue", "--noheader"))

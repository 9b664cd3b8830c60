"""Bulk embedding step by step, by several processes and on Ray: what is disturbed ends as what is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import small_survey

from redshelf.api.cli import main
from redshelf.indexing import embed as parts_of_plan
from redshelf.indexing import partition, store
from redshelf.indexing import parts as stored
from redshelf.indexing.jobs import Begin
from redshelf.indexing.layout import Layout
from redshelf.indexing.parts import done_parts, read_receipt
from redshelf.indexing.runners import on_processes
from redshelf.models import checkpoint
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound, RedshelfError
from redshelf.service import bulk, status
from redshelf.service.embedding import embed
from redshelf.service.ingest import ingest

N, PART_ROWS, TASK_PARTS = 60, 8, 3  # 8 parts, 3 tasks
LINKS = str(Path(__file__).parent / "links")


@dataclass(frozen=True)
class Planned:
    """A shelf with an open plan, and the vectors that an undisturbed run gives."""

    root: Path
    layout: Layout
    home: Path
    revision: str
    expected: np.ndarray

    @property
    def table(self) -> Path:
        return self.layout.embeddings("photometry", self.revision)

    def finish(self) -> None:
        """Do what misses, commit, and compare row by row."""
        plan, _ = partition.find(self.layout, "photometry")
        for task in range(plan.tasks):
            bulk.do(self.root, encoder="photometry", task=task)
        assert bulk.commit(self.root, encoder="photometry") == N
        self.check()

    def check(self) -> None:
        found = store.open_table(self.table)
        assert found.to_table()["row"].to_pylist() == list(range(N))
        np.testing.assert_array_equal(store.list_values(found.to_table()["vector"]), self.expected)
        named = {Path(f.path).name for fragment in found.get_fragments() for f in fragment.data_files()}
        assert {path.name for path in (self.table / "data").iterdir()} == named, "nothing is left beside the table"
        assert not self.home.exists()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bulk") / "shelf"
    ingest(small_survey.write(root.parent, sources=N, images=False, labels=False), root)
    embed(root, encoder="photometry")
    return root


@pytest.fixture
def planned(undisturbed: Path, tmp_path: Path) -> Planned:
    root = tmp_path / "shelf"
    shutil.copytree(undisturbed, root)
    layout = Layout(root)
    revision = layout.newest("photometry")
    table = layout.embeddings("photometry", revision)
    expected = store.list_values(store.open_table(table).to_table()["vector"])
    shutil.rmtree(table)
    plan = bulk.make_plan(root, encoder="photometry", part_rows=PART_ROWS, task_parts=TASK_PARTS)
    assert plan is not None
    return Planned(root, layout, partition.folder(layout, "photometry", revision), revision, expected)


def receipts(planned: Planned) -> Path:
    return partition.receipts(planned.layout, partition.read(planned.home))


def test_tasks_in_any_order_and_twice_give_what_one_run_gives(planned: Planned) -> None:
    for task in (2, 0, 1, 0):
        done = bulk.do(planned.root, encoder="photometry", task=task)
    assert done == {"parts": 3, "done_before": 3, "rows": 24}
    assert bulk.commit(planned.root, encoder="photometry") == N
    planned.check()
    assert bulk.commit(planned.root, encoder="photometry") == N, "a second commit changes nothing"
    planned.check()
    assert bulk.make_plan(planned.root, encoder="photometry") is None, "nothing is left to plan"


def test_the_receipts_say_what_was_done(planned: Planned) -> None:
    bulk.do(planned.root, encoder="photometry", part=7)
    receipt = read_receipt(receipts(planned), 7)
    assert (receipt["first_row"], receipt["rows"], receipt["zero_vectors"]) == (56, 4, 0)
    assert receipt["plan"] == partition.read(planned.home).id
    assert len(receipt["files"]) == 1 and receipt["encode_seconds"] > 0


def test_status_tells_how_far_an_open_plan_is(planned: Planned, capsys: pytest.CaptureFixture[str]) -> None:
    bulk.do(planned.root, encoder="photometry", task=0)
    (open_plan,) = status.status(planned.root).embedding
    assert (open_plan.done, open_plan.parts, open_plan.rows_done, open_plan.rows) == (3, 8, 24, N)
    assert open_plan.rate is not None and open_plan.seconds_left == pytest.approx(36 / open_plan.rate)
    assert main(["status", "--shelf", str(planned.root)]) == 0
    assert "embedding  photometry: 3 of 8 parts, 24 of 60 sources" in capsys.readouterr().out


def test_a_commit_names_the_parts_that_are_missing(planned: Planned) -> None:
    for part in (0, 4):
        bulk.do(planned.root, encoder="photometry", part=part)
    with pytest.raises(Conflict, match="6 of 8 parts have no receipt: 1-3,5-7"):
        bulk.commit(planned.root, encoder="photometry")
    planned.finish()


def alter_receipt(planned: Planned) -> None:
    path = receipts(planned) / "part-000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "first_row": 9}))


def cut_receipt(planned: Planned) -> None:
    path = receipts(planned) / "part-000001.json"
    path.write_bytes(path.read_bytes()[:-40])


def _file(planned: Planned) -> Path:
    (name,) = read_receipt(receipts(planned), 1)["files"]
    return planned.table / name


def truncate(planned: Planned) -> None:
    with _file(planned).open("r+b") as handle:
        handle.truncate(_file(planned).stat().st_size - 1)


def flip_a_bit(planned: Planned) -> None:
    data = bytearray(_file(planned).read_bytes())
    data[40] ^= 4
    _file(planned).write_bytes(data)


def remove(planned: Planned) -> None:
    _file(planned).unlink()


def take_another_plans(planned: Planned) -> None:
    path = receipts(planned) / "part-000001.json"
    document = json.loads(path.read_text()) | {"plan": "0123456789abcdef"}
    path.write_text(json.dumps({**document, "seal": stored._seal(document)}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (alter_receipt, "part 1: .*altered or damaged"),
        (cut_receipt, "part 1: .*not valid JSON"),
        (truncate, "part 1: data/.* bytes, expected"),
        (flip_a_bit, "part 1: data/.*sha256 differs"),
        (remove, "part 1: data/.*missing"),
        (take_another_plans, "part 1: the receipt is of plan"),
    ],
)
def test_what_was_damaged_is_named_is_not_committed_and_is_done_again(
    planned: Planned, damage: Callable[[Planned], None], says: str
) -> None:
    for task in range(3):
        bulk.do(planned.root, encoder="photometry", task=task)
    damage(planned)
    with pytest.raises(Conflict, match=f"1 of 8 parts are damaged and set aside, run them again: {says}"):
        bulk.commit(planned.root, encoder="photometry")
    assert store.count_rows(planned.table) == 0
    assert done_parts(receipts(planned)) == {0, *range(2, 8)}
    planned.finish()


def test_other_weights_than_the_plans_are_refused(planned: Planned) -> None:
    plan, _ = partition.find(planned.layout, "photometry")
    encoder = checkpoint.load(planned.layout.model("photometry", planned.revision))
    encoder.revision = "000000000000"
    with pytest.raises(BadInput, match=f"of revision {planned.revision}, and given is photometry of revision 0000"):
        parts_of_plan.embed_parts(planned.layout, encoder, plan, [0])
    weights = planned.layout.model("photometry", planned.revision) / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(BadInput, match="were altered or damaged"):
        bulk.do(planned.root, encoder="photometry", part=0)
    assert not done_parts(receipts(planned))


def test_an_open_plan_is_gone_on_with_and_another_size_is_refused(planned: Planned) -> None:
    again = bulk.make_plan(planned.root, encoder="photometry")
    assert again == partition.read(planned.home)
    with pytest.raises(Conflict, match="an open plan has part_rows=8, not 9: finish it, or remove"):
        bulk.make_plan(planned.root, encoder="photometry", part_rows=9)
    bulk.do(planned.root, encoder="photometry", task=0)
    assert embed(planned.root, encoder="photometry") == (planned.revision, N), "one machine goes on with it too"
    planned.check()


def test_without_a_plan_a_step_says_how_to_make_one(undisturbed: Path) -> None:
    with pytest.raises(NotFound, match=r"no open plan for encoder 'photometry'.*redshelf embed --plan"):
        bulk.do(undisturbed, encoder="photometry", part=0)
    assert bulk.commit(undisturbed, encoder="photometry") == N


def test_a_signal_ends_a_task_after_the_part_at_hand(planned: Planned) -> None:
    plan, _ = partition.find(planned.layout, "photometry")
    encoder = checkpoint.load(planned.layout.model("photometry", planned.revision))
    told: list[str] = []
    with pytest.raises(Interrupted, match="stopped by SIGUSR1 before part 1: 7 parts are left to do"):
        parts_of_plan.embed_parts(
            planned.layout, encoder, plan, range(8), stop=told, progress=lambda rows: told.append("SIGUSR1")
        )
    assert done_parts(receipts(planned)) == {0}
    planned.finish()


SLOW = textwrap.dedent(
    """
    import sys, time
    from redshelf.indexing import embed
    write = embed.write_part
    def slow(*args, **kwargs):
        print("writing", flush=True)
        time.sleep(float(sys.argv[1]))
        return write(*args, **kwargs)
    embed.write_part = slow
    from redshelf.api.cli import main
    sys.exit(main(sys.argv[2:]))
    """
)


def start(seconds: float, *arguments: str) -> subprocess.Popen[str]:
    """`redshelf` in a child that sleeps before it writes a part, after its first line."""
    environment = {**os.environ, "PYTHONPATH": LINKS}
    command = [sys.executable, "-c", SLOW, str(seconds), *arguments]
    child = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None and child.stdout.readline() == "writing\n"
    return child


def test_sigusr1_to_a_task_finishes_the_part_and_leaves_with_85(planned: Planned) -> None:
    child = start(0.7, "embed", "--encoder", "photometry", "--task", "0", "--shelf", str(planned.root))
    child.send_signal(signal.SIGUSR1)
    _, said = child.communicate(timeout=60)
    assert child.returncode == 85 and "embedding stopped by SIGUSR1" in said
    assert 0 < len(done_parts(receipts(planned))) < 3
    planned.finish()


def test_sigusr1_before_the_first_part_leaves_with_85_too(planned: Planned) -> None:
    waiting = "import sys, os, signal; from redshelf.api import commands; from redshelf.api.cli import main\n"
    waiting += "commands.RUN['embed'] = lambda a: os.kill(os.getpid(), signal.SIGUSR1)\nsys.exit(main(sys.argv[1:]))"
    told = subprocess.run(
        [sys.executable, "-c", waiting, "embed", "--encoder", "photometry", "--task", "0"],
        env={**os.environ, "PYTHONPATH": LINKS}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 85 and "stopped by SIGUSR1; the same command goes on" in told.stderr


def test_a_task_that_is_killed_leaves_nothing_half_done(planned: Planned) -> None:
    child = start(30, "embed", "--encoder", "photometry", "--task", "0", "--shelf", str(planned.root))
    child.kill()
    child.communicate(timeout=60)
    assert not done_parts(receipts(planned))
    planned.finish()


def test_the_same_part_twice_at_once_is_stored_once(planned: Planned) -> None:
    threads = [
        threading.Thread(target=bulk.do, args=(planned.root,), kwargs={"encoder": "photometry", "task": task})
        for task in (0, 1, 2, 0, 1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bulk.commit(planned.root, encoder="photometry") == N
    planned.check()


def test_two_commits_at_once_commit_once(planned: Planned) -> None:
    for task in range(3):
        bulk.do(planned.root, encoder="photometry", task=task)
    plan, _ = partition.find(planned.layout, "photometry")
    rows: list[int] = []
    threads = [threading.Thread(target=lambda: rows.append(parts_of_plan.commit(planned.layout, plan))) for _ in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rows == [N, N]
    planned.check()
    assert store.open_table(planned.table).version == 1


def worker(planned: Planned) -> Begin:
    return partial(parts_of_plan.worker, planned.root, "photometry", None)


@pytest.mark.slow
def test_processes_give_what_one_gives(planned: Planned) -> None:
    encoder = checkpoint.load(planned.layout.model("photometry", planned.revision))
    run = on_processes(worker(planned), ["cpu", "cpu"])
    assert parts_of_plan.embed_all(planned.layout, encoder, run=run) == N
    planned.check()


@pytest.mark.slow
def test_a_process_that_dies_is_told_and_the_rest_is_kept(planned: Planned) -> None:
    encoder = checkpoint.load(planned.layout.model("photometry", planned.revision))
    run = on_processes(worker(planned), ["cpu"])

    def killing(groups: Sequence[Sequence[int]], progress: Callable[[int], object]) -> None:
        def kill(rows: int) -> None:
            (child,) = [pid for pid in children(os.getpid()) if "spawn_main" in command(pid) and pid not in before]
            os.kill(child, signal.SIGKILL)

        before = children(os.getpid())
        run(groups, kill)

    def children(of: int) -> set[int]:
        return {
            int(pid) for task in Path(f"/proc/{of}/task").iterdir() for pid in (task / "children").read_text().split()
        }

    def command(pid: int) -> str:
        return Path(f"/proc/{pid}/cmdline").read_text()

    with pytest.raises((RedshelfError, ValueError)):
        parts_of_plan.embed_all(planned.layout, encoder, run=killing)
    assert store.count_rows(planned.table) == 0
    planned.finish()


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_what_one_machine_gives(planned: Planned) -> None:
    pytest.importorskip("ray", reason="needs the `ray` extra")
    environment = {**os.environ, "PYTHONPATH": LINKS, "RAY_ADDRESS": ""}
    command = ["embed", "--encoder", "photometry", "--runner", "ray", "--shelf", str(planned.root)]
    told = subprocess.run(
        [sys.executable, "-m", "redshelf.api.cli", *command],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    planned.check()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB; needs the right to mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip("may not mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_at_any_place_loses_nothing(planned: Planned, small_disk: Path) -> None:
    root = small_disk / "shelf"
    shutil.copytree(planned.root, root)
    failed, there = 0, replace(planned, root=root, layout=Layout(root))
    there = replace(there, home=partition.folder(there.layout, "photometry", planned.revision))
    filler = small_disk / "filler"
    for free in range(0, 80, 4):  # kB; every time the disk fills up somewhere else, and what is done stays
        filler.write_bytes(b"")
        left = os.statvfs(small_disk)
        filler.write_bytes(bytes(max(0, left.f_bavail * left.f_frsize - free * 1024)))
        try:
            embed(root, encoder="photometry")
            break
        except (OSError, RedshelfError) as error:
            failed += 1
            assert "space" in str(error).lower() or "os error 28" in str(error).lower(), error
    filler.unlink(missing_ok=True)
    assert failed > 3
    assert embed(root, encoder="photometry") == (planned.revision, N)
    there.check()


def test_what_follows_a_commit_is_done_again_where_a_kill_came_between(
    planned: Planned, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("killed")

    for task in range(3):
        bulk.do(planned.root, encoder="photometry", task=task)
    for name in ("verify_rows", "tag", "unreferred"):
        with monkeypatch.context() as patch:
            patch.setattr(stored, name, fail)
            with pytest.raises(OSError, match="killed"):
                bulk.commit(planned.root, encoder="photometry")
        assert planned.home.exists()
    before = bulk.do(planned.root, encoder="photometry", task=0)
    assert before == {"parts": 3, "done_before": 3, "rows": 24}, "what is committed is not computed again"
    assert embed(planned.root, encoder="photometry") == (planned.revision, N)
    planned.check()
    plan = f"plan-{store.open_table(planned.table).tags.list().popitem()[0].removeprefix('plan-')}"
    assert store.open_table(planned.table).tags.list()[plan]["version"] == 1


def test_a_worker_stops_when_its_plan_is_committed_and_leaves_nothing(planned: Planned) -> None:
    child = start(3, "embed", "--encoder", "photometry", "--task", "0", "--shelf", str(planned.root))
    planned.finish()
    _, said = child.communicate(timeout=60)
    assert child.returncode == 1 and "was committed or removed" in said
    planned.check()


def test_another_revision_waits_for_the_open_plan_which_is_gone_on_with(planned: Planned) -> None:
    from redshelf.models.photometry import Photometry

    encoder = checkpoint.load(planned.layout.model("photometry", planned.revision))
    assert isinstance(encoder, Photometry)
    other = Photometry(replace(encoder.scaling, centre=tuple(c + 1 for c in encoder.scaling.centre)))
    folder = checkpoint.save(other, planned.layout.models, provenance={})
    newer = folder.name.rpartition(".")[2]
    assert planned.layout.newest("photometry") == newer != planned.revision
    with pytest.raises(
        Conflict, match=f"a plan of photometry.{planned.revision} is open, and this is photometry.{newer}"
    ):
        partition.make(planned.layout, checkpoint.load(folder))
    assert bulk.make_plan(planned.root, encoder="photometry") == partition.read(planned.home)
    bulk.do(planned.root, encoder="photometry", task=2)
    assert embed(planned.root, encoder="photometry") == (planned.revision, N)
    planned.check()


def test_a_plan_that_cannot_be_read_stops_no_other_and_is_told(planned: Planned) -> None:
    other = planned.home.with_name("embed.other.0123")
    other.mkdir()
    (other / "plan.json").write_text("{")
    bulk.do(planned.root, encoder="photometry", task=0)
    found = status.status(planned.root)
    assert [one.encoder for one in found.embedding] == ["photometry"]
    assert any(str(other) in line and "damaged" in line for line in found.missing)
    assert "36 vectors of photometry, whose plan is open" in found.missing
    planned.finish()


def test_a_pause_between_runs_does_not_count_for_the_rate(planned: Planned) -> None:
    for part in (0, 1):
        bulk.do(planned.root, encoder="photometry", part=part)
    path = receipts(planned) / "part-000001.json"
    document = json.loads(path.read_text())
    document["ended"] += 3600
    path.write_text(json.dumps({**document, "seal": stored._seal(document)}))
    (found,) = status.status(planned.root).embedding
    assert found.rate is not None and found.rate > 5


@pytest.mark.parametrize(
    "options",
    [
        "--part 0 --weights w", "--task 0 --runner ray", "--part 0 --part-rows 7", "--plan --device cpu",
        "--plan --batch-size 3", "--slurm f", "--gpu a100", "--task-parts 3", "--runner ray --device cpu",
        "--runner slurm --slurm f --batch-size 3", "--commit --part-rows 3", "--commit --runner ray", "--runner slurm",
    ],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["embed", "--encoder", "photometry", *options.split()])
    assert "does not use --" in (said := capsys.readouterr().err) or "needs --slurm FILE" in said

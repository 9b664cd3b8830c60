"""Neighbours and redshifts of every source by parts: whatever is disturbed, the file ends as that of one run."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redshelf.api.cli import main
from redshelf.indexing import outputs as parts_of_plan
from redshelf.indexing.files import read_json, write_json
from redshelf.indexing.outputs import Plan, folder, receipts
from redshelf.indexing.parts import done_parts, read_receipt
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound
from redshelf.service import outputs, status
from redshelf.service.outputs import Asked
from redshelf.service.publish import publish
from redshelf.service.shelf import open_shelf

LINKS = str(Path(__file__).parent / "links")
ASKED = Asked("neighbours", k=5, encoder="photometry", part_rows=64)  # 5 parts


@pytest.fixture(scope="module")
def whole(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    """The neighbours as one run writes them."""
    path = tmp_path_factory.mktemp("whole") / "n.parquet"
    outputs.write(tiny_shelf, path, ASKED)
    return pq.read_table(path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "n.parquet"


@pytest.fixture
def plan(tiny_shelf: Path, path: Path) -> Plan:
    return outputs.make_plan(tiny_shelf, path, ASKED, task_parts=2)  # 3 tasks


def same(path: Path, whole: pa.Table) -> None:
    """The file has the lines of one run, and nothing is left beside it."""
    assert pq.read_table(path).equals(whole)
    assert [found.name for found in path.parent.iterdir()] == [path.name]


def finish(shelf: Path, path: Path, whole: pa.Table) -> None:
    """Do what misses, commit, and compare."""
    for task in range(3):
        outputs.do(shelf, path, "neighbours", task=task)
    outputs.commit(shelf, path, "neighbours")
    same(path, whole)


def test_tasks_in_any_order_and_twice_give_what_one_run_gives(
    tiny_shelf: Path, path: Path, plan: Plan, whole: pa.Table
) -> None:
    assert (plan.parts, plan.tasks, plan.rows) == (5, 3, len(whole))
    for task in (2, 0, 1, 0):
        done = outputs.do(tiny_shelf, path, "neighbours", task=task)
    assert done == {"parts": 2, "done_before": 2, "rows": 128}
    outputs.do(tiny_shelf, path, "neighbours", part=4)
    report = outputs.commit(tiny_shelf, path, "neighbours")
    same(path, whole)
    assert (report.sources, report.facts["plan"]) == (len(whole), plan.id)
    assert outputs.commit(tiny_shelf, path, "neighbours") == report, "a second commit changes nothing"
    assert not (tiny_shelf / "work" / "outputs" / f"{plan.id}.json").exists()


def test_the_same_part_twice_at_once_is_in_the_file_once(
    tiny_shelf: Path, path: Path, plan: Plan, whole: pa.Table
) -> None:
    threads = [
        threading.Thread(target=outputs.do, args=(tiny_shelf, path, "neighbours"), kwargs={"task": task})
        for task in (0, 1, 2, 0, 1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outputs.commit(tiny_shelf, path, "neighbours")
    same(path, whole)


@pytest.mark.slow
def test_processes_give_the_file_of_one(tiny_shelf: Path, path: Path, whole: pa.Table) -> None:
    outputs.write(tiny_shelf, path, ASKED, processes=2)
    same(path, whole)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["knn", "lightgbm"])
def test_processes_give_the_redshifts_of_one(tiny_shelf: Path, tmp_path: Path, estimator: str) -> None:
    asked = Asked("redshift", encoder="photometry", estimator=estimator, part_rows=64)
    outputs.write(tiny_shelf, tmp_path / "one.hdf5", asked)
    outputs.write(tiny_shelf, tmp_path / "two.hdf5", asked, processes=2)
    with h5py.File(tmp_path / "one.hdf5") as one, h5py.File(tmp_path / "two.hdf5") as two:
        for name in ("data/pdfs", *(f"ancil/{column}" for column in one["ancil"])):
            np.testing.assert_array_equal(one[name][:], two[name][:], err_msg=name)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_the_file_of_one_machine(tiny_shelf: Path, path: Path, whole: pa.Table) -> None:
    pytest.importorskip("ray", reason="needs the `ray` extra")
    words = "neighbours -k 5 --encoder photometry --part-rows 64 --runner ray"
    told = subprocess.run(
        [sys.executable, "-m", "redshelf.api.cli", *words.split(), "-o", str(path), "--shelf", str(tiny_shelf)],
        env={**os.environ, "PYTHONPATH": LINKS, "RAY_ADDRESS": ""},
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    same(path, whole)


def test_a_commit_names_the_parts_that_are_missing(tiny_shelf: Path, path: Path, plan: Plan, whole: pa.Table) -> None:
    outputs.do(tiny_shelf, path, "neighbours", part=3)
    with pytest.raises(Conflict, match=r"n\.parquet: 4 of 5 parts have no receipt: 0-2,4"):
        outputs.commit(tiny_shelf, path, "neighbours")
    assert not path.exists()
    finish(tiny_shelf, path, whole)


def _file(plan: Plan) -> Path:
    (name,) = read_receipt(receipts(plan), 1)["files"]
    return receipts(plan) / name


def flip_a_bit(plan: Plan) -> None:
    data = bytearray(_file(plan).read_bytes())
    data[len(data) // 2] ^= 4
    _file(plan).write_bytes(data)


def remove(plan: Plan) -> None:
    _file(plan).unlink()


def alter_receipt(plan: Plan) -> None:
    path = receipts(plan) / "part-000001.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rows": 63}))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (flip_a_bit, r"part 1: part-000001\..*sha256 differs"),
        (remove, r"part 1: part-000001\..*missing"),
        (alter_receipt, "part 1: .*altered or damaged"),
    ],
)
def test_what_was_damaged_is_named_is_set_aside_and_is_done_again_alone(
    tiny_shelf: Path,
    path: Path,
    plan: Plan,
    whole: pa.Table,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Plan], None],
    says: str,
) -> None:
    for task in range(3):
        outputs.do(tiny_shelf, path, "neighbours", task=task)
    damage(plan)
    with pytest.raises(Conflict, match=f"1 of 5 parts are damaged and set aside, run them again: {says}"):
        outputs.write(tiny_shelf, path, ASKED)
    assert not path.exists() and done_parts(receipts(plan)) == {0, 2, 3, 4}
    made, real = [], parts_of_plan._write_part
    monkeypatch.setattr(parts_of_plan, "_write_part", lambda *given: (made.append(given[2]), real(*given)))
    outputs.write(tiny_shelf, path, ASKED)
    assert made == [1]
    same(path, whole)


CHILD = textwrap.dedent(
    """
    import os, signal, sys
    from redshelf.indexing import {module} as module
    real, left = module.{name}, int(sys.argv[1])
    def killing(*args, **kwargs):
        global left
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        left -= 1
        return real(*args, **kwargs)
    module.{name} = killing
    from redshelf.api.cli import main
    sys.exit(main(sys.argv[2:]))
    """
)


def killed(shelf: Path, path: Path, module: str, name: str, *, after: int) -> None:
    """The command in a child that a real kill -9 ends at the call `after` of a function."""
    words = ["neighbours", "-k", "5", "--encoder", "photometry", "--part-rows", "64", "--task-parts", "2", "--plan"]
    where = ["-o", str(path), "--shelf", str(shelf)]
    assert main([*words, *where]) == 0
    child = subprocess.run(
        [sys.executable, "-c", CHILD.format(module=module, name=name), str(after), "neighbours", *where],
        env={**os.environ, "PYTHONPATH": LINKS}, check=False,
    )  # fmt: skip
    assert child.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("module", "name", "after", "done"),
    [
        ("outputs", "_write_part", 2, 2),  # between two parts
        ("outputs", "write_receipt", 2, 2),  # between a part and its receipt
        ("joining", "write", 0, 5),  # before they are joined
        ("outputs", "close", 0, 5),  # between the file and the end of its plan
    ],
)
def test_a_run_that_is_killed_goes_on_from_its_parts(
    tiny_shelf: Path, path: Path, whole: pa.Table, module: str, name: str, after: int, done: int
) -> None:
    killed(tiny_shelf, path, module, name, after=after)
    plan = parts_of_plan.get(path, "neighbours")
    assert done_parts(receipts(plan)) == set(range(done))
    assert path.exists() == (name == "close")
    outputs.write(tiny_shelf, path, ASKED)
    same(path, whole)


def test_parts_that_outlived_their_plan_go_with_the_next_commit(
    tiny_shelf: Path, path: Path, plan: Plan, whole: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(parts_of_plan, "discard", lambda home: (home / "plan.json").unlink())  # as if a kill came then
        outputs.write(tiny_shelf, path, ASKED)
    assert done_parts(receipts(plan)) == set(range(5))
    assert outputs.commit(tiny_shelf, path, "neighbours").sources == len(whole)
    assert not folder(path).exists()
    same(path, whole)


def test_a_second_process_on_the_same_file_is_refused(tiny_shelf: Path, path: Path) -> None:
    from filelock import FileLock

    with (
        FileLock(str(folder(path)) + ".lock", timeout=0),
        pytest.raises(Conflict, match=r"another process writes .*n\.parquet"),
    ):
        outputs.write(tiny_shelf, path, ASKED)


def test_a_signal_ends_a_task_after_the_part_at_hand(tiny_shelf: Path, path: Path, plan: Plan) -> None:
    told: list[str] = []
    table = outputs._table_of(outputs.Layout(tiny_shelf), plan, hashes=True)
    with pytest.raises(Interrupted, match="neighbours stopped by SIGUSR1 before part 1: 4 are left to do"):
        parts_of_plan.do_parts(plan, table, range(5), stop=told, progress=lambda rows: told.append("SIGUSR1"))
    assert done_parts(receipts(plan)) == {0}


def test_a_worker_whose_plan_is_committed_meanwhile_leaves_nothing(
    tiny_shelf: Path, path: Path, plan: Plan, whole: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = outputs._table_of(outputs.Layout(tiny_shelf), plan, hashes=True)
    real = parts_of_plan.write_with

    def late(file: Path, fill: Callable[..., None]) -> None:
        monkeypatch.setattr(parts_of_plan, "write_with", real)
        finish(tiny_shelf, path, whole)
        real(file, fill)

    monkeypatch.setattr(parts_of_plan, "write_with", late)
    with pytest.raises(Conflict, match=r"part 0: plan .* was committed or removed while it was written"):
        parts_of_plan.do_parts(plan, table, [0])
    same(path, whole)


def test_an_open_plan_is_gone_on_with_and_another_question_is_refused(tiny_shelf: Path, path: Path, plan: Plan) -> None:
    assert outputs.make_plan(tiny_shelf, path, Asked("neighbours")) == plan
    for how, says in (
        ({"k": 6}, "an open plan has k=5, not 6: finish it, or remove"),
        ({"encoder": "vit"}, "an open plan has encoder=photometry, not vit"),
        ({"part_rows": 65}, "an open plan has part_rows=64, not 65"),
        ({"generation": 2}, "an open plan has generation=1, not 2"),
    ):
        with pytest.raises(Conflict, match=says):
            outputs.make_plan(tiny_shelf, path, Asked("neighbours", **how))  # type: ignore[arg-type]
    with pytest.raises(Conflict, match="an open plan has task_parts=2, not 3"):
        outputs.make_plan(tiny_shelf, path, Asked("neighbours"), task_parts=3)
    with pytest.raises(Conflict, match="holds parts of `redshelf neighbours`, not of redshift"):
        outputs.make_plan(tiny_shelf, path, Asked("redshift"))


def test_a_generation_that_is_published_meanwhile_changes_nothing(
    tiny_shelf: Path, tmp_path: Path, whole: pa.Table
) -> None:
    root, path = tmp_path / "shelf", tmp_path / "out" / "n.parquet"
    shutil.copytree(tiny_shelf, root)
    path.parent.mkdir()
    outputs.make_plan(root, path, ASKED, task_parts=2)
    outputs.do(root, path, "neighbours", task=1)
    opened = open_shelf(root)
    unlabelled = np.flatnonzero(np.isnan(opened.columns["z_spec"]))[0]  # with a label, the fits would have to go, too
    (tmp_path / "ids").write_text(f"{opened.source_id(unlabelled)}\n")
    assert main(["delete", "--shelf", str(root), "--ids", str(tmp_path / "ids")]) == 0
    assert publish(root).number == 2
    finish(root, path, whole)
    outputs.write(root, path.with_name("new.parquet"), ASKED)
    outputs.write(root, path.with_name("old.parquet"), Asked("neighbours", k=5, encoder="photometry", generation=1))
    assert pq.read_table(path.with_name("old.parquet")).equals(whole)
    assert len(pq.read_table(path.with_name("new.parquet"))) == len(whole) - 1, "what is deleted is left out"


def test_a_plan_of_another_shelf_is_refused(bare_shelf: Path, path: Path, plan: Plan) -> None:
    for step in (
        lambda: outputs.write(bare_shelf, path, Asked("neighbours")),
        lambda: outputs.do(bare_shelf, path, "neighbours", part=0),
    ):
        with pytest.raises(Conflict, match="was planned for generation 1 of another shelf than"):
            step()


def test_a_plan_that_was_altered_is_refused(tiny_shelf: Path, path: Path, plan: Plan) -> None:
    document = read_json(folder(path) / "plan.json")
    write_json(folder(path) / "plan.json", {**document, "k": 6})
    with pytest.raises(BadInput, match="was altered: its content gives id"):
        outputs.do(tiny_shelf, path, "neighbours", part=0)


def test_a_plan_whose_folder_was_removed_is_told_no_more(tiny_shelf: Path, path: Path, plan: Plan) -> None:
    assert plan in parts_of_plan.open_plans(outputs.Layout(tiny_shelf))
    shutil.rmtree(folder(path))
    assert plan not in parts_of_plan.open_plans(outputs.Layout(tiny_shelf))
    other = outputs.make_plan(tiny_shelf, path.with_name("other.parquet"), ASKED, task_parts=2)
    notes = {note.stem for note in (tiny_shelf / "work" / "outputs").iterdir()}
    assert other.id in notes and plan.id not in notes


def test_a_shelf_that_may_only_be_read_is_enough(
    tiny_shelf: Path, path: Path, whole: pa.Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = parts_of_plan.write_json

    def refusing(file: Path, document: object) -> None:
        if file.is_relative_to(tiny_shelf):
            raise PermissionError(13, "Read-only file system", str(file))
        real(file, document)

    monkeypatch.setattr(parts_of_plan, "write_json", refusing)
    outputs.write(tiny_shelf, path, ASKED)
    same(path, whole)


def test_a_shelf_without_redshifts_says_so(bare_shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no redshift estimator is published here; run `redshelf fit`"):
        outputs.write(bare_shelf, tmp_path / "z.fits", Asked("redshift"))
    assert not list(tmp_path.iterdir())


def test_a_step_without_a_plan_says_how_to_make_one(tiny_shelf: Path, path: Path) -> None:
    for step in (
        lambda: outputs.do(tiny_shelf, path, "redshift", part=0),
        lambda: outputs.commit(tiny_shelf, path, "redshift"),
    ):
        with pytest.raises(NotFound, match=r"no plan is open for .*: make one with `redshelf redshift -o .* --plan`"):
            step()


def test_parts_and_tasks_that_the_plan_has_not_are_refused(tiny_shelf: Path, path: Path, plan: Plan) -> None:
    with pytest.raises(BadInput, match="part 5: the plan has parts 0 to 4"):
        outputs.do(tiny_shelf, path, "neighbours", part=5)
    with pytest.raises(BadInput, match="task 3: the plan has tasks 0 to 2"):
        outputs.do(tiny_shelf, path, "neighbours", task=3)


def test_a_file_that_is_there_is_left_alone(tiny_shelf: Path, path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(Conflict, match="is there already: remove it, or give another name"):
        outputs.write(tiny_shelf, path, ASKED)
    assert path.read_text() == "mine"


def test_a_file_that_came_after_the_plan_is_left_alone(tiny_shelf: Path, path: Path, plan: Plan) -> None:
    path.write_text("mine")
    with pytest.raises(Conflict, match="is there already, and is not of plan"):
        outputs.write(tiny_shelf, path, ASKED)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "what", "how", "error", "says"),
    [
        ("n.parquet", "neighbours", {"k": 0}, BadInput, "k=0: expected 1 <= k <= 1000"),
        ("n.parquet", "neighbours", {"k": 1001}, BadInput, "k=1001: expected 1 <= k <= 1000"),
        ("n.parquet", "neighbours", {"encoder": "vitt"}, NotFound, "no encoder 'vitt' is published here; nearest: vit"),
        ("n.parquet", "neighbours", {"part_rows": 0}, BadInput, "part_rows=0: expected at least 1"),
        ("n.parquet", "neighbours", {"generation": 3}, NotFound, "no generation 3; there are 1 to 1"),
        ("n.fits", "neighbours", {}, BadInput, "n.fits: unknown ending '.fits'; known: .parquet"),
        ("n.csv", "redshift", {}, BadInput, "unknown ending '.csv'; known: .fits, .hdf5, .parquet"),
        ("n.fits", "redshift", {"encoder": "vitt"}, NotFound, "no redshift estimator on encoder 'vitt'.*nearest: vit"),
        ("n.fits", "redshift", {"estimator": "kn"}, NotFound, r"no estimator 'kn' on encoder \w+; nearest: knn"),
        ("no/n.fits", "redshift", {}, BadInput, "there is no folder .*no$"),
    ],
)
def test_bad_questions_are_named_and_leave_nothing(
    tiny_shelf: Path, tmp_path: Path, name: str, what: outputs.What, how: dict[str, object], error: type, says: str
) -> None:
    for ask in (
        lambda: outputs.write(tiny_shelf, tmp_path / name, Asked(what, **how)),  # type: ignore[arg-type]
        lambda: outputs.make_plan(tiny_shelf, tmp_path / name, Asked(what, **how)),  # type: ignore[arg-type]
    ):
        with pytest.raises(error, match=says):
            ask()
    assert not list(tmp_path.iterdir())


def test_status_tells_how_far_an_open_plan_is(
    tiny_shelf: Path, path: Path, plan: Plan, whole: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    outputs.do(tiny_shelf, path, "neighbours", task=0)
    (found,) = [one for one in status.status(tiny_shelf).outputs if one.plan == plan.id]
    assert (found.done, found.parts, found.rows_done, found.rows) == (2, 5, 128, len(whole))
    assert main(["status", "--shelf", str(tiny_shelf)]) == 0
    assert f"output     {path}: 2 of 5 parts, 128 of {len(whole)} sources" in capsys.readouterr().out
    finish(tiny_shelf, path, whole)
    assert plan.id not in {one.plan for one in status.status(tiny_shelf).outputs}


def test_the_steps_can_be_commanded(
    tiny_shelf: Path, path: Path, whole: pa.Table, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*words: str) -> dict[str, object]:
        assert main(["neighbours", *words, "-o", str(path), "--shelf", str(tiny_shelf), "--json"]) == 0
        told: dict[str, object] = json.loads(capsys.readouterr().out)
        return told

    how = ["-k", "5", "--encoder", "photometry", "--part-rows", "64", "--task-parts", "2", "--plan"]
    assert command(*how).items() >= {"parts": 5, "tasks": 3}.items()
    assert command("--task", "0") == {"parts": 2, "done_before": 0, "rows": 128}
    assert command("--part", "1")["done_before"] == 1
    for task in "12":
        command("--task", task)
    assert command("--commit", "--runner", "slurm").items() >= {"sources": len(whole), "k": "5"}.items()
    same(path, whole)


@pytest.mark.parametrize(
    "words",
    ["neighbours --part 0 -k 3", "redshift --task 0 --encoder vit", "redshift --commit --estimator knn",
     "neighbours --plan --processes 2", "redshift --runner ray --processes 2", "redshift --task-parts 3",
     "neighbours --runner slurm", "redshift --commit --runner ray", "neighbours --part 0 --generation 1"],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([*words.split(), "-o", "n.parquet"])
    assert "does not use --" in (said := capsys.readouterr().err) or "needs --slurm FILE" in said

"""models/resume.py: a run that was stopped goes on as if it had not been, and no file is taken for what it is not."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training
import torch
import torture
from safetensors import safe_open
from safetensors.torch import load_file
from small_training import Mean, Noisy, fit

from redshelf.models.errors import BadInput, Conflict, Interrupted
from redshelf.models.resume import made_by
from redshelf.models.revision import revision
from redshelf.models.signals import stop_signals


class Killed(Exception):
    pass


class Dying(Noisy):
    """Dies in the step of number `at`."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def loss(self, batch: Any, indices: Any) -> Any:
        self.at -= 1
        if self.at < 0:
            raise Killed
        return super().loss(batch, indices)


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=0, msg=key)


def rows(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]


@pytest.mark.parametrize("more", [{}, {"precision": "float16"}, {"micro_batches": 2}], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, more: dict[str, Any]) -> None:
    whole, again = Noisy(), Noisy()
    expected = fit(whole, steps=130, **more)
    calls = 57 * more.get("micro_batches", 1)
    with pytest.raises(Killed):
        fit(Dying(calls), steps=130, checkpoint=tmp_path / "run.safetensors", checkpoint_seconds=0, **more)
    report = fit(again, steps=130, checkpoint=tmp_path / "run.safetensors", **more)
    assert report.resumed_from == 57 and report.steps == 130
    assert_same(again.state_dict(), whole.state_dict())
    for name in ("loss", "hidden", "gradient_norm"):
        assert [r[name] for r in report.rows] == pytest.approx([r[name] for r in expected.rows], abs=1e-6)


def test_a_colleague_may_read_a_checkpoint_as_the_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        fit(Noisy(), steps=2, checkpoint=tmp_path / "run.safetensors")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o644}


def test_the_best_weights_survive_a_kill(tmp_path: Path) -> None:
    def validations() -> Any:
        return iter([5.0, 1.0, *[3.0] * 30]).__next__

    whole, again = Noisy(), Noisy()
    fit(whole, steps=20, validate=validations())
    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        fit(Dying(9), steps=20, checkpoint=path, checkpoint_seconds=0, validate=validations())
    assert fit(again, steps=20, checkpoint=path, validate=lambda: 3.0).best_validation == 1.0
    assert_same(again.state_dict(), whole.state_dict())


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first = fit(Noisy(), steps=20, checkpoint=path)
    again = fit(Dying(0), steps=20, checkpoint=path)
    assert again.resumed_from == 20 and again.rows == first.rows


def test_the_scale_of_float16_is_taken_up_again(tmp_path: Path) -> None:
    def scaler(path: Path) -> Any:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["scaler"])

    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    fit(Noisy(), steps=20, precision="float16", checkpoint=whole)
    with pytest.raises(Killed):
        fit(Dying(9), steps=20, precision="float16", checkpoint=part, checkpoint_seconds=0)
    assert scaler(part) != scaler(whole)
    fit(Noisy(), steps=20, precision="float16", checkpoint=part)
    assert scaler(part) == scaler(whole)


def test_a_longer_run_goes_on_from_a_shorter_one_on_its_own_schedule(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Noisy(), steps=20, checkpoint=path)
    report = fit(Noisy(), steps=40, checkpoint=path)
    assert report.resumed_from == 20 and report.steps == 40
    assert [row["step"] for row in report.rows] == list(range(1, 41))
    plain = fit(Noisy(), steps=40)
    assert [row["lr"] for row in report.rows[20:]] == [row["lr"] for row in plain.rows[20:]]
    assert report.rows[20]["progress"] == pytest.approx(21 / 40, abs=1e-3)


def test_a_run_stopped_by_its_clock_goes_on_with_more_time(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first = fit(Noisy(), max_seconds=0.2, checkpoint=path)
    report = fit(Noisy(), max_seconds=0.4, checkpoint=path)
    assert report.resumed_from == first.steps < report.steps and 0.4 <= report.seconds < 2
    assert fit(Noisy(), max_seconds=0.4, checkpoint=path).steps == report.steps
    with pytest.raises(Conflict, match=r"has max_seconds=0\.1"):
        fit(Noisy(), max_seconds=0.1, checkpoint=path)


def test_a_run_shorter_than_what_is_done_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Noisy(), steps=20, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(Conflict, match="has 20 steps behind it, this run has steps=19"):
        fit(Noisy(), steps=19, checkpoint=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"lr": 0.1}, "lr=0.02, this one has 0.1"),
        ({"seed": 2}, "seed=1, this one has 2"),
        ({"micro_batches": 2}, "micro_batches=1, this one has 2"),
        ({"precision": "bfloat16"}, "precision=float32, this one has bfloat16"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(
    tmp_path: Path, other: dict[str, Any], told: str
) -> None:
    fit(Noisy(), steps=3, checkpoint=tmp_path / "run.safetensors")
    with pytest.raises(Conflict, match=f"belongs to a run with {told}"):
        fit(Noisy(), steps=3, checkpoint=tmp_path / "run.safetensors", **other)


def test_what_differs_is_named_inside_the_objective_too(tmp_path: Path) -> None:
    fit(Noisy(), steps=3, checkpoint=tmp_path / "run.safetensors")
    with pytest.raises(Conflict, match=r"objective\.objective=noisy, this one has mean"):
        fit(Mean(), steps=3, checkpoint=tmp_path / "run.safetensors")


def test_a_checkpoint_cut_in_half_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Noisy(), steps=3, checkpoint=path)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    with pytest.raises(BadInput, match="no whole training checkpoint"):
        fit(Noisy(), steps=3, checkpoint=path)
    assert path.read_bytes() == half


@pytest.mark.security
@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_pickle_is_refused_unread_and_left_alone(tmp_path: Path, kind: str) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "sprung"),)

    blob = io.BytesIO()
    (torch.save if kind == "torch" else pickle.dump)({"model": Trap()}, blob)
    path = tmp_path / "run.safetensors"
    path.write_bytes(blob.getvalue())
    with pytest.raises(BadInput, match="is a pickle, which could run code, so it was not read"):
        fit(Noisy(), steps=3, checkpoint=path)
    assert path.read_bytes() == blob.getvalue() and not (tmp_path / "sprung").exists()


def test_a_checkpoint_that_happens_to_begin_like_a_pickle_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Mean(), steps=3, checkpoint=path)
    whole = path.read_bytes()
    header = whole[8 : 8 + int.from_bytes(whole[:8], "little")]
    padded = header.ljust(-(-len(header) // 256) * 256 + 128)  # its length, which comes first, ends in 0x80
    path.write_bytes(len(padded).to_bytes(8, "little") + padded + whole[8 + len(header) :])
    assert path.read_bytes().startswith(b"\x80") and fit(Mean(), steps=3, checkpoint=path).resumed_from == 3
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadInput, match="no whole training checkpoint"):
        fit(Mean(), steps=3, checkpoint=path)


def test_a_safetensors_file_of_something_else_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, tmp_path / "run.safetensors")
    with pytest.raises(BadInput, match="no training checkpoint of this version"):
        fit(Noisy(), steps=3, checkpoint=tmp_path / "run.safetensors")


def test_weights_of_other_shapes_are_refused_before_anything_is_changed(tmp_path: Path) -> None:
    class Wider(Mean):
        def __init__(self) -> None:
            super().__init__()
            self.net[2] = torch.nn.Linear(16, 2)

    path = tmp_path / "run.safetensors"
    fit(Mean(), steps=3, checkpoint=path)
    other = Wider()
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(BadInput, match="other names or shapes"):
        fit(other, steps=3, checkpoint=path)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_checkpoint_says_what_it_is_of_and_which_code_wrote_it(tmp_path: Path) -> None:
    fit(Noisy(), steps=3, checkpoint=tmp_path / "run.safetensors", micro_batches=2)
    with safe_open(tmp_path / "run.safetensors", framework="pt") as file:
        metadata, names = file.metadata(), set(file.keys())
    plan = json.loads(metadata["plan"])
    assert (plan["steps"], plan["micro_batches"], plan["objective"]) == (3, 2, {"objective": "noisy"})
    assert json.loads(metadata["made_by"]) == made_by() and made_by()["torch"] == torch.__version__
    assert {"model.teacher.1.running_mean", "optimiser.0.exp_avg"} <= names and json.loads(metadata["state"])[
        "step"
    ] == 3


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_the_revision_is_that_of_the_code_and_says_where_it_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        return subprocess.check_output(["git", "-C", tmp_path, *who, *arguments], text=True).strip()

    git("init", "--quiet")
    for name in ("ours", "installed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "code.py").write_text("1")
    git("add", "ours")
    git("commit", "--quiet", "-m", "one")
    head = git("rev-parse", "HEAD")
    assert revision(tmp_path / "ours") == head and revision(tmp_path / "installed") is None
    (tmp_path / "ours" / "code.py").write_text("2")
    revision.cache_clear()
    assert revision(tmp_path / "ours") == f"{head}-dirty"
    (tmp_path / "installed" / "revision.txt").write_text(f"{head}\n")  # as a wheel has it
    assert revision.__wrapped__(tmp_path / "installed") == head


def test_the_code_has_no_revision_where_git_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert revision.__wrapped__() is None


def test_signals_do_inside_what_they_did_not_before_and_not_after() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)]
    with stop_signals() as caught:
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGTERM)
    assert caught == ["SIGUSR1", "SIGTERM"]
    assert [signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGTERM)] == before


def test_a_signal_without_a_checkpoint_stops_and_says_that_nothing_is_kept() -> None:
    with pytest.raises(Interrupted, match=r"stopped at step [34] by SIGUSR1; nothing is kept"):
        fit(Noisy(), steps=1000, stop_at=3)


def test_training_in_another_thread_leaves_signals_alone() -> None:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(fit(Noisy(), steps=3).steps))
    thread.start()
    thread.join(60)
    assert found == [3]


RUN: dict[str, Any] = {"steps": 100, "pause": 0.02, "checkpoint_seconds": 0.1}


def at_step(process: subprocess.Popen[str], step: int) -> None:
    """Wait until a run has logged this step."""
    assert process.stdout is not None
    while int(process.stdout.readline()) < step:
        pass


def test_a_run_told_to_stop_exits_with_85_and_the_same_command_goes_on(tmp_path: Path) -> None:
    whole = Noisy()
    fit(whole, steps=100)
    for number in (signal.SIGUSR1, signal.SIGTERM):
        path = tmp_path / f"{number.name}.safetensors"
        run = RUN | {"checkpoint": str(path), "checkpoint_seconds": 3600}
        with small_training.spawn(tmp_path / number.name, [run]) as process:
            at_step(process, 5)
            process.send_signal(number)
            _, told = process.communicate(timeout=60)
        assert process.returncode == 85 and f"by {number.name}; {path} is written" in told
        again = Noisy()
        report = fit(again, steps=100, checkpoint=path)
        assert 5 <= report.resumed_from < 100 and [row["step"] for row in report.rows] == list(range(1, 101))
        assert_same(again.state_dict(), whole.state_dict())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    whole = Noisy()
    fit(whole, steps=100)
    rng = np.random.default_rng(0)
    for number in range(torture.count(2, 50)):
        path = tmp_path / f"{number}.safetensors"
        for _ in range(2):  # killed, and killed again after it was resumed
            with small_training.spawn(tmp_path / str(number), [RUN | {"checkpoint": str(path)}]) as process:
                at_step(process, int(rng.integers(15, 60)))
                time.sleep(float(rng.uniform(0, 0.2)))
                process.kill()
            assert process.returncode == -signal.SIGKILL
        with small_training.spawn(tmp_path / str(number), [RUN | {"checkpoint": str(path)}]) as process:
            assert process.wait(timeout=120) == 0
        told = json.loads((tmp_path / f"{number}.0.0.json").read_text())
        assert told["resumed_from"] > 0 and [row["step"] for row in told["rows"]] == list(range(1, 101))
        assert_same(load_file(tmp_path / f"{number}.0.0.safetensors"), whole.state_dict())
        assert rows(path) == told["rows"]
        left = sorted(p.name for p in tmp_path.glob(f"{number}.*"))
        assert left == [f"{number}.0.0.json", f"{number}.0.0.safetensors", f"{number}.jsonl", f"{number}.safetensors"]

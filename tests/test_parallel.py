"""models/parallel.py: who takes part, and that two processes train as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training
import torch
from safetensors.torch import load_file
from small_training import Mean, Noisy, fit
from torch import Tensor, nn

from redshelf.models.errors import BadInput
from redshelf.models.parallel import Buffers, Processes, find_processes, first_host, meeting_point

BATCH = small_training.Sampler(64, 16, 1).batch(0)
SRUN = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_NTASKS": "8"}


def test_torchrun_says_who_a_process_is() -> None:
    found = find_processes({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"} | SRUN)
    assert found == Processes(rank=2, world=4, local=0) and not found.is_first


def test_srun_says_who_a_process_is() -> None:
    assert find_processes(SRUN) == Processes(rank=3, world=8, local=1)


def test_a_script_of_sbatch_is_alone_whatever_tasks_it_may_start_later() -> None:
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_JOB_ID": "7"}
    assert find_processes(script) == Processes() == find_processes({})


@pytest.mark.parametrize("missing", ["RANK", "LOCAL_RANK"])
def test_a_variable_that_is_missing_is_named(missing: str) -> None:
    known = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    del known[missing]
    with pytest.raises(BadInput, match=f"{missing}=None beside WORLD_SIZE"):
        find_processes(known)


def test_a_rank_beyond_the_world_is_refused() -> None:
    with pytest.raises(BadInput, match="process 2 of 2"):
        find_processes({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"})


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("jean-zay-ia801", "jean-zay-ia801"),
        ("r7i2n[03-05,8],r8i0n1", "r7i2n03"),
        ("jzxh[101,107]", "jzxh101"),
        ("a1,b[2-3]", "a1"),
        ("rack[2-3]node[10-12,14]", "rack2node10"),
    ],
)
def test_the_first_host_of_a_node_list(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_processes_of_srun_meet_on_the_first_host_of_their_step_and_jobs_do_not_meet() -> None:
    step = {"SLURM_JOB_NODELIST": "n[1-4]", "SLURM_STEP_NODELIST": "n[3-4]", "SLURM_JOB_ID": "41", "SLURM_STEP_ID": "0"}
    assert meeting_point(step)[0] == "n3"
    ports = {meeting_point(step | {"SLURM_JOB_ID": str(job)})[1] for job in range(100)}
    assert len(ports) == 100 and all(1024 < int(port) < 32768 for port in ports)
    assert meeting_point({"MASTER_ADDR": "here", "MASTER_PORT": "5"}) == ("here", "5")
    with pytest.raises(BadInput, match="torchrun or srun"):
        meeting_point({})


def test_every_micro_batch_is_computed_once() -> None:
    shares = [list(Processes(rank, 3).share(12)) for rank in range(3)]
    assert shares[1] == [1, 4, 7, 10] and sorted(chain(*shares)) == list(range(12))


def test_a_process_alone_sends_nothing() -> None:
    tensor = torch.ones(3)
    Processes().all_mean([tensor])
    assert tensor.tolist() == [1, 1, 1] and Processes().gather("a") == ["a"] and Processes().from_first(2) == 2
    assert Processes().all_max(0, 3.5) == [0, 3.5]


def test_buffers_end_a_step_as_the_mean_of_what_its_micro_batches_made_of_them() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.1)
    norm.register_buffer("constant", torch.tensor([float("inf"), 1 / 3]))
    buffers = Buffers(norm, idle=False)
    for level in (1.0, 4.0, 10.0):
        norm(torch.full((5, 2), level))
        buffers.collect(3)
        assert torch.equal(norm.running_mean, torch.zeros(2))
    buffers.finish()
    torch.testing.assert_close(norm.running_mean, torch.full((2,), 0.1 * 5.0))
    assert torch.equal(norm.constant, torch.tensor([float("inf"), 1 / 3]))


@dataclass(frozen=True)
class Outcome:
    """What came of a run in each of two processes."""

    weights: tuple[dict[str, Tensor], dict[str, Tensor]]
    told: tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def outcomes(folder: Path) -> dict[str, Outcome]:
    """All that two processes are tried on, in one go, as starting them takes long."""
    bad = int(BATCH[-1])  # in the second process's share of the first batch
    runs: dict[str, dict[str, Any]] = {
        "noisy": {"steps": 20},
        "mean": {"steps": 20, "micro_batches": 4, "objective": "mean"},
        "time": {"max_seconds": 0.5},
        "signal": {"steps": 20, "checkpoint": str(folder / "signal.safetensors"), "by_rank": [{}, {"stop_at": 7}]},
        "resumed": {"steps": 20, "checkpoint": str(folder / "signal.safetensors")},
        "spoilt": {"steps": 9, "checkpoint": str(folder / "spoilt.safetensors"), "spoil": bad},
        "unlike": {"by_rank": [{"steps": 4}, {"steps": 5}]},
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_NODELIST": "localhost", "MASTER_PORT": port}
    ranks = [step | {"SLURM_PROCID": rank, "SLURM_LOCALID": rank} for rank in "01"]
    processes = [small_training.spawn(folder / "two", list(runs.values()), rank) for rank in ranks]
    said = [process.communicate(timeout=200)[1] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    found = {}
    for number, name in enumerate(runs):
        paths = [folder / f"two.{rank}.{number}" for rank in range(2)]
        first, second = (load_file(path.with_name(f"{path.name}.safetensors")) for path in paths)
        told = [json.loads(path.with_name(f"{path.name}.json").read_text()) for path in paths]
        found[name] = Outcome((first, second), (told[0], told[1]))
    return found


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, atol=1e-6, rtol=0, msg=key)


def values(rows: list[dict[str, float]]) -> list[list[float]]:
    return [[row[key] for key in sorted(row) if key != "seconds"] for row in rows]


def test_two_processes_train_as_one_does_with_dropout_masks_and_buffers(outcomes: dict[str, Outcome]) -> None:
    alone, found = Noisy(), outcomes["noisy"]
    report = fit(alone, steps=20, micro_batches=2)
    assert_same(found.weights[0], alone.state_dict())
    assert_same(found.weights[0], found.weights[1])
    assert found.told[0] == found.told[1]
    assert [sorted(row) for row in found.told[0]["rows"]] == [sorted(row) for row in report.rows]
    for found_row, row in zip(values(found.told[0]["rows"]), values(report.rows), strict=True):
        np.testing.assert_allclose(found_row, row, atol=1e-6)


def test_four_micro_batches_on_two_processes_equal_one_batch_where_the_loss_is_a_mean(
    outcomes: dict[str, Outcome],
) -> None:
    whole, cut = Mean(), Mean()
    fit(whole, steps=20)
    fit(cut, steps=20, micro_batches=4)
    assert_same(outcomes["mean"].weights[0], whole.state_dict())
    assert_same(cut.state_dict(), whole.state_dict())


def test_both_stop_when_the_firsts_time_is_up(outcomes: dict[str, Outcome]) -> None:
    told = outcomes["time"].told
    assert told[0] == told[1] and told[0]["rows"][-1]["progress"] == 1


def test_a_signal_to_one_of_two_stops_both_and_they_go_on(outcomes: dict[str, Outcome], folder: Path) -> None:
    whole = Noisy()
    fit(whole, steps=20, micro_batches=2)
    stopped, resumed = outcomes["signal"].told, outcomes["resumed"]
    assert all(told["status"] == 85 and "signal.safetensors is written" in told["error"] for told in stopped)
    assert 6 <= resumed.told[0]["resumed_from"] == resumed.told[1]["resumed_from"] <= 8
    assert_same(resumed.weights[0], whole.state_dict())
    # and one process goes on from what two have written
    alone = Noisy()
    assert fit(alone, steps=20, micro_batches=2, checkpoint=folder / "signal.safetensors").resumed_from == 20
    assert_same(alone.state_dict(), whole.state_dict())


def test_a_batch_that_is_not_finite_in_one_stops_both_and_is_kept(outcomes: dict[str, Outcome], folder: Path) -> None:
    assert all("step 0: the loss is not finite" in told["error"] for told in outcomes["spoilt"].told)
    kept = load_file(folder / "spoilt.bad-batch.safetensors")
    assert kept["indices"].tolist() == BATCH.tolist()
    assert torch.isfinite(kept["flux_ujy"]).all(dim=1).tolist() == [True] * 15 + [False]


def test_processes_that_were_asked_for_different_runs_refuse(outcomes: dict[str, Outcome]) -> None:
    assert all("process 1 has another plan or checkpoint" in told["error"] for told in outcomes["unlike"].told)


def test_micro_batches_that_cannot_be_shared_out_are_refused() -> None:
    with pytest.raises(BadInput, match="micro_batches=3 on 1 processes, for batches of 16"):
        fit(Mean(), steps=2, micro_batches=3)


@pytest.mark.slow
def test_torchrun_starts_processes_that_train_as_one_does(tmp_path: Path) -> None:
    here = Path(__file__).parent
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    program = ["-m", "small_training", str(tmp_path / "two"), json.dumps([{"steps": 20}])]
    environment = {**os.environ, "PYTHONPATH": f"{here / 'links'}{os.pathsep}{here}"}
    subprocess.run([*launcher, *program], check=True, timeout=200, env=environment, capture_output=True)
    alone = Noisy()
    fit(alone, steps=20, micro_batches=2)
    assert_same(load_file(tmp_path / "two.1.0.safetensors"), alone.state_dict())

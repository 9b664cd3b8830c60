"""models/training.py on a linear fit, where every step can be repeated exactly."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_training
import torch
from small_training import Mean
from torch import Tensor, nn

from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, RedshelfError
from redshelf.models.training import Objective, Report, Sampler, flat_weights, train

FLUX = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))


class Linear(Objective):
    """Least squares with dropout, so that the random state matters."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.dropout = nn.Linear(3, 1), nn.Dropout(0.2)
        self.config: dict[str, Any] = {"objective": "linear"}

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.flux_ujy is not None
        error = self.layer(self.dropout(batch.flux_ujy))[:, 0] - batch.flux_ujy.sum(dim=1)
        return error.square().mean(), {"largest": error.abs().max()}


def fetch(indices: np.ndarray) -> Batch:
    return Batch(torch.ones((len(indices), 3), dtype=torch.int8), flux_ujy=FLUX[indices])


def fit(objective: Linear, *, steps: int | None = 20, seed: int = 1, source: Any = fetch, **options: Any) -> Report:
    known: dict[str, Any] = {"lr": 0.05, "seed": seed, "precision": "float32"}
    return train(objective, source, Sampler(40, 8, seed), steps=steps, **known | options)


def test_the_loss_goes_down_and_the_rows_say_so() -> None:
    report = fit(Linear(), steps=200)
    assert report.steps == 200 and len(report.rows) == 100
    assert report.loss < 0.5 * report.rows[0]["loss"]
    assert {"step", "seconds", "progress", "lr", "loss", "largest", "gradient_norm"} == set(report.rows[0])


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    rates = [row["lr"] for row in fit(Linear(), steps=100).rows]
    assert rates[0] < 0.1 * max(rates) and rates[-1] < 0.01 * max(rates)
    assert rates.index(max(rates)) == 5


def test_the_log_beside_the_checkpoint_is_json_lines(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    report = fit(Linear(), checkpoint=tmp_path / "run.safetensors", on_log=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines == report.rows == seen


def test_a_loss_that_is_not_finite_stops_and_keeps_the_batch(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    def spoilt(indices: np.ndarray) -> Batch:
        return Batch(torch.ones((len(indices), 3), dtype=torch.int8), flux_ujy=FLUX[indices] * float("nan"))

    with pytest.raises(RedshelfError, match="step 0: the loss is not finite"):
        fit(Linear(), source=spoilt, checkpoint=tmp_path / "run.safetensors")
    kept = load_file(tmp_path / "run.bad-batch.safetensors")
    np.testing.assert_array_equal(kept["indices"].numpy(), Sampler(40, 8, 1).batch(0))


def test_the_best_weights_by_validation_win_over_the_last(tmp_path: Path) -> None:
    objective, values, kept = Linear(), iter([3.0, 1.0, 2.0, 4.0]), []

    def validate() -> float:
        kept.append(objective.layer.weight.detach().clone())
        return next(values)

    report = fit(objective, steps=4, validate=validate)
    assert report.best_validation == 1.0
    assert torch.equal(objective.layer.weight, kept[1]) and not torch.equal(kept[1], kept[3])


def test_a_run_ends_when_its_time_is_up() -> None:
    report = train(Linear(), fetch, Sampler(40, 8, 0), max_seconds=0.2, lr=0.01, precision="float32")
    assert 0.2 <= report.seconds < 2
    assert report.rows[-1]["progress"] == 1


def test_training_leaves_the_callers_random_state_alone() -> None:
    objective = Linear()
    before = torch.random.get_rng_state()
    fit(objective)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_needs_an_end() -> None:
    with pytest.raises(BadInput, match="give steps, max_seconds or both"):
        train(Linear(), fetch, Sampler(40, 8, 0), lr=0.1)


def test_an_epoch_holds_every_source_once_and_the_next_another_order() -> None:
    sampler = Sampler(40, 8, 5)
    epochs = [np.concatenate([sampler.batch(5 * e + i) for i in range(5)]) for e in range(2)]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert not np.array_equal(epochs[0], epochs[1])
    np.testing.assert_array_equal(Sampler(40, 8, 5).batch(7), sampler.batch(7))


def test_fewer_sources_than_a_batch_are_taken_whole() -> None:
    assert sorted(Sampler(3, 8, 0).batch(4)) == [0, 1, 2]


def test_flat_weights_make_the_draw_flat_in_magnitude() -> None:
    rng = np.random.default_rng(0)
    magnitude = 25 + np.log(rng.random(20_000)) / 0.6
    weights = flat_weights(np.append(magnitude, np.nan))
    drawn = np.concatenate([Sampler(20_001, 1000, 0, weights).batch(i) for i in range(20)])
    counts = np.histogram(magnitude[drawn[drawn < 20_000]], bins=np.arange(22.5, 25.1, 0.5))[0]
    assert counts.min() > 0.85 * counts.max() and weights[-1] == 1
    assert weights.max() <= 21 * weights.min()


def test_weights_that_cannot_be_drawn_from_are_refused() -> None:
    with pytest.raises(BadInput, match="sampling weights"):
        Sampler(3, 2, 0, np.array([1.0, np.nan, 1.0]))


def test_a_batch_cut_in_micro_batches_gives_the_gradient_of_the_whole() -> None:
    whole, cut = Mean(), Mean()
    expected = small_training.fit(whole, steps=20)
    report = small_training.fit(cut, steps=20, micro_batches=4)
    assert report.micro_batches == 4
    for mine, theirs in zip(cut.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    assert [row["loss"] for row in report.rows] == pytest.approx([row["loss"] for row in expected.rows], abs=1e-5)


def test_micro_batches_draw_differently() -> None:
    drawn: list[float] = []

    class Drawing(Linear):
        def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            drawn.append(float(torch.rand(())))
            return super().loss(batch, indices)

    fit(Drawing(), steps=3, micro_batches=2)
    cut = drawn.copy()
    drawn.clear()
    fit(Drawing(), steps=3)
    assert len(set(cut)) == 6 and cut[::2] == drawn  # the first one draws as an uncut batch does


def test_the_next_batch_is_fetched_while_this_one_is_computed() -> None:
    begun = [threading.Event() for _ in range(5)]

    def source(indices: np.ndarray) -> Batch:
        next(event for event in begun if not event.is_set()).set()
        return fetch(indices)

    class Waiting(Linear):
        steps = 0

        def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
            self.steps += 1
            assert begun[min(self.steps, 4)].wait(timeout=20)
            return super().loss(batch, indices)

    fit(Waiting(), steps=5, source=source)
    with pytest.raises(ZeroDivisionError):
        fit(Linear(), steps=5, source=lambda indices: 1 // 0)


def test_nothing_is_fetched_but_the_batches_of_the_run_and_one_ahead_of_a_clock() -> None:
    calls: list[int] = []

    def source(indices: np.ndarray) -> Batch:
        calls.append(len(indices))
        return fetch(indices)

    fit(Linear(), steps=7, source=source, micro_batches=2)
    assert calls == [4] * 14
    calls.clear()
    report = fit(Linear(), steps=None, max_seconds=0.1, source=source)
    assert report.steps <= len(calls) <= report.steps + 1


def test_float16_trains() -> None:
    whole, half = Mean(), Mean()
    expected = small_training.fit(whole, steps=200)
    report = small_training.fit(half, steps=200, precision="float16")
    assert report.loss == pytest.approx(expected.loss, rel=0.1) and report.loss < 0.5 * report.rows[0]["loss"]
    assert "skipped" in report.rows[0]


class Steep(Linear):
    """Not finite in the steps of `steep`, and well within float16 in others."""

    def __init__(self, steep: range) -> None:
        super().__init__()
        self.steep, self.calls, self.progress = steep, 0, list[float]()

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = super().loss(batch, indices)
        self.calls += 1
        return loss * (float("inf") if self.calls - 1 in self.steep else 1e-3), parts

    def after_step(self, progress: float) -> None:
        self.progress.append(progress)


def test_float16_skips_a_step_that_is_not_finite_and_goes_on() -> None:
    objective = Steep(range(3, 5))
    report = fit(objective, steps=10, precision="float16")
    assert [row["skipped"] for row in report.rows] == [0, 0, 0, 1, 1, 0, 0, 0, 0, 0]
    assert objective.progress == pytest.approx([0.1, 0.2, 0.3, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert torch.isfinite(objective.layer.weight).all() and np.isnan(report.rows[3]["loss"])


def test_float16_stops_after_many_such_steps_in_a_row() -> None:
    with pytest.raises(RedshelfError, match="step 34: the loss is not finite"):
        fit(Steep(range(10, 100)), steps=100, precision="float16")


def test_an_unknown_precision_is_refused() -> None:
    with pytest.raises(BadInput, match="precision 'float8': expected one of bfloat16, float16, float32"):
        small_training.fit(Mean(), steps=1, precision="float8")


def test_after_step_is_told_how_far_the_run_is() -> None:
    objective = Steep(range(0))
    fit(objective, steps=4)
    assert objective.progress == [0.25, 0.5, 0.75, 1.0]


def test_a_monitor_sees_the_objective_as_it_is_used_in_ten_rows_and_changes_nothing() -> None:
    watched, plain = Linear(), Linear()

    def monitor() -> dict[str, float]:
        assert not watched.training
        return {"knn": float(torch.rand(()))}

    rows = fit(watched, steps=200, monitor=monitor).rows
    fit(plain, steps=200)
    assert [row["progress"] for row in rows if "knn" in row] == pytest.approx(np.arange(0.1, 1.05, 0.1))
    assert torch.equal(watched.layer.weight, plain.layer.weight)


def test_the_log_goes_to_tensorboard_once_though_the_run_was_killed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options: dict[str, Any] = {"checkpoint": tmp_path / "run.safetensors", "tensorboard": tmp_path / "board"}
    with pytest.raises(RuntimeError, match="killed"):
        fit(Linear(), on_log=killed_at(7), checkpoint_seconds=60, **options)
    with pytest.raises(RuntimeError, match="killed"):
        fit(Linear(), on_log=killed_at(12), checkpoint_seconds=0, **options)
    rows = fit(Linear(), **options).rows
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert {"training/loss", "training/lr", "training/largest", "training/gradient_norm"} <= set(
        board.Tags()["scalars"]
    )
    points = board.Scalars("training/loss")
    assert [point.step for point in points] == [row["step"] for row in rows] == list(range(1, 21))
    assert [point.value for point in points] == pytest.approx([row["loss"] for row in rows])


def killed_at(step: int) -> Any:
    """An `on_log` that dies at this step."""

    def on_log(row: dict[str, float]) -> None:
        if row["step"] == step:
            raise RuntimeError("killed")

    return on_log


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(BadInput, match=r"needs a compiler, and there is no g\+\+ or clang\+\+ on the PATH"):
        fit(Linear(), steps=1, compile=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_compiled_run_equals_one_that_is_not() -> None:
    plain, compiled = Mean(), Mean()
    small_training.fit(plain, steps=10)
    small_training.fit(compiled, steps=10, compile=True)
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_weighted_draws_of_many_sources_come_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from redshelf.models import sampler

    monkeypatch.setattr(sampler, "BLOCK", 16)
    drawn = Sampler(1000, 8, 0, np.r_[np.zeros(500), np.ones(500)])
    batches = [drawn.batch(step) for step in range(6)]
    assert all(len(batch) == 8 and (batch >= 500).all() for batch in batches)
    assert len({tuple(batch) for batch in batches}) == 6
    assert max(len(block) for block in drawn._epochs.values()) == 16

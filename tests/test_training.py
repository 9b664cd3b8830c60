"""models/training.py on a linear fit, where every step can be repeated exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, Conflict, RedshelfError
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


def fit(objective: Linear, *, steps: int = 20, seed: int = 1, source: Any = fetch, **options: Any) -> Report:
    return train(
        objective, source, Sampler(40, 8, seed), steps=steps, lr=0.05, seed=seed, precision="float32", **options
    )


class Killed(Exception):
    pass


def killed_at(step: int) -> Any:
    """A `fetch` that dies at its `step`-th call."""
    calls = iter(range(1000))

    def source(indices: np.ndarray) -> Batch:
        if next(calls) == step:
            raise Killed
        return fetch(indices)

    return source


def test_the_loss_goes_down_and_the_rows_say_so() -> None:
    report = fit(Linear(), steps=200)
    assert report.steps == 200 and len(report.rows) == 100
    assert report.loss < 0.5 * report.rows[0]["loss"]
    assert {"step", "seconds", "progress", "lr", "loss", "largest"} == set(report.rows[0])


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    rates = [row["lr"] for row in fit(Linear(), steps=100).rows]
    assert rates[0] < 0.1 * max(rates) and rates[-1] < 0.01 * max(rates)
    assert rates.index(max(rates)) == 5


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, part = Linear(), Linear()
    expected = fit(whole)
    with pytest.raises(Killed):
        fit(part, source=killed_at(7), checkpoint=tmp_path / "run.safetensors", checkpoint_seconds=0)
    again = Linear()
    report = fit(again, checkpoint=tmp_path / "run.safetensors")
    assert report.resumed_from == 7 and report.steps == 20
    for mine, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0)
    assert [row["loss"] for row in report.rows] == pytest.approx([row["loss"] for row in expected.rows], abs=1e-6)


def test_a_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    first = fit(Linear(), checkpoint=path)
    again = fit(Linear(), checkpoint=path, source=killed_at(0))
    assert again.resumed_from == 20 and again.rows == first.rows


def test_the_log_beside_the_checkpoint_is_json_lines(tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    report = fit(Linear(), checkpoint=tmp_path / "run.safetensors", on_log=seen.append)
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines == report.rows == seen


def test_a_checkpoint_of_another_run_is_refused_naming_what_differs(tmp_path: Path) -> None:
    fit(Linear(), checkpoint=tmp_path / "run.safetensors")
    with pytest.raises(Conflict, match="steps=20, this one has 30"):
        fit(Linear(), steps=30, checkpoint=tmp_path / "run.safetensors")


def test_a_checkpoint_cut_in_half_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    fit(Linear(), checkpoint=path)
    half = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(half)
    with pytest.raises(BadInput, match="no whole training checkpoint"):
        fit(Linear(), checkpoint=path)
    assert path.read_bytes() == half


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

"""service/plots.py: the curves of a training run."""

from __future__ import annotations

from io import BytesIO
from math import nan
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from redshelf.models.errors import BadInput
from redshelf.service.plots import panels, training_plot


def rows(number: int = 100, *, monitor: bool = True) -> list[dict[str, float]]:
    made = []
    for i in range(1, number + 1):
        row = {"step": 20.0 * i, "seconds": 4.1 * i, "progress": i / number, "lr": 1e-3 * np.cos(i / number)}
        row |= {
            "loss": 3 / i + 0.3,
            "reconstruction": 2 / i + 0.2,
            "colours": 1 / i + 0.1,
            "gradient_norm": 5 / i + 0.5,
        }
        if monitor and i % 10 == 0:
            row |= {"knn_sigma_mad": 0.1 / i + 0.02, "knn_bias": 0.01 * np.sin(i)}
        made.append(row)
    return made


def test_the_plot_is_a_png_the_same_in_hand_and_on_disk(tmp_path: Path) -> None:
    made = training_plot(rows(), tmp_path / "deep" / "loss.png")
    assert (tmp_path / "deep" / "loss.png").read_bytes() == made
    with Image.open(BytesIO(made)) as picture:
        assert picture.format == "PNG" and picture.width == 840
        ink = np.asarray(picture.convert("L")) < 250
    assert 0.005 < ink.mean() < 0.5


def test_parts_share_the_panel_of_the_loss_and_a_monitor_has_its_own() -> None:
    found = panels(rows())
    assert found["training loss"] == ["loss", "reconstruction", "colours"]
    assert found["knn sigma mad"] == ["knn_sigma_mad"] and found["knn bias"] == ["knn_bias"]
    assert sorted(key for keys in found.values() for key in keys) == sorted(
        set(rows()[9]) - {"step", "seconds", "progress"}
    )


def test_validation_has_its_own_panel_though_every_row_has_it() -> None:
    found = panels([row | {"validation": 0.5} for row in rows(monitor=False)])
    assert found["validation loss"] == ["validation"] and "validation" not in found["training loss"]


def test_every_curve_is_in_the_picture() -> None:
    """Without its last key a plot has another look."""
    whole = rows()
    for key in ("colours", "gradient_norm", "lr", "knn_bias"):
        less = [{name: value for name, value in row.items() if name != key} for row in whole]
        assert training_plot(less) != training_plot(whole)


@pytest.mark.parametrize("number", [1, 2])
def test_a_short_run_can_be_drawn(number: int) -> None:
    assert training_plot(rows(number)).startswith(b"\x89PNG")


def test_values_that_are_not_finite_are_left_out() -> None:
    broken = rows()
    broken[3]["loss"] = nan
    without = rows()
    del without[3]["loss"]
    assert training_plot(broken).startswith(b"\x89PNG")
    assert training_plot([row | {"loss": nan} for row in rows()]).startswith(b"\x89PNG")


def test_a_run_without_rows_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no rows to draw"):
        training_plot([], tmp_path / "loss.png")
    assert not list(tmp_path.iterdir())

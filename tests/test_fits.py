"""Fits on a shelf: what they are told of their sources, which are published, and what becomes of old ones."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from redshelf.indexing import store
from redshelf.indexing.layout import Layout
from redshelf.models import fitting
from redshelf.service.fit import FitReport, fit
from redshelf.service.publish import publish


@pytest.fixture
def own_shelf(tiny_shelf: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_shelf, tmp_path / "shelf"))


def keep_bright_labels(root: Path, n: int) -> None:
    """The `n` labels of the brightest sources in i; every other source becomes a target."""
    layout = Layout(root)
    labels = store.open_table(layout.labels).to_table()
    flux = store.open_table(layout.sources).take(labels["row"].to_numpy(), columns=["flux_i"])["flux_i"].to_numpy()
    store.replace_table(layout.labels, labels.take(np.sort(np.argsort(-flux)[:n])))


def test_an_embedding_alone_is_rehearsed_where_the_targets_are_fainter(
    own_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_bright_labels(own_shelf, 120)
    monkeypatch.setattr(fitting, "REHEARSAL_LABELS", 100)
    for folder in Layout(own_shelf).models.glob("photometry.*"):
        shutil.rmtree(folder)  # the fluxes tell, not an embedding of them
    report = fit(own_shelf, encoder="vit").details
    assert set(report["rehearsal"]) == {"nothing"} and report["left_out"] == []
    assert report["validation"] == report["rehearsal"]["nothing"]
    assert report["support"]["chosen"] is False, "there is one space alone"
    assert report["shift"]["mean_weight"] < 0.8, "seen in magnitudes, which this embedding hardly knows"


def test_a_rehearsed_fit_is_the_default_one_before_any_that_was_scored_on_brighter_sources(
    own_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_bright_labels(own_shelf, 120)
    plain = fit(own_shelf, encoder="photometry")
    monkeypatch.setattr(fitting, "REHEARSAL_LABELS", 100)
    rehearsed = fit(own_shelf, encoder="vit")
    assert not plain.details["rehearsal"] and rehearsed.details["rehearsal"]

    def score(report: FitReport) -> float:
        return float(report.details["validation"][report.details["default_estimator"]]["crps_weighted"])

    assert score(plain) < score(rehearsed), "else the better score would win by itself"
    assert publish(own_shelf).default_redshift == "vit"
    fit(own_shelf, encoder="photometry", seed=1)
    assert publish(own_shelf).default_redshift == "photometry", "both are rehearsed: the better score"

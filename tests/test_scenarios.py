"""Simulated label scenarios through a whole shelf: representative labels must change nothing."""

from pathlib import Path

import numpy as np
import pytest

from redshelf.service.embedding import embed
from redshelf.service.fit import FitReport, fit
from redshelf.service.index import build_index
from redshelf.service.ingest import ingest


def _fit(folder: Path, scenario: str) -> FitReport:
    pytest.importorskip("galsim", reason="the `sim` extra is not installed")
    from redshelf.indexing.simulate import simulate

    survey = simulate(folder / "survey", sources=4000, scenario=scenario, seed=3, catalogue_only=True)
    ingest(survey, folder / "shelf")
    embed(folder / "shelf", encoder="photometry")
    build_index(folder / "shelf", encoder="photometry")
    return fit(folder / "shelf", encoder="photometry")


@pytest.mark.slow
def test_representative_labels_get_weights_near_one_and_change_nothing(tmp_path: Path) -> None:
    report = _fit(tmp_path, "s0")
    shift = report.details["shift"]
    assert shift["mean_weight"] == pytest.approx(1, abs=0.05)
    assert shift["effective_sample_size"] > 0.8 * report.labels
    assert not report.details["knn"]["shift_weights"] and not report.details["lightgbm"]["shift_weights"]


@pytest.mark.slow
def test_bright_labels_get_uneven_weights_that_move_the_mean_redshift_up(tmp_path: Path) -> None:
    report = _fit(tmp_path, "s1")
    shift = report.details["shift"]
    assert shift["effective_sample_size"] < 0.7 * report.labels
    assert shift["weighted_mean_z"] > report.details["mean_z_labels"] + 0.1
    assert np.isfinite(shift["mean_weight"]) and shift["mean_weight"] < 1, "some targets lie where no label is near"

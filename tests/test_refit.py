"""The refit network against the densities it learns."""

from dataclasses import fields

import numpy as np
import pytest
from scipy.stats import norm

from redshelf.models import metrics
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.refit import RefitRedshift, fit_refit

EDGES = default_edges(2.0, step=0.01)
FEW = 300  # steps


def smooth_densities(n, seed=0):
    """Features (n, 2), and densities whose centre and width vary smoothly with them."""
    x = np.random.default_rng(seed).normal(size=(n, 2))
    centre, width = 0.8 + 0.2 * np.tanh(x[:, 0]), 0.05 + 0.03 * np.abs(np.sin(x[:, 1]))
    mass = np.diff(norm.cdf(EDGES, centre[:, None], width[:, None]))
    return x, Pdf.from_mass(EDGES, mass), centre


@pytest.fixture(scope="module")
def fitted():
    x, pdf, _ = smooth_densities(1500)
    return fit_refit(x, pdf, steps=FEW)


def test_smooth_densities_come_back_and_keep_their_order(fitted):
    model, report = fitted
    x, pdf, centre = smooth_densities(1000, seed=1)
    out = model.predict(x)
    np.testing.assert_allclose((out.density * out.widths).sum(axis=1), 1)
    assert np.abs(out.cdf() - pdf.cdf()).max(axis=1).mean() < 0.05
    assert np.median(np.abs(out.median() - pdf.median())) < 0.006
    ranks = [np.argsort(np.argsort(v)) for v in (out.median(), centre)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99
    assert report["cdf_difference"] < 0.01 and report["n_left_out"] == 0
    truth = np.random.default_rng(2).normal(centre, 0.05)
    assert metrics.cde_loss(out, truth) < metrics.cde_loss(pdf, truth) + 0.2


def test_sources_out_of_support_are_never_shown():
    x, pdf, _ = smooth_densities(1000)
    wrong = np.zeros(1000, dtype=bool)
    wrong[:300] = True
    broken = Pdf.from_mass(EDGES, np.where(wrong[:, None], np.eye(len(EDGES) - 1)[-1], pdf.density * pdf.widths))
    one, report = fit_refit(x, pdf, in_support=~wrong, width=32, steps=50)
    other, _ = fit_refit(x, broken, in_support=~wrong, width=32, steps=50)
    assert report["n_left_out"] == 300
    np.testing.assert_array_equal(one.out, other.out)


def test_the_same_seed_gives_the_same_network_and_another_does_not():
    x, pdf, _ = smooth_densities(500)
    one, again, other = (fit_refit(x, pdf, width=32, steps=30, seed=s)[0] for s in (3, 3, 4))
    for field in fields(RefitRedshift):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(again, field.name))
    assert not np.array_equal(one.hidden, other.hidden)


def test_blocks_are_the_whole(fitted, monkeypatch):
    x = smooth_densities(250)[0]
    whole = fitted[0].predict(x)
    monkeypatch.setattr("redshelf.models.refit.BLOCK", 100)
    assert [len(part) for part in fitted[0].blocks(x)] == [100, 100, 50]
    np.testing.assert_allclose(fitted[0].predict(x).density, whole.density, rtol=1e-4, atol=1e-6)


def test_bad_input_is_refused(fitted):
    x, pdf, _ = smooth_densities(200)
    with pytest.raises(BadInput, match="50 sources in support"):
        fit_refit(x, pdf, in_support=np.arange(200) < 50)
    with pytest.raises(BadInput, match="expected"):
        fit_refit(x[:100], pdf)
    x[3, 1] = np.nan
    with pytest.raises(BadInput, match="NaN"):
        fit_refit(x, pdf)
    for features in (x, np.zeros((3, 5)), np.zeros((0, 2))):
        with pytest.raises(BadInput):
            fitted[0].predict(features)

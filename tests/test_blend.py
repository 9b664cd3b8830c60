"""The mixture of least weighted CDE loss against a search over the simplex."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redshelf.models import metrics
from redshelf.models.blend import blend_shares, mixture
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges

EDGES = default_edges(1.5)


def densities(seed, n=60):
    rng = np.random.default_rng(seed)
    pdfs = [Pdf.from_mass(EDGES, rng.gamma(0.3, size=(n, len(EDGES) - 1))) for _ in range(3)]
    return pdfs, rng.uniform(0, 1.5, n), rng.exponential(size=n)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000))
def test_no_mixture_on_a_grid_over_the_simplex_is_better(seed):
    pdfs, z, weights = densities(seed)
    found = blend_shares(pdfs, z, weights)
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    reached = metrics.cde_loss(mixture(pdfs, found), z, weights)
    for a in np.linspace(0, 1, 11):
        for b in np.linspace(0, 1 - a, 6):
            assert reached <= metrics.cde_loss(mixture(pdfs, [a, b, 1 - a - b]), z, weights) + 2e-3


def test_the_estimator_that_is_right_takes_all():
    pdfs, z, weights = densities(1)
    mass = np.zeros_like(pdfs[0].density)
    mass[np.arange(len(z)), pdfs[0].bin_of(z)] = 1
    right = Pdf.from_mass(EDGES, mass)
    np.testing.assert_array_equal(blend_shares([pdfs[0], right, pdfs[1]], z, weights), [0, 1, 0])


def test_labels_of_no_weight_do_not_count():
    pdfs, z, weights = densities(2)
    weights[30:] = 0
    halves = [Pdf(EDGES, pdf.density[:30]) for pdf in pdfs]
    np.testing.assert_allclose(blend_shares(pdfs, z, weights), blend_shares(halves, z[:30], weights[:30]))


def test_a_mixture_integrates_to_one():
    pdfs, _, _ = densities(3)
    mixed = mixture(pdfs, [0.2, 0.5, 0.3])
    np.testing.assert_allclose(mixed.density @ mixed.widths, 1)


def test_weights_of_another_length_are_refused():
    pdfs, z, _ = densities(4)
    with pytest.raises(BadInput, match="weights of shape"):
        blend_shares(pdfs, z, np.ones(3))

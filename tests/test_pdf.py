"""Densities on a grid: what a wrong one is refused for, and exact answers of a uniform one."""

from __future__ import annotations

import numpy as np
import pytest

from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges

EDGES = np.array([0.0, 1.0, 3.0])


@pytest.mark.parametrize("z_max", [0.0, -1.0, 20.1, float("nan")])
def test_a_range_of_redshift_that_is_none_is_refused(z_max: float) -> None:
    with pytest.raises(BadInput, match=r"expected 0 < z_max <= 20"):
        default_edges(z_max)


@pytest.mark.parametrize("z_max", [0.004, 1.0, 6.0, 20.0])
def test_edges_are_uniform_in_the_log_and_reach_as_far_as_they_are_asked(z_max: float) -> None:
    edges = default_edges(z_max)
    assert edges[0] == 0 and edges[-1] >= z_max > edges[-2]
    assert np.diff(np.log1p(edges)) == pytest.approx(0.004)


@pytest.mark.parametrize("edges", [np.zeros((2, 2)), np.array([1.0]), np.array([0.0, 0.0]), np.array([1.0, 0.5])])
def test_edges_that_do_not_rise_are_refused(edges: np.ndarray) -> None:
    with pytest.raises(BadInput, match="at least 2 strictly increasing"):
        Pdf(edges, np.ones((1, 1)))


@pytest.mark.parametrize("density", [np.ones(2), np.ones((1, 1)), np.ones((1, 3)), np.ones((1, 2, 1))])
def test_a_density_of_another_shape_is_refused(density: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"expected \(N, 2\)"):
        Pdf(EDGES, density)


def test_a_uniform_density_has_the_quantiles_and_ranks_of_a_uniform_one() -> None:
    pdf = Pdf.from_mass(EDGES, np.array([[1.0, 2.0]] * 3))
    assert pdf.density == pytest.approx(1 / 3)
    for q in (0.01, 1 / 3, 0.5, 0.99):
        assert pdf.quantile(q) == pytest.approx(3 * q)
    assert pdf.pit([0.0, 1.5, 3.0]) == pytest.approx([0, 0.5, 1])


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, float("nan")])
def test_a_quantile_that_is_none_is_refused(q: float) -> None:
    with pytest.raises(BadInput, match="expected 0 < q < 1"):
        Pdf(EDGES, np.full((1, 2), 1 / 3)).quantile(q)


def test_ranks_of_another_number_of_redshifts_are_refused() -> None:
    with pytest.raises(BadInput, match=r"z has shape \(2,\): expected \(1,\)"):
        Pdf(EDGES, np.full((1, 2), 1 / 3)).pit([0.1, 0.2])

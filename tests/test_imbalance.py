"""models/imbalance.py: each remedy on a toy whose balanced answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from redshelf.models.bins import Target, prior_of, soft_labels
from redshelf.models.errors import BadInput
from redshelf.models.imbalance import (
    CELL_LN_Z,
    DENSITY_CAP,
    BinLoss,
    RegressionLoss,
    balanced_mse,
    capped_rows,
    check_loss,
    implied_prior,
    inverse_density,
)

BINS = Target(n_bins=40, width=0.02, centre=0.4, scale=0.1)


def test_logit_adjustment_finds_the_likelihood_whatever_the_prior() -> None:
    # two appearances x, two classes of redshift; class 0 has nine labels out of ten
    likelihood = torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)  # p(x | class), rows classes
    share = torch.tensor([0.9, 0.1], dtype=torch.float64)
    z = torch.expm1(torch.tensor([0.19, 0.61], dtype=torch.float64))
    labels = soft_labels(z, 40, width=0.02)  # far apart: no bin has mass of both
    prior = (share[:, None] * labels).sum(dim=0).clamp(min=1e-9)
    loss = BinLoss(BINS, (prior / prior.sum()).numpy(), adjust=True)
    free = nn.Parameter(torch.zeros(2, 40))  # the logits of each x
    joint = (share[:, None] * likelihood).float()  # p(class, x)
    optimiser = torch.optim.LBFGS([free], max_iter=500, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        out = free[None].expand(2, 2, 40).reshape(4, 40)  # (class, x)
        total = loss(out, z.float().repeat_interleave(2), 4 * joint.flatten())[0]
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(step)  # type: ignore[arg-type]
    with torch.no_grad():
        bare = free.softmax(dim=1)
    classes = torch.stack([bare[:, 4:15].sum(dim=1), bare[:, 25:36].sum(dim=1)])  # (class, x), +-5 bins of 0.02
    balanced = likelihood / likelihood.sum(dim=0)
    torch.testing.assert_close(classes / classes.sum(dim=0), balanced.float(), atol=0.01, rtol=0)


def test_an_empty_class_gives_no_infinity() -> None:
    z = np.expm1(np.concatenate([np.full(60, 0.1), np.full(60, 0.7)]))  # nothing in between
    prior = prior_of(z, 40, width=0.02)
    loss = BinLoss(BINS, prior, adjust=True)
    out = torch.randn(120, 40, requires_grad=True)
    value, _ = loss(out, torch.from_numpy(z).float(), torch.ones(120))
    value.backward()
    assert torch.isfinite(value) and out.grad is not None and torch.isfinite(out.grad).all()
    assert np.isfinite(inverse_density(prior)).all()


def test_inverse_density_is_one_over_the_share_up_to_a_cap_with_mean_one() -> None:
    prior = np.array([0.6, 0.3, 0.1])
    np.testing.assert_allclose(inverse_density(prior), np.array([1 / 0.6, 1 / 0.3, 1 / 0.1]) / 3)
    rare = np.array([1 - 1e-4, 1e-4])
    weight = inverse_density(rare)
    assert (rare * weight).sum() == pytest.approx(1)
    assert weight[1] == pytest.approx(DENSITY_CAP * 2 / (1 + DENSITY_CAP * 2e-4), rel=0.01)


def test_density_weights_make_the_best_constant_the_middle_of_the_range() -> None:
    z = np.expm1(np.concatenate([np.linspace(0.1, 0.3, 900), np.linspace(0.3, 0.5, 100)]))
    target = Target.for_labels(z)
    prior = prior_of(z, target.n_bins, width=target.width)
    constants = torch.linspace(-2, 4, 601)
    best = {}
    for remedy in ("none", "density"):
        loss = RegressionLoss(target, prior, imbalance=remedy)  # type: ignore[arg-type]
        values = [float(loss(c.expand(1000, 1), torch.from_numpy(z).float(), torch.ones(1000))[0]) for c in constants]
        best[remedy] = target.centre + target.scale * float(constants[int(np.argmin(values))])
    assert best["none"] == pytest.approx(np.log1p(z).mean(), abs=0.002)
    assert best["density"] == pytest.approx(0.3, abs=0.02)


def test_balanced_mse_is_the_closed_form_for_a_small_batch() -> None:
    predicted, wanted = np.array([0.1, 0.5, -0.3]), np.array([0.0, 0.7, -0.2])
    noise = 0.4
    likelihood = np.exp(-((predicted[:, None] - wanted[None]) ** 2) / (2 * noise**2))
    expected = np.mean(-np.log(np.diag(likelihood) / likelihood.sum(axis=1))) * 2 * noise**2
    found = balanced_mse(
        torch.from_numpy(predicted),
        torch.from_numpy(wanted),
        torch.ones(3),
        noise=torch.tensor(noise, dtype=torch.float64),
    )
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_a_label_of_weight_zero_is_out_of_balanced_mse() -> None:
    predicted, wanted = torch.tensor([0.1, 0.5, 9.0]), torch.tensor([0.0, 0.7, 0.1])
    with_it = balanced_mse(predicted, wanted, torch.tensor([1.0, 1.0, 0.0]), noise=torch.tensor(0.4))
    without = balanced_mse(predicted[:2], wanted[:2], torch.ones(2), noise=torch.tensor(0.4))
    assert float(with_it) == pytest.approx(float(without) * 2 / 3, rel=1e-6)


def test_balanced_mse_learns_its_noise() -> None:
    z = np.expm1(np.linspace(0.1, 0.5, 200))
    loss = RegressionLoss(BINS, prior_of(z, 40, width=0.02), imbalance="balanced-mse")
    (noise,) = loss.parameters()
    value, parts = loss(torch.zeros(200, 1), torch.from_numpy(z).float(), torch.ones(200))
    value.backward()
    assert noise.grad is not None and float(noise.grad) != 0 and {"square_error", "noise"} == set(parts)


def test_the_capped_subset_has_no_crowded_cell() -> None:
    rng = np.random.default_rng(0)
    z = np.expm1(rng.exponential(0.15, 3000))
    magnitude = rng.uniform(18, 24, 3000)
    magnitude[:10] = np.nan
    rows = capped_rows(z, magnitude, seed=1, cap=7)
    bright = np.nan_to_num(np.floor(magnitude / 0.5), nan=-9)
    cells = np.column_stack([np.floor(np.log1p(z) / CELL_LN_Z), bright])
    counts = np.unique(cells[rows], axis=0, return_counts=True)[1]
    everything = np.unique(cells, axis=0, return_counts=True)[1]
    np.testing.assert_array_equal(counts, np.minimum(everything, 7))
    np.testing.assert_array_equal(rows, capped_rows(z, magnitude, seed=1, cap=7))
    assert len(capped_rows(z, None, seed=1)) < 3000


def test_the_implied_prior_is_flat_where_the_remedy_flattens() -> None:
    prior = np.array([0.7, 0.2, 0.1])
    np.testing.assert_array_equal(implied_prior(prior, "none"), prior)
    for remedy in ("logit", "density", "balanced-mse"):
        np.testing.assert_allclose(implied_prior(prior, remedy), 1 / 3)  # type: ignore[arg-type]


def test_remedies_that_do_not_go_with_the_loss_are_refused() -> None:
    with pytest.raises(BadInput, match="imbalance 'density' with loss 'bins': expected one of none, logit, capped"):
        check_loss("bins", "density")
    with pytest.raises(BadInput, match="imbalance 'logit' with loss 'regression'"):
        check_loss("regression", "logit")
    with pytest.raises(BadInput, match="imbalance 'smote': expected one of"):
        check_loss("bins", "smote")
    with pytest.raises(BadInput, match="loss 'mae': expected one of bins, regression"):
        check_loss("mae", "none")

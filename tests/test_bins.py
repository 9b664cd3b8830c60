"""models/bins.py against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from redshelf.models.bins import (
    BIN,
    MARGIN_BINS,
    PRIOR_FLOOR,
    SOFT_BINS,
    WIDEST,
    Target,
    bins_for,
    edges_of,
    gaussian_mass,
    prior_of,
    redshift_loss,
    soft_labels,
    width_for,
)
from redshelf.models.errors import BadInput


def test_bins_reach_beyond_the_largest_label() -> None:
    z = np.array([0.1, 1.0])
    beyond = np.log1p(edges_of(bins_for(z))[-1]) - np.log1p(1.0)
    assert MARGIN_BINS * BIN - 1e-9 <= beyond < (MARGIN_BINS + 1) * BIN + 1e-9


def test_a_soft_label_is_a_gaussian_in_ln_1_z() -> None:
    z = torch.tensor([0.3, 1.7], dtype=torch.float64)
    mass = soft_labels(z, 250)
    centres = (torch.arange(250) + 0.5) * BIN
    mean = (mass * centres).sum(dim=1)
    torch.testing.assert_close(mass.sum(dim=1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(mean, torch.log1p(z), atol=1e-6, rtol=0)
    variance = (mass * (centres - mean[:, None]) ** 2).sum(dim=1)
    expected = (SOFT_BINS * BIN) ** 2 + BIN**2 / 12  # Sheppard: binning adds a twelfth of a bin squared
    torch.testing.assert_close(variance, torch.full((2,), expected, dtype=torch.float64), atol=1e-8, rtol=0)


def test_a_label_at_redshift_zero_keeps_all_its_mass() -> None:
    mass = soft_labels(torch.zeros(1), 100)
    assert float(mass.sum()) == pytest.approx(1) and int(mass.argmax()) == 0


def test_the_loss_is_least_for_the_soft_label_itself() -> None:
    z = torch.tensor([0.5])
    truth = soft_labels(z, 200).clamp(min=1e-12).log()
    entropy, crps = redshift_loss(truth, z)
    assert float(crps) == pytest.approx(0, abs=1e-9)
    wrong_entropy, wrong_crps = redshift_loss(truth.roll(10, dims=1), z)
    assert wrong_entropy > entropy and wrong_crps > crps


def test_a_far_miss_costs_more_than_a_near_one_on_the_cdf() -> None:
    peaks = torch.full((2, 200), -30.0)
    peaks[0, 100], peaks[1, 160] = 30.0, 30.0
    _, crps = redshift_loss(peaks, torch.expm1(torch.tensor([0.4, 0.4])))
    assert crps[1] > 2 * crps[0]


def test_the_crps_of_two_far_peaks_is_their_distance() -> None:
    peak = torch.full((1, 400), -60.0)
    peak[0, 320] = 60.0  # its mass lies at the bin's right edge in the sum of the CDF
    _, crps = redshift_loss(peak, torch.expm1(torch.tensor([100 * BIN])))
    # |CDF gap| is 1 between the two, and the label's own softness takes sigma / sqrt(pi) away
    assert float(crps) == pytest.approx(220 * BIN - SOFT_BINS * BIN / np.sqrt(np.pi), abs=BIN)


def test_few_labels_get_fewer_and_wider_bins() -> None:
    z = np.linspace(0.01, 3, 100)
    width = width_for(z)
    assert BIN < width < WIDEST
    assert bins_for(z, width=width) <= 100 < bins_for(z, width=0.98 * width)
    assert width_for(np.linspace(0.01, 3, 1000)) == BIN


def test_fewer_labels_than_the_widest_bins_are_refused() -> None:
    with pytest.raises(BadInput, match=r"60 labels up to z=6\.00 are fewer than the 106 bins"):
        width_for(np.linspace(0.01, 6, 60))


def test_a_prior_has_the_counts_of_the_labels_and_is_nowhere_zero() -> None:
    rng = np.random.default_rng(0)
    z = np.expm1(np.concatenate([rng.uniform(0.2, 0.4, 3000), rng.uniform(0.8, 1.0, 1000)]))
    prior = prior_of(z, 300)
    assert prior.sum() == pytest.approx(1) and prior.min() >= PRIOR_FLOOR / 300 * (1 - 1e-9)
    assert prior[50:70].mean() / prior[170:190].mean() == pytest.approx(3, rel=0.1)
    assert prior[250:].max() < 1.01 * PRIOR_FLOOR / 300  # no label: the floor alone


def test_weights_of_a_prior_count_as_labels_do() -> None:
    z = np.array([0.2, 0.2, 0.2, 0.9])
    np.testing.assert_allclose(prior_of(z[[0, 3]], 200, weights=[3, 1]), prior_of(z, 200))


def test_a_prior_of_nothing_inside_the_bins_is_refused() -> None:
    with pytest.raises(BadInput, match=r"below z=1\.72"):
        prior_of([2.0, 3.0], 200)
    with pytest.raises(BadInput, match="not finite, negative"):
        prior_of([0.1, np.nan], 200)


def test_a_gaussian_in_bins_has_its_mean_and_stays_whole_outside() -> None:
    mass = gaussian_mass(torch.tensor([0.5, -3.0]), 0.03, 300)
    assert mass.sum(dim=1).tolist() == pytest.approx([1, 1])
    assert float((mass[0] * (torch.arange(300) + 0.5) * BIN).sum()) == pytest.approx(0.5, abs=1e-5)
    assert int(mass[1].argmax()) == 0


def test_a_table_is_looked_up_by_the_bin_of_a_redshift() -> None:
    target = Target(4, 0.1, 0.0, 1.0)
    z = np.expm1([0.05, 0.15, 0.39, 5.0])
    np.testing.assert_array_equal(target.at(z, np.array([1.0, 2.0, 3.0, 4.0])), [1, 2, 4, 4])

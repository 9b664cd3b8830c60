"""models/network.py on redshifts that are a known function of the fluxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from redshelf.models import checkpoint
from redshelf.models.bands import Band, ab_to_flux
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.network import BIN, PhotometryNetwork, redshift_loss, train_network
from redshelf.models.pdf import Pdf

BANDS = [Band(n, w, depth_ab=28.0) for n, w in zip("gri", (475.0, 622.0, 770.0), strict=True)]
N = 600


def labelled() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Fluxes, errors, states and redshifts: z grows with g-r."""
    rng = np.random.default_rng(1)
    z = rng.uniform(0.05, 1.0, N)
    magnitude = rng.uniform(19, 23, N)[:, None] + np.stack([1.5 * z, 0.5 * z, 0 * z], axis=1)
    flux = np.asarray(ab_to_flux(magnitude))
    error = 0.02 * flux
    return flux + error * rng.normal(size=flux.shape), error, np.full(flux.shape, 2, np.int8), z


def batch_of(flux: np.ndarray, state: np.ndarray) -> Batch:
    return Batch(torch.from_numpy(state), flux_ujy=torch.from_numpy(flux))


@pytest.fixture(scope="module")
def trained() -> PhotometryNetwork:
    flux, error, state, z = labelled()
    return train_network(flux[:500], error[:500], state[:500], z[:500], bands=BANDS, steps=200)[0]


def test_the_network_learns_redshift_and_its_masses_sum_to_one(trained: PhotometryNetwork) -> None:
    flux, _, state, z = labelled()
    edges, mass = trained.predict(batch_of(flux[500:], state[500:]))
    np.testing.assert_allclose(mass.sum(axis=1), 1, atol=1e-9)
    error = (Pdf.from_mass(edges, mass).mean() - z[500:]) / (1 + z[500:])
    assert np.median(np.abs(error)) < 0.03


def test_neighbours_in_the_latent_have_like_redshifts(trained: PhotometryNetwork) -> None:
    flux, _, state, z = labelled()
    latent = trained.embed(batch_of(flux, state))
    assert latent.shape == (N, 16) and latent.dtype == torch.float32
    distance = torch.cdist(latent[500:], latent[:500])
    nearest = z[:500][distance.topk(5, largest=False).indices.numpy()].mean(axis=1)
    assert np.median(np.abs(nearest - z[500:])) < 0.05


def test_the_network_comes_back_from_disk_with_the_same_answers(trained: PhotometryNetwork, tmp_path: Path) -> None:
    folder = checkpoint.save(trained, tmp_path, provenance={})
    back = checkpoint.load(folder)
    assert isinstance(back, PhotometryNetwork) and folder.name == f"network.{trained.revision}"
    flux, _, state, _ = labelled()
    batch = batch_of(flux[:20], state[:20])
    assert torch.equal(back.embed(batch), trained.embed(batch))
    np.testing.assert_array_equal(back.predict(batch)[1], trained.predict(batch)[1])


def test_the_loss_is_least_for_the_soft_label_itself() -> None:
    z = torch.tensor([0.5])
    edges = torch.arange(201) * BIN
    truth = torch.special.ndtr((edges - torch.log1p(z)) / 0.01).diff().clamp(min=1e-12).log()[None]
    entropy, crps = redshift_loss(truth, z)
    assert float(crps) == pytest.approx(0, abs=1e-9)
    wrong_entropy, wrong_crps = redshift_loss(truth.roll(10, dims=1), z)
    assert wrong_entropy > entropy and wrong_crps > crps


def test_a_far_miss_costs_more_than_a_near_one_on_the_cdf() -> None:
    peaks = torch.full((2, 200), -30.0)
    peaks[0, 100], peaks[1, 160] = 30.0, 30.0
    _, crps = redshift_loss(peaks, torch.expm1(torch.tensor([0.4, 0.4])))
    assert crps[1] > 2 * crps[0]


def test_a_weight_of_zero_keeps_a_label_out() -> None:
    flux, error, state, z = labelled()
    spoilt, weights = z.copy(), np.ones(N)
    spoilt[::2], weights[::2] = 0.9, 0.0
    network = train_network(flux, error, state, spoilt, bands=BANDS, weights=weights, steps=150)[0]
    found = Pdf.from_mass(*network.predict(batch_of(flux, state))).mean()
    assert np.median(np.abs(found - z)) < 0.08


def test_labels_that_cannot_be_trained_on_are_refused() -> None:
    flux, error, state, z = labelled()
    with pytest.raises(BadInput, match="20 labels: the network needs at least 50"):
        train_network(flux[:20], error[:20], state[:20], z[:20], bands=BANDS)
    z[3] = np.nan
    with pytest.raises(BadInput, match="not finite"):
        train_network(flux, error, state, z, bands=BANDS)


def test_fit_gives_the_encoder_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("redshelf.models.network.train_network", lambda *a, **k: ("encoder", "report"))
    flux, error, state, z = labelled()
    assert PhotometryNetwork.fit(flux, error, state, z, bands=BANDS) == "encoder"

"""models/redshift_network.py: the network on photometry with redshifts that are known from the fluxes, and trunks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import red_blobs
import torch

from redshelf.models import checkpoint
from redshelf.models.bands import Band, ab_to_flux
from redshelf.models.bins import Target, prior_of
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf
from redshelf.models.photometry import Photometry, fit_scaling
from redshelf.models.redshift_network import RedshiftNetwork
from redshelf.models.specialise import specialise
from redshelf.models.training import seeded

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


def train_photometry(
    flux: np.ndarray, error: np.ndarray, state: np.ndarray, z: np.ndarray, **options: Any
) -> RedshiftNetwork:
    """The small network on photometry."""

    def fetch(indices: np.ndarray) -> Batch:
        return batch_of(flux[indices], state[indices])

    scaling = fit_scaling(flux, error, state, bands=BANDS)
    return specialise(fetch, z, backbone=None, photometry=scaling, mode="direct", name="network", **options)[0]


@pytest.fixture(scope="module")
def trained() -> RedshiftNetwork:
    flux, error, state, z = labelled()
    return train_photometry(flux[:500], error[:500], state[:500], z[:500], steps=200)


def image_network(*, photometry: bool, loss: Any = "bins", body: Any = "mlp") -> RedshiftNetwork:
    made, z = red_blobs.survey()
    with seeded(3):
        return RedshiftNetwork(
            backbone=red_blobs.tiny_vit(),
            photometry=red_blobs.scaling(made) if photometry else None,
            target=Target.for_labels(z),
            loss=loss,
            body=body,
            name="both",
        )


def test_the_network_learns_redshift_and_its_masses_sum_to_one(trained: RedshiftNetwork) -> None:
    flux, _, state, z = labelled()
    edges, mass = trained.predict(batch_of(flux[500:], state[500:]))
    np.testing.assert_allclose(mass.sum(axis=1), 1, atol=1e-9)
    error = (Pdf.from_mass(edges, mass).mean() - z[500:]) / (1 + z[500:])
    assert np.median(np.abs(error)) < 0.03


def test_neighbours_in_the_latent_have_like_redshifts(trained: RedshiftNetwork) -> None:
    flux, _, state, z = labelled()
    latent = trained.embed(batch_of(flux, state))
    assert latent.shape == (N, 16) and latent.dtype == torch.float32
    assert red_blobs.knn_error(latent, z, 500) < 0.05


def test_the_network_comes_back_from_disk_with_the_same_answers(trained: RedshiftNetwork, tmp_path: Path) -> None:
    folder = checkpoint.save(trained, tmp_path, provenance={})
    back = checkpoint.load(folder)
    assert isinstance(back, RedshiftNetwork) and folder.name == f"network.{trained.revision}"
    assert back.needs == {"fluxes"} and back.bands == ("g", "r", "i")
    flux, _, state, _ = labelled()
    batch = batch_of(flux[:20], state[:20])
    assert torch.equal(back.embed(batch), trained.embed(batch))
    np.testing.assert_array_equal(back.predict(batch)[1], trained.predict(batch)[1])


def test_a_weight_of_zero_keeps_a_label_out() -> None:
    flux, error, state, z = labelled()
    spoilt, weights = z.copy(), np.ones(N)
    spoilt[::2], weights[::2] = 0.9, 0.0
    network = train_photometry(flux, error, state, spoilt, weights=weights, steps=150)
    found = Pdf.from_mass(*network.predict(batch_of(flux, state))).mean()
    assert np.median(np.abs(found - z)) < 0.08


def test_labels_that_cannot_be_trained_on_are_refused() -> None:
    flux, error, state, z = labelled()
    with pytest.raises(BadInput, match="20 labels: the network needs at least 50"):
        train_photometry(flux[:20], error[:20], state[:20], z[:20])
    z[3] = np.nan
    with pytest.raises(BadInput, match="not finite, negative, or 20 and more, the first is z=nan of label 3"):
        train_photometry(flux, error, state, z)
    z[3] = -0.1
    with pytest.raises(BadInput, match=r"z=-0\.1 of label 3"):
        train_photometry(flux, error, state, z)


@pytest.mark.parametrize("photometry", [False, True])
def test_an_image_network_comes_back_from_disk_with_its_trunk(photometry: bool, tmp_path: Path) -> None:
    network = image_network(photometry=photometry)
    back = checkpoint.load(checkpoint.save(network, tmp_path, provenance={}))
    assert isinstance(back, RedshiftNetwork) and back.backbone is not None
    assert back.needs == ({"pixels", "fluxes"} if photometry else {"pixels"})
    made, _ = red_blobs.survey()
    batch = made.fetch(np.arange(8))
    assert torch.equal(back.embed(batch), network.embed(batch))
    np.testing.assert_array_equal(back.predict(batch)[1], network.predict(batch)[1])


def test_a_prior_at_inference_does_what_bayes_says(trained: RedshiftNetwork) -> None:
    flux, _, state, _ = labelled()
    batch = batch_of(flux[:30], state[:30])
    edges, mass = trained.predict(batch)
    rng = np.random.default_rng(5)
    wanted = rng.uniform(0, 1, len(edges) - 1)
    wanted[10] = 0
    product = mass * wanted / trained.prior.double().numpy()
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(trained.predict(batch, prior=7 * wanted)[1], expected, atol=1e-12)
    own = trained.prior.double().numpy()
    np.testing.assert_allclose(trained.predict(batch, prior=own)[1], mass, atol=1e-9)


def test_the_prior_of_the_training_labels_is_kept(trained: RedshiftNetwork) -> None:
    z = labelled()[3]
    kept = np.random.default_rng((0, 500)).permutation(500)[50:]
    expected = prior_of(z[:500][kept], trained.target.n_bins)
    np.testing.assert_allclose(trained.prior.numpy(), expected, rtol=1e-5)


def test_priors_that_are_none_are_refused(trained: RedshiftNetwork) -> None:
    flux, _, state, _ = labelled()
    batch, bins = batch_of(flux[:2], state[:2]), trained.target.n_bins
    with pytest.raises(BadInput, match=rf"prior of shape \(3,\): expected \({bins},\)"):
        trained.predict(batch, prior=[1, 2, 3])
    for broken in (np.zeros(bins), np.full(bins, np.nan), -np.ones(bins)):
        with pytest.raises(BadInput, match="prior: expected finite shares"):
            trained.predict(batch, prior=broken)


def test_a_regression_answers_with_its_scatter_as_a_gaussian() -> None:
    network = image_network(photometry=True, loss="regression")
    network.scatter.fill_(0.03)
    made, _ = red_blobs.survey()
    batch = made.fetch(np.arange(40))
    edges, mass = network.predict(batch)
    centres = 0.5 * (np.log1p(edges[1:]) + np.log1p(edges[:-1]))
    mean = mass @ centres
    with torch.inference_mode():
        out = network.answers(network.embed(batch))[:, 0].numpy()
    np.testing.assert_allclose(mean, network.target.centre + network.target.scale * out, atol=1e-3)
    spread = np.sqrt((mass * (centres - mean[:, None]) ** 2).sum(axis=1))
    np.testing.assert_allclose(spread, 0.03, rtol=0.02)


def test_trunks_that_do_not_fit_are_refused() -> None:
    made, z = red_blobs.survey()
    scaling, target = red_blobs.scaling(made), Target.for_labels(z)
    with pytest.raises(BadInput, match="needs a trunk"):
        RedshiftNetwork(backbone=None, photometry=None, target=target, name="x")
    turned_round = replace(scaling, bands=scaling.bands[::-1])
    with pytest.raises(BadInput, match="has the bands g, r, i, z, the photometry z, i, r, g"):
        RedshiftNetwork(backbone=red_blobs.tiny_vit(), photometry=turned_round, target=target, name="x")
    with pytest.raises(BadInput, match="'photometry' of kind 'photometry' cannot be specialised"):
        RedshiftNetwork(backbone=Photometry(scaling), photometry=None, target=target, name="x")  # type: ignore[arg-type]


def test_a_batch_without_what_the_trunk_needs_is_refused() -> None:
    network = image_network(photometry=True)
    made, _ = red_blobs.survey()
    batch = made.fetch(np.arange(4))
    with pytest.raises(BadInput, match="'both' needs fluxes"):
        network.embed(replace(batch, flux_ujy=None))
    with pytest.raises(BadInput, match="'both' needs pixels"):
        network.embed(replace(batch, pixels=None, pixel_mask=None))
    nothing = replace(batch, state=torch.zeros_like(batch.state))
    with pytest.raises(BadInput, match="4 sources have no band with a good pixel"):
        network.embed(nothing)


def test_weights_that_do_not_fit_are_refused() -> None:
    network = image_network(photometry=False)
    weights = network.weights()
    lacking = {key: value for key, value in weights.items() if key != "head.0.weight"}
    for wrong in (lacking, weights | {"head.0.weight": torch.zeros(3)}, weights | {"more": torch.zeros(1)}):
        with pytest.raises(BadInput, match="'both': the weights do not fit its config"):
            RedshiftNetwork.from_config(network.config, wrong, name="both", revision="0")
    with pytest.raises(BadInput, match="made by another version of redshelf"):
        RedshiftNetwork.from_config({"bands": ["g"], "scaling": {}}, {}, name="both", revision="0")

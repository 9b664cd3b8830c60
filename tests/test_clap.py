"""models/clap.py: its losses against numpy, and the latent on blobs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import red_blobs
import torch

from redshelf.models import checkpoint
from redshelf.models.backbone import Backbone
from redshelf.models.bins import Target, prior_of
from redshelf.models.clap import (
    RECONSTRUCTION_WEIGHT,
    Clap,
    Decoder,
    contrastive_loss,
    image_error,
    linear,
    logarithmic,
    mutual_entropy,
)
from redshelf.models.cnn import InceptionCNN
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.imbalance import criterion_for
from redshelf.models.labelled import Labels
from redshelf.models.redshift_network import LATENT, RedshiftNetwork
from redshelf.models.specialise import specialise
from redshelf.models.training import seeded

TRAIN, N = 400, 500


def fetch(indices: np.ndarray) -> Batch:
    return red_blobs.survey()[0].fetch(indices)


def objective(n: int = 16, *, backbone: Backbone | None = None, imbalance: Any = "none") -> Clap:
    z = red_blobs.survey()[1][:64]
    target = Target.for_labels(z)
    trunk = red_blobs.tiny_vit() if backbone is None else backbone
    with seeded(1):
        network = RedshiftNetwork(backbone=trunk, photometry=None, target=target, name="x")
        criterion = criterion_for(target, prior_of(z, target.n_bins), loss="bins", imbalance=imbalance)
        return Clap(network, Labels.checked(z, None), criterion, {}, rates=[])


def softmax(x: np.ndarray) -> np.ndarray:
    grown = np.exp(x - x.max(axis=1, keepdims=True))
    return np.asarray(grown / grown.sum(axis=1, keepdims=True))


def test_the_contrast_is_what_numpy_says() -> None:
    rng = np.random.default_rng(0)
    a, p, n = rng.normal(size=(3, 5, LATENT))

    def similarity(x: np.ndarray) -> float:
        return float(np.exp(-np.mean(np.sqrt(np.mean((a - x) ** 2, axis=1)))))

    expected = -np.log(similarity(p) / (similarity(p) + similarity(n)))
    found = contrastive_loss(*(torch.from_numpy(x) for x in (a, p, n)))
    assert float(found) == pytest.approx(expected, rel=1e-9)


def test_the_contrast_has_a_gradient_where_two_views_coincide() -> None:
    a = torch.zeros(3, LATENT, requires_grad=True)
    contrastive_loss(a, a.detach().clone(), torch.ones(3, LATENT)).backward()  # type: ignore[no-untyped-call]
    assert a.grad is not None and torch.isfinite(a.grad).all()


def test_mutual_entropy_is_symmetric_and_holds_each_target_constant() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.normal(size=(2, 4, 7))
    p, q = softmax(one), softmax(two)
    expected = 0.5 * np.mean(-(p * np.log(q)).sum(axis=1) - (q * np.log(p)).sum(axis=1))
    first, second = torch.from_numpy(one).requires_grad_(), torch.from_numpy(two)
    found = mutual_entropy(first, second)
    assert found.detach().item() == pytest.approx(expected, rel=1e-9)
    found.backward()  # type: ignore[no-untyped-call]
    assert first.grad is not None
    # of the cross-entropy with q held constant alone: (p - q) / (2 N)
    np.testing.assert_allclose(first.grad.numpy(), (p - q) / 8, atol=1e-12)


def test_the_logarithm_of_pixels_turns_back() -> None:
    pixels = torch.tensor([-5.0, 0.0, 0.3, 4e4])
    torch.testing.assert_close(linear(logarithmic(pixels)), pixels, rtol=1e-4, atol=1e-6)


def test_the_image_error_is_over_good_pixels_alone() -> None:
    batch = red_blobs.spoilt(fetch(np.arange(6)))
    assert batch.pixels is not None and batch.pixel_mask is not None
    drawn = torch.zeros(batch.pixels.shape)
    pixels, good = batch.pixels.numpy(), ~batch.pixel_mask.numpy() & (batch.state.numpy() != 0)[:, :, None, None]
    expected = np.mean(np.log1p(np.abs(pixels[good])) ** 2)
    broken = replace(batch, pixels=torch.where(torch.from_numpy(good), batch.pixels, float("nan")))
    assert float(image_error(drawn, broken)) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("cutout_px", [30, 32, 64])
def test_the_decoder_draws_images_of_the_right_size(cutout_px: int) -> None:
    assert Decoder(20, 5, cutout_px)(torch.zeros(2, 20)).shape == (2, 5, cutout_px, cutout_px)


def test_the_loss_is_the_sum_of_its_parts_recomputed() -> None:
    made = objective()
    batch, indices = fetch(np.arange(17)), torch.arange(17)  # the odd one is left over
    seen: list[torch.Tensor] = []
    made.encoder.body.register_forward_hook(lambda _module, _inputs, out: seen.append(out.detach()))
    torch.manual_seed(0)
    with torch.no_grad():
        total, parts = made.loss(batch, indices)
    anchor, cycle, rotated = (latent.double().numpy() for latent in seen)
    assert anchor.shape == (16, LATENT)

    def similarity(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.exp(-np.mean(np.sqrt(np.mean((x - y) ** 2, axis=1)))))

    halves = [(slice(0, 8), slice(8, 16)), (slice(8, 16), slice(0, 8))]
    contrast = [
        -np.log(s := similarity(anchor[h], view[h])) + np.log(s + similarity(anchor[h], anchor[o]))
        for view in (cycle, rotated)
        for h, o in halves
    ]
    assert float(parts["contrast"]) == pytest.approx(np.mean(contrast), rel=1e-5)
    z = made.z[:16]
    made.requires_grad_(False)
    logits = [made.encoder.answers(torch.from_numpy(x).float()) for x in (anchor, cycle, rotated)]
    redshift = sum(made.criterion(out, z, torch.ones(16))[0] for out in logits[:2])
    agreement = 0.5 * (mutual_entropy(logits[0], logits[1]) + mutual_entropy(logits[0], logits[2]))
    expected = redshift + RECONSTRUCTION_WEIGHT * parts["reconstruction"] + parts["contrast"] + agreement
    assert float(total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("trunk", ["vit", "cnn"])
def test_the_gradient_reaches_every_parameter_and_comes_back_through_the_image(trunk: str) -> None:
    backbone = None
    if trunk == "cnn":
        with seeded(0):
            backbone = InceptionCNN(red_blobs.NAMES, cutout_px=32, width=0.1)
    made = objective(backbone=backbone)
    made.train()
    loss, _ = made.loss(red_blobs.spoilt(fetch(np.arange(64))), torch.arange(64))
    loss.backward()  # type: ignore[no-untyped-call]
    idle = [key for key, p in made.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []
    made.zero_grad()
    batch = fetch(np.arange(8))
    drawn = made.decoder(torch.randn(8, made.decoder.seed[0].in_features))
    again = made.encoder.latent(made.encoder.inputs(replace(batch, pixels=linear(drawn))))
    again.square().sum().backward()
    weight = made.decoder.image.weight.grad
    assert weight is not None and weight.abs().sum() > 0


def test_only_the_small_latent_is_kept_and_neighbours_in_it_have_like_redshifts(tmp_path: Any) -> None:
    z = red_blobs.survey()[1]
    network, report = specialise(
        fetch,
        z[:TRAIN],
        backbone=red_blobs.tiny_vit(),
        photometry=None,
        mode="contrastive",
        name="clap",
        steps=80,
        batch_size=32,
        lr=3e-3,
    )
    assert {"reconstruction", "contrast", "agreement", "cross_entropy"} <= report.rows[0].keys()
    assert report.rows[-1]["reconstruction"] < report.rows[0]["reconstruction"]
    latent = network.embed(fetch(np.arange(N)))
    chance = float(np.median(np.abs(z[TRAIN:] - z[:TRAIN].mean())))
    assert latent.shape == (N, LATENT) and red_blobs.knn_error(latent, z, TRAIN) < 0.35 * chance
    assert not [key for key in network.weights() if "decoder" in key or "rest" in key]
    back = checkpoint.load(checkpoint.save(network, tmp_path, provenance={}))
    torch.testing.assert_close(back.embed(fetch(np.arange(N))), latent)


def test_the_latent_needs_images_and_pairs() -> None:
    made = objective()
    with pytest.raises(BadInput, match="needs two sources"):
        made.loss(fetch(np.arange(1)), torch.arange(1))
    z = red_blobs.survey()[1][:64]
    photometry = red_blobs.scaling(red_blobs.survey()[0])
    network = RedshiftNetwork(backbone=None, photometry=photometry, target=Target.for_labels(z), name="x")
    with pytest.raises(BadInput, match="needs an image encoder"):
        Clap(network, Labels.checked(z, None), made.criterion, {}, rates=[])

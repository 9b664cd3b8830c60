"""models/masked.py on blobs whose colours and sizes are known."""

from __future__ import annotations

from dataclasses import replace

import blobs
import numpy as np
import pretext
import pytest
import torch

from redshelf.models import checkpoint
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.masked import MaskedAutoencoder
from redshelf.models.pretraining import objective_for, pretrain
from redshelf.models.training import Report, Sampler, train
from redshelf.models.vit import SIZES, MultiBandViT


@pytest.fixture(scope="module")
def trained(sky: blobs.Blobs) -> tuple[MultiBandViT, Report]:
    return pretrain(
        sky.fetch,
        pretext.N,
        objective="masked",
        bands=blobs.BANDS,
        cutout_px=blobs.CUTOUT_PX,
        name="vit",
        steps=140,
        batch_size=64,
    )


def test_pretraining_reaches_every_parameter(sky: blobs.Blobs) -> None:
    batch = pretext.full(sky, 64)
    masked = pretext.objective("masked", batch)
    assert pretext.reached(masked, batch) == pretext.trainable(masked) == {k for k, _ in masked.named_parameters()}


def test_a_pixel_that_was_seen_or_is_bad_is_not_asked_for(sky: blobs.Blobs) -> None:
    batch = pretext.full(sky, 16)
    masked = pretext.objective("masked", batch)
    assert isinstance(masked, MaskedAutoencoder)
    whole = masked.encoder.prepare(batch)
    hidden = torch.zeros(16, 4, dtype=torch.bool)
    hidden[:, 2] = True
    seen = torch.randn(16, 2, 4, masked.encoder.dim)

    def loss(values: torch.Tensor) -> float:
        return float(masked._reconstruction(replace(whole, values=values), hidden, seen, None).detach())

    elsewhere, under_mask, asked = (whole.values.clone() for _ in range(3))
    elsewhere[:, [0, 1, 3]] += 1
    under_mask[:, :, 3, 3] += 1
    asked[:, 2, 9, 9] += 1
    assert loss(elsewhere) == loss(whole.values) == loss(under_mask) != loss(asked)


def test_a_prediction_off_by_one_noise_unit_costs_one_half(sky: blobs.Blobs) -> None:
    batch = sky.fetch(np.arange(8))
    assert batch.pixels is not None
    flat = replace(batch, pixels=torch.ones_like(batch.pixels))
    masked = pretext.objective("masked", batch)
    assert isinstance(masked, MaskedAutoencoder)
    for head in masked.heads:
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    hidden = torch.ones(8, 4, dtype=torch.bool)
    seen = torch.randn(8, 2, 4, masked.encoder.dim)
    loss = float(masked._reconstruction(masked.encoder.prepare(flat), hidden, seen, None).detach())
    assert loss == pytest.approx(0.5, rel=0.1)  # the floor of 10% and the bend of asinh at 1 / 3 take a little


def test_the_padding_around_a_cutout_is_not_asked_for(sky: blobs.Blobs) -> None:
    batch = sky.fetch(np.arange(8))
    assert batch.pixels is not None and batch.pixel_mask is not None
    cut = replace(batch, pixels=batch.pixels[..., 9:24, 9:24], pixel_mask=batch.pixel_mask[..., 9:24, 9:24])
    masked = objective_for("masked", cut, blobs.BANDS, cutout_px=15, name="vit", size="tiny", seed=0)
    assert isinstance(masked, MaskedAutoencoder)
    hidden, seen = torch.ones(8, 4, dtype=torch.bool), torch.randn(8, 2, 1, masked.encoder.dim)
    whole, losses = masked.encoder.prepare(cut), []
    for row in (15, 5):  # the last of the one patch's 16 lies outside of the cutout
        losses.append(float(masked._reconstruction(whole, hidden, seen, None).detach()))
        with torch.no_grad():
            for head in masked.heads:
                head.bias.view(2, 16, 16)[:, row] += 1
    inside = float(masked._reconstruction(whole, hidden, seen, None).detach())
    assert losses[0] == losses[1] != inside


@pytest.mark.slow
def test_pretraining_lowers_both_losses_and_the_embedding_learns_colours(
    sky: blobs.Blobs, trained: tuple[MultiBandViT, Report]
) -> None:
    encoder, report = trained
    assert report.rows[-1]["reconstruction"] < 0.7 * report.rows[0]["reconstruction"]
    assert report.rows[-1]["colours"] < 0.8 * report.rows[0]["colours"]
    torch.manual_seed(0)
    blank = MultiBandViT(encoder.bands, groups=encoder.config["groups"], cutout_px=32, size=SIZES["tiny"])
    colour = sky.magnitude[:, 0] - sky.magnitude[:, 2]
    learnt, random = (pretext.explained(e.embed(sky.batch), colour) for e in (encoder, blank))
    assert learnt > random + 0.05


@pytest.mark.slow
def test_a_missing_band_changes_the_answer_less_than_a_shuffled_one(
    sky: blobs.Blobs, trained: tuple[MultiBandViT, Report]
) -> None:
    dropped, shuffled = pretext.moved(trained[0], sky.batch)
    assert dropped < shuffled


def test_pretraining_without_fluxes_works_and_leaves_out_sources_without_bands(sky: blobs.Blobs) -> None:
    def fetch(indices: np.ndarray) -> Batch:
        batch = replace(sky.fetch(indices), flux_ujy=None, flux_error_ujy=None)
        batch.state[:2] = 0
        return batch

    encoder, report = pretrain(fetch, 64, bands=blobs.BANDS, cutout_px=32, name="vit", steps=2, batch_size=16)
    assert "colours" not in report.rows[-1] and np.isfinite(report.loss)
    assert torch.isfinite(encoder.embed(sky.fetch(np.arange(6)))).all()


def test_a_batch_without_any_band_is_refused(sky: blobs.Blobs) -> None:
    batch = sky.fetch(np.arange(4))
    masked = pretext.objective("masked", batch)
    with pytest.raises(BadInput, match="none of the 4 sources"):
        masked.loss(replace(batch, state=torch.zeros_like(batch.state)), torch.arange(4))


def test_a_second_training_of_the_same_seed_gives_the_same_revision(sky: blobs.Blobs) -> None:
    def once() -> str:
        masked = pretext.objective("masked", sky.fetch(np.arange(6)), seed=3)
        train(masked, sky.fetch, Sampler(pretext.N, 16, 3), steps=3, lr=1e-3, seed=3)
        return checkpoint.revision(masked.trained())

    assert once() == once()

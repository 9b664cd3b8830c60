"""models/contrastive.py on blobs: what it learns, what it must not do, and its teacher."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import blobs
import numpy as np
import pretext
import pytest
import torch
from torch.nn import functional as F

from redshelf.models import contrastive
from redshelf.models.contrastive import MOMENTUM, TEMPERATURE, Contrastive
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.pretraining import pretrain
from redshelf.models.training import Report, Sampler, train
from redshelf.models.views import Instrument, view
from redshelf.models.vit import MultiBandViT


@pytest.fixture(scope="module")
def trained(sky: blobs.Blobs) -> tuple[MultiBandViT, Report]:
    return pretrain(
        sky.fetch,
        pretext.N,
        objective="contrastive",
        bands=blobs.BANDS,
        cutout_px=blobs.CUTOUT_PX,
        name="vit",
        steps=120,
        batch_size=64,
        pixel_scale_arcsec=pretext.SCALE,
    )


def contrast(batch: Batch, seed: int = 0) -> Contrastive:
    made = pretext.objective("contrastive", batch, seed=seed)
    assert isinstance(made, Contrastive)
    return made


def test_info_nce_is_the_cross_entropy_of_the_cosines() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(5, 7), torch.randn(5, 7)
    cosines = F.cosine_similarity(query[:, None], key[None], dim=2)
    expected = -(cosines / TEMPERATURE).log_softmax(dim=1).diagonal().mean()
    torch.testing.assert_close(contrastive._info_nce(query, key, torch.arange(5)), expected)


def test_a_source_drawn_twice_is_not_its_own_wrong_answer() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(3, 7), torch.randn(3, 7)
    twice = contrastive._info_nce(query[[0, 0]], key[[0, 0]], torch.tensor([4, 4]))
    assert float(twice) == 0
    assert float(contrastive._info_nce(query[[0, 0]], key[[0, 0]], torch.tensor([4, 5]))) == pytest.approx(math.log(2))


def test_training_reaches_every_parameter_of_the_student_and_none_of_the_teacher(sky: blobs.Blobs) -> None:
    batch = pretext.full(sky, 32)
    made = contrast(batch)
    assert pretext.reached(made, batch) == pretext.trainable(made)
    own = {k for k, _ in made.named_parameters() if not k.startswith("teacher")}
    assert pretext.trainable(made) == own and len(own) < len(list(made.parameters()))


def test_the_teacher_is_the_running_mean_of_the_student(sky: blobs.Blobs) -> None:
    made = contrast(pretext.full(sky, 16))
    first = {k: v.clone() for k, v in made.teacher.state_dict().items()}
    with torch.no_grad():
        for parameter in made.student.parameters():
            parameter += 1
    made.after_step(0.1)
    made.after_step(0.2)
    reached = 1 - (1 - 9 / 11) * (1 - 9 / 12)
    for key, value in made.teacher.state_dict().items():
        torch.testing.assert_close(value, first[key] + reached, atol=1e-5, rtol=1e-4)
    made.followed += 10**6
    made.after_step(0.9)
    reached = 1 - (1 - reached) * MOMENTUM
    for key, value in made.teacher.state_dict().items():
        torch.testing.assert_close(value, first[key] + reached, atol=1e-5, rtol=1e-4)
    assert made.trained() is made.teacher


@pytest.mark.slow
def test_training_lowers_both_losses_and_does_not_collapse(
    sky: blobs.Blobs, trained: tuple[MultiBandViT, Report]
) -> None:
    encoder, report = trained
    assert report.rows[-1]["contrast"] < 0.8 * math.log(64) < report.rows[0]["contrast"]
    assert report.rows[-1]["colours"] < 0.6 * report.rows[0]["colours"]
    vectors = encoder.embed(sky.batch)
    spread = (vectors - vectors.mean(dim=0)).square().sum(dim=1).mean().sqrt()
    assert float(spread) > 0.3 * float(vectors.norm(dim=1).mean())
    for truth in (sky.magnitude[:, 2], sky.magnitude[:, 0] - sky.magnitude[:, 2]):
        assert pretext.explained(vectors, truth) > 0.8


@pytest.mark.slow
def test_a_view_finds_its_source_among_all_others(sky: blobs.Blobs, trained: tuple[MultiBandViT, Report]) -> None:
    torch.manual_seed(0)
    other = view(replace(sky.batch, ebv=torch.full((pretext.N,), 0.0)), Instrument((0.0,) * 4, pretext.SCALE))
    usable = (other.state > 0).all(dim=1)
    vectors, bank = trained[0].embed(other.select(usable)), trained[0].embed(sky.batch)
    blank = contrast(sky.fetch(np.arange(64))).trained()
    found = (torch.cdist(vectors, bank).argmin(dim=1) == torch.arange(pretext.N)[usable]).float().mean()
    by_chance = torch.cdist(blank.embed(other.select(usable)), blank.embed(sky.batch)).argmin(dim=1)
    random = (by_chance == torch.arange(pretext.N)[usable]).float().mean()
    assert float(found) > max(0.05, 1.5 * float(random))


@pytest.mark.slow
def test_a_missing_band_changes_the_answer_less_than_a_shuffled_one(
    sky: blobs.Blobs, trained: tuple[MultiBandViT, Report]
) -> None:
    dropped, shuffled = pretext.moved(trained[0], sky.batch)
    assert dropped < shuffled


def test_a_resumed_run_has_the_teacher_of_an_uninterrupted_one(sky: blobs.Blobs, tmp_path: Path) -> None:
    def run(made: Contrastive, fetch: object, **options: object) -> Report:
        return train(made, fetch, Sampler(pretext.N, 8, 1), steps=6, lr=1e-3, seed=1, precision="float32", **options)  # type: ignore[arg-type]

    path, sample = tmp_path / "run.safetensors", sky.fetch(np.arange(64))
    whole, part, again = (contrast(sample) for _ in range(3))
    run(whole, sky.fetch)
    with pytest.raises(pretext.Killed):
        run(part, pretext.killed_at(3, sky.fetch), checkpoint=path, checkpoint_seconds=0)
    assert run(again, sky.fetch, checkpoint=path).resumed_from == 3
    for (key, mine), theirs in zip(again.state_dict().items(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=0, msg=key)
    apart = [not torch.equal(s, t) for s, t in zip(whole.student.parameters(), whole.teacher.parameters(), strict=True)]
    assert any(apart)


def test_a_source_without_bands_is_left_out_and_a_batch_of_them_refused(sky: blobs.Blobs) -> None:
    batch = pretext.full(sky, 8)
    made, state = contrast(batch), batch.state.clone()
    state[:3] = 0
    assert batch.pixels is not None
    pixels = batch.pixels.clone()
    pixels[:3] = 1e9
    losses = []
    for shown in (batch.pixels, pixels):
        torch.manual_seed(0)
        losses.append(made.loss(replace(batch, state=state, pixels=shown), torch.arange(8))[0])
    assert torch.isfinite(losses[0]) and torch.equal(losses[0], losses[1])
    with pytest.raises(BadInput, match="none of the 8 sources"):
        made.loss(replace(batch, state=torch.zeros_like(state)), torch.arange(8))


def test_a_source_that_a_view_leaves_without_pixels_is_left_out(sky: blobs.Blobs) -> None:
    batch = pretext.full(sky, 8)
    assert batch.pixel_mask is not None
    mask = batch.pixel_mask.clone()
    mask[:4, :, :-1] = True  # one row at the edge: half of the shifts push it out
    made = contrast(batch)
    for seed in range(6):
        torch.manual_seed(seed)
        assert torch.isfinite(made.loss(replace(batch, pixel_mask=mask), torch.arange(8))[0])


def test_training_without_fluxes_and_without_conditions_works(sky: blobs.Blobs) -> None:
    def fetch(indices: np.ndarray) -> Batch:
        return replace(sky.fetch(indices), flux_ujy=None, flux_error_ujy=None, depth_ab=None)

    encoder, report = pretrain(
        fetch, 32, objective="contrastive", bands=blobs.BANDS, cutout_px=32, name="vit", steps=2, batch_size=8
    )
    assert "colours" not in report.rows[-1] and np.isfinite(report.loss)
    assert torch.isfinite(encoder.embed(sky.fetch(np.arange(6)))).all()
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_views_with_and_without_a_condition_share_a_batch(sky: blobs.Blobs) -> None:
    batch = pretext.full(sky, 4)
    both = contrastive._joined(batch, replace(batch, depth_ab=None, ebv=None))
    assert both.depth_ab is not None and both.ebv is not None and both.psf_fwhm_arcsec is not None
    assert both.depth_ab.shape == (8, 4) and torch.isnan(both.depth_ab[4:]).all() and (both.depth_ab[:4] == 26.5).all()
    assert torch.isnan(both.ebv[4:]).all() and both.psf_fwhm_arcsec.shape == (8, 4)
    assert torch.equal(both.state, torch.cat([batch.state, batch.state]))

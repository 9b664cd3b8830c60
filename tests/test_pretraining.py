"""models/pretraining.py and models/auxiliary.py: heads beside the objectives, the score by neighbours, bad input."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import blobs
import numpy as np
import pretext
import pytest
import torch

from redshelf.models.auxiliary import COLOUR_WEIGHT, REDSHIFT_WEIGHT, Auxiliary, colour_targets, labels_for
from redshelf.models.bins import CRPS_WEIGHT, redshift_loss
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.photometry import Scaling, colour_usable, features, fit_scaling, standardise
from redshelf.models.pretraining import knn_monitor, pretrain
from redshelf.models.vit import SIZES, MultiBandViT


def redshifts(sky: blobs.Blobs) -> np.ndarray:
    """A redshift that two colours give away, (N,)."""
    return np.asarray(0.5 + 0.1 * np.clip(sky.magnitude[:, 0] - sky.magnitude[:, 2], -3, 5))


def run(sky: blobs.Blobs, n: int = 320, **options: Any) -> Any:
    given = {"steps": 2, "batch_size": 8, "name": "vit", "bands": blobs.BANDS, "cutout_px": 32, **options}
    return pretrain(sky.fetch, n, **given)


def scaling(batch: Batch) -> Scaling:
    assert batch.flux_ujy is not None and batch.flux_error_ujy is not None
    return fit_scaling(
        batch.flux_ujy.numpy(), batch.flux_error_ujy.numpy(), np.full((len(batch), 4), 2, np.int8), bands=blobs.BANDS
    )


def test_colour_targets_are_the_measured_features_of_the_photometry(sky: blobs.Blobs) -> None:
    batch = sky.fetch(np.arange(40))
    assert batch.flux_ujy is not None
    constants, flux, state = scaling(batch), batch.flux_ujy.clone(), batch.state.clone()
    flux[3, 1], state[5, 0], state[6, 2], state[7] = float("nan"), 0, 3, 1
    wanted, known = colour_targets(replace(batch, flux_ujy=flux, state=state), constants)
    plain = np.where(np.isfinite(flux.numpy()), state.numpy(), 0).astype(np.int8)
    measured = colour_usable(plain, constants)
    expected = standardise(features(flux.numpy(), plain, constants), constants)[:, :4]
    np.testing.assert_array_equal(known.numpy(), measured)
    np.testing.assert_allclose(wanted.numpy(), np.where(measured, expected, 0), atol=1e-4)
    assert not measured[3, 0] and not measured[5, 0] and not measured[6, 3] and measured[7].all()


def test_the_redshift_loss_is_the_mean_over_the_labelled_and_moves_no_other_source(sky: blobs.Blobs) -> None:
    z = np.where(np.arange(200) % 2 == 0, np.linspace(0.1, 0.6, 200), np.nan)
    torch.manual_seed(0)
    labels = labels_for(z)
    heads = Auxiliary(16, None, labels)
    embedding, indices = torch.randn(6, 16, requires_grad=True), torch.tensor([4, 5, 6, 7, 9, 120])
    total, parts = heads.losses(embedding, sky.fetch(np.arange(6)), indices)
    total.backward()  # type: ignore[no-untyped-call]
    labelled = torch.tensor([0, 2, 5])
    assert heads.redshift is not None and embedding.grad is not None
    entropy, crps = redshift_loss(heads.redshift(embedding[labelled]), labels.z[indices[labelled]], width=labels.width)
    torch.testing.assert_close(parts["cross_entropy"], entropy.mean())
    torch.testing.assert_close(parts["crps"], crps.mean())
    torch.testing.assert_close(total, REDSHIFT_WEIGHT * (entropy.mean() + CRPS_WEIGHT * crps.mean()))
    assert (embedding.grad[labelled] != 0).any(dim=1).all()
    assert not embedding.grad[[1, 3, 4]].any()


def test_a_batch_without_labels_or_measured_colours_adds_nothing(sky: blobs.Blobs) -> None:
    batch = sky.fetch(np.arange(4))
    heads = Auxiliary(16, scaling(batch), labels_for(np.r_[np.linspace(0.1, 0.6, 100), [np.nan] * 4]))
    embedding = torch.randn(4, 16)
    none = replace(batch, state=torch.full((4, 4), 3, dtype=torch.int8))
    assert float(heads.losses(embedding, none, torch.arange(100, 104))[0].detach()) == 0
    some, parts = heads.losses(embedding, batch, torch.arange(100, 104))
    torch.testing.assert_close(some, COLOUR_WEIGHT * parts["colours"])


@pytest.mark.parametrize("kind", ["masked", "contrastive"])
def test_both_losses_reach_every_parameter_with_redshifts_too(sky: blobs.Blobs, kind: str) -> None:
    batch = pretext.full(sky, 32)
    made = pretext.objective(kind, batch, labels=labels_for(np.linspace(0.1, 0.9, 200)))
    assert pretext.reached(made, batch) == pretext.trainable(made)
    assert any(name.startswith("auxiliary.redshift") for name in pretext.trainable(made))


@pytest.mark.parametrize("kind", ["masked", "contrastive"])
def test_pretraining_scores_itself_on_sources_whose_redshift_it_did_not_see(
    sky: blobs.Blobs, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    z, seen = redshifts(sky)[:320], []
    z[::8] = np.nan
    original = Auxiliary.losses

    def losses(self: Auxiliary, embedding: torch.Tensor, batch: Batch, indices: torch.Tensor) -> Any:
        assert self.labels is not None
        seen.append(self.labels.z.numpy())
        return original(self, embedding, batch, indices)

    monkeypatch.setattr(Auxiliary, "losses", losses)
    encoder, report = run(sky, objective=kind, redshift=z, redshift_loss=True, patch_px=32)
    rows = [row for row in report.rows if "knn_sigma_mad" in row]
    assert rows and {"knn_bias", "knn_outliers", "crps"} <= set(rows[-1])
    trained_on = np.isfinite(seen[0])
    assert trained_on.sum() == 224 and np.isfinite(z).sum() == 280  # a fifth is held out
    np.testing.assert_allclose(seen[0][trained_on], z[trained_on], rtol=1e-6)
    assert encoder.size == replace(SIZES["tiny"], patch_px=32)


def test_without_the_loss_redshifts_only_score(sky: blobs.Blobs) -> None:
    first, report = run(sky, redshift=redshifts(sky)[:320])
    second, plain = run(sky)
    assert "knn_sigma_mad" in report.rows[-1] and "crps" not in report.rows[-1]
    assert "knn_sigma_mad" not in plain.rows[-1] and first.revision == second.revision
    few = np.full(320, np.nan)
    few[:20] = 0.5
    assert "knn_sigma_mad" not in run(sky, redshift=few)[1].rows[-1]


def test_the_score_is_that_of_the_nearest_neighbours_and_skips_sources_without_bands(sky: blobs.Blobs) -> None:
    z = redshifts(sky)

    def fetch(rows: np.ndarray) -> Batch:
        batch = sky.fetch(rows)
        batch.state[np.isin(rows, [3, 8])] = 0
        return batch

    torch.manual_seed(0)
    encoder = MultiBandViT(
        [b.name for b in blobs.BANDS], groups=[["g", "r"], ["i", "z"]], cutout_px=32, size=SIZES["tiny"]
    )
    encoder.train()
    rows = np.arange(300)
    score = knn_monitor(encoder, fetch, rows, z[rows])()
    assert encoder.training
    kept = np.setdiff1d(rows, [3, 8])
    vectors = encoder.eval().embed(sky.fetch(kept)).double()
    vectors = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0, correction=0)
    distance = torch.cdist(vectors, vectors).fill_diagonal_(np.inf)
    guess = np.median(z[kept][distance.topk(10, largest=False).indices.numpy()], axis=1)
    dz = (guess - z[kept]) / (1 + z[kept])
    assert score["knn_bias"] == pytest.approx(dz.mean(), abs=2e-4)
    assert score["knn_sigma_mad"] == pytest.approx(1.4826 * np.median(np.abs(dz - np.median(dz))), rel=0.02)
    assert score["knn_outliers"] == pytest.approx((np.abs(dz) > 0.15).mean(), abs=0.01)


def test_other_options_are_those_of_the_loop(sky: blobs.Blobs, tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []
    run(sky, on_log=seen.append, precision="float32", checkpoint=tmp_path / "run.safetensors")
    assert len(seen) == 2 and (tmp_path / "run.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "maskd"}, "objective 'maskd' of a pretraining.*masked"),
        ({"size": "huge"}, "size 'huge'"),
        ({"patch_px": 33}, "patch_px=33"),
        ({"patch_px": 0}, "patch_px=0"),
        ({"redshift_loss": True}, "needs the redshifts"),
        ({"redshift": np.full(320, np.nan), "redshift_loss": True}, "none of these has a redshift"),
        ({"redshift": np.full(319, 0.5)}, "shape \\(319,\\): expected \\(320,\\)"),
        ({"redshift": np.full(320, -0.5), "redshift_loss": True}, "negative"),
        (
            {"redshift": np.where(np.arange(320) < 30, 3.0, np.nan), "redshift_loss": True},
            "30 labels up to z=3.00, 6 of them kept apart to score on, are fewer than the .* bins",
        ),
    ],
)
def test_what_cannot_be_pretrained_is_refused_before_a_step(
    sky: blobs.Blobs, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        run(sky, **options)

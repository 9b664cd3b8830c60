"""models/specialise.py: every way from labelled blobs to a redshift network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import blobs
import numpy as np
import pytest
import red_blobs
import tiny_foundation
import torch

from redshelf.models import checkpoint
from redshelf.models import specialise as module
from redshelf.models.bins import Target, prior_of
from redshelf.models.cnn import InceptionCNN
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.foundation import FoundationEncoder, load_pretrained
from redshelf.models.imbalance import capped_rows, criterion_for
from redshelf.models.labelled import BESIDE_PHOTOMETRY, Labels, OnImages, Shown
from redshelf.models.pdf import Pdf
from redshelf.models.photometry import Photometry
from redshelf.models.redshift_network import RedshiftNetwork
from redshelf.models.specialise import specialise
from redshelf.models.training import Report, seeded
from redshelf.models.vit import MultiBandViT

TRAIN, N = 400, 500


def fetch(indices: np.ndarray) -> Batch:
    return red_blobs.survey()[0].fetch(indices)


def run(
    mode: Any, *, backbone: Any = "tiny", photometry: bool = False, **options: Any
) -> tuple[RedshiftNetwork, Report]:
    made, z = red_blobs.survey()
    trunk = red_blobs.tiny_vit() if backbone == "tiny" else backbone
    scaling = red_blobs.scaling(made) if photometry else None
    options = {"name": "made", "steps": 20, "batch_size": 32, "z": z[:TRAIN], "fetch": fetch, **options}
    return specialise(backbone=trunk, photometry=scaling, mode=mode, **options)


def knn_error(encoder: RedshiftNetwork | MultiBandViT) -> float:
    return red_blobs.knn_error(encoder.embed(fetch(np.arange(N))), red_blobs.survey()[1], TRAIN)


def head_error(network: RedshiftNetwork) -> float:
    found = Pdf.from_mass(*network.predict(fetch(np.arange(TRAIN, N)))).median()
    return float(np.median(np.abs(found - red_blobs.survey()[1][TRAIN:])))


CHANCE = float(np.median(np.abs(red_blobs.survey()[1][TRAIN:] - red_blobs.survey()[1][:TRAIN].mean())))


@pytest.fixture(scope="module", autouse=True)
def _short_first_stage() -> Iterator[None]:
    """Some steps of body and head before the image encoder moves, instead of a thousand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "FIRST_STEPS", 30)
        yield


@pytest.fixture(scope="module")
def direct() -> tuple[RedshiftNetwork, Report]:
    return run("direct", steps=150, lr=3e-3)


def test_direct_training_learns_redshift_from_images(direct: tuple[RedshiftNetwork, Report]) -> None:
    network, report = direct
    assert report.loss < report.rows[0]["loss"]
    assert knn_error(network) < 0.3 * CHANCE and head_error(network) < 0.3 * CHANCE
    assert knn_error(network) < 0.7 * knn_error(red_blobs.tiny_vit())
    assert network.embed(fetch(np.arange(3))).shape == (3, 16)


def test_a_probe_leaves_the_trunk_alone_and_is_linear_on_standardised_features() -> None:
    start = red_blobs.tiny_vit()
    network, _ = run("probe", backbone=start, steps=150)
    assert network.backbone is not None and network.backbone is not start
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, start.state_dict()[key])
    assert isinstance(network.body, torch.nn.Linear) and isinstance(network.head, torch.nn.Linear)
    with torch.inference_mode():
        inputs = network.frozen_inputs(fetch(np.arange(TRAIN)))
    torch.testing.assert_close(inputs.mean(dim=0), torch.zeros(24), atol=0.1, rtol=0)
    torch.testing.assert_close(inputs.std(dim=0), torch.ones(24), atol=0.1, rtol=0)


def test_a_probe_of_a_trained_trunk_beats_one_of_random_weights(direct: tuple[RedshiftNetwork, Report]) -> None:
    trained = direct[0].backbone
    starts = (trained, red_blobs.tiny_vit())
    probes = [run("probe", backbone=start, steps=300, batch_size=128)[0] for start in starts]
    assert head_error(probes[0]) < 0.9 * head_error(probes[1])


def test_fine_tuning_starts_from_the_given_weights_and_keeps_near_them(direct: tuple[RedshiftNetwork, Report]) -> None:
    start = direct[0].backbone
    assert start is not None
    before = {key: value.clone() for key, value in start.state_dict().items()}

    def moved(network: RedshiftNetwork) -> float:
        assert network.backbone is not None
        now = network.backbone.state_dict()
        return float(sum((now[key] - before[key]).square().sum() for key in before) ** 0.5)

    size = float(sum(value.square().sum() for value in before.values()) ** 0.5)
    still, slow = (moved(run("finetune", backbone=start, steps=10, backbone_rate=rate)[0]) for rate in (0.0, 0.1))
    assert still == 0 and 0 < slow < 0.1 * size
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())  # the caller's own stay


def test_a_whole_network_that_does_no_better_than_its_first_stage_falls_back_on_that() -> None:
    start = red_blobs.tiny_vit()
    network, report = run("direct", backbone=start, steps=2, lr=1.0)
    assert (report.steps, report.stages, report.kept) == (32, {"first": 30}, "first") and network.backbone is not None
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(value, start.state_dict()[key])
    assert head_error(network) < head_error(run("direct", steps=1, lr=1e-9)[0]) + 1e-3


def test_images_beside_photometry_share_the_body() -> None:
    network, _ = run("direct", photometry=True, steps=60, lr=3e-3)
    assert network.needs == {"pixels", "fluxes"} and knn_error(network) < 0.3 * CHANCE
    assert network.n_inputs == 24 + 8
    frozen, _ = run("probe", photometry=True, steps=1)
    with torch.inference_mode():
        inputs = frozen.frozen_inputs(fetch(np.arange(TRAIN)))
    assert float(inputs[:, :24].std(dim=0).mean()) == pytest.approx(BESIDE_PHOTOMETRY, rel=0.1)
    assert not isinstance(frozen.body, torch.nn.Linear)


def foundation(folder: Path) -> FoundationEncoder:
    with torch.random.fork_rng([]):
        tiny_foundation.dinov2(folder)
    return load_pretrained(folder, bands=blobs.BANDS, cutout_px=blobs.CUTOUT_PX, name="dinov2", input_px=28)


@pytest.mark.parametrize("mode", ["probe", "finetune", "contrastive"])
@pytest.mark.parametrize("kind", ["cnn", "foundation"])
def test_other_image_encoders_are_trunks_as_well(kind: str, mode: str, tmp_path: Path) -> None:
    with seeded(0):
        cnn = InceptionCNN(red_blobs.NAMES, cutout_px=blobs.CUTOUT_PX, width=0.1)
    start = cnn if kind == "cnn" else foundation(tmp_path / "hub")
    network, report = run(mode, backbone=start, photometry=mode == "finetune", steps=2)
    assert np.isfinite(report.loss)
    batch = fetch(np.arange(4))
    back = checkpoint.load(checkpoint.save(network, tmp_path, provenance={}))
    assert torch.equal(back.embed(batch), network.embed(batch))
    assert network.backbone is not None
    moved = [
        key for key, value in network.backbone.state_dict().items() if not torch.equal(value, start.state_dict()[key])
    ]
    assert bool(moved) == (mode != "probe")


@pytest.mark.parametrize("photometry", [False, True])
def test_the_gradient_reaches_every_parameter(photometry: bool) -> None:
    made, z = red_blobs.survey()
    labels = Labels.checked(z[:64], None)
    target = Target.for_labels(z[:64])
    network = RedshiftNetwork(
        backbone=red_blobs.tiny_vit(),
        photometry=red_blobs.scaling(made) if photometry else None,
        target=target,
        name="x",
    )
    criterion = criterion_for(target, prior_of(z[:64], target.n_bins), loss="bins", imbalance="none")
    objective = OnImages(network, labels, criterion, {}, rates=[])
    loss, _ = objective.loss(red_blobs.spoilt(fetch(np.arange(64))), torch.arange(64))
    loss.backward()  # type: ignore[no-untyped-call]
    idle = [key for key, p in objective.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


class Killed(Exception):
    pass


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 12, "precision": "float32"}
    whole, expected = run("finetune", **options)
    calls = iter(range(1000))

    def dying(indices: np.ndarray) -> Batch:
        if next(calls) == 12:  # 2 for the features' scale, 1 for the held-out, then one a step
            raise Killed
        return fetch(indices)

    path = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        run("finetune", fetch=dying, checkpoint=path, checkpoint_seconds=0, **options)
    again, report = run("finetune", checkpoint=path, **options)
    assert 3 < report.resumed_from < 12 and report.best_validation == expected.best_validation
    for key, value in whole.weights().items():
        torch.testing.assert_close(again.weights()[key], value, atol=1e-6, rtol=0)
    assert again.revision == whole.revision


def test_sources_without_a_band_are_left_out() -> None:
    def partly(indices: np.ndarray) -> Batch:
        batch = fetch(indices)
        state = batch.state.clone()
        state[torch.from_numpy(indices % 4 == 0)] = 0
        return replace(batch, state=state)

    for mode in ("probe", "finetune"):
        network, report = run(mode, fetch=partly, steps=5)
        assert np.isfinite(report.loss) and torch.isfinite(network.embed(fetch(np.arange(4)))).all()
    with pytest.raises(BadInput, match="none of 400 labelled sources has a band"):
        run("probe", fetch=lambda i: replace(fetch(i), state=torch.zeros((len(i), 4), dtype=torch.int8)))


def test_validation_holds_out_a_tenth_that_training_never_sees() -> None:
    asked: list[np.ndarray] = []

    def noting(indices: np.ndarray) -> Batch:
        asked.append(indices)
        return fetch(indices)

    _, z = red_blobs.survey()
    network = image_network()
    shown = Shown(noting, Labels.checked(z[:TRAIN], None), network, frozen=False, device="cpu", seed=0)
    assert len(shown.held) == 40 and len(shown.kept) == 360
    assert sorted([*shown.held, *shown.kept]) == list(range(TRAIN))
    assert not set(np.concatenate(asked[:-1])) & set(shown.held)  # the last call reads the held-out themselves
    shown.batch(np.array([0, 5]))
    np.testing.assert_array_equal(asked[-1], shown.kept[[0, 5]])


def test_labels_of_weight_zero_are_not_held_out() -> None:
    _, z = red_blobs.survey()
    weights = (np.arange(TRAIN) % 4 == 0).astype(float)
    shown = Shown(fetch, Labels.checked(z[:TRAIN], weights), image_network(), frozen=True, device="cpu", seed=0)
    assert len(shown.held) == 10 and (weights[shown.held] == 1).all() and len(shown.kept) == 390


def image_network() -> RedshiftNetwork:
    return RedshiftNetwork(
        backbone=red_blobs.tiny_vit(), photometry=None, target=Target.for_labels(red_blobs.survey()[1]), name="x"
    )


@pytest.mark.parametrize("imbalance", ["none", "density", "balanced-mse"])
def test_a_regression_on_photometry_learns_and_knows_its_scatter(imbalance: Any) -> None:
    network, _ = run(
        "direct", backbone=None, photometry=True, loss="regression", imbalance=imbalance, steps=250, batch_size=128
    )
    assert head_error(network) < 0.2 * CHANCE and knn_error(network) < 0.2 * CHANCE
    _, z = red_blobs.survey()
    found = np.log1p(Pdf.from_mass(*network.predict(fetch(np.arange(TRAIN, N)))).mean())
    inside = np.abs(found - np.log1p(z[TRAIN:])) < float(network.scatter)
    assert 0.5 < inside.mean() < 0.85


def test_logit_adjusted_answers_turn_into_plain_ones_under_the_training_prior() -> None:
    options: dict[str, Any] = {"backbone": None, "photometry": True, "steps": 300, "batch_size": 128}
    rng = np.random.default_rng(0)
    _, z = red_blobs.survey()
    rows = np.flatnonzero((z[:TRAIN] < 0.6) | (rng.random(TRAIN) < 0.3))  # few labels at high redshift
    options |= {"z": z[rows], "fetch": lambda i: fetch(rows[i])}
    plain, adjusted = (run("direct", imbalance=remedy, **options)[0] for remedy in ("none", "logit"))
    np.testing.assert_allclose(adjusted.prior.numpy(), 1 / adjusted.target.n_bins, rtol=1e-5)
    batch = fetch(np.arange(TRAIN, N))
    edges, bare = adjusted.predict(batch)
    back = Pdf.from_mass(edges, adjusted.predict(batch, prior=plain.prior.numpy())[1]).mean()
    like = Pdf.from_mass(*plain.predict(batch)).mean()
    assert np.isfinite(bare).all() and bare.sum(axis=1) == pytest.approx(1)
    assert np.median(np.abs(back - like)) < 0.02
    # without a prior the scarce high redshifts are more likely, without exception in the mean
    assert Pdf.from_mass(edges, bare).mean().mean() > back.mean()


def test_the_capped_head_is_trained_on_the_subset_with_the_body_frozen() -> None:
    made, z = red_blobs.survey()
    options: dict[str, Any] = {"backbone": None, "photometry": True, "steps": 60}
    magnitude = made.magnitude[:TRAIN, 2]
    plain, _ = run("direct", **options)
    capped, report = run("direct", imbalance="capped", magnitude=magnitude, **options)
    for key, value in plain.body.state_dict().items():
        assert torch.equal(capped.body.state_dict()[key], value)
    assert not torch.equal(next(capped.head.parameters()), next(plain.head.parameters()))
    kept = np.random.default_rng((0, TRAIN)).permutation(TRAIN)[40:]
    subset = z[kept][capped_rows(z[kept], magnitude[kept], seed=0)]
    expected = prior_of(subset, capped.target.n_bins, width=capped.target.width)
    np.testing.assert_allclose(capped.prior.numpy(), expected, rtol=1e-5)
    assert report.steps > 60 and head_error(capped) < 0.3 * CHANCE


def test_the_capped_head_of_images_resumes_too(tmp_path: Path) -> None:
    options: dict[str, Any] = {"imbalance": "capped", "steps": 4, "checkpoint": tmp_path / "run.safetensors"}
    first, _ = run("direct", **options)
    again, report = run("direct", **options)
    assert report.resumed_from == 4 and again.revision == first.revision
    assert (tmp_path / "run.head-4.safetensors").exists()


def test_weights_decide_which_labels_count() -> None:
    _, z = red_blobs.survey()
    wrong, weights = z[:TRAIN].copy(), np.ones(TRAIN)
    wrong[::2], weights[::2] = 0.3, 0.0
    network, _ = run("direct", backbone=None, photometry=True, z=wrong, weights=weights, steps=200, batch_size=128)
    assert head_error(network) < 0.4 * CHANCE


def test_combinations_that_cannot_be_trained_are_refused_before_any_work() -> None:
    def never(indices: np.ndarray) -> Batch:
        raise AssertionError("data were read")

    made, z = red_blobs.survey()
    photometry = Photometry(red_blobs.scaling(made))
    refused: list[tuple[str, dict[str, Any]]] = [
        ("mode 'fine-tune'; nearest: finetune", {"mode": "fine-tune"}),
        ("mode 'probe' needs an image encoder", {"mode": "probe", "backbone": None, "photometry": True}),
        ("needs a trunk", {"mode": "direct", "backbone": None}),
        ("'photometry' cannot be specialised", {"mode": "finetune", "backbone": photometry}),
        ("imbalance 'density' with loss 'bins'", {"mode": "direct", "imbalance": "density"}),
        ("needs loss 'bins'", {"mode": "contrastive", "loss": "regression"}),
        ("20 labels: the network needs at least 50", {"mode": "direct", "z": z[:20]}),
        ("are fewer than the", {"mode": "direct", "z": np.linspace(0, 7, 60)}),
        ("z=-1.0 of label 0", {"mode": "direct", "z": np.full(60, -1.0)}),
        ("z=nan of label 0", {"mode": "direct", "z": np.full(60, np.nan)}),
        ("loss weights: expected 400", {"mode": "direct", "weights": np.ones(3)}),
        ("not all 0", {"mode": "direct", "weights": np.zeros(TRAIN)}),
        ("40 labels of a weight above 0", {"mode": "direct", "weights": (np.arange(TRAIN) < 40).astype(float)}),
        (r"magnitudes of shape \(3,\)", {"mode": "direct", "imbalance": "capped", "magnitude": np.ones(3)}),
    ]
    for message, options in refused:
        with pytest.raises(BadInput, match=message.replace("z=-1.0", r"z=-1\.0")):
            run(options.pop("mode"), fetch=never, **options)

"""From labelled sources to a `RedshiftNetwork`: direct training, linear probe, fine-tuning, contrastive latent.

    network, report = specialise(fetch, z, backbone=vit, photometry=None, mode="finetune", name="tuned")

A tenth of the labels is held out, and the weights that do best on it are kept.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from redshelf.models import checkpoint as stored
from redshelf.models import parallel
from redshelf.models.backbone import Backbone
from redshelf.models.bins import Floats, Loss, Target, prior_of
from redshelf.models.clap import Clap
from redshelf.models.errors import BadInput, nearest
from redshelf.models.imbalance import (
    BinLoss,
    Criterion,
    Imbalance,
    capped_rows,
    check_loss,
    criterion_for,
    implied_prior,
)
from redshelf.models.journal import LOG_ROWS
from redshelf.models.labelled import Labels, OnImages, OnInputs, Shown, nothing
from redshelf.models.photometry import Scaling
from redshelf.models.redshift_network import RedshiftNetwork, check_trunk
from redshelf.models.training import Fetch, Report, Sampler, micro_batches_of, seeded, train

Mode = Literal["direct", "probe", "finetune", "contrastive"]

STEPS = 1500  # the best of 500, 1500, 4000 for photometry on zCOSMOS with 2,400 labels
FIRST_STEPS, FIRST_SHARE = 1000, 0.25  # of body and head before the image encoder moves; share of a given time
HEAD_STEPS, HEAD_RATE = 300, 0.2  # of the head alone on the capped subset; factor on the learning rate
IMAGE_VALIDATIONS = 20  # of a run that trains the image encoder: 100 took longer than the training
CORE = 0.68  # share of the held-out residuals that a regression's scatter covers


@dataclass(frozen=True)
class Recipe:
    """Batch size, learning rate, and the factor on it for the image encoder."""

    batch_size: int
    lr: float
    backbone_rate: float = 1.0


RECIPES = {
    "photometry": Recipe(256, 2e-3),
    "probe": Recipe(256, 2e-3),
    "direct": Recipe(128, 1e-3),
    "finetune": Recipe(128, 1e-3, 0.1),
    "contrastive": Recipe(128, 1e-3),
}


def check_combination(
    backbone: Backbone | None, photometry: Scaling | None, *, mode: str, loss: str, imbalance: str
) -> None:
    """`BadInput` for a trunk, mode, loss and remedy that do not go together."""
    if mode not in get_args(Mode):
        raise BadInput(f"mode {mode!r}; {nearest(mode, get_args(Mode))}")
    check_loss(loss, imbalance)
    check_trunk(backbone, photometry)
    if backbone is None and mode != "direct":
        raise BadInput(f"mode {mode!r} needs an image encoder: photometry alone is trained with mode 'direct'")
    if mode == "contrastive" and loss != "bins":
        raise BadInput(f"mode 'contrastive' with loss {loss!r}: its views agree on a PDF, which needs loss 'bins'")


def specialise(
    fetch: Fetch,
    z: npt.ArrayLike,
    *,
    backbone: Backbone | None,
    photometry: Scaling | None,
    mode: Mode,
    loss: Loss = "bins",
    imbalance: Imbalance = "none",
    name: str,
    weights: npt.ArrayLike | None = None,
    magnitude: npt.ArrayLike | None = None,
    steps: int | None = None,
    max_seconds: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    backbone_rate: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    **loop: Any,
) -> tuple[RedshiftNetwork, Report]:
    """Train a redshift network on labelled sources; it comes back on the CPU, and `backbone` stays as it was.

    `fetch(indices)` gives the batch of the labels at positions `indices` of `z` (N,), in the trunk's bands. `weights`
    (N,): loss weights, None for equal. `magnitude` (N,): brightness, for the cells of imbalance "capped".

    Mode "direct" trains everything at one rate, from the weights that `backbone` has (fresh ones, for training from
    scratch); "finetune" trains the image encoder at `backbone_rate` times `lr`; both train body and head alone first
    (Kumar et al. 2022), and fall back on that where what follows does no better. "probe" leaves the image encoder
    alone, and is linear without photometry; "contrastive" is `models/clap.py`. None takes the mode's `RECIPES`, and
    `STEPS` where no time is given. `loop` goes to `training.train`; body and head on a trunk that stays are float32 in
    any case.

    Raises `BadInput` for labels, weights or a combination that cannot be trained, before any work, and as
    `training.train`.
    """
    check_combination(backbone, photometry, mode=mode, loss=loss, imbalance=imbalance)
    labels = Labels.checked(z, weights)
    brightness = None if magnitude is None else np.asarray(magnitude, dtype=np.float64)
    if brightness is not None and brightness.shape != labels.z.shape:
        raise BadInput(f"magnitudes of shape {brightness.shape}: expected ({len(labels)},)")
    target = Target.for_labels(labels.z)
    recipe = RECIPES["photometry" if backbone is None else mode]
    recipe = Recipe(
        recipe.batch_size if batch_size is None else batch_size,
        recipe.lr if lr is None else lr,
        recipe.backbone_rate if backbone_rate is None else backbone_rate,
    )
    frozen = backbone is None or mode == "probe"
    world = parallel.start(device).world  # takes this process's GPU before anything is put on one
    with seeded(seed):
        encoder = RedshiftNetwork(
            backbone=None if backbone is None else copy.deepcopy(backbone),
            photometry=photometry,
            target=target,
            body="linear" if mode == "probe" and photometry is None else "mlp",
            loss=loss,
            name=name,
        ).to(device)
        shown = Shown(fetch, labels, encoder, frozen=frozen, device=device, seed=seed)
        prior = _prior(target, shown.labels.take(shown.kept))
        criterion = criterion_for(target, prior, loss=loss, imbalance=imbalance)
        config = {
            "objective": mode,
            "imbalance": imbalance,
            "trunk": None if backbone is None else f"{backbone.name}.{backbone.revision}",
            "backbone_rate": recipe.backbone_rate,
            "encoder": encoder.config,
        }
        objective = _objective(shown, criterion, config, mode=mode, rate=recipe.backbone_rate)
    size = Sampler(len(shown.kept), recipe.batch_size, seed).size
    micro_batches_of(loop.get("micro_batches", 1), world, size)  # refused before the first stage, not after it
    if (where := loop.get("tensorboard")) is not None:
        Path(where).mkdir(parents=True, exist_ok=True)
    if frozen:
        loop["precision"] = "float32"
    options = {"seed": seed, "device": device, "checkpoint": checkpoint, **loop}
    first, before, kept = None, math.inf, dict[str, torch.Tensor]()
    if mode in ("direct", "finetune") and not frozen:
        seconds = None if max_seconds is None else FIRST_SHARE * max_seconds
        first = _body_first(shown, criterion, config, world=world, max_seconds=seconds, options=options)
        max_seconds = None if max_seconds is None else (1 - FIRST_SHARE) * max_seconds
        before, kept = shown.score(criterion), {k: v.clone() for k, v in encoder.state_dict().items()}
    report = train(
        objective,
        shown.batch,
        Sampler(len(shown.kept), recipe.batch_size, seed),
        steps=STEPS if steps is None and max_seconds is None else steps,
        max_seconds=max_seconds,
        lr=recipe.lr,
        validate=lambda: shown.score(criterion),
        validations=LOG_ROWS if frozen else IMAGE_VALIDATIONS,
        **options,
    )
    if first is not None and not shown.score(criterion) < before:
        encoder.load_state_dict(kept)
        report = replace(report, kept="first")
    prior = implied_prior(prior, imbalance)
    if imbalance == "capped":
        options = _of_stage(options, f"head-{report.steps}")
        prior, head = _balance_head(shown, brightness, prior, config, recipe, world=world, options=options)
        report = _with(report, "head", head)
    if first is not None:
        report = _with(report, "first", first)
    return _finished(encoder, shown, prior), report


def _with(report: Report, name: str, stage: Report) -> Report:
    """A run and another stage of it: steps and seconds of both."""
    steps, seconds = report.steps + stage.steps, report.seconds + stage.seconds
    return replace(report, steps=steps, seconds=seconds, stages={**report.stages, name: stage.steps})


def _prior(target: Target, labels: Labels) -> Floats:
    return prior_of(labels.z, target.n_bins, weights=labels.weights, width=target.width)


def _objective(
    shown: Shown, criterion: Criterion, config: dict[str, Any], *, mode: Mode, rate: float
) -> OnInputs | OnImages | Clap:
    encoder, labels = shown.encoder, shown.labels.take(shown.kept)
    if shown.inputs is not None:
        net = nn.Sequential(encoder.body, encoder.head)
        return OnInputs(net, shown.inputs_of(shown.kept)[1], labels, criterion, config)
    assert encoder.backbone is not None
    rates = [(list(encoder.backbone.parameters()), rate)]
    kind = Clap if mode == "contrastive" else OnImages
    return kind(encoder, labels, criterion, config, rates=rates)


def _body_first(
    shown: Shown,
    criterion: Criterion,
    config: dict[str, Any],
    *,
    world: int,
    max_seconds: float | None,
    options: dict[str, Any],
) -> Report:
    """Train body and head on the features that the image encoder has; what happened.

    A few steps of a whole network would not teach a fresh head what photometry alone gives for nothing.
    """
    encoder, recipe = shown.encoder, RECIPES["probe"]
    positions, inputs = shown.inputs_of(shown.kept)
    labels, net = shown.labels.take(positions), nn.Sequential(encoder.body, encoder.head)
    with shown.trunk_stays():
        return train(
            OnInputs(net, inputs, labels, criterion, {**config, "stage": "first"}),
            nothing,
            Sampler(len(labels), _shared(recipe.batch_size, len(labels), world), options["seed"]),
            steps=FIRST_STEPS,
            max_seconds=max_seconds,
            lr=recipe.lr,
            validate=lambda: shown.score(criterion),
            **_of_stage(options, "first"),
        )


def _of_stage(options: dict[str, Any], stage: str) -> dict[str, Any]:
    """Options of the loop for a stage beside the main one, on inputs that are known: its checkpoint is its own."""
    path = options["checkpoint"]
    beside = None if path is None else path.with_suffix(f".{stage}.safetensors")
    return {**options, "checkpoint": beside, "precision": "float32", "micro_batches": 1, "tensorboard": None}


def _shared(batch_size: int, sources: int, world: int) -> int:
    """A batch of no more than there are sources that `world` processes can share."""
    return max(world, min(batch_size, sources) // world * world)


def _balance_head(
    shown: Shown,
    magnitude: Floats | None,
    prior: Floats,
    config: dict[str, Any],
    recipe: Recipe,
    *,
    world: int,
    options: dict[str, Any],
) -> tuple[Floats, Report]:
    """Train the head alone on a capped subset of the kept labels; the subset's prior, and what happened.

    The held-out labels are weighted to the subset's prior.
    """
    encoder = shown.encoder
    positions, inputs = shown.inputs_of(shown.kept)
    brightness = None if magnitude is None else magnitude[shown.rows[positions]]
    chosen = capped_rows(shown.labels.z[positions], brightness, seed=options["seed"])
    labels = shown.labels.take(positions[chosen])
    with torch.no_grad():
        latent = encoder.latent(inputs[torch.from_numpy(chosen).to(inputs.device)])
    target = encoder.target
    balanced = _prior(target, labels)
    criterion = BinLoss(target, balanced, adjust=False)
    ratio = target.at(shown.labels.z[shown.held], balanced / prior)
    with shown.trunk_stays():
        report = train(
            OnInputs(encoder.head, latent, labels, criterion, {**config, "stage": "head"}),
            nothing,
            Sampler(len(labels), _shared(recipe.batch_size, len(labels), world), options["seed"]),
            steps=HEAD_STEPS,
            lr=HEAD_RATE * recipe.lr,
            validate=lambda: shown.score(criterion, ratio),
            **options,
        )
    return balanced, report


def _finished(encoder: RedshiftNetwork, shown: Shown, prior: Floats) -> RedshiftNetwork:
    """The network with what it knows of its own answers, in its final form."""
    encoder.prior.copy_(torch.from_numpy(prior))
    if encoder.loss == "regression":
        target = encoder.target
        found = target.centre + target.scale * shown.answers()[:, 0].double().cpu().numpy()
        residual = np.abs(found - np.log1p(shown.labels.z[shown.held]))
        encoder.scatter.fill_(max(float(np.quantile(residual, CORE)), 0.5 * target.width))
    encoder = encoder.cpu().eval()
    encoder.revision = stored.revision(encoder)
    return encoder

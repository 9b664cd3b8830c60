"""What the tests of the self-supervised objectives share: blobs, an objective over them, and what was learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import blobs
import numpy as np
import torch
from torch import Tensor

from redshelf.models.auxiliary import Labels, Pretext
from redshelf.models.backbone import Backbone
from redshelf.models.encoder import Batch
from redshelf.models.pretraining import objective_for

N = 640
SCALE = 0.168


def objective(kind: str, batch: Batch, *, labels: Labels | None = None, seed: int = 0) -> Pretext:
    """A tiny transformer over the blobs' four bands, in the objective `kind`."""
    return objective_for(
        kind,
        batch,
        blobs.BANDS,
        cutout_px=blobs.CUTOUT_PX,
        name="vit",
        size="tiny",
        labels=labels,
        pixel_scale_arcsec=SCALE,
        seed=seed,
    )


def full(sky: blobs.Blobs, n: int) -> Batch:
    """`n` sources with every condition known and a few bad pixels, so that every parameter has work to do."""
    batch = sky.fetch(np.arange(n))
    assert batch.pixel_mask is not None
    mask = batch.pixel_mask.clone()
    mask[:, :, 3, 3] = True
    return replace(batch, pixel_mask=mask, psf_fwhm_arcsec=torch.full((4,), 0.8), ebv=torch.full((n,), 0.02))


def reached(pretext: Pretext, batch: Batch, steps: int = 6) -> set[str]:
    """Names of the parameters that had a gradient in one of the steps: masks and views differ from step to step."""
    torch.manual_seed(0)
    found: set[str] = set()
    for _ in range(steps):
        pretext.zero_grad()
        pretext.loss(batch, torch.arange(len(batch)))[0].backward()  # type: ignore[no-untyped-call]
        found |= {k for k, p in pretext.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    return found


def trainable(pretext: Pretext) -> set[str]:
    return {name for name, parameter in pretext.named_parameters() if parameter.requires_grad}


def explained(vectors: Tensor, truth: np.ndarray) -> float:
    """R2 of the mean over 8 neighbours among the first 500, on the rest."""
    nearest = torch.cdist(vectors[500:], vectors[:500]).topk(8, largest=False).indices.numpy()
    return float(1 - np.var(truth[:500][nearest].mean(axis=1) - truth[500:]) / np.var(truth[500:]))


def without(batch: Batch, band: int) -> Batch:
    state = batch.state.clone()
    state[:, band] = 0
    return replace(batch, state=state)


def moved(encoder: Backbone, batch: Batch) -> tuple[float, float]:
    """How far embeddings move, summed over bands, when a band is dropped and when it is shuffled across sources."""
    assert batch.pixels is not None
    truth, dropped, shuffled = encoder.embed(batch), 0.0, 0.0
    for band in range(len(encoder.bands)):
        pixels = batch.pixels.clone()
        pixels[:, band] = pixels[:, band].roll(1, dims=0)
        dropped += float((encoder.embed(without(batch, band)) - truth).norm(dim=1).mean())
        shuffled += float((encoder.embed(replace(batch, pixels=pixels)) - truth).norm(dim=1).mean())
    return dropped, shuffled


class Killed(Exception):
    pass


def killed_at(step: int, fetch: Callable[[Any], Batch]) -> Callable[[Any], Batch]:
    """`fetch`, dying at its `step`-th call."""
    calls = iter(range(1000))

    def source(indices: Any) -> Batch:
        if next(calls) == step:
            raise Killed
        return fetch(indices)

    return source

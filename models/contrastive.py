"""Self-supervised pretraining by contrast: two views of a source are each other's answer among those of a batch.

MoCo v3 (Chen, Xie & He 2021): InfoNCE between a student and a teacher that is the running mean of the student, on the
views of `models/views.py`, which keep flux and colour; the auxiliary heads read the student's embedding of each view
against the photometry as it was measured. The teacher comes out: a mean over the last steps' weights carries less of
the noise of single batches than any of them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models.auxiliary import Auxiliary, Pretext
from redshelf.models.backbone import some, visible
from redshelf.models.encoder import Batch
from redshelf.models.views import DIMMING_MAG, Instrument, dimmed_fluxes, drawn_dimming, view
from redshelf.models.vit import MultiBandViT

TEMPERATURE = 0.2
MOMENTUM = 0.996  # of the teacher, and less in the beginning: it is a mean of the last tenth of the steps at most
HIDDEN, PROJECTED = 512, 128


def _head(dim: int, *, closed: bool) -> nn.Sequential:
    # layer norm where the paper has batch norm: a loss that does not depend on how a batch is split over processes
    layers = [nn.Linear(dim, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(), nn.Linear(HIDDEN, PROJECTED)]
    return nn.Sequential(*layers, *([nn.LayerNorm(PROJECTED, elementwise_affine=False)] if closed else []))


class Contrastive(Pretext):
    """Student and teacher encoders with their projections, the student's predictor, and the auxiliary heads."""

    learning_rate = 1e-3

    def __init__(self, encoder: MultiBandViT, heads: Auxiliary, instrument: Instrument) -> None:
        super().__init__()
        self.student, self.auxiliary, self.instrument = encoder, heads, instrument
        self.projector, self.predictor = _head(encoder.dim, closed=True), _head(PROJECTED, closed=False)
        self.teacher = copy.deepcopy(encoder).requires_grad_(False)
        self.teacher_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.followed: Tensor
        self.register_buffer("followed", torch.zeros((), dtype=torch.int64))
        recipe = {"temperature": TEMPERATURE, "momentum": MOMENTUM, "dimming": DIMMING_MAG, "views": instrument.config}
        self.config = {"objective": "contrastive", "encoder": encoder.config, "auxiliary": heads.config, **recipe}

    def trained(self) -> MultiBandViT:
        return self.teacher

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws the views from torch's global generator; sources without any band, in a view too, are left out."""
        batch, indices = some(batch, indices, visible(batch))
        loss_mag = drawn_dimming(len(batch), batch.state.device)
        views = [view(batch, self.instrument, loss_mag=loss_mag) for _ in range(2)]
        usable = visible(views[0]) & visible(views[1])
        both = _joined(*(one.select(usable) for one in views))
        chosen, indices = some(dimmed_fluxes(batch, loss_mag), indices, usable)
        embedding = self.student.features(both)
        query = self.predictor(self.projector(embedding))
        with torch.no_grad():
            key = self.teacher_projector(self.teacher.features(both))
        (first, second), (known, other) = query.float().chunk(2), key.float().chunk(2)
        contrast = 0.5 * (_info_nce(first, other, indices) + _info_nce(second, known, indices))
        rest, parts = self.auxiliary.losses(embedding, _joined(chosen, chosen), torch.cat([indices, indices]))
        return contrast + rest, {"contrast": contrast, **parts}

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """The teacher follows its student, ever more slowly; a short run is not left with its first weights."""
        self.followed += 1
        follow = (9 / (10 + self.followed)).clamp(min=1 - MOMENTUM)  # on the device: nothing waits for it
        for student, teacher in ((self.student, self.teacher), (self.projector, self.teacher_projector)):
            for held, leading in zip(teacher.parameters(), student.parameters(), strict=True):
                held.lerp_(leading, follow)


def _info_nce(query: Tensor, key: Tensor, indices: Tensor) -> Tensor:
    """Cross-entropy of finding the other view of each source by its direction; `query` and `key` (N, P)."""
    with torch.autocast(query.device.type, enabled=False):
        logits = F.normalize(query, dim=1) @ F.normalize(key, dim=1).mT / TEMPERATURE  # (N, N)
    own = torch.eye(len(indices), dtype=torch.bool, device=indices.device)
    twice = (indices[:, None] == indices) & ~own  # weighted draws repeat a source, which is no wrong answer
    return F.cross_entropy(logits.masked_fill(twice, -math.inf), torch.arange(len(indices), device=indices.device))


def _joined(one: Batch, other: Batch) -> Batch:
    """One batch of the sources of both; conditions of the survey, (bands,), become each source's, unknown ones NaN."""
    n = len(one)
    whole: dict[str, Any] = {}
    for name in (f.name for f in fields(Batch)):
        values = [getattr(one, name), getattr(other, name)]
        if name in ("ebv", "depth_ab", "psf_fwhm_arcsec") and any(value is not None for value in values):
            shape = (n,) if name == "ebv" else one.state.shape
            unknown = torch.full(shape, math.nan, device=one.state.device)
            values = [unknown if value is None else value.float().expand(shape) for value in values]
        whole[name] = None if values[0] is None else torch.cat(values)
    return Batch(**whole)

"""Augmentations that leave flux and colour alone: the eight rotations and flips of a square."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from redshelf.models.encoder import Batch


def _turned(images: Tensor) -> Tensor:
    parts = images.tensor_split(8)
    turned = [torch.rot90(part, k % 4, (-2, -1)) for k, part in enumerate(parts)]
    return torch.cat([part.flip(-1) if k >= 4 else part for k, part in enumerate(turned)])


def turned(batch: Batch) -> Batch:
    """The batch with each eighth of it in another of the eight orientations; a shuffled batch needs no other dice."""
    if batch.pixels is None or batch.pixel_mask is None:
        return batch
    return replace(batch, pixels=_turned(batch.pixels), pixel_mask=_turned(batch.pixel_mask))

"""models/backbone.py: what a network is shown of a batch, against its definition pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from redshelf.models.backbone import good_pixels, observed, visible
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput


@dataclass
class Anyone:
    name: str = "anyone"
    bands: tuple[str, ...] = ("g", "r", "i")
    cutout_px: int = 4
    needs: frozenset[str] = frozenset({"pixels"})


def batch_of(dtype: torch.dtype, *, absent: bool = True) -> Batch:
    """200 sources with bad pixels, NaN under them, and bands that are all bad or not observed."""
    dice = torch.Generator().manual_seed(0)
    shape = (200, 3, 4, 4)
    mask = torch.rand(shape, generator=dice) < 0.3
    state = torch.full(shape[:2], 2, dtype=torch.int8)
    if absent:
        mask[torch.rand(shape[:2], generator=dice) < 0.2] = True
        state[torch.rand(shape[:2], generator=dice) < 0.2] = 0
    pixels = torch.randn(shape, generator=dice).to(dtype)
    pixels[mask | (state == 0)[:, :, None, None]] = float("nan")
    return Batch(state, pixels=pixels, pixel_mask=mask)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("absent", [True, False])
def test_good_pixels_are_those_of_bands_that_are_there(dtype: torch.dtype, absent: bool) -> None:
    batch = batch_of(dtype, absent=absent)
    assert batch.pixels is not None and batch.pixel_mask is not None
    before, mask = batch.pixels.clone(), batch.pixel_mask.clone()
    found = good_pixels(batch, Anyone())
    present = (batch.state != 0) & ~mask.flatten(2).all(dim=2)
    there = present[:, :, None, None]
    assert torch.equal(found.present, present) and bool(present.all()) is not absent
    assert torch.equal(found.values, torch.where(there & ~mask, before.float(), 0.0))
    assert torch.equal(found.bad, there & mask)
    assert torch.equal(observed(batch), present) and torch.equal(visible(batch), present.any(dim=1))
    assert torch.equal(batch.pixels.nan_to_num(7.0), before.nan_to_num(7.0)), "the caller's pixels stay"
    assert torch.equal(batch.pixel_mask, mask)


def test_without_pixels_a_source_is_visible_by_its_states() -> None:
    state = torch.tensor([[0, 0], [0, 2], [1, 0]], dtype=torch.int8)
    assert visible(Batch(state)).tolist() == [False, True, True]


def test_a_pixel_that_is_not_finite_is_named_with_its_source_and_band() -> None:
    batch = batch_of(torch.float16, absent=False)
    assert batch.pixels is not None and batch.pixel_mask is not None
    batch.pixel_mask[5, 1], batch.pixels[5, 1] = False, 0
    batch.pixels[5, 1, 2, 2] = float("inf")
    with pytest.raises(BadInput, match="1 pixels are not finite and not masked, the first in source 5, band r"):
        good_pixels(batch, Anyone())

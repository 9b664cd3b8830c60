"""models/vit.py on blobs whose colours and sizes are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import blobs
import numpy as np
import pytest
import torch

from redshelf.models import checkpoint
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.vit import SIZES, MultiBandViT, Size, default_groups, sine_positions

SMALL = Size(dim=64, depth=2, heads=2, patch_px=8)
NAMES = [band.name for band in blobs.BANDS]
GROUPS = [["g", "r"], ["i", "z"]]


def fresh(cutout_px: int = blobs.CUTOUT_PX) -> MultiBandViT:
    torch.manual_seed(0)
    return MultiBandViT(NAMES, groups=GROUPS, cutout_px=cutout_px, size=SMALL)


def without(batch: Batch, band: int) -> Batch:
    state = batch.state.clone()
    state[:, band] = 0
    return replace(batch, state=state)


def few(sky: blobs.Blobs, n: int = 6) -> Batch:
    return sky.fetch(np.arange(n))


def test_default_groups_are_neighbours_in_wavelength() -> None:
    assert default_groups([770, 355, 622, 475, 975, 890]) == [[1, 3, 2], [0, 5, 4]]
    assert [len(group) for group in default_groups(np.arange(11.0) + 300)] == [3, 3, 3, 2]
    assert default_groups([500.0]) == [[0]]


def test_positions_tell_every_patch_apart() -> None:
    assert float(torch.pdist(sine_positions(8, 64)).min()) > 0.1


def test_embeddings_are_finite_float32_and_do_not_depend_on_the_company(sky: blobs.Blobs) -> None:
    encoder = fresh()
    together = encoder.embed(few(sky))
    assert together.shape == (6, 64) and together.dtype == torch.float32 and torch.isfinite(together).all()
    alone = encoder.embed(sky.fetch(np.array([3])))
    torch.testing.assert_close(alone[0], together[3], atol=0.03, rtol=0.03)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_every_size_can_be_built(size: str) -> None:
    assert MultiBandViT(NAMES, groups=GROUPS, cutout_px=32, size=SIZES[size], revision="unsaved").dim == SIZES[size].dim


def test_a_brighter_source_has_another_embedding(sky: blobs.Blobs) -> None:
    batch, encoder = few(sky), fresh()
    assert batch.pixels is not None
    shift = encoder.embed(replace(batch, pixels=2 * batch.pixels)) - encoder.embed(batch)
    assert float(shift.norm(dim=1).min()) > 0.05


def test_negative_pixels_count(sky: blobs.Blobs) -> None:
    batch, encoder = few(sky), fresh()
    assert batch.pixels is not None
    clipped = replace(batch, pixels=batch.pixels.clamp(min=0))
    assert not torch.allclose(encoder.embed(clipped), encoder.embed(batch), atol=1e-3)


def test_what_lies_under_a_mask_or_in_an_absent_band_does_not_matter(sky: blobs.Blobs) -> None:
    batch, encoder = few(sky), fresh()
    assert batch.pixels is not None and batch.pixel_mask is not None
    mask, pixels = batch.pixel_mask.clone(), batch.pixels.clone()
    mask[:, 1, :5] = True
    expected = encoder.embed(replace(without(batch, 2), pixel_mask=mask))
    pixels[:, 1, :5], pixels[:, 2] = float("nan"), float("inf")
    found = encoder.embed(replace(without(batch, 2), pixels=pixels, pixel_mask=mask))
    assert torch.equal(found, expected)


def test_a_wholly_masked_band_is_a_missing_band(sky: blobs.Blobs) -> None:
    batch, encoder = few(sky), fresh()
    assert batch.pixel_mask is not None
    mask = batch.pixel_mask.clone()
    mask[:, 0] = True
    assert torch.equal(encoder.embed(replace(batch, pixel_mask=mask)), encoder.embed(without(batch, 0)))


def test_any_one_band_alone_is_embedded_beside_sources_with_all(sky: blobs.Blobs) -> None:
    batch, encoder = few(sky), fresh()
    state = batch.state.clone()
    state[0, :3], state[1, 1:] = 0, 0
    mixed = encoder.embed(replace(batch, state=state))
    assert torch.isfinite(mixed).all()
    torch.testing.assert_close(mixed[2:], encoder.embed(batch)[2:], atol=0.03, rtol=0.03)


def test_cutouts_that_are_no_multiple_of_the_patch_are_padded() -> None:
    encoder = fresh(cutout_px=30)
    shape = (2, 4, 30, 30)
    batch = Batch(
        torch.full((2, 4), 2, dtype=torch.int8),
        pixels=torch.randn(shape),
        pixel_mask=torch.zeros(shape, dtype=torch.bool),
    )
    assert encoder.embed(batch).shape == (2, 64)


def test_pixels_that_cannot_be_embedded_are_refused(sky: blobs.Blobs) -> None:
    batch, encoder = few(sky), fresh()
    assert batch.pixels is not None
    pixels = batch.pixels.clone()
    pixels[4, 2, 7, 7] = float("nan")
    with pytest.raises(BadInput, match="source 4, band i"):
        encoder.embed(replace(batch, pixels=pixels))
    with pytest.raises(BadInput, match="got \\(4, 32, 32\\)"):
        fresh(cutout_px=30).embed(batch)
    with pytest.raises(BadInput, match="6 sources have no band"):
        encoder.embed(replace(batch, state=torch.zeros_like(batch.state)))
    with pytest.raises(BadInput, match="needs pixels"):
        encoder.embed(replace(batch, pixels=None))
    with pytest.raises(BadInput, match="exactly one"):
        MultiBandViT(NAMES, groups=[["g", "r"], ["r", "z"]], cutout_px=32, size=SMALL)


def test_the_transformer_comes_back_from_disk_with_the_same_vectors(sky: blobs.Blobs, tmp_path: Path) -> None:
    encoder = fresh()
    folder = checkpoint.save(encoder, tmp_path, provenance={})
    back = checkpoint.load(folder)
    assert folder.name == f"vit.{encoder.revision}" and encoder.revision == checkpoint.revision(encoder)
    assert torch.equal(back.embed(few(sky)), encoder.embed(few(sky)))


def test_attention_with_a_gradient_is_the_fused_one() -> None:
    from redshelf.models.vit import attention

    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 4, 2, 5, 8, generator=generator).unbind()
    mask = torch.rand(4, 1, 1, 5, generator=generator) < 0.7
    mask[..., 0] = True
    for key_mask in (None, mask):
        torch.testing.assert_close(attention(q.requires_grad_(), k, v, key_mask), attention(q.detach(), k, v, key_mask))

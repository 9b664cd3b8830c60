"""What every image encoder shares: checked pixels in, features with a gradient out, an embedding in bfloat16.

A `Backbone` is a torch module that `models/checkpoint.py` stores, that `indexing/embed.py` runs over a survey, and that
`models/redshift_network.py` trains with a redshift head on top.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from redshelf.models.bands import State
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput


@dataclass(frozen=True)
class Pixels:
    """A batch as a network sees it. `values` (N, B, H, W) float32, 0 where bad or missing; `bad` of the same shape,
    True for bad pixels of a band that is present; `present` (N, B): observed, with a good pixel at least."""

    values: Tensor
    bad: Tensor
    present: Tensor

    def rows(self, chosen: Tensor) -> Pixels:
        """The sources where `chosen` (N,) is true."""
        return Pixels(self.values[chosen], self.bad[chosen], self.present[chosen])

    def without(self, hidden: Tensor) -> Pixels:
        """The same with the bands `hidden` (N, B) missing."""
        shown = ~hidden[:, :, None, None]
        return Pixels(self.values * shown, self.bad & shown, self.present & ~hidden)


class _Sees(Protocol):
    name: str
    bands: tuple[str, ...]
    cutout_px: int
    needs: frozenset[str]


def good_pixels(batch: Batch, encoder: _Sees) -> Pixels:
    """The batch's pixels, still linear in flux, checked for `encoder`.

    Raises `BadInput` for no pixels, another number of bands, another cutout size, or a pixel that is neither finite nor
    masked.
    """
    batch.require(frozenset({"pixels"}), encoder.name)
    assert batch.pixels is not None and batch.pixel_mask is not None
    expected = (len(encoder.bands), encoder.cutout_px, encoder.cutout_px)
    if tuple(batch.pixels.shape[1:]) != expected:
        raise BadInput(
            f"encoder {encoder.name!r} takes cutouts of (bands, height, width) = {expected}, "
            f"bands {', '.join(encoder.bands)}: got {tuple(batch.pixels.shape[1:])}"
        )
    present, bad = observed(batch), batch.pixel_mask
    hidden, absent = bad, (~present).nonzero(as_tuple=True)
    if len(absent[0]):
        bad, hidden = bad.clone(), bad.clone()
        bad[absent], hidden[absent] = False, True
    flux = batch.pixels.float()
    # a shelf's float16 has been copied by now; a caller's float32 has not, and is not ours to write to
    flux = flux.masked_fill(hidden, 0.0) if flux is batch.pixels else flux.masked_fill_(hidden, 0.0)
    if not torch.isfinite(flux.sum()):  # one pass where all is well; a NaN or infinity survives the sum
        broken = (~torch.isfinite(flux)).nonzero()
        source, band = (int(i) for i in broken[0, :2])
        raise BadInput(
            f"{len(broken)} pixels are not finite and not masked, the first in source {source}, "
            f"band {encoder.bands[band]}: mask them or mark the band as not observed"
        )
    return Pixels(flux, bad, present)


def observed(batch: Batch) -> Tensor:
    """Which bands were observed and have a good pixel, where there are pixels, (N, B) bool."""
    seen = batch.state != State.NOT_OBSERVED
    mask = batch.pixel_mask
    if mask is None:
        return seen
    if mask.device.type != "cpu" or not mask.numel():
        return seen & ~mask.flatten(2).all(dim=2)
    # reductions of bool are slow on a CPU: a band can only be bad all over where its first pixel is
    maybe = seen & mask[:, :, 0, 0]
    if maybe.any():
        seen[maybe] = ~mask[maybe].flatten(1).all(dim=1)
    return seen


def visible(batch: Batch) -> Tensor:
    """Which sources have a band at all, (N,) bool."""
    return observed(batch).any(dim=1)


def standard_conditions(batch: Batch, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Depth and seeing of each band, (N, B) as `like`, and reddening, (N,), of order one; NaN where unknown."""
    unknown = torch.full_like(like, float("nan"), dtype=torch.float32)
    depth = unknown if batch.depth_ab is None else ((batch.depth_ab.float() - 26) / 2).expand(like.shape)
    fwhm = unknown if batch.psf_fwhm_arcsec is None else batch.psf_fwhm_arcsec.float().log().expand(like.shape)
    return depth, fwhm, unknown[:, 0] if batch.ebv is None else 10 * batch.ebv.float()


def some(batch: Batch, indices: Tensor, usable: Tensor) -> tuple[Batch, Tensor]:
    """The sources of a batch where `usable` (N,) holds, and their `indices` (N,); `BadInput` where none does."""
    if usable.all():
        return batch, indices
    if not usable.any():
        raise BadInput(f"none of the {len(usable)} sources of a batch has a band with a good pixel")
    return batch.select(usable), indices[usable]


def half_type(device: torch.device) -> torch.dtype:
    """bfloat16, or float16 on a GPU older than Ampere (a V100), which only emulates the former."""
    old = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] < 8
    return torch.float16 if old else torch.bfloat16


class Backbone(nn.Module, ABC):
    """A trainable encoder of cutouts; a `StoredEncoder`."""

    kind: str
    needs: frozenset[str] = frozenset({"pixels"})
    name: str
    revision: str
    bands: tuple[str, ...]
    cutout_px: int
    dim: int

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]: ...

    @classmethod
    @abstractmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self: ...

    @abstractmethod
    def features(self, batch: Batch) -> Tensor:
        """(N, dim), with a gradient; every source must be `visible`. The caller chooses device, autocast and mode."""

    def weights(self) -> dict[str, Tensor]:
        return dict(self.state_dict())

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """`features` without a gradient, (N, dim) float32; 16 bits inside. `BadInput` for a source without any band,
        and as `good_pixels`."""
        batch.require(self.needs, self.name)
        empty = (~visible(batch)).nonzero().flatten().tolist()
        if empty:
            raise BadInput(
                f"{len(empty)} sources have no band with a good pixel, the first is source {empty[0]} of the batch"
            )
        with torch.autocast(batch.state.device.type, half_type(batch.state.device)):
            return self.features(batch).float()


def load_weights(module: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """Fill `module`; `BadInput` naming encoder `name` where names or shapes differ."""
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise BadInput(f"encoder {name!r}: the weights do not fit its config: {error}") from error

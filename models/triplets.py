"""From a survey's bands to the three-channel images that published encoders were trained on.

Neighbouring bands make overlapping triplets, the reddest first as a photograph's red: u g r i z y gives (y, z, i),
(i, r, g), (r, g, u), so that each colour between neighbours stands in one of them. Pixels go through a fixed asinh with
constants for each band, never through statistics of the image itself, which would delete magnitudes; negative pixels
stay, under a sky that is dark grey. Then the encoder's own channel mean and deviation, as its training had them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from redshelf.models.backbone import Pixels
from redshelf.models.errors import BadInput
from redshelf.models.vit import CEILING
from redshelf.models.vit import _asinh as asinh

UPSAMPLING = 1.75  # 64-pixel cutouts at 112: a quarter of the tokens of the 224 of the encoders' training
SKY_LEVEL = 0.15  # of the image's range, for a pixel without flux
SOFTENING = 3.0  # noise units
WHITE = 1000.0  # noise units

Triplet = tuple[int, int, int]


def triplets(wavelength_nm: Sequence[float]) -> list[Triplet]:
    """Columns of (red, green, blue) for each image, the reddest image first.

    Each band is in one at least, and so is each pair of neighbours in wavelength. Two bands are (red, red, blue), one
    is thrice the same. Raises `BadInput` without a band.
    """
    if len(wavelength_nm) == 0:
        raise BadInput("triplets of no bands: expected at least one band")
    order = [int(column) for column in np.argsort(-np.asarray(wavelength_nm, dtype=np.float64), kind="stable")]
    if len(order) < 3:
        return [(order[0], order[0], order[-1])]
    starts = [min(start, len(order) - 3) for start in range(0, len(order) - 1, 2)]
    return [(order[start], order[start + 1], order[start + 2]) for start in starts]


def input_size(cutout_px: int, patch_px: int) -> int:
    """The multiple of `patch_px` nearest to `UPSAMPLING` times the cutout, the larger where two are as near."""
    return max(1, math.floor(UPSAMPLING * cutout_px / patch_px + 0.5)) * patch_px


@dataclass(frozen=True)
class Stretch:
    """The fixed map from noise units to an image, constants in the order of the bands.

    0 becomes `sky`, `white` becomes 1, linear up to about `softening`, logarithmic beyond; nothing is clipped at either
    end but saturated stars.
    """

    softening: tuple[float, ...]
    white: tuple[float, ...]
    sky: float = SKY_LEVEL

    def __post_init__(self) -> None:
        if len(self.softening) != len(self.white) or not self.white:
            raise BadInput(f"stretch: {len(self.softening)} softenings, {len(self.white)} white levels: expected equal")
        for soft, white in zip(self.softening, self.white, strict=True):
            if not 0 < soft < white < math.inf:
                raise BadInput(f"stretch: softening={soft}, white={white}: expected 0 < softening < white")
        if not 0 <= self.sky < 1:
            raise BadInput(f"stretch: sky={self.sky}: expected 0 <= sky < 1")

    @classmethod
    def default(cls, n_bands: int) -> Self:
        """The same constants for all bands, which are in units of their noise."""
        return cls((SOFTENING,) * n_bands, (WHITE,) * n_bands)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The inverse of `dataclasses.asdict`, from parsed JSON."""
        return cls(tuple(config["softening"]), tuple(config["white"]), config["sky"])

    def __call__(self, flux: Tensor) -> Tensor:
        """flux: (N, B, H, W) in noise units -> the same shape, mostly in [0, 1]."""
        softening = flux.new_tensor(self.softening)[:, None, None]
        gain = (1 - self.sky) / np.arcsinh(np.divide(self.white, self.softening))
        curve = asinh((flux / softening).clamp_(-CEILING, CEILING))
        return curve.mul_(flux.new_tensor(gain)[:, None, None]).add_(self.sky)


def images(
    pixels: Pixels, columns: Tensor, stretch: Stretch, *, input_px: int, mean: Tensor, std: Tensor
) -> tuple[Tensor, Tensor]:
    """Normalised images (M, 3, input_px, input_px) of the triplets that have a band, and which those are, (N, T) bool.

    `columns`: (T, 3) int64; `mean`, `std`: (3,). M counts the true entries of (N, T), row by row. A band that is
    missing takes the mean of the others of its triplet, so that it adds no colour; nothing else says so.
    """
    side = [input_px, input_px]
    values = stretch(pixels.values)
    if values.shape[-1] != input_px:  # before the triplets are made: a band in two of them is resampled once
        values = F.interpolate(values, side, mode="bicubic", align_corners=False, antialias=False)
    there = pixels.present[:, columns]  # (N, T, 3)
    alive = there.any(dim=2)
    channels = values[:, columns]  # (N, T, 3, s, s)
    if not bool(there.all()):
        channels, there = channels[alive], there[alive]  # (M, 3, s, s), (M, 3)
        share = there.to(channels.dtype) / there.sum(dim=1, keepdim=True)
        others = torch.einsum("mchw,mc->mhw", channels, share)[:, None]
        channels = torch.where(there[:, :, None, None], channels, others)
    channels = channels.view(-1, 3, *side)
    return channels.sub_(mean[:, None, None]).div_(std[:, None, None]), alive

"""The layers of the inception CNN for photometric redshifts (Treyer et al. 2024), and their channel counts.

A `Front` takes a stack of bands down to a quarter of a 64-pixel cutout, a `Trunk` goes on from there to the features.
`models/cnn.py` makes encoders of them: one front over all bands, or several over neighbouring ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models.errors import BadInput

STEM, KERNELS, FULLY_CONNECTED = 96, 156, 1024  # channels of the published network, whose width is 1
FRONT_BLOCKS, TRUNK_BLOCKS = 3, (2, 1)  # inception blocks before the second, third pooling, and after it
FINAL_PX = 8  # side of the map that three unpadded 3x3 convolutions and one 2x2 mean turn into one pixel
MIN_CUTOUT_PX = 4 * FINAL_PX  # two poolings are always there
FIRST_POOLING_FROM_PX = 2 * MIN_CUTOUT_PX  # smaller cutouts do without the first of three
MIN_WIDTH = 0.1
After = Literal["relu", "tanh", "linear"]  # the activation that follows a layer


@dataclass(frozen=True)
class Channels:
    """Channel counts: `stem` of the plain convolutions, `kernels` of the wide ones of an inception block."""

    stem: int
    kernels: int

    @property
    def branches(self) -> list[int]:
        """Outputs of a block's four 1x1 convolutions: before 5x5, before 3x3, before the mean, and alone."""
        return [self.kernels * 65 // 100] * 3 + [self.kernels * 70 // 100]

    @property
    def block(self) -> int:
        """What an inception block gives."""
        return 2 * self.kernels + sum(self.branches[2:])


def scaled_channels(width: float) -> tuple[Channels, int]:
    """Channels of the network and length of its features at `width` times the published counts."""
    if not MIN_WIDTH <= width < float("inf"):
        raise BadInput(f"width={width} of a CNN: expected {MIN_WIDTH} or more (1 is the published network)")
    return Channels(round(STEM * width), round(KERNELS * width)), round(FULLY_CONNECTED * width)


def size_of(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def _xavier(weight: Tensor, after: After) -> None:
    # gains of Kaiming et al. 2015 and of a tanh: without them, features shrink by half the variance at each ReLU
    nn.init.xavier_uniform_(weight, gain=nn.init.calculate_gain(after))


def convolution(n_in: int, n_out: int, side: int, *, after: After = "relu", padding: int | None = None) -> nn.Conv2d:
    """A `side` x `side` convolution that keeps the map's size, drawn for the activation that comes `after` it."""
    made = nn.Conv2d(n_in, n_out, side, padding=side // 2 if padding is None else padding)
    _xavier(made.weight, after)
    nn.init.zeros_(made.bias)  # type: ignore[arg-type]
    return made


class Inception(nn.Module):
    """[1x1 -> 5x5] ++ [1x1 -> 3x3] ++ [1x1 -> mean of 2x2 at stride 1] ++ [1x1], a ReLU after each convolution."""

    def __init__(self, n_in: int, channels: Channels) -> None:
        super().__init__()
        self.branches = channels.branches
        # the four 1x1 convolutions in one: the same parameters, and the input is read once
        self.reduce = nn.Conv2d(n_in, sum(self.branches), 1)
        for part in self.reduce.weight.split_with_sizes(self.branches):
            _xavier(part, "relu")
        nn.init.zeros_(self.reduce.bias)  # type: ignore[arg-type]
        self.conv5 = convolution(self.branches[0], channels.kernels, 5)
        self.conv3 = convolution(self.branches[1], channels.kernels, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide, narrow, mean, direct = F.relu(self.reduce(x)).split_with_sizes(self.branches, dim=1)
        # padded after the last row and column only ("SAME" of an even window), the padding not averaged in
        mean = F.avg_pool2d(mean, 2, stride=1, padding=1, count_include_pad=False)[:, :, 1:, 1:]
        return torch.cat([F.relu(self.conv5(wide)), F.relu(self.conv3(narrow)), mean, direct], dim=1)


class Front(nn.Module):
    """Images and scalars to a map of `channels.block` channels: two convolutions, pooling, blocks, pooling.

    The scalars enter early: a linear map of them is added to every pixel of the first convolution, before its ReLU.
    """

    def __init__(self, n_images: int, n_scalars: int, *, channels: Channels, blocks: int, cutout_px: int) -> None:
        super().__init__()
        if cutout_px < MIN_CUTOUT_PX:
            raise BadInput(f"cutout_px={cutout_px}: a CNN takes cutouts of {MIN_CUTOUT_PX} pixels or more")
        self.first_pooling = cutout_px >= FIRST_POOLING_FROM_PX
        self.conv5 = convolution(n_images, channels.stem, 5)
        self.scalars = nn.Linear(n_scalars, channels.stem)
        _xavier(self.scalars.weight, "linear")
        nn.init.zeros_(self.scalars.bias)
        self.conv3 = convolution(channels.stem, channels.stem, 3, after="tanh")
        inputs = [channels.stem] + [channels.block] * (blocks - 1)
        self.blocks = nn.Sequential(*(Inception(n, channels) for n in inputs))

    def forward(self, images: Tensor, scalars: Tensor) -> Tensor:
        """images: (N, C, H, W), scalars: (N, S); (N, block, H / 4, W / 4), or half of H where H < 64."""
        x = F.relu(self.conv5(images) + self.scalars(scalars)[:, :, None, None])
        x = torch.tanh(self.conv3(x))
        if self.first_pooling:
            x = F.avg_pool2d(x, 2)
        return F.avg_pool2d(self.blocks(x), 2)


class Trunk(nn.Module):
    """From the second pooling to the features: two blocks, pooling, one block, three convolutions, one full layer."""

    def __init__(self, n_in: int, *, channels: Channels, dim: int) -> None:
        super().__init__()
        block, stem = channels.block, channels.stem
        before, after = TRUNK_BLOCKS
        inputs = [n_in] + [block] * (before - 1)
        self.before = nn.Sequential(*(Inception(n, channels) for n in inputs))
        self.after = nn.Sequential(*(Inception(block, channels) for _ in range(after)))
        self.valid = nn.ModuleList(convolution(n, stem, 3, padding=0) for n in (block, stem, stem))
        self.full = nn.Linear(stem, dim)
        _xavier(self.full.weight, "relu")
        nn.init.zeros_(self.full.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, h, w) -> (N, dim), none negative."""
        x = self.after(F.avg_pool2d(self.before(x), 2))
        x = F.adaptive_avg_pool2d(x, FINAL_PX)  # nothing to do for cutouts of 32, 64 and 65 pixels
        for conv in self.valid:
            x = F.relu(conv(x))  # sides 6, 4, 2
        return F.relu(self.full(F.avg_pool2d(x, 2).flatten(1)))

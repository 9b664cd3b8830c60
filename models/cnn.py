"""The CNNs of the comparison: the inception network of Treyer et al. 2024, one stack of all bands (`InceptionCNN`), and
the multimodal form of Ait Ouahmed et al. 2024, one front for each run of neighbouring bands (`MultimodalCNN`).

Implemented from their descriptions, no code was seen. Pixels, in units of the band's noise, become sign(x) log(1+|x|),
negative ones too; a missing band and a bad pixel are zero. What is missing the network is told: one more image holds
the share of bands that are bad at each pixel, and flags of the bands that are present are added to the first
convolution together with reddening, depth and seeing.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from redshelf.models import checkpoint as stored
from redshelf.models.backbone import Backbone, Pixels, good_pixels, load_weights, standard_conditions
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.inception import (
    FRONT_BLOCKS,
    KERNELS,
    STEM,
    TRUNK_BLOCKS,
    Channels,
    Front,
    Trunk,
    scaled_channels,
    size_of,
)

STREAM_BANDS = 3
STREAM_BLOCKS = 2  # inception blocks of a stream; with three, narrow streams would leave less for each block
PER_BAND, PER_SOURCE = 5, 2  # scalars: present, depth and seeing with a flag on each; reddening with a flag
TOLERANCES = 0.005, 0.01  # relative difference in parameters between the two networks: wished for, and allowed


def default_streams(wavelength_nm: Sequence[float]) -> list[list[int]]:
    """Columns of every three neighbours in wavelength, overlapping by two; all in one stream for three or fewer."""
    order = np.argsort(np.asarray(wavelength_nm), kind="stable").tolist()
    return [order[k : k + STREAM_BANDS] for k in range(max(1, len(order) - STREAM_BANDS + 1))]


class _CNN(Backbone):
    """Fronts over streams of bands, their maps side by side, and a trunk. With one stream: the plain network."""

    def __init__(
        self,
        bands: Sequence[str],
        *,
        streams: Sequence[Sequence[str]],
        stream_channels: Channels,
        blocks: int,
        cutout_px: int,
        width: float,
        name: str,
        revision: str | None,
    ) -> None:
        super().__init__()
        self.bands, self.cutout_px, self.width, self.name = tuple(bands), cutout_px, float(width), name
        self.streams = _columns(self.bands, streams)
        self.channels, self.dim = scaled_channels(width)
        self.stream_channels, self.stream_blocks = stream_channels, blocks
        self.fronts = nn.ModuleList(
            _front(len(columns), channels=stream_channels, blocks=blocks, cutout_px=cutout_px)
            for columns in self.streams
        )
        self.trunk = Trunk(len(self.streams) * stream_channels.block, channels=self.channels, dim=self.dim)
        self.to(memory_format=torch.channels_last)  # 1.4 times faster in bfloat16 on the CPU
        self.eval()
        self.revision = revision or stored.revision(self)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "bands": list(self.bands),
            "cutout_px": self.cutout_px,
            "width": self.width,
            "layers": {
                "stem": self.channels.stem,
                "kernels": self.channels.kernels,
                "dim": self.dim,
                "stream_stem": self.stream_channels.stem,
                "stream_kernels": self.stream_channels.kernels,
                "blocks": [self.stream_blocks, *TRUNK_BLOCKS],
            },
            "scaling": "sign(x) log(1 + |x|)",
        }

    def prepare(self, batch: Batch) -> Pixels:
        """The pixels through the fixed logarithm. Errors as in `good_pixels`."""
        flux = good_pixels(batch, self)
        return Pixels(flux.values.abs().log1p_().copysign_(flux.values), flux.bad, flux.present)

    def features(self, batch: Batch) -> Tensor:
        """Output of the fully connected layer, (N, dim) float32, none negative.

        A stream without any band gives zeros, and the others of that source are scaled by sqrt(streams / present).
        """
        pixels = self.prepare(batch)
        per_band, per_source = conditions(batch, pixels.present)
        alive = torch.stack([pixels.present[:, columns].any(dim=1) for columns in self.streams], dim=1).float()
        scale = alive * (len(self.streams) / alive.sum(dim=1, keepdim=True).clamp(min=1)).sqrt()  # (N, streams)
        maps = []
        for k, (columns, front) in enumerate(zip(self.streams, self.fronts, strict=True)):
            bad = pixels.bad[:, columns].sum(dim=1, keepdim=True, dtype=torch.float32) / len(columns)
            images = torch.cat([pixels.values[:, columns], bad], dim=1).contiguous(memory_format=torch.channels_last)
            seen: Tensor = front(images, torch.cat([per_band[:, columns].flatten(1), per_source], dim=1))
            maps.append(seen * scale[:, k, None, None, None].to(seen.dtype))
        out: Tensor = self.trunk(torch.cat(maps, dim=1))
        return out.float()


class InceptionCNN(_CNN):
    """The network of Treyer et al. 2024 on all bands at once; `width` scales every channel count, 1 is the original.

    Cutouts of 32 pixels or more: under 64 the first pooling is left out, and the map before the last three convolutions
    is averaged to 8 x 8 where it is larger. Xavier weights with the gain of the activation that follows, biases zero.
    Raises `BadInput` for a smaller cutout, a width under 0.1, or a band given twice.
    """

    kind = "cnn"

    def __init__(
        self,
        bands: Sequence[str],
        *,
        cutout_px: int,
        width: float = 1.0,
        name: str = "cnn",
        revision: str | None = None,
    ) -> None:
        super().__init__(
            bands,
            streams=[bands],
            stream_channels=scaled_channels(width)[0],
            blocks=FRONT_BLOCKS,
            cutout_px=cutout_px,
            width=width,
            name=name,
            revision=revision,
        )

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        made = cls(config["bands"], cutout_px=config["cutout_px"], width=config["width"], name=name, revision=revision)
        load_weights(made, weights, name)
        return made


class MultimodalCNN(_CNN):
    """Streams of neighbouring bands, each with a front of its own, joined at the second pooling (16 x 16 pixels for a
    cutout of 64) into the trunk of `InceptionCNN`.

    `streams` name ordered bands, any number of them, each band in one or more; `default_streams` chooses them. Their
    channels are such that the network has as many parameters, within 1%, as `InceptionCNN` of the same bands and width.
    Raises `BadInput` as `InceptionCNN` does, and for streams that miss a band or name an unknown one.
    """

    kind = "multimodal-cnn"

    def __init__(
        self,
        bands: Sequence[str],
        *,
        streams: Sequence[Sequence[str]],
        cutout_px: int,
        width: float = 1.0,
        name: str = "multimodal-cnn",
        revision: str | None = None,
    ) -> None:
        lengths = tuple(len(columns) for columns in _columns(tuple(bands), streams))
        super().__init__(
            bands,
            streams=streams,
            stream_channels=matched_channels(len(bands), lengths, width=width),
            blocks=STREAM_BLOCKS,
            cutout_px=cutout_px,
            width=width,
            name=name,
            revision=revision,
        )

    @property
    def config(self) -> dict[str, Any]:
        return {**super().config, "streams": [[self.bands[column] for column in columns] for columns in self.streams]}

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        made = cls(
            config["bands"],
            streams=config["streams"],
            cutout_px=config["cutout_px"],
            width=config["width"],
            name=name,
            revision=revision,
        )
        load_weights(made, weights, name)
        return made


def conditions(batch: Batch, present: Tensor) -> tuple[Tensor, Tensor]:
    """What is known of each band, (N, B, 5): whether it is `present`, depth and seeing with a word on each whether it
    is known; and of the source, (N, 2): reddening, and whether it is known. Of order one; 0 where unknown."""
    depth, fwhm, ebv = standard_conditions(batch, present)
    values = torch.stack([depth, fwhm], dim=2)  # (N, B, 2)
    known = torch.isfinite(values) & present[:, :, None]
    per_band = torch.cat([present[:, :, None].float(), torch.where(known, values, 0.0), known.float()], dim=2)
    return per_band, torch.stack([ebv.nan_to_num(0.0, 0.0, 0.0), torch.isfinite(ebv).float()], dim=1)


@cache
def matched_channels(n_bands: int, stream_bands: tuple[int, ...], *, width: float) -> Channels:
    """Channels of the streams, of `stream_bands` bands each, that give `MultimodalCNN` as many parameters as
    `InceptionCNN` has for `n_bands` (within 1%); stem and kernels stay near the proportion of the published network.
    Raises `BadInput` where no counts do, which very narrow networks can run into."""
    channels, dim = scaled_channels(width)

    @cache
    def front_size(bands: int, of: Channels, blocks: int) -> int:
        with torch.device("meta"):  # shapes without memory; the cutout's size takes no part in them
            return size_of(_front(bands, channels=of, blocks=blocks, cutout_px=64))

    @cache
    def trunk_size(n_in: int) -> int:
        with torch.device("meta"):
            return size_of(Trunk(n_in, channels=channels, dim=dim))

    target = front_size(n_bands, channels, FRONT_BLOCKS) + trunk_size(channels.block)

    def excess(of: Channels) -> int:
        fronts = {bands: front_size(bands, of, STREAM_BLOCKS) for bands in set(stream_bands)}
        return sum(fronts[bands] for bands in stream_bands) + trunk_size(len(stream_bands) * of.block) - target

    def proportional(kernels: int) -> int:
        return max(1, round(kernels * STEM / KERNELS))

    many = range(2, 4 * channels.kernels)
    middle = many[bisect_left(many, 0, key=lambda k: excess(Channels(proportional(k), k)))]
    near = [
        Channels(stem, kernels)
        for kernels in range(max(2, middle - 3), middle + 3)
        for stem in range(max(1, proportional(kernels) // 2), proportional(kernels) * 2 + 1)
    ]
    near.sort(key=lambda of: abs(of.stem / of.kernels - STEM / KERNELS))
    for tolerance in TOLERANCES:
        for of in near:
            if abs(excess(of)) <= tolerance * target:
                return of
    raise BadInput(
        f"width={width}, streams of {', '.join(map(str, stream_bands))} bands: no channel counts give the "
        f"{target} parameters of the plain CNN within {TOLERANCES[-1]:.0%}: expected a larger width or fewer streams"
    )


def _front(n_bands: int, *, channels: Channels, blocks: int, cutout_px: int) -> Front:
    return Front(n_bands + 1, PER_BAND * n_bands + PER_SOURCE, channels=channels, blocks=blocks, cutout_px=cutout_px)


def _columns(bands: tuple[str, ...], streams: Sequence[Sequence[str]]) -> list[list[int]]:
    """The streams as columns; `BadInput` unless each has a band, none twice, and every band is in a stream."""
    if not bands or len(set(bands)) != len(bands):
        raise BadInput(f"bands of a CNN: {', '.join(bands) or 'none'}: expected one or more, each once")
    if {band for stream in streams for band in stream} != set(bands):
        raise BadInput(f"streams {list(map(list, streams))}: expected each of {', '.join(bands)} in one or more")
    for stream in streams:
        if not stream or len(set(stream)) != len(stream):
            raise BadInput(f"stream {list(stream)}: expected one or more bands, each once")
    return [[bands.index(band) for band in stream] for stream in streams]

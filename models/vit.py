"""A vision transformer for any subset of a survey's bands (groups of bands as in SatMAE, Cong et al. 2022).

Neighbouring bands share a patch embedding; each group has its own tokens. Flux is kept: pixels in units of the band's
noise go through one fixed asinh, negative ones too, and no image is ever normalised by itself. Fluxes in three Gaussian
apertures on the centre, summed before the asinh, are added to every token of their group: from patches alone a network
learns to add up light slowly. A band that is missing is replaced by a learned token and the others of its group are
scaled up by sqrt(bands / present), a bad pixel is zero and flagged to the embedding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models import checkpoint as stored
from redshelf.models.backbone import Backbone, Pixels, good_pixels, load_weights, standard_conditions
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput, nearest

SOFTENING = 3.0  # noise units at which asinh leaves the straight line
CENTRE_FRACTION = 0.15  # of the cutout: standard deviation of the weight that the embedding gives its middle
CEILING = 1e4  # of x / SOFTENING: beyond, a pixel is a saturated star's
MLP_RATIO = 4
APERTURES_PX = (2.0, 4.0, 8.0)  # standard deviations
FEWEST_GOOD = 0.1  # of an aperture's weight on good pixels: its flux is scaled up by no more than the inverse


@dataclass(frozen=True)
class Size:
    """Width, depth, heads and patch of a transformer."""

    dim: int
    depth: int
    heads: int
    patch_px: int


SIZES = {"tiny": Size(192, 4, 3, 16), "small": Size(384, 12, 6, 8), "base": Size(768, 12, 12, 8)}


@dataclass(frozen=True)
class Scaled(Pixels):
    """Pixels after the asinh, and the asinh of the `apertures` (N, B, A), 0 where the band is missing."""

    apertures: Tensor

    def rows(self, chosen: Tensor) -> Scaled:
        """The sources where `chosen` (N,) is true."""
        return Scaled(self.values[chosen], self.bad[chosen], self.present[chosen], self.apertures[chosen])

    def without(self, hidden: Tensor) -> Scaled:
        """The same with the bands `hidden` (N, B) missing."""
        less = super().without(hidden)
        return Scaled(less.values, less.bad, less.present, self.apertures * ~hidden[:, :, None])


def default_groups(wavelength_nm: Sequence[float]) -> list[list[int]]:
    """Columns of the bands in groups of two or three neighbours in wavelength (one alone where there is only one)."""
    order = np.argsort(np.asarray(wavelength_nm), kind="stable")
    return [part.tolist() for part in np.array_split(order, math.ceil(len(order) / 3))]


def sine_positions(side: int, dim: int) -> Tensor:
    """Fixed two-dimensional sine and cosine positions (Vaswani et al. 2017), (side * side, dim)."""
    frequency = 1e4 ** (-torch.arange(dim // 4) / (dim // 4))
    angle = torch.arange(side)[:, None] * frequency  # (side, dim / 4)
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)  # (side, dim / 2)
    rows, columns = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(side * side, dim)


def _asinh(x: Tensor) -> Tensor:
    if x.requires_grad:  # a reconstruction that is encoded again; what follows overwrites what a gradient needs
        return torch.asinh(x)
    # torch.asinh is not vectorised on the CPU: six times slower, a quarter of a tiny encoder's time
    size = x.abs()
    return (size * size).add_(1).sqrt_().add_(size).log_().copysign_(x)


def attention(q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None) -> Tensor:
    """Of (N, heads, T, d); `key_mask`: (N, 1, 1, T) bool, False keys are not attended to."""
    if q.is_cpu and q.requires_grad:  # the CPU's fused backward takes four times as long in bfloat16
        score = (q * q.shape[-1] ** -0.5) @ k.mT
        if key_mask is not None:
            score = score.masked_fill(~key_mask, -torch.inf)
        out: Tensor = score.softmax(dim=-1).to(v.dtype) @ v
        return out
    return F.scaled_dot_product_attention(q, k, v, attn_mask=key_mask)


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, MLP_RATIO * dim), nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """x: (N, T, dim); `key_mask`: (N, 1, 1, T) bool, False keys are not attended to."""
        n, t, d = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        y = attention(q, k, v, key_mask)  # (N, heads, T, d)
        x = x + self.proj(y.transpose(1, 2).reshape(n, t, d))
        return cast(Tensor, x + self.down(F.gelu(self.up(self.norm2(x)))))


class MultiBandViT(Backbone):
    """The encoder: mean of the patch tokens, weighted to the cutout's centre, (N, dim) float32."""

    kind = "vit"

    def __init__(
        self,
        bands: Sequence[str],
        *,
        groups: Sequence[Sequence[str]],
        cutout_px: int,
        size: Size,
        name: str = "vit",
        revision: str | None = None,
    ) -> None:
        super().__init__()
        if sorted(band for group in groups for band in group) != sorted(bands):
            raise BadInput(f"band groups {list(map(list, groups))}: expected each of {', '.join(bands)} in exactly one")
        if size.dim % (4 * size.heads):
            raise BadInput(f"dim={size.dim}, heads={size.heads}: expected dim to be a multiple of 4 * heads")
        self.bands, self.cutout_px, self.size, self.name = tuple(bands), cutout_px, size, name
        self.groups = [[self.bands.index(band) for band in group] for group in groups]
        self.dim = size.dim
        self.side = math.ceil(cutout_px / size.patch_px)
        patch, dim, n_bands = size.patch_px, size.dim, len(self.bands)
        self.flux_stems = nn.ModuleList(nn.Conv2d(len(g), dim, patch, patch) for g in self.groups)
        self.bad_stems = nn.ModuleList(nn.Conv2d(len(g), dim, patch, patch, bias=False) for g in self.groups)
        self.aperture_stems = nn.ModuleList(nn.Linear(len(APERTURES_PX) * len(g), dim, bias=False) for g in self.groups)
        self.band_tokens = nn.Parameter(0.02 * torch.randn(n_bands, dim))
        self.missing_tokens = nn.Parameter(0.02 * torch.randn(n_bands, dim))
        self.scalars = nn.Linear(2 * (2 * n_bands + 1), dim)
        self.blocks = nn.ModuleList(Block(dim, size.heads) for _ in range(size.depth))
        self.norm = nn.LayerNorm(dim)
        self.positions: Tensor
        self.register_buffer("positions", sine_positions(self.side, dim), persistent=False)
        self.centre: Tensor
        self.register_buffer("centre", centre_weights(self.side, patch, cutout_px), persistent=False)
        self.windows: Tensor
        self.register_buffer("windows", aperture_windows(cutout_px), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.eval()
        self.revision = revision or stored.revision(self)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "bands": list(self.bands),
            "groups": [[self.bands[column] for column in group] for group in self.groups],
            "cutout_px": self.cutout_px,
            "size": asdict(self.size),
            "scaling": {"softening": SOFTENING, "ceiling": CEILING},
            "centre": CENTRE_FRACTION,
            "apertures_px": list(APERTURES_PX),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        size = Size(**config["size"])
        made = cls(
            config["bands"],
            groups=config["groups"],
            cutout_px=config["cutout_px"],
            size=size,
            name=name,
            revision=revision,
        )
        load_weights(made, weights, name)
        return made

    def prepare(self, batch: Batch) -> Scaled:
        """Pixels and apertures through the fixed asinh. Errors as in `good_pixels`."""
        flux = good_pixels(batch, self)
        apertures = self._apertures(flux)
        values = _asinh((flux.values / SOFTENING).clamp_(-CEILING, CEILING))
        return Scaled(values, flux.bad, flux.present, apertures)

    def _apertures(self, flux: Pixels) -> Tensor:
        """(N, B, A) asinh of the flux in each aperture in units of its noise, bad pixels filled by the good ones."""
        with torch.autocast(flux.values.device.type, enabled=False):  # bfloat16 is 1% of a flux
            total = flux.values.flatten(2) @ self.windows  # (N, B, A)
            if flux.bad.any():
                lost = flux.bad.flatten(2).float() @ self.windows / self.windows.sum(dim=0)
                total = total / (1 - lost).clamp(min=FEWEST_GOOD)
            total = total / (SOFTENING * self.windows.square().sum(dim=0).sqrt())
            return torch.asinh(total.clamp(-CEILING, CEILING))

    def conditions(self, batch: Batch, present: Tensor) -> Tensor:
        """Depth, seeing and extinction with a word on each whether it is known, (N, 2 (2 B + 1)) of order one."""
        depth, fwhm, ebv = standard_conditions(batch, present)
        values = torch.cat([depth, fwhm, ebv[:, None]], dim=1)
        known = torch.isfinite(values) & torch.cat([present, present, present.any(dim=1, keepdim=True)], dim=1)
        return torch.cat([torch.where(known, values, 0.0), known.float()], dim=1)

    def patches(self, images: Tensor) -> Tensor:
        """Patches of (N, C, H, W) padded with zeros to whole ones: (N, side * side, C, patch * patch)."""
        p, s = self.size.patch_px, self.side
        n, c = images.shape[:2]
        return self._padded(images).view(n, c, s, p, s, p).permute(0, 2, 4, 1, 3, 5).reshape(n, s * s, c, p * p)

    def _padded(self, images: Tensor) -> Tensor:
        lack = self.side * self.size.patch_px - self.cutout_px
        before, after = lack // 2, lack - lack // 2
        return F.pad(images, (before, after, before, after)) if lack else images

    def tokens(self, pixels: Scaled, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, groups, side * side, dim) and which groups have a band at all, (N, groups)."""
        values = self._padded(pixels.values)
        bad = self._padded(pixels.bad.to(values.dtype)) if pixels.bad.any() else None
        common = self.positions + self.scalars(conditions)[:, None]  # (N, T, dim)
        present, groups = pixels.present.to(values.dtype), []
        # a missing band is taken for as bright as the others: a flux of 0 would be another kind of source
        level = pixels.apertures.sum(dim=1, keepdim=True) / present.sum(dim=1).clamp(min=1)[:, None, None]
        apertures = torch.where(pixels.present[:, :, None], pixels.apertures, level)
        stems = zip(self.groups, self.flux_stems, self.bad_stems, self.aperture_stems, strict=True)
        for columns, flux_stem, bad_stem, aperture_stem in stems:
            image: Tensor = flux_stem(values[:, columns])
            if bad is not None:
                image = image + bad_stem(bad[:, columns])
            there = present[:, columns]  # (N, C)
            scale = (len(columns) / there.sum(dim=1).clamp(min=1)).sqrt()
            words = there @ self.band_tokens[columns] + (1 - there) @ self.missing_tokens[columns]  # (N, dim)
            with torch.autocast(values.device.type, enabled=False):
                words = words.float() + aperture_stem(apertures[:, columns].flatten(1))
            groups.append(image.flatten(2).transpose(1, 2) * scale[:, None, None] + words[:, None] + common)
        alive = torch.stack([pixels.present[:, columns].any(dim=1) for columns in self.groups], dim=1)
        return torch.stack(groups, dim=1), alive

    def encode(self, tokens: Tensor, alive: Tensor) -> Tensor:
        """(N, T, dim) -> (N, T, dim), normalised; tokens that are not `alive` (N, T) are not looked at."""
        key_mask = None if bool(alive.all()) else alive[:, None, None, :]
        for block in self.blocks:
            tokens = block(tokens, key_mask)
        out: Tensor = self.norm(tokens)
        return out

    def features(self, batch: Batch) -> Tensor:
        """Mean over the tokens of the groups that have a band, weighted to the centre, (N, dim) float32."""
        pixels = self.prepare(batch)
        tokens, alive = self.tokens(pixels, self.conditions(batch, pixels.present))
        alive = alive[:, :, None].expand(tokens.shape[:3])
        seen = self.encode(tokens.flatten(1, 2), alive.flatten(1)).view_as(tokens)
        return self.pooled(seen, alive, self.centre.expand(tokens.shape[:3]))

    def pooled(self, tokens: Tensor, alive: Tensor, weight: Tensor) -> Tensor:
        """Mean of the tokens (N, G, K, dim) where `alive` (N, G, K), by `weight` (N, G, K) of their places, float32."""
        share = (alive * weight).flatten(1)
        total = torch.einsum("ntd,nt->nd", tokens.flatten(1, 2).float(), share)
        return total / share.sum(dim=1, keepdim=True).clamp(min=1e-9)


def centre_weights(side: int, patch_px: int, cutout_px: int) -> Tensor:
    """Gaussian weight of each patch by its distance from the centre, (side * side,).

    A deep cutout holds several sources, and the one that is asked about is in the middle.
    """
    offset = (torch.arange(side) - (side - 1) / 2) * patch_px / (CENTRE_FRACTION * cutout_px)
    return torch.exp(-0.5 * (offset[:, None] ** 2 + offset[None] ** 2)).flatten()


def aperture_windows(cutout_px: int) -> Tensor:
    """Gaussian weights of the apertures, 1 in the centre, (cutout_px^2, apertures)."""
    offset = torch.arange(cutout_px) - (cutout_px - 1) / 2
    square = (offset[:, None] ** 2 + offset[None] ** 2).flatten()[:, None]
    return torch.exp(-0.5 * square / torch.tensor(APERTURES_PX) ** 2)


def sized(name: str, *, patch_px: int | None = None) -> Size:
    """The size called `name`, with another patch where one is given; `BadInput` naming those there are."""
    if name not in SIZES:
        raise BadInput(f"size {name!r} of a vit; {nearest(name, SIZES)}")
    if patch_px is not None and patch_px < 1:
        raise BadInput(f"patch_px={patch_px}: expected 1 or more")
    return SIZES[name] if patch_px is None else replace(SIZES[name], patch_px=patch_px)

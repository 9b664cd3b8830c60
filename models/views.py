"""Views of a source that keep its redshift: what another night, another instrument or another dust map would have seen.

Pixels are in units of the band's noise, and depth, seeing and extinction say what was done to them. Nothing here
touches a colour by more than `ZERO_POINT_MAG`, a core, a scale or a mean (Hayat et al. 2021, Stein et al. 2021 without
their clipped colours). `view` draws one of each; dice come from torch's global generator.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from redshelf.models.backbone import observed
from redshelf.models.bands import State
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput

SHIFT_PX = 4
DEPTH_LOSS_MAG = 0.5
SEEING_FACTOR = 1.25  # of the FWHM
REDDENING_EBV = 0.05
ZERO_POINT_MAG = 0.02
DIMMING_MAG = 1.0
HIDE_BANDS = 0.5  # the largest probability with which a band is hidden
HOLE_RATE = 0.2  # of the bands of a source
CORE_FRACTION = 0.15  # of the cutout: radius that no hole touches
FORGET_CONDITIONS = 0.1  # of the batches go without each of depth, seeing and extinction: the encoder works without
FWHM_SIGMA = 2 * math.sqrt(2 * math.log(2))


@dataclass(frozen=True)
class Instrument:
    """What the views need to know of a survey: `extinction` (bands,) A_band / E(B-V); `pixel_scale_arcsec` NaN where it
    is not known, which leaves the seeing alone."""

    extinction: tuple[float, ...]
    pixel_scale_arcsec: float = float("nan")

    @property
    def config(self) -> dict[str, Any]:
        scale = self.pixel_scale_arcsec
        return {"extinction": list(self.extinction), "pixel_scale_arcsec": scale if math.isfinite(scale) else None}


def _turned(images: Tensor) -> Tensor:
    parts = images.tensor_split(8)
    turned = [torch.rot90(part, k % 4, (-2, -1)) for k, part in enumerate(parts)]
    return torch.cat([part.flip(-1) if k >= 4 else part for k, part in enumerate(turned)])


def turned(batch: Batch) -> Batch:
    """The batch with each eighth of it in another of the eight orientations; a shuffled batch needs no other dice."""
    if batch.pixels is None or batch.pixel_mask is None:
        return batch
    return replace(batch, pixels=_turned(batch.pixels), pixel_mask=_turned(batch.pixel_mask))


def _images(batch: Batch) -> tuple[Tensor, Tensor]:
    if batch.pixels is None or batch.pixel_mask is None:
        raise BadInput("a view needs pixels, and these sources come without")
    return batch.pixels, batch.pixel_mask


def _each(condition: Tensor | None, like: Tensor) -> Tensor | None:
    """A condition (bands,) or (N, bands) for each source, (N, bands)."""
    return None if condition is None else condition.float().expand(like.shape)


def oriented(batch: Batch, code: Tensor) -> Batch:
    """Each source in the orientation `code` (N,) of 0 to 7: flipped left-right, up-down, and transposed by its bits."""
    pixels, mask = _images(batch)

    def turn(x: Tensor) -> Tensor:
        first, second, third = ((code >> bit & 1).bool()[:, None, None, None] for bit in range(3))
        x = torch.where(second, x.flip(-2), x)
        x = torch.where(first, x.flip(-1), x)
        return torch.where(third, x.transpose(-2, -1), x)

    return replace(batch, pixels=turn(pixels), pixel_mask=turn(mask))


def shifted(batch: Batch, shift_px: Tensor) -> Batch:
    """Each source moved by `shift_px` (N, 2) whole pixels down and right; what comes in from outside is 0 and bad."""
    pixels, mask = _images(batch)
    height, width = pixels.shape[2:]
    row = torch.arange(height, device=pixels.device) - shift_px[:, :1]  # (N, H)
    column = torch.arange(width, device=pixels.device) - shift_px[:, 1:]  # (N, W)
    inside = ((row >= 0) & (row < height))[:, :, None] & ((column >= 0) & (column < width))[:, None]  # (N, H, W)
    place = (row.clamp(0, height - 1)[:, :, None] * width + column.clamp(0, width - 1)[:, None]).flatten(1)
    place = place[:, None].expand(-1, pixels.shape[1], -1)  # (N, B, H * W)
    moved, bad = (x.flatten(2).gather(2, place).view_as(x) for x in (pixels, mask))
    inside = inside[:, None]
    return replace(batch, pixels=torch.where(inside, moved, 0.0), pixel_mask=bad | ~inside)


def scaled(batch: Batch, factor: Tensor) -> Batch:
    """Pixels times `factor` (N, bands), their noise too: a step towards `dimmed`."""
    return replace(batch, pixels=_images(batch)[0].float() * factor[:, :, None, None])


def noisier(batch: Batch, had: Tensor, wanted: Tensor) -> Batch:
    """White noise added in quadrature from an rms of `had` to one of `wanted` (N, bands), in units of the band's noise.

    `depth_ab`, which belongs to a noise of 1, follows. Where `had` is the larger nothing is added.
    """
    pixels, _ = _images(batch)
    extra = (wanted.square() - had.square()).clamp(min=0).sqrt()
    noise = torch.randn(pixels.shape, device=pixels.device, dtype=torch.float32)
    depth = _each(batch.depth_ab, had)
    if depth is not None:
        depth = depth - 2.5 * torch.maximum(had, wanted).log10()
    return replace(batch, pixels=torch.addcmul(pixels.float(), noise, extra[:, :, None, None]), depth_ab=depth)


def dimmed(batch: Batch, loss_mag: Tensor) -> Batch:
    """Each source fainter by `loss_mag` (N,) >= 0 in all bands, fluxes of the catalogue included, in noise of 1."""
    each = 10 ** (-0.4 * loss_mag[:, None].expand(batch.state.shape))
    return dimmed_fluxes(noisier(scaled(batch, each), each, torch.ones_like(each)), loss_mag)


def dimmed_fluxes(batch: Batch, loss_mag: Tensor) -> Batch:
    """The catalogue's part of `dimmed`; errors stay, for the sky is as bright as it was."""
    return (
        batch if batch.flux_ujy is None else replace(batch, flux_ujy=batch.flux_ujy * 10 ** (-0.4 * loss_mag[:, None]))
    )


def reddening(delta_ebv: Tensor, extinction: Tensor) -> Tensor:
    """Share of the flux that comes through `delta_ebv` (N,) of dust, (N, bands): 10^(-0.4 A_band)."""
    return torch.as_tensor(10 ** (-0.4 * delta_ebv[:, None] * extinction))


def blurred(batch: Batch, sigma_px: Tensor, pixel_scale_arcsec: float) -> Batch:
    """Seeing worse by a Gaussian of `sigma_px` (N, bands) in quadrature; the mean of the good pixels under it.

    It smooths the noise as well, so that neighbouring pixels are correlated and their rms is below 1; depth, a matter
    of larger apertures, stays.
    """
    pixels, mask = _images(batch)
    down, across = (_smoothing(sigma_px, size).flatten(0, 1) for size in pixels.shape[2:])
    flat = torch.where(mask, 0.0, pixels.float()).flatten(0, 1)  # (N * B, H, W)
    with torch.autocast(pixels.device.type, enabled=False):  # bfloat16 would round fluxes to a third of a percent
        smooth: Tensor = down @ flat @ across.mT
        share: Tensor = down @ (~mask).float().flatten(0, 1) @ across.mT  # below 1 at the border and by bad pixels
    fwhm = _each(batch.psf_fwhm_arcsec, sigma_px)
    if fwhm is not None:
        fwhm = (fwhm.square() + (FWHM_SIGMA * pixel_scale_arcsec * sigma_px).square()).sqrt()
    smooth = (smooth / share.clamp(min=1e-3)).view_as(pixels)
    return replace(batch, pixels=torch.where(mask, 0.0, smooth), psf_fwhm_arcsec=fwhm)


def _smoothing(sigma_px: Tensor, size: int) -> Tensor:
    """Matrices that convolve `size` pixels with a discrete Gaussian (Lindeberg 1990), (N, B, size, size).

    Its variance is exactly sigma^2 however narrow it is, where a sampled Gaussian's is not.
    """
    frequency = 2 * math.pi * torch.fft.rfftfreq(4 * size, device=sigma_px.device)
    spectrum = torch.exp(sigma_px.float().square()[..., None] * (frequency.cos() - 1))
    kernel = torch.fft.irfft(spectrum, n=4 * size)[..., :size]  # (N, B, size): its weight by distance
    place = torch.arange(size, device=sigma_px.device)
    matrices: Tensor = kernel[..., (place[:, None] - place).abs()]
    return matrices


def hidden(batch: Batch, bands: Tensor) -> Batch:
    """The batch as if `bands` (N, bands) bool had not been observed."""
    return replace(batch, state=torch.where(bands, int(State.NOT_OBSERVED), batch.state))


def some_bands(present: Tensor, most: float = HIDE_BANDS) -> Tensor:
    """Bands to hide, (N, bands) bool: each with a probability drawn a source, and never all that are `present`."""
    rate = most * torch.rand(len(present), 1, device=present.device)
    drawn = (torch.rand(present.shape, device=present.device) < rate) & present
    left: Tensor = (present & ~drawn).any(dim=1, keepdim=True)
    return drawn & left


def holed(batch: Batch, rate: float = HOLE_RATE) -> Batch:
    """A rectangle of bad pixels in some bands, up to a quarter of the cutout wide; the core is spared."""
    pixels, mask = _images(batch)
    n, bands, height, width = pixels.shape
    dice = torch.rand(5, n, bands, 1, device=pixels.device)

    def span(size: int, where: Tensor, extent: Tensor) -> Tensor:  # (N, B, size)
        place = torch.arange(size, device=pixels.device)
        first = (where * size).floor()
        return (place >= first) & (place < first + 2 + extent * (size / 4 - 2))

    hole = span(height, dice[0], dice[1])[..., :, None] & span(width, dice[2], dice[3])[..., None, :]
    down, across = (torch.arange(size, device=pixels.device) - (size - 1) / 2 for size in (height, width))
    far = down[:, None].square() + across.square() > (CORE_FRACTION * min(height, width)) ** 2
    return replace(batch, pixel_mask=mask | (hole & far & (dice[4] < rate)[..., None]))


def forgetful(batch: Batch) -> Batch:
    """The batch without depth, seeing or extinction now and then, so that an encoder works where they are unknown."""
    depth, fwhm, ebv = (
        None if float(torch.rand(())) < FORGET_CONDITIONS else condition
        for condition in (batch.depth_ab, batch.psf_fwhm_arcsec, batch.ebv)
    )
    return replace(batch, depth_ab=depth, psf_fwhm_arcsec=fwhm, ebv=ebv)


def view(batch: Batch, instrument: Instrument, *, loss_mag: Tensor | None = None) -> Batch:
    """One view: seeing, dust, zero points, depth, orientation, shift, holes and missing bands, drawn for each source.

    `loss_mag` (N,) dims as `dimmed` does, and is the caller's to draw: two views of a source are equally bright, or
    brightness would be what they do not share. Every effect leaves about half of the sources alone.
    """
    shape, device = batch.state.shape, batch.state.device

    def some(*size: int) -> Tensor:  # uniform from 0 to 1 in half of the cases, else 0
        return torch.rand(size, device=device) * (torch.rand(size, device=device) < 0.5)

    n, bands = shape
    scale = instrument.pixel_scale_arcsec
    if batch.psf_fwhm_arcsec is not None and math.isfinite(scale):
        growth = 1 + (SEEING_FACTOR - 1) * some(n, bands)
        extra = batch.psf_fwhm_arcsec * (growth.square() - 1).sqrt() / (FWHM_SIGMA * scale)
        batch = blurred(batch, extra.nan_to_num(), scale)
    factor = 10 ** (-0.4 * ZERO_POINT_MAG * (2 * torch.rand(shape, device=device) - 1))
    if batch.ebv is not None:  # an encoder that is not told of the dust could only take it for a colour
        dust = REDDENING_EBV * some(n)
        factor = factor * reddening(dust, torch.tensor(instrument.extinction, device=device))
        batch = replace(batch, ebv=batch.ebv + dust)
    if loss_mag is not None:
        factor, batch = factor * 10 ** (-0.4 * loss_mag[:, None]), dimmed_fluxes(batch, loss_mag)
    batch = noisier(scaled(batch, factor), factor, 10 ** (0.4 * DEPTH_LOSS_MAG * some(n, bands)))
    batch = holed(oriented(batch, torch.randint(8, (n,), device=device)))
    batch = shifted(batch, torch.randint(-SHIFT_PX, SHIFT_PX + 1, (n, 2), device=device))
    return forgetful(hidden(batch, some_bands(observed(batch))))


def drawn_dimming(n: int, device: torch.device) -> Tensor:
    """Magnitudes by which to dim `n` sources, (n,): none for half of them."""
    return DIMMING_MAG * torch.rand(n, device=device) * (torch.rand(n, device=device) < 0.5)

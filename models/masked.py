"""Self-supervised pretraining by masking (He et al. 2022; groups as in SatMAE, whole bands as in ChA-MAEViT).

Half of the steps hide most patches of every group, all of them hide whole bands: predicting a hidden band is predicting
a point of the spectrum. The loss is in units of the pixel's noise, so sky counts one and signal what it is worth. A
linear head regresses colours and magnitude from the pooled embedding besides, because a reconstruction alone leaves
flux and colour to few of its directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models import checkpoint as stored
from redshelf.models.backbone import Pixels
from redshelf.models.bands import Band, State
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.photometry import Scaling, colour_usable, features, fit_scaling, standardise
from redshelf.models.training import Fetch, Objective, Report, Sampler, seeded, train
from redshelf.models.views import turned
from redshelf.models.vit import SOFTENING, Block, MultiBandViT, default_groups, sized

KEEP = 0.25  # of the patches of a group, in the steps that hide patches
HIDE_BANDS = 0.5  # the largest probability with which a step hides a band
FORGET_CONDITIONS = 0.1  # of the steps go without each of depth, seeing and extinction: the encoder works without
MODEL_FLOOR = 0.1  # asinh units: a prediction is not asked to be better than 10% of a bright pixel
ROBUST_SIGMA = 5.0  # residuals beyond pull linearly: one saturated star is not the whole batch
AUXILIARY_WEIGHT = 1.0
DECODER_DIM, DECODER_HEADS = 128, 4
LEARNING_RATE = 1e-3
SCALING_SAMPLE = 512


class MaskedAutoencoder(Objective):
    """The encoder, a one-block decoder, and the head for colours and magnitude where `scaling` is given."""

    def __init__(self, encoder: MultiBandViT, scaling: Scaling | None) -> None:
        super().__init__()
        self.encoder, self.scaling = encoder, scaling
        patch_area = encoder.size.patch_px**2
        self.narrow = nn.Linear(encoder.dim, DECODER_DIM)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(DECODER_DIM))
        self.places = nn.Parameter(0.02 * torch.randn(len(encoder.groups), encoder.side**2, DECODER_DIM))
        self.decoder = Block(DECODER_DIM, DECODER_HEADS)
        self.decoder_norm = nn.LayerNorm(DECODER_DIM)
        self.heads = nn.ModuleList(nn.Linear(DECODER_DIM, len(group) * patch_area) for group in encoder.groups)
        self.colours = nn.Linear(encoder.dim, len(encoder.bands)) if scaling is not None else None
        recipe = {"keep": KEEP, "hide_bands": HIDE_BANDS, "floor": MODEL_FLOOR, "auxiliary": AUXILIARY_WEIGHT}
        fluxes = None if scaling is None else asdict(scaling)
        self.config = {"objective": "masked", "encoder": encoder.config, "scaling": fluxes, **recipe}

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws the masks from torch's global generator; sources without any band are left out."""
        batch = turned(batch)
        depth, fwhm, ebv = (
            None if float(torch.rand(())) < FORGET_CONDITIONS else condition
            for condition in (batch.depth_ab, batch.psf_fwhm_arcsec, batch.ebv)
        )
        batch = replace(batch, depth_ab=depth, psf_fwhm_arcsec=fwhm, ebv=ebv)
        pixels = self.encoder.prepare(batch)
        usable = pixels.present.any(dim=1)
        if not usable.any():
            raise BadInput(f"none of the {len(usable)} sources of a batch has a band with a good pixel")
        conditions = self.encoder.conditions(batch, pixels.present)[usable]
        whole = pixels.rows(usable)
        hidden = _hidden_bands(whole.present)
        tokens, alive = self.encoder.tokens(whole.without(hidden), conditions)
        kept = _kept_patches(tokens.shape[:3], tokens.device) if float(torch.rand(())) < 0.5 else None
        seen, seen_alive = self._encode(tokens, alive, kept)
        reconstruction = self._reconstruction(whole, hidden, seen, kept)
        parts = {"reconstruction": reconstruction}
        if self.colours is not None and batch.flux_ujy is not None:
            places = self.encoder.centre.expand(seen.shape[0], seen.shape[1], -1)
            places = places if kept is None else places.gather(2, kept)
            predicted = self.colours(self.encoder.pooled(seen, seen_alive, places))
            parts["colours"] = self._colour_loss(predicted, batch, usable)
        return reconstruction + AUXILIARY_WEIGHT * parts.get("colours", 0.0), parts

    def _encode(self, tokens: Tensor, alive: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
        """Only the kept patches (N, G, K) go through the encoder. Returns tokens (N, G, K, dim), alive (N, G, K)."""
        if kept is not None:
            tokens = tokens.gather(2, kept[..., None].expand(-1, -1, -1, tokens.shape[3]))
        n, groups, k, _ = tokens.shape
        alive = alive[:, :, None].expand(n, groups, k)
        encoded = self.encoder.encode(tokens.flatten(1, 2), alive.flatten(1))
        return encoded.view(n, groups, k, -1), alive

    def _reconstruction(self, whole: Pixels, hidden: Tensor, seen: Tensor, kept: Tensor | None) -> Tensor:
        """Mean robust squared residual, in units of the noise, over the good pixels that the encoder did not see."""
        n, groups, _, _ = seen.shape
        n_patches = self.encoder.side**2
        known: Tensor = self.narrow(seen)
        covered = torch.ones(n, groups, n_patches, dtype=torch.bool, device=seen.device)
        if kept is not None:
            full = self.hidden_token.to(known.dtype).expand(n, groups, n_patches, -1)
            known = full.scatter(2, kept[..., None].expand_as(known), known)
            covered = torch.zeros_like(covered).scatter(2, kept, True)
        decoded = self.decoder_norm(self.decoder((known + self.places).flatten(1, 2))).view(n, groups, n_patches, -1)
        total, count = decoded.new_zeros((), dtype=torch.float32), decoded.new_zeros((), dtype=torch.float32)
        for index, (columns, head) in enumerate(zip(self.encoder.groups, self.heads, strict=True)):
            target = self.encoder.patches(whole.values[:, columns])  # (N, T, C, patch area)
            good = self.encoder.patches((whole.present[:, columns, None, None] & ~whole.bad[:, columns]).float())
            asked = hidden[:, None, columns] | ~covered[:, index, :, None]  # (N, T, C)
            weight = good * asked[..., None]
            predicted = head(decoded[:, index]).view_as(target).float()
            # noise of one unit through asinh(x / a): d asinh = dx / sqrt(a^2 + x^2) = dx / (a cosh(target))
            grown = target.exp()
            sigma = ((SOFTENING * 0.5 * (grown + 1 / grown)) ** -2 + MODEL_FLOOR**2).sqrt()
            residual = F.huber_loss(predicted / sigma, target / sigma, reduction="none", delta=ROBUST_SIGMA)
            total, count = total + (residual * weight).sum(), count + weight.sum()
        mean: Tensor = total / count.clamp(min=1)
        return mean

    def _colour_loss(self, predicted: Tensor, batch: Batch, usable: Tensor) -> Tensor:
        """Mean absolute error of standardised colours and magnitude over those that were measured."""
        assert self.scaling is not None and batch.flux_ujy is not None
        chosen = usable.cpu().numpy()
        flux, state = batch.flux_ujy.cpu().numpy()[chosen], _flux_state(batch)[chosen]
        target = standardise(features(flux, state, self.scaling), self.scaling)[:, : predicted.shape[1]]
        wanted = torch.from_numpy(target).to(predicted.device, torch.float32)
        weight = torch.from_numpy(colour_usable(state, self.scaling)).to(predicted.device, torch.float32)
        error = F.smooth_l1_loss(predicted.float(), wanted, reduction="none", beta=0.1)
        mean: Tensor = (error * weight).sum() / weight.sum().clamp(min=1)
        return mean


def _flux_state(batch: Batch) -> npt.NDArray[np.int8]:
    """The state of the fluxes, (N, B): a band may have pixels where the catalogue has no flux."""
    assert batch.flux_ujy is not None
    return np.where(np.isfinite(batch.flux_ujy.cpu().numpy()), batch.state.cpu().numpy(), State.NOT_OBSERVED).astype(
        np.int8
    )


def _hidden_bands(present: Tensor) -> Tensor:
    """Bands to hide, (N, B) bool: each with a probability drawn a source, and never all that a source has."""
    rate = HIDE_BANDS * torch.rand(len(present), 1, device=present.device)
    hidden = (torch.rand(present.shape, device=present.device) < rate) & present
    return hidden & (present & ~hidden).any(dim=1, keepdim=True)


def _kept_patches(shape: Sequence[int], device: torch.device) -> Tensor:
    """Positions of the patches that stay, drawn for each source and group on its own: (N, G, K)."""
    n_kept = max(1, round(KEEP * shape[2]))
    return torch.rand(tuple(shape), device=device).argsort(dim=2)[:, :, :n_kept]


def pretrain_masked(
    fetch: Fetch,
    n_sources: int,
    *,
    bands: Sequence[Band],
    cutout_px: int,
    name: str,
    size: str = "tiny",
    steps: int | None = None,
    max_seconds: float | None = None,
    batch_size: int = 128,
    weights: npt.NDArray[np.float64] | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> tuple[MultiBandViT, Report]:
    """Pretrain a `MultiBandViT` on `n_sources` cutouts, which `fetch(indices)` reads; it comes back on the CPU.

    `weights`: (n_sources,) sampling weights, such as `training.flat_weights` of a magnitude. Fluxes in the batches
    switch the head for colours and magnitude on. Errors as in `training.train` and `MultiBandViT.prepare`.
    """
    names = [band.name for band in bands]
    groups = [[names[column] for column in group] for group in default_groups([band.wavelength_nm for band in bands])]
    sampler = Sampler(n_sources, batch_size, seed, weights)
    chosen = np.random.default_rng((seed, n_sources)).permutation(n_sources)[:SCALING_SAMPLE]
    objective = masked_objective(fetch(chosen), bands, groups, cutout_px=cutout_px, name=name, size=size, seed=seed)
    report = train(
        objective,
        fetch,
        sampler,
        steps=steps,
        max_seconds=max_seconds,
        lr=LEARNING_RATE,
        seed=seed,
        checkpoint=checkpoint,
        device=device,
        progress=progress,
    )
    encoder = objective.encoder.cpu()
    encoder.revision = stored.revision(encoder)
    return encoder, report


def masked_objective(
    sample: Batch,
    bands: Sequence[Band],
    groups: Sequence[Sequence[str]],
    *,
    cutout_px: int,
    name: str,
    size: str,
    seed: int,
) -> MaskedAutoencoder:
    """An encoder with random weights in its objective; the constants of the colours come from `sample`."""
    scaling = None
    if sample.flux_ujy is not None and sample.flux_error_ujy is not None:
        flux, error = sample.flux_ujy.cpu().numpy(), sample.flux_error_ujy.cpu().numpy()
        scaling = fit_scaling(flux, error, _flux_state(sample), bands=bands)
    with seeded(seed):
        names = [band.name for band in bands]
        encoder = MultiBandViT(names, groups=groups, cutout_px=cutout_px, size=sized(size), name=name)
        return MaskedAutoencoder(encoder, scaling)

"""Self-supervised pretraining by masking (He et al. 2022; groups as in SatMAE, whole bands as in ChA-MAEViT).

Half of the steps hide most patches of every group, all of them hide whole bands: predicting a hidden band is predicting
a point of the spectrum. The loss is in units of the pixel's noise, so sky counts one and signal what it is worth. The
auxiliary heads read the pooled embedding of what was left to see.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models.auxiliary import Auxiliary, Pretext
from redshelf.models.backbone import Pixels
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.views import HIDE_BANDS, Instrument, forgetful, some_bands, turned
from redshelf.models.vit import SOFTENING, Block, MultiBandViT

KEEP = 0.25  # of the patches of a group, in the steps that hide patches
MODEL_FLOOR = 0.1  # asinh units: a prediction is not asked to be better than 10% of a bright pixel
ROBUST_SIGMA = 5.0  # residuals beyond pull linearly: one saturated star is not the whole batch
AUXILIARY_WEIGHT = 4.0  # a reconstruction is a loss of 4 where colours are 0.3, and would have all the gradient
DECODER_DIM, DECODER_HEADS = 128, 4


class MaskedAutoencoder(Pretext):
    """The encoder, a one-block decoder, and the auxiliary heads on the mean of the tokens that were seen."""

    learning_rate = 1e-3

    def __init__(self, encoder: MultiBandViT, heads: Auxiliary, instrument: Instrument) -> None:
        super().__init__()
        self.encoder, self.auxiliary = encoder, heads
        patch_area = encoder.size.patch_px**2
        self.narrow = nn.Linear(encoder.dim, DECODER_DIM)
        self.hidden_token = nn.Parameter(0.02 * torch.randn(DECODER_DIM))
        self.places = nn.Parameter(0.02 * torch.randn(len(encoder.groups), encoder.side**2, DECODER_DIM))
        self.decoder = Block(DECODER_DIM, DECODER_HEADS)
        self.decoder_norm = nn.LayerNorm(DECODER_DIM)
        self.heads = nn.ModuleList(nn.Linear(DECODER_DIM, len(group) * patch_area) for group in encoder.groups)
        recipe = {"keep": KEEP, "hide_bands": HIDE_BANDS, "floor": MODEL_FLOOR, "auxiliary_weight": AUXILIARY_WEIGHT}
        self.config = {"objective": "masked", "encoder": encoder.config, "auxiliary": heads.config, **recipe}

    def trained(self) -> MultiBandViT:
        return self.encoder

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws the masks from torch's global generator; sources without any band are left out."""
        batch = forgetful(turned(batch))
        pixels = self.encoder.prepare(batch)
        usable = pixels.present.any(dim=1)
        if not usable.any():
            raise BadInput(f"none of the {len(usable)} sources of a batch has a band with a good pixel")
        conditions = self.encoder.conditions(batch, pixels.present)[usable]
        whole = pixels.rows(usable)
        hidden = some_bands(whole.present)
        tokens, alive = self.encoder.tokens(whole.without(hidden), conditions)
        kept = _kept_patches(tokens.shape[:3], tokens.device) if float(torch.rand(())) < 0.5 else None
        seen, seen_alive = self._encode(tokens, alive, kept)
        reconstruction = self._reconstruction(whole, hidden, seen, kept)
        places = self.encoder.centre.expand(seen.shape[0], seen.shape[1], -1)
        embedding = self.encoder.pooled(seen, seen_alive, places if kept is None else places.gather(2, kept))
        rest, parts = self.auxiliary.losses(embedding, batch.select(usable), indices[usable])
        return reconstruction + AUXILIARY_WEIGHT * rest, {"reconstruction": reconstruction, **parts}

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
            predicted = head(decoded[:, index]).view_as(target)
            if asked.is_cpu:  # most patches are not asked for; a GPU would wait for their number
                target, weight, predicted = target[asked], weight[asked], predicted[asked]
            # noise of one unit through asinh(x / a): d asinh = dx / sqrt(a^2 + x^2) = dx / (a cosh(target))
            grown = target.exp()
            sigma = ((SOFTENING * 0.5 * (grown + 1 / grown)) ** -2 + MODEL_FLOOR**2).sqrt()
            residual = F.huber_loss(predicted.float() / sigma, target / sigma, reduction="none", delta=ROBUST_SIGMA)
            total, count = total + (residual * weight).sum(), count + weight.sum()
        mean: Tensor = total / count.clamp(min=1)
        return mean


def _kept_patches(shape: Sequence[int], device: torch.device) -> Tensor:
    """Positions of the patches that stay, drawn for each source and group on its own: (N, G, K)."""
    n_kept = max(1, round(KEEP * shape[2]))
    return torch.rand(tuple(shape), device=device).argsort(dim=2)[:, :, :n_kept]

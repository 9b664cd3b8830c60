"""The supervised contrastive latent of CLAP (Lin et al. 2024, A&A 691, A331), implemented from its description.

The latent is [v_A, v_B]. A decoder draws the image again from both, so that v_A may forget what v_B remembers; v_A has
to give the redshift, and to stay where it is when the image is turned or replaced by its own reconstruction, while
other galaxies go elsewhere. Only v_A, the network's latent, is kept: v_B and the decoder serve the training.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models.backbone import some, visible
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.imbalance import Criterion, Rates
from redshelf.models.labelled import Labelled, Labels
from redshelf.models.redshift_network import LATENT, RedshiftNetwork
from redshelf.models.views import oriented, turned

REST = 512  # size of v_B
DECODER_WIDTH, DECODER_SEED_CHANNELS, DECODER_CHANNELS = 256, 16, 32
DOUBLINGS = 3
RECONSTRUCTION_WEIGHT = 0.1  # of log-scaled pixels in units of the noise; with 1, blobs gave a redshift later
LARGEST_LOG = 12.0  # of a reconstructed pixel: exp of it is beyond any saturated star
LEAST_SQUARE = 1e-12  # of a distance: keeps the gradient of its root finite


class Decoder(nn.Module):
    """(N, latent) -> log-scaled images (N, bands, H, H): a small map, doubled three times."""

    def __init__(self, n_latent: int, n_bands: int, cutout_px: int) -> None:
        super().__init__()
        self.side, self.cutout_px = math.ceil(cutout_px / 2**DOUBLINGS), cutout_px
        self.seed = nn.Sequential(
            nn.Linear(n_latent, DECODER_WIDTH), nn.LeakyReLU(),
            nn.Linear(DECODER_WIDTH, DECODER_SEED_CHANNELS * self.side**2), nn.LeakyReLU(),
        )  # fmt: skip
        widths = [DECODER_SEED_CHANNELS] + [DECODER_CHANNELS] * DOUBLINGS
        self.stages = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.image = nn.Conv2d(DECODER_CHANNELS, n_bands, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, latent: Tensor) -> Tensor:
        x: Tensor = self.seed(latent).view(-1, DECODER_SEED_CHANNELS, self.side, self.side)
        for stage in self.stages:
            x = F.interpolate(F.leaky_relu(stage(x)), scale_factor=2.0, mode="bilinear", align_corners=False)
        out: Tensor = self.image(x)
        first = (out.shape[-1] - self.cutout_px) // 2
        return out[..., first : first + self.cutout_px, first : first + self.cutout_px].float()


class Clap(Labelled):
    """Redshift, reconstruction and contrast in one loss; the halves of a batch are one another's negatives."""

    def __init__(
        self,
        encoder: RedshiftNetwork,
        labels: Labels,
        criterion: Criterion,
        config: dict[str, Any],
        *,
        rates: Rates,
    ) -> None:
        recipe = {"rest": REST, "decoder": [DECODER_WIDTH, DECODER_SEED_CHANNELS, DECODER_CHANNELS]}
        config = {**config, **recipe, "reconstruction": RECONSTRUCTION_WEIGHT}
        super().__init__(labels, criterion, config, device=encoder.prior.device, rates=rates)
        if encoder.backbone is None:
            raise BadInput("the contrastive latent needs an image encoder: it is trained on turned images")
        self.encoder = encoder
        self.rest = nn.Linear(encoder.n_inputs, REST)
        self.decoder = Decoder(LATENT + REST, len(encoder.bands), encoder.backbone.cutout_px)

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Draws the second view's orientation from torch's global generator; sources without any band are left out."""
        batch, indices = some(batch, indices, visible(batch))
        half = len(batch) // 2
        if half < 1:
            raise BadInput("the contrastive latent needs two sources with a good pixel in every batch")
        pair = torch.arange(len(batch), device=indices.device) < 2 * half
        batch, indices = turned(batch.select(pair)), indices[pair]
        z, weight = self.z[indices], self.weight[indices]
        inputs = self.encoder.inputs(batch)
        anchor = self.encoder.latent(inputs)
        drawn: Tensor = self.decoder(torch.cat([anchor, self.rest(inputs).float()], dim=1))
        cycle = self.encoder.latent(self.encoder.inputs(replace(batch, pixels=linear(drawn))))
        other_way = torch.randint(1, 8, (len(batch),), device=indices.device)  # 0 would leave it as it is
        rotated = self.encoder.latent(self.encoder.inputs(oriented(batch, other_way)))
        answers = [self.encoder.answers(latent) for latent in (anchor, cycle, rotated)]
        redshift, parts = self.criterion(answers[0], z, weight)
        again, _ = self.criterion(answers[1], z, weight)
        reconstruction = image_error(drawn, batch)
        contrast = sum(
            contrastive_loss(anchor[part], latent[part], anchor[other])
            for latent in (cycle, rotated)
            for part, other in ((slice(None, half), slice(half, None)), (slice(half, None), slice(None, half)))
        )
        contrast = torch.as_tensor(contrast) / 4
        agreement = (mutual_entropy(answers[0], answers[1]) + mutual_entropy(answers[0], answers[2])) / 2
        parts |= {"reconstruction": reconstruction, "contrast": contrast, "agreement": agreement}
        return redshift + again + RECONSTRUCTION_WEIGHT * reconstruction + contrast + agreement, parts


def logarithmic(pixels: Tensor) -> Tensor:
    """sign(x) log(1 + |x|)."""
    return pixels.sign() * pixels.abs().log1p()


def linear(images: Tensor) -> Tensor:
    """The inverse of `logarithmic`, with a gradient."""
    return images.sign() * images.abs().clamp(max=LARGEST_LOG).expm1()


def image_error(drawn: Tensor, batch: Batch) -> Tensor:
    """Mean square error of the log-scaled image over the good pixels of the bands that are there."""
    assert batch.pixels is not None and batch.pixel_mask is not None
    good = ~batch.pixel_mask & (batch.state != 0)[:, :, None, None]
    wanted = logarithmic(torch.where(good, batch.pixels.float(), 0.0))
    return ((drawn - wanted).square() * good).sum() / good.sum().clamp(min=1)


def contrastive_loss(anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """-log(s_p / (s_p + s_n)), s = exp(-mean over sources of the root mean square difference); (N, d) each."""

    def distance(other: Tensor) -> Tensor:
        return (anchor - other).square().mean(dim=1).clamp(min=LEAST_SQUARE).sqrt().mean()

    return F.softplus(distance(positive) - distance(negative))


def mutual_entropy(first: Tensor, second: Tensor) -> Tensor:
    """Cross-entropy between the PDFs of two sets of logits (N, bins), each way with the target held constant; mean."""
    one, two = first.log_softmax(dim=1), second.log_softmax(dim=1)
    each = -(one.detach().exp() * two).sum(dim=1) - (two.detach().exp() * one).sum(dim=1)
    return 0.5 * each.mean()

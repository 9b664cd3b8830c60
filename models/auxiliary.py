"""What pretraining asks of an embedding beside its own objective: colours and magnitude of all, redshift of some.

Self-supervision alone leaves flux and colour to few of an embedding's directions, and a latent space that need not be
smooth in redshift (PITA, Khederlarian et al. 2026): a linear head regresses the catalogue's colours and magnitude on
every source, another classifies the redshift of the labelled sources of the same batches.
"""

from __future__ import annotations

import hashlib
import math
from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models.bands import AB_ZERO_POINT_UJY, State
from redshelf.models.bins import CRPS_WEIGHT, bins_for, check_redshifts, redshift_loss, width_for
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.photometry import Scaling
from redshelf.models.training import Objective
from redshelf.models.vit import MultiBandViT

COLOUR_WEIGHT = 5.0
REDSHIFT_WEIGHT = 0.1  # of cross-entropy and CRPS, which together start near 7


@dataclass(frozen=True)
class Labels:
    """Redshifts `z` (n_sources,) float32, NaN where unlabelled, as classes in `n_bins` bins of `width` in ln(1+z)."""

    z: Tensor
    n_bins: int
    width: float

    @property
    def config(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.z.numpy().tobytes()).hexdigest()
        return {"z": digest, "n_bins": self.n_bins, "width": self.width, "weight": REDSHIFT_WEIGHT}


def labels_for(redshift: npt.ArrayLike) -> Labels:
    """From `redshift` (n_sources,), NaN where unlabelled; `BadInput` for an impossible one, or fewer than bins."""
    z = np.asarray(redshift, dtype=np.float64)
    known = z[~np.isnan(z)]
    if not len(known):
        raise BadInput("the redshift loss needs labelled sources, and none of these has a redshift")
    width = width_for(check_redshifts(known))
    return Labels(torch.from_numpy(z.astype(np.float32)), bins_for(known, width=width), width)


def colour_targets(batch: Batch, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """Standardised colours and magnitude, 0 where not measured, and whether they were, both (N, bands) float32.

    The first features of `photometry.features`, on the batch's device and without its imputation.
    """
    assert batch.flux_ujy is not None
    flux = batch.flux_ujy.float()
    good = torch.isfinite(flux) & ((batch.state == State.MEASURED) | (batch.state == State.NOT_DETECTED))
    soft = torch.tensor(scaling.softening_ujy, device=flux.device)
    magnitude = AB_ZERO_POINT_UJY - 2.5 / math.log(10) * (torch.asinh(flux / (2 * soft)) + soft.log())
    chain, one = torch.from_numpy(scaling.order.copy()).to(flux.device), slice(scaling.reference, scaling.reference + 1)
    blue, red = magnitude[:, chain[:-1]], magnitude[:, chain[1:]]
    both = good[:, chain[:-1]] & good[:, chain[1:]]
    values, known = torch.cat([blue - red, magnitude[:, one]], dim=1), torch.cat([both, good[:, one]], dim=1)
    n_bands = len(scaling.bands)
    centre, scale = (torch.tensor(x[:n_bands], device=flux.device) for x in (scaling.centre, scaling.scale))
    return torch.where(known, (values - centre) / scale, 0.0), known.float()


class Auxiliary(nn.Module):
    """Linear heads on the pooled embedding, (N, dim): colours where `scaling` is given, redshift where `labels` are."""

    def __init__(self, dim: int, scaling: Scaling | None, labels: Labels | None) -> None:
        super().__init__()
        self.scaling, self.labels = scaling, labels
        self.colours = None if scaling is None else nn.Linear(dim, len(scaling.bands))
        self.redshift = None if labels is None else nn.Linear(dim, labels.n_bins)
        self._z = None if labels is None else labels.z  # no buffer: a loop that saves or shares those leaves it alone

    @property
    def config(self) -> dict[str, Any]:
        fluxes = None if self.scaling is None else {**asdict(self.scaling), "weight": COLOUR_WEIGHT}
        return {"colours": fluxes, "redshift": None if self.labels is None else self.labels.config}

    def losses(self, embedding: Tensor, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Weighted sum of the losses on `embedding` (N, dim) of the sources `indices` (N,), and its parts.

        `batch` holds their fluxes and states as they were measured, whatever the embedding was shown.
        """
        total, parts = embedding.new_zeros((), dtype=torch.float32), dict[str, Tensor]()
        if self.colours is not None and self.scaling is not None and batch.flux_ujy is not None:
            wanted, known = colour_targets(batch, self.scaling)
            error = F.smooth_l1_loss(self.colours(embedding).float(), wanted, reduction="none", beta=0.1)
            parts["colours"] = (error * known).sum() / known.sum().clamp(min=1)
            total = total + COLOUR_WEIGHT * parts["colours"]
        if self.redshift is not None and self.labels is not None and self._z is not None:
            self._z = self._z.to(indices.device)
            z = self._z[indices]
            labelled = torch.isfinite(z).float()
            entropy, crps = redshift_loss(self.redshift(embedding), z.nan_to_num(), width=self.labels.width)
            count = labelled.sum().clamp(min=1)
            parts["cross_entropy"], parts["crps"] = (entropy * labelled).sum() / count, (crps * labelled).sum() / count
            total = total + REDSHIFT_WEIGHT * (parts["cross_entropy"] + CRPS_WEIGHT * parts["crps"])
        return total, parts


class Pretext(Objective):
    """A self-supervised objective around a `MultiBandViT`."""

    learning_rate: float

    @abstractmethod
    def trained(self) -> MultiBandViT:
        """The encoder that comes out."""

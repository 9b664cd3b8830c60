"""Losses of a redshift head, and the remedies for redshifts of which there are few labels.

Bins: logit adjustment (Menon et al. 2021), or the head trained again on a capped, nearly balanced subset (Lin et al.
2022). Regression in ln(1+z): square error weighted by the inverse of the smoothed label density (Yang et al. 2021), or
balanced MSE (Ren et al. 2022). A remedy changes the prior that the answers imply; the encoder carries that prior.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from redshelf.models.bins import CRPS_WEIGHT, Floats, Loss, Target, redshift_loss
from redshelf.models.errors import BadInput

Imbalance = Literal["none", "logit", "capped", "density", "balanced-mse"]
Rates = list[tuple[list[nn.Parameter], float]]
REMEDIES: dict[str, tuple[str, ...]] = {
    "bins": ("none", "logit", "capped"),
    "regression": ("none", "density", "balanced-mse"),
}

NOISE_RATE = 10.0  # factor on the rate of the learned noise: Adam's steps are equal, and it has the farthest to go
TAU = 1.0  # of the logit adjustment: 1 makes the answers those of equally many labels in every bin
DENSITY_CAP = 20.0  # no label weighs more than this many average ones
CELL_LN_Z, CELL_MAG = 0.05, 0.5  # cells of the capped subset


def check_loss(loss: str, imbalance: str) -> None:
    """`BadInput` for a loss that does not exist, or a remedy that does not go with it."""
    if loss not in REMEDIES:
        raise BadInput(f"loss {loss!r}: expected one of {', '.join(REMEDIES)}")
    if imbalance not in REMEDIES[loss]:
        if imbalance not in get_args(Imbalance):
            raise BadInput(f"imbalance {imbalance!r}: expected one of {', '.join(get_args(Imbalance))}")
        raise BadInput(f"imbalance {imbalance!r} with loss {loss!r}: expected one of {', '.join(REMEDIES[loss])}")


class Criterion(nn.Module, ABC):
    """Loss of a head's answers: `forward` for training, `score` for choosing between weights."""

    @abstractmethod
    def forward(self, out: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """out (N, bins) or (N, 1), z (N,), weight (N,): the mean loss and its parts."""

    def score(self, out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        """What the validation asks for, lower is better."""
        return self.forward(out, z, weight)[0]

    def rates(self) -> Rates:
        """Parameters of its own that do not learn at the run's rate (`Objective.learning_rates`)."""
        return []


class BinLoss(Criterion):
    """Cross-entropy and CRPS in bins; with `adjust`, of logits + tau log prior, so that bare logits are balanced."""

    log_prior: Tensor

    def __init__(self, target: Target, prior: Floats, *, adjust: bool) -> None:
        super().__init__()
        shift = TAU * np.log(prior) if adjust else np.zeros(target.n_bins)
        self.width = target.width
        self.register_buffer("log_prior", torch.from_numpy(shift).float(), persistent=False)

    def forward(self, out: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        entropy, crps = redshift_loss(out.float() + self.log_prior, z, width=self.width)
        entropy, crps = (entropy * weight).mean(), (crps * weight).mean()
        return entropy + CRPS_WEIGHT * crps, {"cross_entropy": entropy, "crps": crps}


class RegressionLoss(Criterion):
    """Square error in standardised ln(1+z): plain, weighted by the inverse density of labels, or balanced."""

    rarity: Tensor

    def __init__(self, target: Target, prior: Floats, *, imbalance: Imbalance) -> None:
        super().__init__()
        self.target, self.imbalance = target, imbalance
        rarity = np.ones(target.n_bins) if imbalance == "none" else inverse_density(prior)
        self.register_buffer("rarity", torch.from_numpy(rarity).float(), persistent=False)
        if imbalance == "balanced-mse":
            self.log_noise = nn.Parameter(torch.zeros(()))

    def _residual(self, out: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Answers and labels, standardised, and how rare each label is; (N,) each."""
        lnz = torch.log1p(z)
        bins = (lnz / self.target.width).long().clamp(0, self.target.n_bins - 1)
        return out[:, 0].float(), (lnz - self.target.centre) / self.target.scale, self.rarity[bins]

    def forward(self, out: Tensor, z: Tensor, weight: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        predicted, wanted, rarity = self._residual(out, z)
        square = (predicted - wanted).square()
        parts = {"square_error": (square * weight).mean()}
        if self.imbalance == "balanced-mse":
            loss = balanced_mse(predicted, wanted, weight, noise=self.log_noise.exp())
            return loss, {**parts, "noise": self.log_noise.exp()}
        return (square * weight * rarity).mean(), parts

    def rates(self) -> Rates:
        return [([self.log_noise], NOISE_RATE)] if self.imbalance == "balanced-mse" else []

    def score(self, out: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        # balanced MSE changes its unit with the noise it learns, and both remedies are after the balanced error
        predicted, wanted, rarity = self._residual(out, z)
        return ((predicted - wanted).square() * weight * rarity).mean()


def criterion_for(target: Target, prior: Floats, *, loss: Loss, imbalance: Imbalance) -> Criterion:
    """The loss of a run whose labels have `prior` (n_bins,)."""
    if loss == "bins":
        return BinLoss(target, prior, adjust=imbalance == "logit")
    return RegressionLoss(target, prior, imbalance=imbalance)


def implied_prior(prior: Floats, imbalance: Imbalance) -> Floats:
    """The prior that trained answers imply, (n_bins,), where the labels have `prior`."""
    flat = np.full(len(prior), 1 / len(prior))
    if imbalance == "logit":
        flattened = prior ** (1 - TAU)
        return np.asarray(flattened / flattened.sum())
    return flat if imbalance in ("density", "balanced-mse") else prior


def inverse_density(prior: Floats) -> Floats:
    """Weight of a label in each bin, (n_bins,), by the inverse of the smoothed density; its mean over labels is 1."""
    weight = 1 / prior
    weight = np.minimum(weight, DENSITY_CAP * (prior * weight).sum())
    return np.asarray(weight / (prior * weight).sum())


def balanced_mse(predicted: Tensor, wanted: Tensor, weight: Tensor, *, noise: Tensor) -> Tensor:
    """Batch-based balanced MSE: -log of the label's share among the batch's labels under a Gaussian of width `noise`.

    All (N,) but `noise`, a scalar; scaled by 2 noise^2, held constant, to the size of a square error. A label of weight
    0 is not among the batch's.
    """
    energy = -0.5 * (predicted[:, None] - wanted[None]).square() / noise.square()  # (N answers, N labels)
    every = torch.logsumexp(energy + weight.clamp(min=1e-30).log(), dim=1)
    surprise = every - energy.diagonal()
    return (surprise * weight).mean() * (2 * noise.square()).detach()


def capped_rows(z: Floats, magnitude: Floats | None, *, seed: int, cap: int | None = None) -> npt.NDArray[np.intp]:
    """Rows of a nearly balanced subset, sorted: at most `cap` in a cell of redshift and, where given, magnitude (N,).

    By default the cap is the median number over the cells that have any. A magnitude that is not finite is a cell too.
    """
    cell = np.floor(np.log1p(z) / CELL_LN_Z)
    brightness = np.zeros(len(z)) if magnitude is None else np.floor(magnitude / CELL_MAG)
    brightness = np.where(np.isfinite(brightness), brightness, -1e6)
    _, inverse, counts = np.unique(np.column_stack([cell, brightness]), axis=0, return_inverse=True, return_counts=True)
    most = max(1, int(np.median(counts))) if cap is None else cap
    order = np.random.default_rng((seed, len(z))).permutation(len(z))
    by_cell = order[np.argsort(inverse[order], kind="stable")]
    place = np.arange(len(z)) - np.repeat(np.cumsum(counts) - counts, counts)  # rank inside the cell
    return np.sort(by_cell[place < most])

"""A small network on photometry: its 16-dimensional latent as an embedding, its softmax as a redshift PDF.

Trained on labelled redshifts as a classification in bins of ln(1+z), with soft labels and a loss on the CDF (CRPS)
beside the cross-entropy: the compulsory baseline that image encoders must beat.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from redshelf.models import checkpoint as stored
from redshelf.models.bands import Band
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.photometry import Scaling, batch_features, fit_scaling
from redshelf.models.training import Objective, Report, Sampler, seeded, train

Floats = npt.NDArray[np.float64]

LATENT = 16
WIDTH = 256
DROPOUT = 0.1
BIN = 0.005  # width in ln(1+z)
SOFT = 0.01  # standard deviation of a label in ln(1+z): neighbouring bins share it
CRPS_WEIGHT = 10.0
CLIP_SIGMA = 8.0  # features beyond are no better known than this
VALIDATION_FRACTION = 0.1
MIN_LABELS = 50
STEPS, BATCH, LEARNING_RATE = 1500, 256, 2e-3  # the best of 500, 1500, 4000 steps on zCOSMOS with 2,400 labels


class _Net(nn.Module):
    """Features (N, F) -> latent (N, 16) -> logits (N, bins)."""

    def __init__(self, n_features: int, n_bins: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(n_features, WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Dropout(DROPOUT),
            nn.Linear(WIDTH, LATENT),
        )  # fmt: skip
        self.head = nn.Sequential(nn.Linear(LATENT, WIDTH), nn.GELU(), nn.Linear(WIDTH, n_bins))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(features))
        return out


def _bins(z: Floats) -> int:
    """Bins from 0 to a little beyond the labels, so that a soft label is never cut."""
    return math.ceil((float(np.log1p(z.max())) + 4 * SOFT) / BIN)


def _soft_labels(z: Tensor, n_bins: int) -> Tensor:
    """Mass of a Gaussian around ln(1+z) in each bin, (N, bins), normalised."""
    edges = torch.arange(n_bins + 1, device=z.device) * BIN
    cdf = torch.special.ndtr((edges - torch.log1p(z)[:, None]) / SOFT)
    mass = cdf.diff(dim=1)
    out: Tensor = mass / mass.sum(dim=1, keepdim=True)
    return out


def redshift_loss(logits: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy with soft labels, and CRPS in ln(1+z), each (N,); bins of width `BIN` from 0."""
    target = _soft_labels(z, logits.shape[1])
    logp = F.log_softmax(logits.float(), dim=1)
    entropy = -(target * logp).sum(dim=1)
    gap = logp.exp().cumsum(dim=1) - target.cumsum(dim=1)
    return entropy, gap.square().sum(dim=1) * BIN


class _Labelled(Objective):
    """Mean redshift loss on labelled sources; `indices` are positions in `z`, (n_labels,)."""

    def __init__(self, encoder: PhotometryNetwork, z: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.net, self.scaling, self.encoder_name = encoder.net, encoder.scaling, encoder.name
        digest = hashlib.sha256(z.numpy().tobytes() + weights.numpy().tobytes()).hexdigest()
        self.config = {"objective": "network", "encoder": encoder.config, "labels": digest}
        self.z, self.label_weights = z, weights

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        chosen = indices.cpu()
        z, weight = self.z[chosen].to(indices.device), self.label_weights[chosen].to(indices.device)
        entropy, crps = redshift_loss(self.net(_inputs(batch, self.scaling, self.encoder_name)), z)
        entropy, crps = (entropy * weight).mean(), (crps * weight).mean()
        return entropy + CRPS_WEIGHT * crps, {"cross_entropy": entropy, "crps": crps}


def _inputs(batch: Batch, scaling: Scaling, encoder: str) -> Tensor:
    return batch_features(batch, scaling, encoder).clamp(-CLIP_SIGMA, CLIP_SIGMA)


class PhotometryNetwork:
    """The trained network as an encoder of its latent, (N, 16), and as an estimator of redshift PDFs."""

    kind = "network"
    needs = frozenset({"fluxes"})
    dim = LATENT

    def __init__(self, net: _Net, scaling: Scaling, n_bins: int, *, name: str, revision: str | None = None) -> None:
        self.net, self.scaling, self.n_bins, self.name = net.eval(), scaling, n_bins, name
        self.bands = scaling.bands
        self.revision = revision or stored.revision(self)

    @classmethod
    def fit(
        cls,
        flux_ujy: npt.ArrayLike,
        flux_error_ujy: npt.ArrayLike,
        state: npt.NDArray[np.int8],
        z: npt.ArrayLike,
        *,
        bands: Sequence[Band],
        weights: npt.ArrayLike | None = None,
        seed: int = 0,
    ) -> PhotometryNetwork:
        """Train with the defaults of `train_network` and return the encoder alone."""
        return train_network(flux_ujy, flux_error_ujy, state, z, bands=bands, weights=weights, seed=seed)[0]

    @property
    def config(self) -> dict[str, Any]:
        sizes = {"n_bins": self.n_bins, "bin": BIN, "width": WIDTH, "latent": LATENT, "clip_sigma": CLIP_SIGMA}
        return {"bands": list(self.bands), "scaling": asdict(self.scaling), **sizes}

    def weights(self) -> dict[str, Tensor]:
        return dict(self.net.state_dict())

    @classmethod
    def from_config(cls, config: dict[str, Any], weights: dict[str, Tensor], *, name: str, revision: str) -> Self:
        scaling = Scaling.from_config(config["scaling"])
        net = _Net(2 * len(scaling.bands), config["n_bins"])
        try:
            net.load_state_dict(weights)
        except RuntimeError as error:
            raise BadInput(f"encoder {name!r}: the weights do not fit its config: {error}") from error
        return cls(net, scaling, config["n_bins"], name=name, revision=revision)

    @torch.inference_mode()
    def embed(self, batch: Batch) -> Tensor:
        """The latent, (N, 16) float32."""
        out: Tensor = self.net.body(_inputs(batch, self.scaling, self.name))
        return out

    @torch.inference_mode()
    def predict(self, batch: Batch) -> tuple[Floats, Floats]:
        """Edges in z (bins + 1,) and mass a bin (N, bins), rows summing to 1: the arguments of `Pdf.from_mass`."""
        logits = self.net(_inputs(batch, self.scaling, self.name)).double()
        return np.expm1(np.arange(self.n_bins + 1) * BIN), logits.softmax(dim=1).cpu().numpy()


def train_network(
    flux_ujy: npt.ArrayLike,
    flux_error_ujy: npt.ArrayLike,
    state: npt.NDArray[np.int8],
    z: npt.ArrayLike,
    *,
    bands: Sequence[Band],
    name: str = "network",
    weights: npt.ArrayLike | None = None,
    steps: int = STEPS,
    max_seconds: float | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: bool = False,
) -> tuple[PhotometryNetwork, Report]:
    """Train on labelled sources: fluxes, errors and states (N, B), redshifts (N,), loss weights (N,) or None for equal.

    A tenth of the labels is held out, and the weights that do best on it are kept. Raises `BadInput` for too few labels
    or a redshift that is negative or not finite.
    """
    flux, error, state = np.asarray(flux_ujy, np.float64), np.asarray(flux_error_ujy, np.float64), np.asarray(state)
    redshift = np.asarray(z, dtype=np.float64)
    loss_weights = np.ones(len(redshift)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(redshift) < MIN_LABELS:
        raise BadInput(f"{len(redshift)} labels: the network needs at least {MIN_LABELS}")
    if not (np.isfinite(redshift) & (redshift >= 0) & (redshift < 20)).all():
        raise BadInput("a redshift of the labels is not finite, negative, or 20 and more")
    if loss_weights.shape != redshift.shape or not (np.isfinite(loss_weights) & (loss_weights >= 0)).all():
        raise BadInput(f"loss weights: expected {len(redshift)} finite values of 0 or more")
    scaling = fit_scaling(flux, error, state, bands=bands)
    n_bins = _bins(redshift)
    with seeded(seed):
        encoder = PhotometryNetwork(_Net(2 * len(bands), n_bins), scaling, n_bins, name=name)
    order = np.random.default_rng((seed, len(redshift))).permutation(len(redshift))
    held, kept = np.split(order, [max(1, round(VALIDATION_FRACTION * len(order)))])
    loss_weights = loss_weights / max(loss_weights.mean(), 1e-12)

    def fetch(indices: npt.NDArray[np.int64]) -> Batch:
        rows = kept[indices]
        return Batch(torch.from_numpy(state[rows]), flux_ujy=torch.from_numpy(flux[rows]))

    def tensors(rows: npt.NDArray[np.intp]) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(redshift[rows]).float(), torch.from_numpy(loss_weights[rows]).float()

    held_batch = Batch(torch.from_numpy(state[held]), flux_ujy=torch.from_numpy(flux[held]))
    held_objective = _Labelled(encoder, *tensors(held))

    @torch.inference_mode()
    def validate() -> float:
        held_objective.eval()
        return float(held_objective.loss(held_batch, torch.arange(len(held)))[0])

    report = train(
        _Labelled(encoder, *tensors(kept)),
        fetch,
        Sampler(len(kept), BATCH, seed),
        steps=steps,
        max_seconds=max_seconds,
        lr=LEARNING_RATE,
        seed=seed,
        checkpoint=checkpoint,
        precision="float32",
        validate=validate,
        progress=progress,
    )
    encoder.revision = stored.revision(encoder)
    return encoder, report

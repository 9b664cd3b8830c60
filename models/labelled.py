"""Labelled sources in training: checked labels, the split into kept and held-out ones, and the objectives on them.

A trunk that is not trained is run over the labels once, and training sees its features alone; images that are trained
on are turned and flipped, and sources without any band are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from redshelf.models.backbone import some, visible
from redshelf.models.bins import Floats, check_redshifts
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.imbalance import Criterion, Rates
from redshelf.models.redshift_network import RedshiftNetwork
from redshelf.models.training import Fetch, Objective
from redshelf.models.views import turned

Rows = npt.NDArray[np.int64]

MIN_LABELS = 50
VALIDATION_FRACTION = 0.1
VALIDATION_IMAGES = 512  # at most, where the trunk is trained: they go through it a hundred times
CHUNK = 256  # sources that go through a trunk at once without a gradient
STANDARD_SAMPLE = 512  # sources whose image features set the scale of a trunk that is trained
LEAST_SPREAD = 1e-6  # a feature that varies less is constant, and is only centred
BESIDE_PHOTOMETRY = 0.1  # spread of image features beside photometry, which else drowns among hundreds of them


@dataclass(frozen=True)
class Labels:
    """Redshifts and loss weights, (N,) each; the weights have a mean of 1."""

    z: Floats
    weights: Floats

    @classmethod
    def checked(cls, z: npt.ArrayLike, weights: npt.ArrayLike | None) -> Labels:
        """`BadInput` for too few labels, a redshift as in `bins.check_redshifts`, or weights that are none."""
        redshift = check_redshifts(z)
        if len(redshift) < MIN_LABELS:
            raise BadInput(f"{len(redshift)} labels: the network needs at least {MIN_LABELS}")
        share = np.ones(len(redshift)) if weights is None else np.asarray(weights, dtype=np.float64)
        good = share.shape == redshift.shape and bool((np.isfinite(share) & (share >= 0)).all())
        if not good or share.sum() <= 0:
            raise BadInput(f"loss weights: expected {len(redshift)} finite values of 0 or more, not all 0")
        if (share > 0).sum() < MIN_LABELS:
            raise BadInput(f"{(share > 0).sum()} labels of a weight above 0: the network needs at least {MIN_LABELS}")
        return cls(redshift, share / share.mean())

    def __len__(self) -> int:
        return len(self.z)

    def take(self, rows: Rows) -> Labels:
        """Some of them, with the weights they have."""
        return Labels(self.z[rows], self.weights[rows])

    @property
    def digest(self) -> str:
        """sha256 of both, in hexadecimal."""
        return hashlib.sha256(self.z.tobytes() + self.weights.tobytes()).hexdigest()


class Labelled(Objective):
    """An objective on labelled sources: `indices` are positions in `labels`; `rates` as in `learning_rates`."""

    def __init__(
        self,
        labels: Labels,
        criterion: Criterion,
        config: dict[str, Any],
        *,
        device: torch.device,
        rates: Rates | None = None,
    ) -> None:
        super().__init__()
        self.criterion = criterion
        self.rates = [*criterion.rates(), *(rates or [])]
        self.config = {**config, "labels": labels.digest}
        # no buffers: the loop looks after those at every step
        self.z = torch.from_numpy(labels.z).float().to(device)
        self.weight = torch.from_numpy(labels.weights).float().to(device)

    def learning_rates(self) -> Rates:
        return self.rates


class OnInputs(Labelled):
    """Body and head on inputs (n_labels, F) that are known; the batch carries nothing."""

    def __init__(
        self, net: nn.Module, inputs: Tensor, labels: Labels, criterion: Criterion, config: dict[str, Any]
    ) -> None:
        super().__init__(labels, criterion, config, device=inputs.device)
        self.net, self.inputs = net, inputs

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = self.criterion(self.net(self.inputs[indices]), self.z[indices], self.weight[indices])
        return loss, parts


class OnImages(Labelled):
    """The whole network, on images in the eight orientations."""

    def __init__(
        self,
        encoder: RedshiftNetwork,
        labels: Labels,
        criterion: Criterion,
        config: dict[str, Any],
        *,
        rates: Rates,
    ) -> None:
        super().__init__(labels, criterion, config, device=encoder.prior.device, rates=rates)
        self.encoder = encoder

    def loss(self, batch: Batch, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        batch, indices = some(turned(batch), indices, visible(batch))
        latent = self.encoder.latent(self.encoder.inputs(batch))
        loss, parts = self.criterion(self.encoder.answers(latent), self.z[indices], self.weight[indices])
        return loss, parts


def nothing(indices: Rows) -> Batch:
    """A batch of as many sources, for an objective that knows its inputs."""
    return Batch(torch.zeros((len(indices), 1), dtype=torch.int8))


class Shown:
    """Labelled sources as a network is shown them, split into `kept` and `held` positions of `labels`.

    `inputs` (N, F) are those of a frozen trunk, None where the trunk is trained. Setting it up standardises the
    network's image features, and drops labels whose source a frozen image encoder cannot see.
    """

    def __init__(
        self, fetch: Fetch, labels: Labels, encoder: RedshiftNetwork, *, frozen: bool, device: str, seed: int
    ) -> None:
        self.fetch, self.encoder, self.device = fetch, encoder, device
        self.rows: Rows = np.arange(len(labels))
        self.inputs: Tensor | None = None
        if frozen:
            self.rows, self.inputs = self._through(self.rows)
            if len(self.rows) < MIN_LABELS:
                raise BadInput(f"{len(self.rows)} labels with a good pixel: the network needs at least {MIN_LABELS}")
        self.labels = labels.take(self.rows)
        counts = self.labels.weights > 0
        n_held = max(1, round(VALIDATION_FRACTION * counts.sum()))
        order = np.random.default_rng((seed, len(counts))).permutation(len(counts))
        order = order[np.argsort(~counts[order], kind="stable")]  # labels of weight 0 would judge nothing
        self.held, self.kept = np.split(order, [n_held if frozen else min(n_held, VALIDATION_IMAGES)])
        if encoder.backbone is not None:
            self._standardise(self._through(self.kept[:STANDARD_SAMPLE])[1] if self.inputs is None else self.inputs)
        self._held_batches: list[Batch] = []
        self._held_inputs: Tensor | None = None
        if not frozen:
            seen_chunks = list(self._chunks(self.held))
            if not seen_chunks:
                raise BadInput(f"none of the {len(self.held)} labelled sources held out has a band with a good pixel")
            self.held = np.concatenate([rows for rows, _ in seen_chunks])
            self._held_batches = [batch for _, batch in seen_chunks]

    def _chunks(self, rows: Rows) -> Iterator[tuple[Rows, Batch]]:
        """The sources at `rows` in chunks, without those that an image encoder cannot see."""
        for start in range(0, len(rows), CHUNK):
            chosen = rows[start : start + CHUNK]
            batch = self.fetch(chosen)
            there = visible(batch) | (self.encoder.backbone is None)
            if there.any():
                yield chosen[there.numpy()], batch if there.all() else batch.select(there)

    def _through(self, rows: Rows) -> tuple[Rows, Tensor]:
        """Inputs of the body (n, F), and the rows they belong to."""
        self.encoder.eval()
        found = [(chosen, self.encoder.frozen_inputs(batch.to(self.device))) for chosen, batch in self._chunks(rows)]
        if not found:
            raise BadInput(f"none of {len(rows)} labelled sources has a band with a good pixel")
        return np.concatenate([chosen for chosen, _ in found]), torch.cat([inputs for _, inputs in found])

    def _standardise(self, inputs: Tensor) -> None:
        """One mean and spread for the image features over `inputs`, in the network, and in its inputs where known."""
        encoder = self.encoder
        wanted = 1.0 if encoder.photometry is None else BESIDE_PHOTOMETRY
        n_image = len(encoder.centre)
        features = inputs[:, :n_image]
        spread = features.std(dim=0)
        encoder.centre.copy_(features.mean(dim=0))
        encoder.scale.copy_(torch.where(spread > LEAST_SPREAD, spread, 1.0) / wanted)
        if self.inputs is not None:
            self.inputs[:, :n_image] = (features - encoder.centre) / encoder.scale

    def batch(self, indices: Rows) -> Batch:
        """What the loop hands to an objective for `indices` among the kept; nothing where the inputs are known."""
        if self.inputs is not None:
            return nothing(indices)
        return self.fetch(self.rows[self.kept[indices]])

    def inputs_of(self, positions: Rows) -> tuple[Rows, Tensor]:
        """Inputs of the body for some of the labels, and the positions that can be seen."""
        if self.inputs is not None:
            return positions, self.inputs[torch.from_numpy(positions).to(self.device)]
        return self._through(positions)

    @contextmanager
    def trunk_stays(self) -> Iterator[None]:
        """Inside, the image encoder is not trained: the held-out labels pass through it once."""
        self._held_inputs = self._inputs_of_held()
        try:
            yield
        finally:
            self._held_inputs = None

    def _inputs_of_held(self) -> Tensor:
        if self._held_inputs is not None:
            return self._held_inputs
        if self.inputs is not None:
            return self.inputs_of(self.held)[1]
        self.encoder.eval()
        return torch.cat([self.encoder.frozen_inputs(batch.to(self.device)) for batch in self._held_batches])

    def answers(self) -> Tensor:
        """The network's answers for the held-out labels, (n, bins) or (n, 1)."""
        self.encoder.eval()
        with torch.inference_mode():
            return self.encoder.answers(self.encoder.latent(self._inputs_of_held()))

    def score(self, criterion: Criterion, extra: Floats | None = None) -> float:
        """The criterion's score on the held-out labels, with weights (n,) beside their own."""
        out, held = self.answers(), self.labels.take(self.held)
        weight = held.weights if extra is None else held.weights * extra
        z, w = (torch.from_numpy(value).float().to(out.device) for value in (held.z, weight))
        with torch.inference_mode():
            return float(criterion.score(out, z, w))

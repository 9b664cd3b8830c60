"""Redshift densities from an ensemble of small networks on features: the strong baseline of photometric redshifts.

Five members a round, each blind to one fold of the labels, are trained side by side on bins of ln(1+z) with the loss
of `models/bins`. A density is the mean over the members; a labelled query is answered by those that did not see it.
Training takes torch, answering numpy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.boost import FOLDS, default_threads, fold_of
from redshelf.models.errors import BadInput
from redshelf.models.metrics import clearly_better, weighted_mean
from redshelf.models.pdf import Pdf, rebinned

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ROUNDS = 2  # members a fold
WIDTHS = (256, 256, 64, 256)
STEPS, RATE, DECAY, DROPOUT = 700, 2e-3, 1e-2, 0.1
BATCHES = (32, 256)  # labels in a batch: an eighth of them, within these
EPOCHS = 5  # at least, where labels are many
WARMUP = 100
CLIP = 8.0  # standard deviations: a feature beyond is no better known than this
POWERS = (1.0,)  # of the shift weights
BLOCK = 8192


@dataclass(frozen=True)
class NetworkRedshift:
    """Parameters (members, P) of networks with layers of `sizes`, and the fold (L,) of each label they were fitted on.

    Member m is blind to fold m % 5. They answer in bins of `width` in ln(1+z) from 0; `edges` is the grid of `predict`.
    """

    parameters: npt.NDArray[np.float32]
    sizes: tuple[int, ...]
    fold: Ints
    width: float
    edges: Floats

    def predict(self, features: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None) -> Pdf:
        """Densities of `features` (N, D); `exclude` (N,): the label that a query is, -1 for none."""
        x = np.asarray(features, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != self.sizes[0] or not np.isfinite(x).all():
            raise BadInput(f"features of shape {x.shape}: expected finite values (N, {self.sizes[0]})")
        label = np.full(len(x), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        blind = np.arange(len(self.parameters)) % FOLDS
        native = np.expm1(np.arange(self.sizes[-1] + 1) * self.width)
        density = np.empty((len(x), len(self.edges) - 1))
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            own = label[part]
            asked = np.where(own[:, None] >= 0, self.fold[own][:, None] == blind, True)  # (n, members)
            total = np.zeros((len(own), self.sizes[-1]))
            clipped = np.clip(x[part], -CLIP, CLIP)
            for member, wanted in zip(self.parameters, asked.T, strict=True):
                if wanted.any():
                    total[wanted] += _masses(member, self.sizes, clipped[wanted])
            density[part] = rebinned(Pdf.from_mass(native, total), self.edges).density
        return Pdf(self.edges, density)


def _layers(sizes: tuple[int, ...]) -> Iterator[tuple[slice, tuple[int, int], slice]]:
    """Where weights (in, out) and bias (out,) of each layer lie in a member's parameters."""
    at = 0
    for before, after in pairwise(sizes):
        yield slice(at, at + before * after), (before, after), slice(at + before * after, at + (before + 1) * after)
        at += (before + 1) * after


def _masses(member: npt.NDArray[np.float32], sizes: tuple[int, ...], x: npt.NDArray[np.float32]) -> Floats:
    """Bin masses (N, bins) of one member."""
    for weight, shape, bias in _layers(sizes):
        if weight.start:
            np.maximum(x, 0, out=x)
        x = x @ member[weight].reshape(shape) + member[bias]
    x -= x.max(axis=1, keepdims=True)
    mass = np.exp(x, out=x)
    return np.asarray(mass / mass.sum(axis=1, keepdims=True, dtype=np.float64))


def _train(
    x: npt.NDArray[np.float32],
    z: Floats,
    weights: Floats | None,
    fold: Ints,
    sizes: tuple[int, ...],
    width: float,
    *,
    seed: int,
    threads: int,
) -> npt.NDArray[np.float32]:
    """Parameters of `ROUNDS` members a fold, trained together, (members, P)."""
    import torch
    from torch.nn import functional as F

    from redshelf.models.bins import CRPS_WEIGHT, redshift_loss
    from redshelf.models.training import seeded

    members, rng = FOLDS * ROUNDS, np.random.default_rng((seed, len(x)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with seeded(seed):
            layers = [
                (torch.randn(members, a, b) * (2 / a) ** 0.5, torch.zeros(members, 1, b)) for a, b in pairwise(sizes)
            ]
            layers[-1][0].mul_(0.1)
            parameters = [p.requires_grad_() for layer in layers for p in layer]
            optimiser = torch.optim.AdamW(parameters, lr=RATE, weight_decay=DECAY, fused=True)
            inputs, truth = torch.from_numpy(np.clip(x, -CLIP, CLIP)), torch.from_numpy(z).float()
            share = torch.ones(len(z)) if weights is None else torch.from_numpy(weights / weights.mean()).float()
            seen = [np.flatnonzero(fold != member % FOLDS) for member in range(members)]
            smallest = min(map(len, seen))
            size = min(int(np.clip(smallest // 8, *BATCHES)), smallest)
            steps = max(STEPS, EPOCHS * smallest // size)
            draws = [_batches(rows, size, rng) for rows in seen]
            for step in range(steps):
                rate = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * step / steps))
                optimiser.param_groups[0]["lr"] = RATE * rate
                rows = torch.from_numpy(np.stack([next(draw) for draw in draws]))  # (members, size)
                hidden = inputs[rows]
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    for number, (weight, bias) in enumerate(layers):
                        if number:
                            hidden = F.dropout(F.relu(hidden), DROPOUT)
                        hidden = torch.baddbmm(bias, hidden, weight)
                logits = hidden.float().view(-1, sizes[-1])
                entropy, crps = redshift_loss(logits, truth[rows].view(-1), width=width)
                loss = ((entropy + CRPS_WEIGHT * crps) * share[rows].view(-1)).sum() / size
                optimiser.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        with torch.no_grad():
            return torch.cat([p.reshape(members, -1) for p in parameters], dim=1).numpy()
    finally:
        torch.set_num_threads(before)


def _batches(rows: Ints, size: int, rng: np.random.Generator) -> Iterator[Ints]:
    while True:
        order = rng.permutation(rows)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def fit_network(
    features: npt.ArrayLike,
    z: npt.ArrayLike,
    *,
    edges: Floats,
    importance: Floats,
    exclude: Ints,
    shift_weights: bool | None = None,
    seed: int = 0,
    threads: int = 0,
) -> tuple[NetworkRedshift, dict[str, Any]]:
    """Fit on labelled `features` (L, D), standardised, and redshifts `z` (L,).

    Whether shift weights enter the training is chosen by out-of-fold CRPS in ln(1+z) weighted by `importance` (L,),
    unless `shift_weights` forbids or demands it. `exclude` (L, m) lists for each label itself and its close companions.
    """
    from redshelf.models.bins import Target

    x, truth = np.asarray(features, dtype=np.float32), np.asarray(z, dtype=np.float64)
    fold, threads = fold_of(exclude, FOLDS, seed), threads or default_threads()
    target = Target.for_labels(truth)
    sizes = (x.shape[1], *WIDTHS, target.n_bins)
    weigh = importance if importance.any() else np.ones(len(truth))
    rows = np.arange(len(truth))

    def run(power: float) -> tuple[NetworkRedshift, Floats]:
        weights = (importance + 1e-3) ** power if power else None
        parameters = _train(x, truth, weights, fold, sizes, target.width, seed=seed, threads=threads)
        model = NetworkRedshift(parameters, sizes, fold, target.width, edges)
        answer = model.predict(x, exclude=rows)
        return model, np.abs(np.log1p(answer.median()) - np.log1p(truth))

    tried = {power: run(power) for power in {None: (0.0, *POWERS), True: (1.0,), False: (0.0,)}[shift_weights]}
    losses = {power: loss for power, (_, loss) in tried.items()}
    power = next(iter(losses))
    for other in losses:
        if other != power and clearly_better(losses[power], losses[other], weigh):
            power = other
    report = {
        "members": FOLDS * ROUNDS,
        "shift_weights": power,
        "loss": {f"weights^{p:g}" if p else "plain": weighted_mean(v, weigh) for p, v in losses.items()},
    }
    return tried[power][0], report

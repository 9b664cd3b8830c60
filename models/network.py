"""Redshift densities from an ensemble of small networks on features: the strong baseline of photometric redshifts.

Each fold of the labels has two members that are blind to it: one answers in bins of ln(1+z) with the loss of
`models/bins`, one in a mixture of Gaussians (Bishop 1994), which is less often far off and goes a little beyond the
labels where bins cannot. A density is the mean over the members; a labelled query is answered by those that did not see
it. Training takes torch, answering numpy and scipy alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from redshelf.models.boost import fold_of
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, rebinned
from redshelf.models.threads import default_threads

if TYPE_CHECKING:
    from torch import Tensor

    from redshelf.models.bins import Target

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WIDTHS = (128, 128, 64, 128)
FOLDS = 10  # a member sees nine tenths of the labels; with five folds zCOSMOS has more outliers
COMPONENTS = 3
WARMUP = 100  # steps
DECAY = 1e-2
BATCHES = (32, 256)  # labels in a batch: an eighth of them, within these
EPOCHS, MOST_EPOCHS = 5, 100  # at least, where labels are many; at most, where they are few
CLIP = 8.0  # standard deviations: a feature beyond is no better known than this
LOG_WIDTHS = (-5.0, 1.0)  # of a Gaussian, in standard deviations of the labels
LEAST_SPREAD = 1e-6  # a feature that varies less says nothing
LEAST_WEIGHT = 1e-3  # of a label: weights may all be 0
HASTINGS = (0.3275911, 0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
BLOCK = 1024  # densities that stay near the cores


@dataclass(frozen=True)
class Recipe:
    """Steps, peak learning rate and dropout of a kind of member, chosen on zCOSMOS with 2,400 labels."""

    steps: int
    rate: float
    dropout: float


RECIPES = {"bins": Recipe(700, 2e-3, 0.1), "mixture": Recipe(1000, 5e-3, 0.02)}


@dataclass(frozen=True)
class NetworkRedshift:
    """Members of both kinds, one a fold, and the fold (L,) of each label they were fitted on.

    `bins` (folds, P) and `mixtures` (folds, Q) are the parameters of layers from features over `spread` (D,) through
    `widths`; bins are `n_bins` of `bin_width` in ln(1+z) from 0, mixtures of `components` Gaussians are in
    (ln(1+z) - centre) / scale. `edges` is the grid of `predict`.
    """

    bins: npt.NDArray[np.float32]
    mixtures: npt.NDArray[np.float32]
    spread: npt.NDArray[np.float32]
    widths: tuple[int, ...]
    components: int
    fold: Ints
    n_bins: int
    bin_width: float
    centre: float
    scale: float
    edges: Floats

    def predict(self, features: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None) -> Pdf:
        """Densities of `features` (N, D); `exclude` (N,): the label that a query is, -1 for none."""
        x = np.asarray(features, dtype=np.float32)
        if x.ndim != 2 or x.shape[1] != len(self.spread) or not np.isfinite(x).all():
            raise BadInput(f"features of shape {x.shape}: expected finite values (N, {len(self.spread)})")
        label = np.full(len(x), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        density = np.empty((len(x), len(self.edges) - 1))
        for start in range(0, len(x), BLOCK):
            part = slice(start, start + BLOCK)
            density[part] = self._density(np.clip(x[part] / self.spread, -CLIP, CLIP), label[part])
        return Pdf(self.edges, density)

    def _density(self, x: npt.NDArray[np.float32], label: Ints) -> Floats:
        native = np.expm1(np.arange(self.n_bins + 1) * self.bin_width)
        blind = self.fold[label][:, None] == np.arange(len(self.bins))  # (n, folds)
        asked = np.where(label[:, None] >= 0, blind, True)
        sizes = (len(self.spread), *self.widths)
        binned = np.zeros((len(x), self.n_bins))
        cdf = np.zeros((len(x), len(self.edges)), dtype=np.float32)
        at = ((np.log1p(self.edges) - self.centre) / self.scale).astype(np.float32)
        for bins, mixture, wanted in zip(self.bins, self.mixtures, asked.T, strict=True):
            if wanted.any():
                own = x[wanted]
                binned[wanted] += _softmax(_through(bins, (*sizes, self.n_bins), own))
                cdf[wanted] += _mixture_cdf(_through(mixture, (*sizes, 3 * self.components), own), at)
        half = rebinned(Pdf.from_mass(native, binned), self.edges).density
        other = Pdf.from_mass(self.edges, np.maximum(np.diff(cdf.astype(np.float64), axis=1), 0)).density
        return np.asarray(0.5 * (half + other))


def _layers(sizes: tuple[int, ...]) -> Iterator[tuple[slice, tuple[int, int], slice]]:
    """Where weights (in, out) and bias (out,) of each layer lie in a member's parameters."""
    at = 0
    for before, after in pairwise(sizes):
        yield slice(at, at + before * after), (before, after), slice(at + before * after, at + (before + 1) * after)
        at += (before + 1) * after


def _through(
    member: npt.NDArray[np.float32], sizes: tuple[int, ...], x: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """What the last layer of one member says, (N, sizes[-1])."""
    for weight, shape, bias in _layers(sizes):
        if weight.start:
            x = np.maximum(x, 0)
        x = x @ member[weight].reshape(shape) + member[bias]
    return x


def _softmax(out: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    mass = np.exp(out - out.max(axis=1, keepdims=True))
    return np.asarray(mass / mass.sum(axis=1, keepdims=True))


def _mixture_cdf(out: npt.NDArray[np.float32], at: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """CDF at `at` (G,) of N mixtures, (N, G)."""
    share, mean, width = np.split(out, 3, axis=1)
    share, width = _softmax(share), np.exp(np.clip(width, *LOG_WIDTHS))
    cdf = np.zeros((len(out), len(at)), dtype=np.float32)
    for component in range(share.shape[1]):
        one = slice(component, component + 1)
        cdf += share[:, one] * _normal_cdf((at - mean[:, one]) / width[:, one])
    return cdf


def _normal_cdf(x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Within 2e-7 of `scipy.special.ndtr`, in a quarter of its time (Abramowitz & Stegun 1964, 7.1.26)."""
    size = np.abs(x) * np.float32(0.5**0.5)
    t = 1 / (1 + np.float32(HASTINGS[0]) * size)
    tail = np.full_like(t, HASTINGS[-1])
    for factor in HASTINGS[-2:0:-1]:
        tail *= t
        tail += np.float32(factor)
    tail *= t
    tail *= 0.5 * np.exp(-size * size)
    return np.asarray(np.float32(0.5) + np.copysign(np.float32(0.5) - tail, x))


def _train(
    kind: str,
    x: npt.NDArray[np.float32],
    z: Floats,
    weights: Floats | None,
    fold: Ints,
    target: Target,
    seed: int,
) -> npt.NDArray[np.float32]:
    """Parameters of a member a fold of one kind, trained together by one thread, (folds, P).

    Nothing here is drawn from torch's own generator: the kinds are trained side by side, and give the same bytes for
    any number of threads on one kind of machine.
    """
    import torch
    from torch.nn import functional as F

    recipe, rng = RECIPES[kind], np.random.default_rng((seed, len(x)))
    sizes = (x.shape[1], *WIDTHS, target.n_bins if kind == "bins" else 3 * COMPONENTS)
    draw = torch.Generator().manual_seed(seed)
    torch.set_num_threads(1)  # of this Python thread
    fast = torch.ops.mkldnn._is_mkldnn_bf16_supported()  # else bfloat16 is emulated, fifty times as slow
    layers = [
        (torch.randn(FOLDS, a, b, generator=draw) * (2 / a) ** 0.5, torch.zeros(FOLDS, 1, b))
        for a, b in pairwise(sizes)
    ]
    layers[-1][0].mul_(0.1)
    if kind == "mixture":  # else the components start, and stay, as one
        layers[-1][1][..., COMPONENTS : 2 * COMPONENTS] = torch.linspace(-1, 1, COMPONENTS)
    parameters = [p.requires_grad_() for layer in layers for p in layer]
    optimiser = torch.optim.AdamW(parameters, lr=recipe.rate, weight_decay=DECAY, fused=True)
    inputs, truth = torch.from_numpy(np.clip(x, -CLIP, CLIP)), torch.from_numpy(z).float()
    share = torch.ones(len(z)) if weights is None else torch.from_numpy(weights / weights.mean()).float()
    seen = [np.flatnonzero(fold != number) for number in range(FOLDS)]
    smallest = min(map(len, seen))
    size = min(int(np.clip(smallest // 8, *BATCHES)), smallest)
    epoch = smallest / size
    steps = max(int(min(recipe.steps, MOST_EPOCHS * epoch)), int(EPOCHS * epoch), 2 * WARMUP)
    streams = [_batches(rows, size, rng) for rows in seen]
    for step in range(steps):
        rate = min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + np.cos(np.pi * step / steps))
        optimiser.param_groups[0]["lr"] = recipe.rate * rate
        rows = torch.from_numpy(np.stack([next(stream) for stream in streams]))  # (folds, size)
        hidden = inputs[rows]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            for number, (weight, bias) in enumerate(layers):
                if number:
                    kept = torch.rand(hidden.shape, generator=draw) >= recipe.dropout
                    hidden = F.relu(hidden) * kept / (1 - recipe.dropout)
                hidden = torch.baddbmm(bias, hidden, weight)
        loss = _losses(kind, hidden.float().view(-1, sizes[-1]), truth[rows].view(-1), target)
        optimiser.zero_grad(set_to_none=True)
        (loss @ share[rows].view(-1) / size).backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimiser.step()
    with torch.no_grad():
        return torch.cat([p.reshape(FOLDS, -1) for p in parameters], dim=1).numpy()


def _losses(kind: str, out: Tensor, z: Tensor, target: Target) -> Tensor:
    """Of answers (N, bins) or (N, 3 components) to redshifts (N,), (N,)."""
    import torch

    from redshelf.models.bins import CRPS_WEIGHT, redshift_loss

    if kind == "bins":
        entropy, crps = redshift_loss(out, z, width=target.width)
        return entropy + CRPS_WEIGHT * crps
    share, mean, width = out.chunk(3, dim=1)
    width = width.clamp(*LOG_WIDTHS)
    gap = ((torch.log1p(z) - target.centre) / target.scale)[:, None] - mean
    each = share.log_softmax(dim=1) - width - 0.5 * (gap / width.exp()).square()
    return -each.logsumexp(dim=1)


def _batches(rows: Ints, size: int, rng: np.random.Generator) -> Iterator[Ints]:
    while True:
        order = rng.permutation(rows)
        for start in range(0, len(order) - size + 1, size):
            yield order[start : start + size]


def _target(z: Floats) -> Target:
    """Bins for the labels; the widest ones where even those are more than there are labels."""
    from redshelf.models.bins import WIDEST, Target, bins_for

    fewest = bins_for(z, width=WIDEST)
    if len(z) >= fewest:
        return Target.for_labels(z)
    lnz = np.log1p(z)
    return Target(fewest, WIDEST, float(lnz.mean()), float(lnz.std()) or 1.0)


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
    """Fit on labelled `features` (L, D), centred near 0, and redshifts `z` (L,).

    Shift weights `importance` (L,) enter the training only where `shift_weights` demands it. Validation chose them in 2
    of 5 draws of zCOSMOS and on the simulated s1, and each time the target was answered worse: what a network gains
    where the weights lie, it loses in labels. `exclude` (L, m) lists for each label itself and its close companions.
    """
    import torch

    x, truth = np.asarray(features, dtype=np.float32), np.asarray(z, dtype=np.float64)
    fold, threads = fold_of(exclude, FOLDS, seed), threads or default_threads()
    if fold.min() == fold.max():
        raise BadInput(f"all {len(x)} labels are companions of one another: expected sources apart on the sky")
    target = _target(truth)
    spread = x.std(axis=0)
    spread = np.where(spread > LEAST_SPREAD, spread, 1).astype(np.float32)
    x = x / spread
    weights = importance + LEAST_WEIGHT if shift_weights else None
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(min(threads, 2)) as pool:
            jobs = [pool.submit(_train, kind, x, truth, weights, fold, target, seed) for kind in RECIPES]
            bins, mixtures = (job.result() for job in jobs)
    finally:
        torch.set_num_threads(before)  # else what is started later has the one thread of a training
    model = NetworkRedshift(
        bins=bins,
        mixtures=mixtures,
        spread=spread,
        widths=WIDTHS,
        components=COMPONENTS,
        fold=fold,
        n_bins=target.n_bins,
        bin_width=target.width,
        centre=target.centre,
        scale=target.scale,
        edges=edges,
    )
    return model, {"members": 2 * FOLDS, "shift_weights": float(bool(shift_weights))}

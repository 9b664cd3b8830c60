"""Redshift densities from LightGBM on ln(1+z), with residuals of labels it has not seen.

Five boosters, each blind to one fold of the labels, are averaged. A density is the prediction plus the weighted
out-of-fold residuals of the labels nearest in predicted value, so its width is measured, not assumed. A labelled query
is answered by the one booster that did not see it. Models are kept as LightGBM's text.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models.errors import BadInput
from redshelf.models.knn import bandwidth, log_step, smoothed_pdf
from redshelf.models.metrics import clearly_better, weighted_mean
from redshelf.models.pdf import Pdf
from redshelf.models.threads import default_threads

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
FOLDS = 5
ROUNDS = 400
PARAMETERS: dict[str, Any] = {
    "objective": "regression",
    "learning_rate": 0.05,
    "num_leaves": 31,
    "min_data_in_leaf": 20,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "feature_fraction": 0.8,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
POWERS = (0.5, 1.0)  # of the shift weights
NODES = 64
BLOCK = 8192


def pair_colours(features: npt.ArrayLike, names: tuple[str, ...]) -> tuple[Floats, tuple[str, ...]]:
    """`features` (N, D) plus every colour between bands of a chain "a-b", "b-c", ...: trees cannot sum columns."""
    x = np.asarray(features, dtype=np.float64)
    columns, labels = [x], list(names)
    for start, name in enumerate(names):
        total, first, last = x[:, start].copy(), name.partition("-")[0], name.partition("-")[2]
        for follow in range(start + 1, len(names)):
            left, dash, right = names[follow].partition("-")
            if not last or not dash or left != last:
                break
            total, last = total + x[:, follow], right
            columns.append(total[:, None])
            labels.append(f"{first}-{right}")
    return np.concatenate(columns, axis=1), tuple(labels)


def fold_of(exclude: Ints, folds: int, seed: int) -> Ints:
    """Fold 0..folds-1 of each label (L,), companions together. `exclude` (L, m): itself and companions, -1 for none."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(exclude)
    rows, columns = np.nonzero(exclude >= 0)
    links = coo_array((np.ones(len(rows)), (rows, exclude[rows, columns])), shape=(n, n))
    count, group = connected_components(links, directed=False)
    deal = np.random.default_rng(seed).permutation(count) % folds
    return np.asarray(deal[group], dtype=np.int64)


@dataclass(frozen=True)
class BoostRedshift:
    """Booster texts, out-of-fold ln(1+z) of the labels (L,), and residual CDFs (M, 2G+1) at predicted values (M,)."""

    texts: tuple[str, ...]
    out_of_fold: Floats
    limits: tuple[float, float]
    edges: Floats
    node: Floats
    residual_cdf: Floats

    @cached_property
    def boosters(self) -> list[Any]:
        """The LightGBM boosters, parsed once."""
        import lightgbm

        return [lightgbm.Booster(model_str=text) for text in self.texts]

    def log1pz(self, features: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None, threads: int = 0) -> Floats:
        """Predicted ln(1+z) of `features` (N, D); `exclude` (N,): the label that a query is, -1 for none."""
        x = np.asarray(features, dtype=np.float64)
        if not np.isfinite(x).all():
            raise BadInput("features hold NaN or infinity: expected finite values")
        threads = threads or default_threads()
        total = np.sum([booster.predict(x, num_threads=threads) for booster in self.boosters], axis=0)
        out = np.clip(total / len(self.boosters), *self.limits)
        if exclude is not None:
            label = np.asarray(exclude, dtype=np.int64)
            out = np.where(label >= 0, self.out_of_fold[label], out)
        return np.asarray(out)

    def predict(self, features: npt.ArrayLike, *, exclude: npt.ArrayLike | None = None, threads: int = 0) -> Pdf:
        """Densities of `features` (N, D); arguments as in `log1pz`."""
        centre = self.log1pz(features, exclude=exclude, threads=threads)
        return Pdf(self.edges, np.concatenate([self._pdf(part) for part in _blocks(centre)]))

    def _pdf(self, centre: Floats) -> Floats:
        step, bins = log_step(self.edges), len(self.edges) - 1
        upper = np.clip(np.searchsorted(self.node, centre), 1, max(len(self.node) - 1, 1))
        upper = np.minimum(upper, len(self.node) - 1)
        lower = np.maximum(upper - 1, 0)
        gap = self.node[upper] - self.node[lower]
        share = np.clip((centre - self.node[lower]) / np.where(gap > 0, gap, 1), 0, 1)[:, None]
        start = (np.log1p(self.edges[0]) - centre) / step + bins  # where the first edge falls among the residual edges
        first = np.clip(np.floor(start).astype(np.int64), 0, bins - 1)
        part = np.clip(start - first, 0, 1)[:, None]
        index = first[:, None] + np.arange(bins + 2)  # (N, G+2)
        index = np.minimum(index, 2 * bins)
        cdf = (1 - share) * self.residual_cdf[lower[:, None], index] + share * self.residual_cdf[upper[:, None], index]
        at_edges = (1 - part) * cdf[:, :-1] + part * cdf[:, 1:]
        return Pdf.from_mass(self.edges, np.maximum(np.diff(at_edges, axis=1), 0)).density


def _blocks(values: Floats) -> list[Floats]:
    return [values[i : i + BLOCK] for i in range(0, max(len(values), 1), BLOCK)]


def _cross_fit(
    x: Floats, y: Floats, weights: Floats | None, fold: Ints, *, linear: bool, seed: int, threads: int
) -> tuple[list[str], Floats]:
    """Booster texts, one a fold, and out-of-fold predictions (L,).

    Folds run side by side with one thread each: the same bytes for any number of threads, and no waiting on barriers.
    """
    import lightgbm

    settings = PARAMETERS | {"seed": seed, "num_threads": 1, "linear_tree": linear}
    if linear:
        settings["linear_lambda"] = 0.01

    def train(number: int) -> tuple[str, Floats]:
        seen = fold != number
        data = lightgbm.Dataset(x[seen], y[seen], weight=None if weights is None else weights[seen], params=settings)
        booster = lightgbm.train(settings, data, ROUNDS)
        return booster.model_to_string(), booster.predict(x[~seen], num_threads=1)

    out = np.empty(len(y))
    with ThreadPoolExecutor(threads) as pool:
        trained = list(pool.map(train, range(FOLDS)))
    for number, (_, predicted) in enumerate(trained):
        out[fold == number] = predicted
    return [text for text, _ in trained], np.clip(out, y.min(), y.max())


def residual_cdfs(predicted: Floats, truth: Floats, weights: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Nodes (M,) of predicted ln(1+z), and at each the CDF (M, 2G+1) of the smoothed weighted residuals near it.

    A node sees a twentieth of the labels, not fewer than 200, nearest in predicted value.
    """
    step, bins = log_step(edges), len(edges) - 1
    window = min(max(len(predicted) // 20, 200), len(predicted))
    node = np.unique(np.quantile(predicted, np.linspace(0, 1, NODES)))
    near = np.argsort(np.abs(predicted[None] - node[:, None]), axis=1, kind="stable")[:, :window]  # (M, window)
    samples, share = (truth - predicted)[near], weights[near] + 1e-6
    share = share / share.sum(axis=1, keepdims=True)
    grid = np.expm1(step * np.arange(-bins, bins + 1))
    pdf = smoothed_pdf(grid, samples, share, bandwidth(samples, share, 0.25 * step))
    return node, pdf.cdf()


def fit_boost(
    features: npt.ArrayLike,
    z: npt.ArrayLike,
    *,
    edges: Floats,
    importance: Floats,
    exclude: Ints,
    shift_weights: bool | None = None,
    seed: int = 0,
    threads: int = 0,
) -> tuple[BoostRedshift, dict[str, Any]]:
    """Fit on labelled `features` (L, D) and redshifts `z` (L,); out-of-fold labels weighted by `importance` choose.

    First constant or linear leaves, by the mean |error| in ln(1+z); then whether shift weights (their root, or whole)
    enter the training, unless `shift_weights` forbids or demands (whole) it. `exclude` (L, m) lists for each label
    itself and its close companions.
    """
    x, y = np.asarray(features, dtype=np.float64), np.log1p(np.asarray(z, dtype=np.float64))
    fold, threads = fold_of(exclude, FOLDS, seed), threads or default_threads()
    weigh = importance if importance.any() else np.ones(len(y))

    def run(linear: bool, power: float) -> tuple[list[str], Floats]:
        weights = (importance + 1e-6) ** power if power else None
        weights = None if weights is None else weights / weights.mean()
        return _cross_fit(x, y, weights, fold, linear=linear, seed=seed, threads=threads)

    plain = {linear: run(linear, 0.0) for linear in (False, True)}
    loss = {linear: np.abs(out - y) for linear, (_, out) in plain.items()}
    linear = weighted_mean(loss[True], weigh) < weighted_mean(loss[False], weigh)
    powers = {None: POWERS, True: (1.0,), False: ()}[shift_weights]
    weighted = {power: run(linear, power) for power in powers}
    losses = {power: np.abs(out - y) for power, (_, out) in weighted.items()}
    helps = [p for p in powers if shift_weights or clearly_better(loss[linear], losses[p], weigh)]
    power = min(helps, key=lambda p: weighted_mean(losses[p], weigh)) if helps else 0.0
    texts, out = weighted[power] if power else plain[linear]
    node, cdf = residual_cdfs(out, y, importance**power if power else np.ones(len(y)), edges)
    report = {
        "linear_leaves": bool(linear),
        "shift_weights": power,
        "loss": {
            "constant leaves": weighted_mean(loss[False], weigh),
            "linear leaves": weighted_mean(loss[True], weigh),
        }
        | {f"weights^{p:g}": weighted_mean(v, weigh) for p, v in losses.items()},
    }
    model = BoostRedshift(tuple(texts), out, (float(y.min()), float(y.max())), edges, node, cdf)
    return model, report

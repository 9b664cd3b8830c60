"""Fitting the adaptive kNN: PITs of the labels, then k, smoothing and recalibration by leave-one-out validation.

Everything is chosen by what unseen labels say, weighted to the target where shift weights are given.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import local_pit, metrics
from redshelf.models.adaptive import AdaptiveKnn, Choice, Floats, Ints, Shape
from redshelf.models.errors import BadInput
from redshelf.models.knn import SMOOTHING, fit_knn

PARABOLA_LABELS = (
    1,
    100,
    400,
)  # least numbers of labels whose PITs make a parabola: 1 leaves it at k, as the paper does
VALIDATION_ROWS = 2000


def fit_adaptive(
    features: npt.ArrayLike,
    z: npt.ArrayLike,
    *,
    edges: Floats,
    importance: Floats | None = None,
    exclude: Ints | None = None,
    shape: Shape | None = None,
    choice: Choice | None = None,
    shift_weights: bool | None = None,
    share: float = local_pit.SHARE,
    self_match: bool = False,
    seed: int = 0,
) -> tuple[AdaptiveKnn, dict[str, Any]]:
    """Fit on labelled `features` (L, D <= 64) and redshifts `z` (L,); the CDE loss of unseen labels chooses.

    `importance` (L,): shift weights; `exclude` (L, m): each label's own row and its companions (`knn.companions`).
    `shape`, `choice` and `shift_weights` (whether densities carry the weights) are chosen by leave-one-out validation
    weighted by `importance` unless given. `share`: the part of the labels that one density may take at most.
    `self_match`: PITs as the reference has them, every label and its companions among its own neighbours.

    The report compares the choices of k, `loss` by "shape choice", with the plain kNN of `fit_knn` beside them.
    Raises `BadInput` for shapes that do not fit, NaN, negative weights or too few labels.
    """
    bank = np.ascontiguousarray(features, dtype=np.float32)
    truth = np.asarray(z, dtype=np.float64)
    n = len(bank)
    weigh = np.ones(n) if importance is None or not np.any(importance) else np.asarray(importance, dtype=np.float64)
    hidden = np.arange(n)[:, None] if exclude is None else np.asarray(exclude, dtype=np.int64)
    _check(bank, truth, weigh, hidden)
    weigh = weigh / weigh.mean()
    sizes = local_pit.size_grid(n, hidden=hidden.shape[1], share=share)
    plain, plain_report = fit_knn(
        bank, truth, edges=edges, importance=weigh, exclude=hidden, shift_weights=shift_weights, seed=seed
    )
    start = AdaptiveKnn(
        bank=bank,
        log1pz=np.log1p(truth),
        weights=plain.weights,
        importance=weigh,
        edges=edges,
        sizes=sizes,
        bins=np.zeros((len(sizes), n), dtype=np.uint8),
        pit=np.full(n, 0.5),
        shape="clap",
        choice="pit",
        k=int(sizes[0]),
        plane=min(plain.k, int(n - hidden.shape[1])) if plain.local_linear else 0,
        smoothing=1.0,
        floor=plain.floor,
        least=1,
        recalibrates=False,
    )
    rows = np.sort(np.random.default_rng(seed).permutation(n)[:VALIDATION_ROWS])
    at = weigh[rows] if weigh[rows].any() else np.ones(len(rows))
    models: dict[str, AdaptiveKnn] = {}
    losses: dict[str, Floats] = {}
    report: dict[str, Any] = {"sizes": [int(sizes[0]), int(sizes[-1]), len(sizes)], "smoothing": {}, "k": {}}
    for kind in ("clap", "local") if shape is None else (shape,):
        model = _with_bins(replace(start, shape=kind), hidden, self_match)
        for name in ("pit", "cde") if choice is None else (choice,):
            key = f"{kind} {name}"
            models[key], losses[key], report["k"][key] = _tuned(replace(model, choice=name), truth, rows, at, hidden)
            report["smoothing"][key] = models[key].smoothing
    # the plainly better one, unless another is clearly better where the target lies
    first = min(losses, key=lambda key: float(losses[key].mean()))
    best = min(losses, key=lambda key: metrics.weighted_mean(losses[key], at))
    chosen = best if metrics.clearly_better(losses[first], losses[best], at) else first
    plain_loss = metrics.cde_losses(plain.predict(bank[rows], exclude=hidden[rows]).pdf, truth[rows])
    model, recalibration = _recalibration(models[chosen], truth, rows, at, hidden)
    report |= {
        "chosen": chosen,
        "loss": {key: metrics.weighted_mean(value, at) for key, value in losses.items()},
        "loss_unweighted": {key: float(value.mean()) for key, value in losses.items()},
        "plain": {"k": plain.k, "local_linear": plain.local_linear, "loss": metrics.weighted_mean(plain_loss, at)},
        "better_than_plain": metrics.clearly_better(plain_loss, losses[chosen], at),
        "shift_weights": plain_report["shift_weights"],
        "effective_sample_size": metrics.effective_sample_size(weigh),
        "recalibration": recalibration,
        "recalibrates": model.recalibrates,
        "least": model.least,
    }
    return model, report


def _check(bank: npt.NDArray[np.float32], z: Floats, importance: Floats, hidden: Ints) -> None:
    if bank.ndim != 2 or z.shape != (len(bank),):
        raise BadInput(f"features of shape {bank.shape}, redshifts {z.shape}: expected (L, D) and (L,)")
    if not np.isfinite(bank).all():
        raise BadInput("features hold NaN or infinity: expected finite values")
    if not (np.isfinite(z) & (z > -1)).all():
        raise BadInput("labelled redshifts hold NaN or values of -1 and below: expected finite ones above -1")
    if importance.shape != z.shape or not (np.isfinite(importance) & (importance >= 0)).all():
        raise BadInput(f"importance of shape {importance.shape}: expected {len(z)} finite weights of 0 or more")
    if hidden.ndim != 2 or len(hidden) != len(bank) or not (hidden == np.arange(len(bank))[:, None]).any(axis=1).all():
        raise BadInput(f"exclude of shape {hidden.shape}: expected ({len(bank)}, m), each label's own row in its own")


def _with_bins(model: AdaptiveKnn, hidden: Ints, self_match: bool) -> AdaptiveKnn:
    """The model with the PIT(k) of every label."""
    bins = np.empty((len(model.sizes), len(model.bank)), dtype=np.uint8)
    width = max(int(model.sizes[-1]), model.plane)
    for part in model.parts(len(model.bank), width):
        near = model.near(model.bank[part], None if self_match else hidden[part], width)
        bins[:, part] = local_pit.pit_bins(model.pits(near, model.log1pz[part], self_match=self_match)).T
    return replace(model, bins=bins)


def _tuned(
    model: AdaptiveKnn, z: Floats, rows: Ints, at: Floats, hidden: Ints
) -> tuple[AdaptiveKnn, Floats, dict[str, float]]:
    """The model with the smoothing, and for "cde" the k, of the least weighted loss; its losses; loss by k or its use.

    One k for all is looked for on every fourth value of the grid.
    """
    tried = model.sizes if len(model.sizes) < 8 else model.sizes[3::4]
    options = [(int(k), s) for k in tried for s in SMOOTHING] if model.choice == "cde" else [(0, s) for s in SMOOTHING]
    losses = {option: np.empty(len(rows)) for option in options}
    chosen = np.empty(len(rows), dtype=np.int64)
    width = max(int(model.sizes[-1]), model.plane)
    for part in model.parts(len(rows), width):
        near = model.near(model.bank[rows[part]], hidden[rows[part]], width)
        if model.choice == "pit":
            chosen[part], _ = model.choose_k(near)
        for k, smoothing in options:
            sizes = np.full(len(near.rows), k) if k else chosen[part]
            pdf, _ = replace(model, smoothing=smoothing).densities(near, sizes)
            losses[k, smoothing][part] = metrics.cde_losses(pdf, z[rows[part]])
    k, smoothing = min(options, key=lambda option: metrics.weighted_mean(losses[option], at))
    if model.choice == "pit":
        said = {f"q{100 * q:.0f}": float(np.quantile(chosen, q)) for q in (0.05, 0.5, 0.95)}
        return replace(model, smoothing=smoothing), losses[k, smoothing], said
    said = {str(k): min(metrics.weighted_mean(losses[k, s], at) for s in SMOOTHING) for k in (int(t) for t in tried)}
    return replace(model, k=k, smoothing=smoothing), losses[k, smoothing], said | {"chosen": float(k)}


def _recalibration(
    model: AdaptiveKnn, z: Floats, rows: Ints, at: Floats, hidden: Ints
) -> tuple[AdaptiveKnn, dict[str, Any]]:
    """The model with the PITs of its own answers, and the recalibration that unseen labels ask for.

    The reference fits the parabola to PIT(k) of the histograms; here to the PITs of the smoothed densities that are
    given, each label without itself: what is corrected is what is answered. The least weighted KS distance wins among
    those whose CDE loss is not clearly worse.
    """
    bank, pit, start = model.bank, np.empty(len(z)), 0
    for part in model.blocks(bank, exclude=hidden, recalibrate=False):
        pit[start : start + len(part.k)] = part.pdf.pit(z[start : start + len(part.k)])
        start += len(part.k)
    model = replace(model, pit=pit)
    options = (0, *(m for m in PARABOLA_LABELS if m <= max((len(z) - hidden.shape[1]) // 2, 1)))  # 0: none
    scores: dict[str, Any] = {}
    losses: dict[int, Floats] = {}
    distance: dict[int, float] = {}
    for least in options:
        answer = replace(model, least=max(least, 1)).predict(bank[rows], exclude=hidden[rows], recalibrate=least > 0)
        losses[least] = metrics.cde_losses(answer.pdf, z[rows])
        distance[least] = metrics.pit_ks(answer.pdf.pit(z[rows]), at)
        scores[str(least)] = {"loss": metrics.weighted_mean(losses[least], at), "pit_ks": distance[least]}
    allowed = [m for m in options if not metrics.clearly_better(losses[m], losses[0], at)]
    best = min(allowed, key=distance.__getitem__)
    least = min(allowed[1:] or options[1:], key=distance.__getitem__)
    return replace(model, least=least, recalibrates=best > 0), scores

"""From labelled features to a `RedshiftModel`: everything is chosen on the labels, the target gives its features only.

Where the target is as bright as the labels, leave-one-out and out-of-fold answers weighted to the target choose and
calibrate. Where it is fainter than they are, no weight can tell how far an answer holds: the fit is rehearsed, the
bright half of the labels answering for the faint half, with and without the magnitude among the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.boost import fit_boost
from redshelf.models.errors import BadInput
from redshelf.models.frame import Frame, checked, fit_frame, is_magnitude
from redshelf.models.knn import KnnRedshift, companions, fit_knn
from redshelf.models.network import fit_network
from redshelf.models.pdf import default_edges
from redshelf.models.ratio_choice import DEFAULT, METHODS, choose_weights
from redshelf.models.redshift import RedshiftModel
from redshelf.models.shift import ShiftMethod, ShiftWeights
from redshelf.models.support import choose_space, fit_support
from redshelf.models.validate import MEMBERS, Blend, Validated, disagreement, validate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MIN_LABELS = 50
WEIGHT_DIM = 16  # neighbour ratios are noise in more dimensions
# The kernels are no better and take ten times as long (benchmarks/shift.py).
CANDIDATES = {name: METHODS[name] for name in (DEFAULT, "none", "classifier", "strata")}
EMBEDDING_SCALES = (0.25, 0.5, 1.0)
VALIDATION_ROWS = 20_000
REFERENCE = 4000  # labels, and as many targets, that tell the density ratio of a query
FAINTEST, MOST_BEYOND = 5, 0.1  # targets fainter than all but 5 labels: more than a tenth of them is beyond the labels
REHEARSAL_LABELS = 400


@dataclass(frozen=True)
class Known:
    """L labels and M targets: features (L, D) and (M, D), redshifts (L,), companions (L, m), magnitudes (L,) and (M,),
    and what the labels were selected on, (L, P) and (M, P), where that is not among the features."""

    x: Floats
    z: Floats
    hidden: Ints
    target: Floats
    magnitudes: tuple[Floats, Floats] | None
    observables: tuple[Floats, Floats] | None

    @property
    def reaches_beyond(self) -> bool:
        """Whether more than a tenth of the targets is fainter than the labels, and these are enough to rehearse on."""
        if self.magnitudes is None or len(self.x) < REHEARSAL_LABELS:
            return False
        labelled, wanted = self.magnitudes
        return bool((wanted > np.sort(labelled)[-FAINTEST]).mean() > MOST_BEYOND)


def fit_redshift(
    features: npt.ArrayLike,
    z: npt.ArrayLike,
    target_features: npt.ArrayLike,
    *,
    names: tuple[str, ...],
    observables: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    magnitudes: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    sky: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    z_max: float | None = None,
    shift_weights: bool | None = None,
    seed: int = 0,
    threads: int = 0,
) -> RedshiftModel:
    """Fit on labelled `features` (L, D) and redshifts `z` (L,) for the population of `target_features` (M, D).

    `names` (D,): colours "u-g", magnitude "i", "observed_g", embedding "e0"...; these are what `predict` wants.
    `observables`: what the labels were selected on (magnitude, colours), (L, P) and (M, P), for the shift weights;
    by default the photometric features, else the leading 16 components of the embedding. `magnitudes` (L,) and (M,):
    by default the magnitude among the features; without one nothing is rehearsed, and the support space not chosen.
    `sky`: ra and dec of the labels [deg]; labels within 2 arcsec never answer for one another. `z_max`: end of the
    grid, by default 0.15 in ln(1+z) past the last label. `shift_weights` forbids or demands weights; None lets
    validation decide, and forbids them where there is no shift and where the target is fainter than the labels.

    Redshifts from -0.01 to 0 become 0 (counted in the report); below or above 20 is `BadInput`, as are fewer than
    50 labels, labels at one redshift, NaN.
    """
    names = tuple(names)
    x, target = checked(features, names), checked(target_features, names)
    truth, clipped = checked_redshifts(z, len(x))
    if len(target) == 0:
        raise BadInput("target_features is empty: expected a sample of the sources to be answered for")
    hidden = np.arange(len(x))[:, None] if sky is None else companions(*sky)
    if len(hidden) != len(x):
        raise BadInput(f"sky has {len(hidden)} positions: expected {len(x)}, one a label")
    if z_max is not None and z_max < truth.max():
        raise BadInput(f"z_max={z_max}: expected at least the largest labelled redshift, {truth.max()}")
    edges = default_edges(min(np.expm1(np.log1p(truth.max()) + 0.15), 20.0) if z_max is None else z_max)
    column = [i for i, name in enumerate(names) if is_magnitude(name)][:1]
    if magnitudes is None and column:
        magnitudes = x[:, column[0]], target[:, column[0]]
    sizes = len(x), len(target)
    seen, brightness = _both("observables", observables, sizes, 2), _both("magnitudes", magnitudes, sizes, 1)
    known = Known(x, truth, hidden, target, brightness, seen)
    options: dict[str, Any] = {"edges": edges, "shift_weights": shift_weights, "seed": seed, "threads": threads}
    left_out: tuple[str, ...] = ()
    rehearsed: Validated | None = None
    rehearsal: dict[str, Any] = {}
    if known.reaches_beyond:
        if shift_weights is None:  # the few labels near such a target cannot tell whether weights help
            options["shift_weights"] = False
        choices: list[tuple[str, ...]] = [(), (names[column[0]],)] if column and len(names) > 1 else [()]
        tried = {without: _rehearsed(known, names, without, options) for without in choices}
        left_out = min(tried, key=lambda without: tried[without].scores[tried[without].default]["crps"])
        rehearsed = tried[left_out]
        rehearsal = {", ".join(without) or "nothing": found.scores for without, found in tried.items()}
    frame = replace(fit_frame(x, target, names), left_out=left_out)
    model, report = _fitted(known, frame, options)
    found = rehearsed or _validated(model, known, seed, threads)
    if rehearsed:  # the faint labels that calibrate stand for the target as they are
        model = replace(model, shift=replace(model.shift, reference_weights=np.ones(len(model.shift.reference))))
    default: Any = found.default
    shift = model.shift
    report |= {
        "n_labels": len(x),
        "n_target": len(target),
        "n_redshifts_set_to_zero": clipped,
        "mean_z_labels": float(truth.mean()),
        "left_out": list(left_out),
        "rehearsal": rehearsal,
        "shift": report["shift"]
        | {
            "method": shift.method,
            "effective_sample_size": shift.effective_sample_size,
            "mean_weight": shift.mean_weight,
            "weighted_mean_z": metrics.weighted_mean(truth, shift.weights if shift.weights.any() else None),
            "warnings": shift.warnings(),
        },
        "blend": dict(zip(MEMBERS, found.blend.shares.tolist(), strict=True)),
        "validation": found.scores,
        "default_estimator": default,
    }
    return replace(model, blend=found.blend, calibrations=found.calibrations, default_estimator=default, report=report)


def _fitted(
    known: Known, frame: Frame, options: dict[str, Any], methods: Mapping[str, ShiftMethod] = CANDIDATES
) -> tuple[RedshiftModel, dict[str, Any]]:
    """Estimators, shift weights and support; without blend and calibration.

    `methods` of shift weights are tried beside the neighbour ratio; without any, that is taken.
    """
    x, z, seed, seen = known.x, known.z, options["seed"], _observables(frame, known)
    shift = METHODS[DEFAULT](*seen, seed=seed)
    shift_report: dict[str, Any] = {"chosen": DEFAULT, "first": DEFAULT, "candidates": {}}
    if methods and not shift.is_null:  # without a shift, the best of several is better by chance alone
        shift, shift_report = choose_weights(methods, *seen, redshifts=z, seed=seed)
    options = {**options, "importance": shift.weights, "exclude": known.hidden}
    if options["shift_weights"] is None and shift.is_null:
        options["shift_weights"] = False
    knn, knn_report, frame = fit_neighbours(frame, x, z, {k: v for k, v in options.items() if k != "threads"})
    boost, boost_report = fit_boost(frame.trees(x), z, **options)
    network, network_report = fit_network(frame.transform(x), z, **options)
    spaces = frame.spaces(x)
    if known.magnitudes is None:
        space = next(iter(spaces))
        support_report: dict[str, Any] = {"space": space, "chosen": False, "scores": {}}
    else:
        space, support_report = choose_space(spaces, knn.bank, z, known.magnitudes[0])
    model = RedshiftModel(
        frame,
        knn,
        boost,
        network,
        Blend(np.array([1.0, 0.0, 0.0])),
        fit_support(spaces[space], z, targets=frame.spaces(known.target)[space], exclude=known.hidden, seed=seed),
        space,
        _told_in_features(shift, frame, known, seen[1], seed),
        {},
        known.hidden,
        "knn",
        {},
    )
    report = {"shift": {"choice": shift_report}, "support": support_report}
    return model, report | {"knn": knn_report, "lightgbm": boost_report, "network": network_report}


def _validated(model: RedshiftModel, known: Known, seed: int, threads: int) -> Validated:
    """Answers for labels that were not seen, weighted to the target."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(known.x))[:VALIDATION_ROWS])
    return _judged(model, known.x[rows], rows, known.z[rows], model.shift.weights[rows], seed, threads)


def _rehearsed(known: Known, names: tuple[str, ...], without: tuple[str, ...], options: dict[str, Any]) -> Validated:
    """The bright half of the labels answers for the faint half, which stands for the target."""
    assert known.magnitudes is not None
    order = np.argsort(known.magnitudes[0], kind="stable")
    bright, faint = np.split(order, [len(order) // 2])
    faint = faint[~np.isin(known.hidden[faint], bright).any(axis=1)]  # nobody's companion answers for him
    x, target = known.x[bright], known.x[faint]
    place = np.full(len(order) + 1, -1)  # the last one: nobody
    place[bright] = np.arange(len(bright))
    hidden = place[known.hidden[bright]]

    def halves(of_labels: Floats) -> tuple[Floats, Floats]:
        return of_labels[bright], of_labels[faint]

    seen = None if known.observables is None else halves(known.observables[0])
    half = Known(x, known.z[bright], hidden, target, halves(known.magnitudes[0]), seen)
    frame = replace(fit_frame(x, target, names), left_out=without)
    model, _ = _fitted(half, frame, {**options, "shift_weights": False}, methods={})
    nobody, seed = np.full(len(faint), -1), options["seed"]
    return _judged(model, target, nobody, known.z[faint], np.ones(len(faint)), seed, options["threads"])


def _judged(
    model: RedshiftModel, x: Floats, label: Ints, z: Floats, weights: Floats, seed: int, threads: int
) -> Validated:
    members, near, hidden = model.members(x, label, frozenset(MEMBERS), threads)
    support = model.support.answer(
        model.frame.spaces(x)[model.support_space],
        members["knn"],
        near.neighbour_weights,
        disagreement=disagreement(members),
        mass_at_infinity=np.zeros(len(x)),
        exclude=hidden,
    )
    return validate(members, z, weights, support.in_support, seed=seed)


def checked_redshifts(z: npt.ArrayLike, n: int) -> tuple[Floats, int]:
    """Labelled redshifts (n,) with -0.01..0 set to 0, and how many were; `BadInput` for what cannot be fitted on."""
    out = np.asarray(z, dtype=np.float64)
    if out.shape != (n,):
        raise BadInput(f"z has shape {out.shape}: expected ({n},), one a labelled source")
    if n < MIN_LABELS:
        raise BadInput(f"{n} labelled sources: expected at least {MIN_LABELS} to fit and validate on")
    bad = ~((out >= -0.01) & (out <= 20))
    if bad.any():
        raise BadInput(
            f"{bad.sum()} labelled redshifts such as {out[bad][0]}: expected 0 to 20 (-0.01 to 0 is read as 0)"
        )
    if np.ptp(out) == 0:
        raise BadInput(f"all {n} labelled redshifts are {out[0]}: expected different ones")
    return np.maximum(out, 0), int((out < 0).sum())


def _both(
    name: str, given: tuple[npt.ArrayLike, npt.ArrayLike] | None, sizes: tuple[int, int], dimensions: int
) -> tuple[Floats, Floats] | None:
    """What is given of labels and targets as arrays; `BadInput` for other lengths or dimensions, NaN."""
    if given is None:
        return None
    labelled, wanted = (np.asarray(part, dtype=np.float64) for part in given)
    for part, size in zip((labelled, wanted), sizes, strict=True):
        if part.ndim != dimensions or len(part) != size or not np.isfinite(part).all():
            expected = " and ".join(f"({n}{', P' * (dimensions - 1)})" for n in sizes)
            raise BadInput(f"{name} of shapes {labelled.shape}, {wanted.shape}: expected finite ones, {expected}")
    return labelled, wanted


def _observables(frame: Frame, known: Known) -> tuple[Floats, Floats]:
    """What the shift is measured in, of labels (L, P) and targets (M, P)."""
    if known.observables is not None:
        labelled, wanted = known.observables
        scale = labelled.std(axis=0)
        scale = np.where(scale > 0, scale, 1)
        return labelled / scale, wanted / scale
    (photometry, embedding), (wanted_photometry, wanted_embedding) = frame.parts(known.x), frame.parts(known.target)
    if photometry.shape[1]:
        return photometry, wanted_photometry
    return embedding[:, :WEIGHT_DIM], wanted_embedding[:, :WEIGHT_DIM]


def _told_in_features(shift: ShiftWeights, frame: Frame, known: Known, wanted: Floats, seed: int) -> ShiftWeights:
    """The same weights with their reference points in the neighbour space: a query's observables may not be known."""
    rng = np.random.default_rng(seed)
    labels, targets = (np.sort(rng.permutation(len(part))[:REFERENCE]) for part in (known.x, known.target))
    points = frame.transform(np.concatenate([known.x[labels], known.target[targets]]))
    ratio = np.concatenate([shift.weights[labels], shift.at(wanted[targets])])
    return replace(
        shift,
        reference=points,
        reference_weights=ratio,
        centre=np.zeros(points.shape[1]),
        components=np.zeros((points.shape[1], 0)),
    )


def fit_neighbours(
    frame: Frame, x: Floats, z: Floats, options: dict[str, Any]
) -> tuple[KnnRedshift, dict[str, Any], Frame]:
    """Neighbours with the embedding's scale against photometry chosen by the same validation, where there are both."""
    both = frame.is_embedding.any() and not frame.is_embedding.all()
    best: tuple[KnnRedshift, dict[str, Any], Frame] | None = None
    for scale in EMBEDDING_SCALES if both else (1.0,):
        trial = replace(frame, embedding_scale=scale)
        knn, report = fit_knn(trial.transform(x), z, **options)
        report["embedding_scale"] = scale
        if best is None or min(report["loss"].values()) < min(best[1]["loss"].values()):
            best = knn, report, trial
    assert best is not None
    return best

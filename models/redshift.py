"""One fitted redshift model: features to a common space, shift weights, support, and four estimators with calibration.

Labels answer for a target that they do not represent (covariate shift). Everything is chosen on the labels, by
leave-one-out or out-of-fold validation weighted to the target; the target gives its features only. Arrays in and out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.boost import BoostRedshift, fit_boost
from redshelf.models.calibrate import Calibration
from redshelf.models.errors import BadInput, NotFound, nearest
from redshelf.models.frame import Frame, checked, fit_frame, is_magnitude
from redshelf.models.knn import KnnRedshift, companions, fit_knn
from redshelf.models.network import NetworkRedshift, fit_network
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.shift import ShiftWeights, neighbour_weights
from redshelf.models.stored_parts import from_parts, to_parts
from redshelf.models.support import Support, SupportAnswer, choose_space, fit_support
from redshelf.models.validate import MEMBERS, Blend, Validated, disagreement, validate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Estimator = Literal["knn", "lightgbm", "network", "blend"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
MIN_LABELS = 50
WEIGHT_DIM = 16  # neighbour ratios are noise in more dimensions
EMBEDDING_SCALES = (0.25, 0.5, 1.0)
VALIDATION_ROWS = 10_000
REFERENCE = 4000  # labels, and as many targets, that tell the density ratio of a query
BLOCK = 8192


@dataclass(frozen=True)
class Prediction:
    """Answers for N sources: densities, `point` (N,) their median, support, and the labelled neighbours (N, k).

    `ratio` (N,) is the density of the target over that of the labels there.
    """

    estimator: Estimator
    pdf: Pdf
    point: Floats
    support: SupportAnswer
    ratio: Floats
    neighbours: Ints
    neighbour_weights: Floats


@dataclass(frozen=True)
class RedshiftModel:
    """All that was fitted on L labels for one set of features. `report` says what was chosen, and on what evidence."""

    frame: Frame
    knn: KnnRedshift
    boost: BoostRedshift
    network: NetworkRedshift
    blend: Blend
    support: Support
    support_space: str
    shift: ShiftWeights
    calibrations: Mapping[str, Calibration]
    companions: Ints  # (L, m)
    default_estimator: Estimator
    report: dict[str, Any]

    @classmethod
    def fit(
        cls,
        features: npt.ArrayLike,
        z: npt.ArrayLike,
        target_features: npt.ArrayLike,
        *,
        names: tuple[str, ...],
        observables: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        holdout_magnitude: npt.ArrayLike | None = None,
        sky: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
        z_max: float | None = None,
        shift_weights: bool | None = None,
        seed: int = 0,
        threads: int = 0,
    ) -> Self:
        """Fit on labelled `features` (L, D) and redshifts `z` (L,) for the population of `target_features` (M, D).

        `names` (D,): colours "u-g", magnitude "i", "observed_g", embedding "e0"...; these are what `predict` wants.
        `observables`: what the labels were selected on (magnitude, colours), (L, P) and (M, P), for the shift weights;
        by default the photometric features, else the leading 16 components of the embedding. `holdout_magnitude` (L,):
        by default the magnitude among the features; without one the support space is not chosen. `sky`: ra and dec of
        the labels [deg]; labels within 2 arcsec never answer for one another. `z_max`: end of the grid, by default 0.15
        in ln(1+z) past the last label. `shift_weights` forbids or demands weights; None lets validation decide, and
        forbids them where there is no shift.

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
        frame = fit_frame(x, target, names)
        seen = _observables(frame, x, target, observables)
        shift = neighbour_weights(*seen)
        if shift_weights is None and shift.is_null:
            shift_weights = False
        knn, knn_report, frame = _fit_neighbours(frame, x, truth, edges, shift.weights, hidden, shift_weights, seed)
        options: dict[str, Any] = {
            "edges": edges,
            "importance": shift.weights,
            "exclude": hidden,
            "shift_weights": shift_weights,
            "seed": seed,
            "threads": threads,
        }
        boost, boost_report = fit_boost(frame.trees(x), truth, **options)
        network, network_report = fit_network(frame.transform(x), truth, **options)
        spaces = frame.spaces(x)
        magnitude = _magnitude(x, frame.names, holdout_magnitude)
        if magnitude is None:
            space = next(iter(spaces))
            support_report: dict[str, Any] = {"space": space, "chosen": False, "scores": {}}
        else:
            space, support_report = choose_space(spaces, knn.bank, truth, magnitude)
        support = fit_support(spaces[space], truth, exclude=hidden)
        shift = _told_in_features(shift, frame, x, target, seen, seed)
        blend = Blend(np.array([1.0, 0.0, 0.0]))
        model = cls(frame, knn, boost, network, blend, support, space, shift, {}, hidden, "knn", {})
        found = model._validated(x, truth, seed, threads)
        weighted_z = metrics.weighted_mean(truth, shift.weights if shift.weights.any() else None)
        report = {
            "n_labels": len(x),
            "n_target": len(target),
            "n_redshifts_set_to_zero": clipped,
            "mean_z_labels": float(truth.mean()),
            "shift": {
                "method": shift.method,
                "effective_sample_size": shift.effective_sample_size,
                "mean_weight": shift.mean_weight,
                "weighted_mean_z": weighted_z,
                "warnings": shift.warnings(),
            },
            "support": support_report,
            "knn": knn_report,
            "lightgbm": boost_report,
            "network": network_report,
            "blend": dict(zip(MEMBERS, found.blend.shares.tolist(), strict=True)),
            "validation": found.scores,
            "default_estimator": found.default,
        }
        default: Any = found.default
        return replace(
            model, blend=found.blend, calibrations=found.calibrations, default_estimator=default, report=report
        )

    def predict(
        self,
        features: npt.ArrayLike,
        *,
        estimator: str | None = None,
        exclude: npt.ArrayLike | None = None,
        threads: int = 0,
    ) -> Prediction:
        """Answers for `features` (N, D), in the columns of the fit; `estimator` None takes the default.

        `exclude` (N,): the label (row of the fit) that a query is, -1 for none: a labelled source is answered without
        itself and its companions. Memory is N times the grid (about 4 kB a source): ask for millions in parts.
        """
        chosen = self.default_estimator if estimator is None else estimator
        if chosen not in ESTIMATORS:
            raise NotFound(f"estimator {chosen!r}: {nearest(chosen, ESTIMATORS)}")
        x = checked(features, self.frame.names)
        label = np.full(len(x), -1) if exclude is None else np.asarray(exclude, dtype=np.int64)
        if label.shape != (len(x),) or (len(x) and not -1 <= label.min() <= label.max() < len(self.companions)):
            raise BadInput(f"exclude of shape {label.shape}: expected ({len(x)},), -1 to {len(self.companions) - 1}")
        if len(x) == 0:
            raise BadInput("predict: no sources were given, expected at least one")
        starts = range(0, len(x), BLOCK)
        parts = [self._predict(x[i : i + BLOCK], label[i : i + BLOCK], chosen, threads) for i in starts]
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _members(self, x: Floats, label: Ints, wanted: frozenset[str], threads: int) -> tuple[dict[str, Pdf], Any, Any]:
        """Raw densities of kNN, the network and, where wanted, LightGBM; what kNN said; and what hides labels."""
        # A query without a label hides nothing, and then no neighbour beyond k is searched.
        hidden = np.where(label[:, None] >= 0, self.companions[label], -1) if (label >= 0).any() else None
        space = self.frame.transform(x)
        near = self.knn.predict(space, exclude=hidden)
        out = {"knn": near.pdf}
        if "lightgbm" in wanted:
            out["lightgbm"] = self.boost.predict(self.frame.trees(x), exclude=label, threads=threads)
        out["network"] = self.network.predict(space, exclude=label)
        return out, near, hidden

    def _predict(self, x: Floats, label: Ints, estimator: str, threads: int) -> Prediction:
        wanted = frozenset(self.blend.members) if estimator == "blend" else frozenset({estimator})
        members, near, hidden = self._members(x, label, wanted, threads)
        pdf = self.blend.of(members) if estimator == "blend" else members[estimator]
        calibration = self.calibrations[estimator]
        pdf = calibration.recalibrated(pdf)
        ratio = self.shift.at(self.frame.transform(x))
        ratio = np.where(label >= 0, self.shift.weights[label], ratio)
        support = self.support.answer(
            self.frame.spaces(x)[self.support_space],
            pdf,
            near.neighbour_weights,
            disagreement=disagreement(members),
            mass_at_infinity=calibration.mass_at_infinity(ratio),
            exclude=hidden,
        )
        name: Any = estimator
        return Prediction(name, pdf, pdf.median(), support, ratio, near.neighbours, near.neighbour_weights)

    def interval(self, prediction: Prediction, level: float) -> tuple[Floats, Floats]:
        """Ends (N,) of weighted conformal intervals; -inf and inf where the labels cannot promise `level`."""
        return self.calibrations[prediction.estimator].interval(prediction.pdf, prediction.ratio, level)

    def _validated(self, x: Floats, z: Floats, seed: int, threads: int) -> Validated:
        rows = np.sort(np.random.default_rng(seed).permutation(len(x))[:VALIDATION_ROWS])
        members, near, hidden = self._members(x[rows], rows, frozenset(MEMBERS), threads)
        support = self.support.answer(
            self.frame.spaces(x[rows])[self.support_space],
            members["knn"],
            near.neighbour_weights,
            disagreement=disagreement(members),
            mass_at_infinity=np.zeros(len(rows)),
            exclude=hidden,
        )
        return validate(members, z[rows], self.shift.weights[rows], support.in_support, seed=seed)

    def to_arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays (for an .npz without pickle) and a JSON document that `from_arrays` takes back."""
        arrays, config = to_parts({part: getattr(self, part) for part in PARTS} | _calibration_parts(self.calibrations))
        arrays["companions"] = self.companions
        config["support_space"], config["default_estimator"] = self.support_space, self.default_estimator
        config["report"] = self.report
        return arrays, json.loads(json.dumps(config, allow_nan=False))

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any]) -> Self:
        """The model that `to_arrays` wrote; `BadInput` naming what is missing."""
        kinds = PARTS | _calibration_parts(dict.fromkeys(ESTIMATORS, Calibration))
        parts = from_parts(kinds, arrays, config)
        return cls(
            **{part: parts[part] for part in PARTS},
            calibrations={name: parts[f"calibration-{name}"] for name in ESTIMATORS},
            support_space=config["support_space"],
            companions=arrays["companions"],
            default_estimator=config["default_estimator"],
            report=config["report"],
        )


PARTS: dict[str, Any] = {
    "frame": Frame,
    "knn": KnnRedshift,
    "boost": BoostRedshift,
    "network": NetworkRedshift,
    "blend": Blend,
    "support": Support,
    "shift": ShiftWeights,
}


def _calibration_parts(calibrations: Mapping[str, Any]) -> dict[str, Any]:
    return {f"calibration-{name}": value for name, value in calibrations.items()}


def _joined(parts: list[Prediction]) -> Prediction:
    def stack(pick: Callable[[Prediction], npt.NDArray[Any]]) -> Any:
        return np.concatenate([pick(part) for part in parts])

    return Prediction(
        estimator=parts[0].estimator,
        pdf=Pdf(parts[0].pdf.edges, stack(lambda p: p.pdf.density)),
        point=stack(lambda p: p.point),
        support=SupportAnswer(
            **{f.name: stack(lambda p, name=f.name: getattr(p.support, name)) for f in fields(SupportAnswer)}  # type: ignore[misc]
        ),
        ratio=stack(lambda p: p.ratio),
        neighbours=stack(lambda p: p.neighbours),
        neighbour_weights=stack(lambda p: p.neighbour_weights),
    )


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


def _magnitude(x: Floats, names: tuple[str, ...], given: npt.ArrayLike | None) -> Floats | None:
    if given is not None:
        out = np.asarray(given, dtype=np.float64)
        if out.shape != (len(x),) or not np.isfinite(out).all():
            raise BadInput(f"holdout_magnitude of shape {out.shape}: expected {len(x)} finite values")
        return out
    found = [i for i, name in enumerate(names) if is_magnitude(name)]
    return x[:, found[0]] if found else None


def _observables(
    frame: Frame, x: Floats, target: Floats, given: tuple[npt.ArrayLike, npt.ArrayLike] | None
) -> tuple[Floats, Floats]:
    """What the shift is measured in, of labels (L, P) and targets (M, P)."""
    if given is not None:
        labelled, wanted = (np.asarray(part, dtype=np.float64) for part in given)
        if labelled.ndim != 2 or len(labelled) != len(x) or wanted.ndim != 2 or len(wanted) != len(target):
            raise BadInput(f"observables {labelled.shape}, {wanted.shape}: expected ({len(x)}, P), ({len(target)}, P)")
        scale = labelled.std(axis=0)
        scale = np.where(scale > 0, scale, 1)
        return labelled / scale, wanted / scale
    (photometry, embedding), (wanted_photometry, wanted_embedding) = frame.parts(x), frame.parts(target)
    if photometry.shape[1]:
        return photometry, wanted_photometry
    return embedding[:, :WEIGHT_DIM], wanted_embedding[:, :WEIGHT_DIM]


def _told_in_features(
    shift: ShiftWeights, frame: Frame, x: Floats, target: Floats, seen: tuple[Floats, Floats], seed: int
) -> ShiftWeights:
    """The same weights with their reference points in the neighbour space: a query's observables may not be known."""
    rng = np.random.default_rng(seed)
    labels, targets = (np.sort(rng.permutation(len(part))[:REFERENCE]) for part in (x, target))
    points = frame.transform(np.concatenate([x[labels], target[targets]]))
    ratio = np.concatenate([shift.weights[labels], shift.at(seen[1][targets])])
    return replace(
        shift,
        reference=points,
        reference_weights=ratio,
        centre=np.zeros(points.shape[1]),
        components=np.zeros((points.shape[1], 0)),
    )


def _fit_neighbours(
    frame: Frame, x: Floats, z: Floats, edges: Floats, importance: Floats, hidden: Ints, force: bool | None, seed: int
) -> tuple[KnnRedshift, dict[str, Any], Frame]:
    """Neighbours with the embedding's scale against photometry chosen by the same validation, where there are both."""
    both = frame.is_embedding.any() and not frame.is_embedding.all()
    best: tuple[KnnRedshift, dict[str, Any], Frame] | None = None
    for scale in EMBEDDING_SCALES if both else (1.0,):
        trial = replace(frame, embedding_scale=scale)
        knn, report = fit_knn(
            trial.transform(x), z, edges=edges, importance=importance, exclude=hidden, shift_weights=force, seed=seed
        )
        report["embedding_scale"] = scale
        if best is None or min(report["loss"].values()) < min(best[1]["loss"].values()):
            best = knn, report, trial
    assert best is not None
    return best

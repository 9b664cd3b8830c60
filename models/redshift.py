"""One fitted redshift model: features to a common space, shift weights, support, and four estimators with calibration.

Labels answer for a target that they do not represent (covariate shift). `models/fitting` makes one. Arrays in and out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

import numpy as np
import numpy.typing as npt

from redshelf.models.boost import BoostRedshift
from redshelf.models.calibrate import Calibration
from redshelf.models.errors import BadInput, NotFound, nearest
from redshelf.models.frame import Frame, checked
from redshelf.models.knn import KnnRedshift
from redshelf.models.network import NetworkRedshift
from redshelf.models.pdf import Pdf
from redshelf.models.shift import ShiftWeights
from redshelf.models.stored_parts import check_parts, from_parts, missing, to_parts
from redshelf.models.support import Support, SupportAnswer
from redshelf.models.validate import Blend, disagreement

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Estimator = Literal["knn", "lightgbm", "network", "blend"]
ESTIMATORS: tuple[Estimator, ...] = get_args(Estimator)
BLOCK = 8192


@dataclass(frozen=True)
class Prediction:
    """Answers for N sources: densities, `point` (N,) their median, support, and the labelled neighbours (N, k).

    `ratio` (N,) is the density of the target over that of the labels that calibrate there; 1 after a rehearsal.
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

    def members(self, x: Floats, label: Ints, wanted: frozenset[str], threads: int) -> tuple[dict[str, Pdf], Any, Any]:
        """Raw densities of kNN, the network and, where wanted, LightGBM; what kNN said; and what hides labels."""
        return self._members(x, self.frame.transform(x), label, wanted, threads)

    def _members(
        self, x: Floats, space: npt.NDArray[np.float32], label: Ints, wanted: frozenset[str], threads: int
    ) -> tuple[dict[str, Pdf], Any, Any]:
        # A query without a label hides nothing, and then no neighbour beyond k is searched.
        hidden = np.where(label[:, None] >= 0, self.companions[label], -1) if (label >= 0).any() else None
        near = self.knn.predict(space, exclude=hidden)
        out = {"knn": near.pdf}
        if "lightgbm" in wanted:
            out["lightgbm"] = self.boost.predict(self.frame.trees(x), exclude=label, threads=threads)
        out["network"] = self.network.predict(space, exclude=label)
        return out, near, hidden

    def _predict(self, x: Floats, label: Ints, estimator: str, threads: int) -> Prediction:
        wanted = frozenset(self.blend.members) if estimator == "blend" else frozenset({estimator})
        space = self.frame.transform(x)
        members, near, hidden = self._members(x, space, label, wanted, threads)
        pdf = self.blend.of(members) if estimator == "blend" else members[estimator]
        calibration = self.calibrations[estimator]
        pdf = calibration.recalibrated(pdf)
        ratio = np.where(label >= 0, self.shift.weights[label], self.shift.at(space))
        support = self.support.answer(
            self.frame.spaces(x)[self.support_space],
            pdf,
            near.neighbour_weights,
            disagreement=disagreement(members),
            mass_at_infinity=calibration.mass_at_infinity(ratio),
            exclude=hidden,
            distances=near.distances if self.support_space == self.frame.own_space else None,
        )
        name: Any = estimator
        return Prediction(name, pdf, pdf.median(), support, ratio, near.neighbours, near.neighbour_weights)

    def interval(self, prediction: Prediction, level: float) -> tuple[Floats, Floats]:
        """Ends (N,) of weighted conformal intervals; -inf and inf where the labels cannot promise `level`.

        That is where the source's own weight is too large a share, or no label is near: nothing stands for it there.
        """
        low, high = self.calibrations[prediction.estimator].interval(prediction.pdf, prediction.ratio, level)
        alone = prediction.support.distance_ratio > 1
        return np.where(alone, -np.inf, low), np.where(alone, np.inf, high)

    def to_arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays (for an .npz without pickle) and a JSON document that `from_arrays` takes back."""
        arrays, config = to_parts({part: getattr(self, part) for part in PARTS} | _calibration_parts(self.calibrations))
        arrays["companions"] = self.companions
        config |= {name: getattr(self, name) for name in DOCUMENTED}
        return arrays, json.loads(json.dumps(config, allow_nan=False))

    @staticmethod
    def check(names: Collection[str], config: Mapping[str, Any]) -> None:
        """`BadInput` naming what `from_arrays` would miss among the `names` of the arrays and in the document."""
        check_parts(_kinds(), names, config)
        for name, holder in {"companions": names, **dict.fromkeys(DOCUMENTED, config)}.items():
            if name not in holder:
                raise missing(name)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]], config: Mapping[str, Any]) -> Self:
        """The model that `to_arrays` wrote; `BadInput` naming what is missing."""
        cls.check(arrays.keys(), config)
        parts = from_parts(_kinds(), arrays, config)
        return cls(
            **{part: parts[part] for part in PARTS},
            calibrations={name: parts[f"calibration-{name}"] for name in ESTIMATORS},
            companions=arrays["companions"],
            **{name: config[name] for name in DOCUMENTED},
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
DOCUMENTED = ("support_space", "default_estimator", "report")


def _kinds() -> dict[str, Any]:
    return PARTS | _calibration_parts(dict.fromkeys(ESTIMATORS, Calibration))


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

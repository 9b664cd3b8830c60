"""What unseen labels say of the estimators: their mixture, calibration, scores, and which one is the default.

Every density here comes from an estimator that had not seen the label; weights are those of the labels to the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from redshelf.models import metrics
from redshelf.models.blend import blend_shares, mixture
from redshelf.models.calibrate import Calibration, fit_calibration
from redshelf.models.pdf import Pdf

Floats = npt.NDArray[np.float64]
MEMBERS = ("knn", "lightgbm", "network")
LEAST_SIZE = 100.0  # effective labels
BLEND_MARGIN = 0.1  # of the loss: two members of the network answer for a label, twenty for the target


@dataclass(frozen=True)
class Blend:
    """The mixture of `MEMBERS` by `shares` (3,), at least 0 and summing to 1."""

    shares: Floats

    @property
    def members(self) -> tuple[str, ...]:
        """Those with a share."""
        return tuple(name for name, share in zip(MEMBERS, self.shares, strict=True) if share > 0)

    def of(self, pdfs: Mapping[str, Pdf]) -> Pdf:
        """The mixture of the members' densities."""
        shares = dict(zip(MEMBERS, self.shares.tolist(), strict=True))
        return mixture([pdfs[name] for name in self.members], [shares[name] for name in self.members])


@dataclass(frozen=True)
class Validated:
    """What `validate` found: the blend, the calibration and the scores of each estimator, and the default one."""

    blend: Blend
    calibrations: dict[str, Calibration]
    scores: dict[str, Any]
    default: str


def disagreement(pdfs: Mapping[str, Pdf]) -> Floats:
    """|median of kNN - median of the network| / (1 + z), (N,)."""
    knn, network = pdfs["knn"].median(), pdfs["network"].median()
    return np.asarray(np.abs(knn - network) / (1 + np.minimum(knn, network)))


def validate(
    pdfs: Mapping[str, Pdf], z: Floats, weights: Floats, in_support: npt.NDArray[np.bool_], *, seed: int = 0
) -> Validated:
    """From raw densities of `MEMBERS` for N unseen labels, their redshifts, weights and whether they are in support.

    The mixture has the least weighted CDE loss. Calibration is that of labels in support. The default is the estimator
    with the least weighted CDE loss, see `_default`.
    """
    importance = weights if weights.any() else np.ones(len(z))
    blend = Blend(blend_shares([pdfs[name] for name in MEMBERS], z, importance))
    raw = {name: pdfs[name] for name in MEMBERS} | {"blend": blend.of(pdfs)}
    inside = importance * in_support
    calibrations, scores, losses = {}, {}, {}
    for name, pdf in raw.items():
        calibration = calibrations[name] = fit_calibration(pdf, z, inside, seed=seed)
        pdf = calibration.recalibrated(pdf)
        scores[name], losses[name] = _scores(pdf, z, importance, in_support), metrics.cde_losses(pdf, z)
        scores[name]["recalibrated"] = calibration.is_recalibrated
    return Validated(blend, calibrations, scores, _default(losses, importance))


def _scores(pdf: Pdf, z: Floats, importance: Floats, in_support: npt.NDArray[np.bool_]) -> dict[str, Any]:
    point, pit = pdf.median(), pdf.pit(z)
    loss = metrics.crps(pdf, z) / (1 + z)
    inside = importance * in_support
    inside = inside if inside.any() else importance
    return {
        "unweighted": metrics.summary(point, z, minimum=1),
        "weighted": metrics.summary(point, z, importance, minimum=1),
        "crps": float(loss.mean()),
        "crps_weighted": metrics.weighted_mean(loss, importance),
        "cde_loss_weighted": metrics.cde_loss(pdf, z, importance),
        "pit_ks_weighted": metrics.pit_ks(pit, importance),
        "coverage_68_weighted": metrics.weighted_mean(np.abs(pit - 0.5) <= 0.34, inside),
        "coverage_95_weighted": metrics.weighted_mean(np.abs(pit - 0.5) <= 0.475, inside),
        "in_support": float(in_support.mean()),
    }


def _default(losses: Mapping[str, Floats], importance: Floats) -> str:
    """The best by weight, or plainly where too few labels carry the weight; the blend has to be so by a tenth.

    Validation flatters the blend: on zCOSMOS by 5%, where it was no better than the network on the targets. Densities
    are compared, not distances: on the simulated s0 and s1 the CRPS, to which a few labels far off are most of it, took
    the neighbours where the network had less scatter, fewer outliers and the better densities.
    """
    few = metrics.effective_sample_size(importance) < LEAST_SIZE
    mean = {name: metrics.weighted_mean(loss, None if few else importance) for name, loss in losses.items()}
    judged = {name: loss + BLEND_MARGIN * abs(loss) * (name == "blend") for name, loss in mean.items()}
    return min(judged, key=judged.__getitem__)

"""Redshifts by source or by vector, with everything that says how far to trust them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from redshelf.indexing.columns import CLASSES
from redshelf.indexing.store import FLAG_MASKED
from redshelf.models.errors import BadInput, NotFound, nearest
from redshelf.service import answers
from redshelf.service.answers import PdfAnswer, RedshiftAnswer, Support
from redshelf.service.shelf import OpenRedshift, OpenShelf

if TYPE_CHECKING:
    from redshelf.models.redshift import Prediction

MAX_IDS = 1000
NO_REDSHIFT_CLASSES = [CLASSES.index("star")]  # a galaxy's redshift for these would be wrong in kind
STAR_REASON = "classified as a star: a galaxy's redshift does not apply"
UNSEEN_REASON = "no band of it was observed by an encoder that this estimator needs"
MASKED_REASON = "masked in the catalogue: its photometry is not to be trusted"
AGN_REASON = "classified as an AGN: the labels are galaxies"


def estimate(fit: OpenRedshift, rows: npt.NDArray[np.int64], *, estimator: str) -> Prediction:
    """Densities and support of `rows`; a row that is among the labels is left out of its own neighbours."""
    position = np.searchsorted(fit.label_rows, rows)
    clipped = np.minimum(position, len(fit.label_rows) - 1)
    own = np.where(fit.label_rows[clipped] == rows, clipped, -1)
    return fit.model.predict(fit.features(rows), estimator=estimator, exclude=own)


def _chosen(shelf: OpenShelf, encoder: str | None, estimator: str | None) -> tuple[OpenRedshift, str]:
    fit = shelf.redshift(encoder)
    is_default = fit.published.encoder == shelf.generation.default_redshift
    name = estimator or (shelf.generation.default_estimator if is_default else None) or fit.model.default_estimator
    if name not in fit.published.estimators:
        known = fit.published.estimators
        raise NotFound(f"no estimator {name!r} on encoder {fit.published.encoder}; {nearest(name, known)}")
    return fit, name


def _answers(
    shelf: OpenShelf,
    fit: OpenRedshift,
    estimator: str,
    prediction: Prediction,
    *,
    source_ids: list[str | None],
    refusals: list[list[str]],
    warnings: list[list[str]],
    pdf: bool,
    bands_missing: tuple[str, ...],
) -> list[RedshiftAnswer]:
    density = prediction.pdf
    median, mode = density.median(), density.mode()
    low, q16, q84, high = (density.quantile(q) for q in (0.025, 0.16, 0.84, 0.975))
    shift, validation = fit.model.shift, fit.model.report["validation"][estimator]
    found = []
    for i, source_id in enumerate(source_ids):
        refused = bool(refusals[i])
        reasons = refusals[i] + warnings[i] + prediction.support.reasons(i)
        found.append(
            RedshiftAnswer(
                source_id=source_id,
                z_median=None if refused else float(median[i]),
                z_mode=None if refused else float(mode[i]),
                z_q16=None if refused else float(q16[i]),
                z_q84=None if refused else float(q84[i]),
                interval_95=None if refused else (float(low[i]), float(high[i])),
                pdf=PdfAnswer(z=density.edges.tolist(), density=density.density[i].tolist())
                if pdf and not refused
                else None,
                support=Support(
                    in_support=not reasons,
                    reasons=reasons,
                    distance_ratio=float(prediction.support.distance_ratio[i]),
                    effective_neighbours=float(prediction.support.effective_neighbours[i]),
                    beyond_labels=float(prediction.support.beyond_labels[i]),
                ),
                shift=answers.Shift(method=shift.method, effective_sample_size=shift.effective_sample_size),
                calibration=answers.Calibration(
                    method="out-of-fold residuals" if estimator == "lightgbm" else "leave-one-out smoothing",
                    pit_ks=validation["pit_ks_weighted"],
                    effective_sample_size=validation["weighted"]["ess"],
                ),
                n_neighbours=fit.model.knn.k,
                encoder=fit.published.encoder,
                revision=fit.revision,
                estimator=estimator,
                generation=shelf.generation.number,
                bands_missing=list(bands_missing),
            )
        )
    return found


def redshifts(
    shelf: OpenShelf,
    source_ids: list[str],
    *,
    encoder: str | None = None,
    estimator: str | None = None,
    pdf: bool = True,
) -> list[RedshiftAnswer]:
    """Redshifts of at most 1000 sources, in the order asked. Stars and masked sources get none, and the reason."""
    if not 1 <= len(source_ids) <= MAX_IDS:
        raise BadInput(f"{len(source_ids)} ids: expected 1 to {MAX_IDS}")
    fit, name = _chosen(shelf, encoder, estimator)
    rows = np.array([shelf.row(source_id) for source_id in source_ids], dtype=np.int64)
    classes, flags = shelf.columns["object_class"][rows], shelf.columns["flags"][rows]
    refusals = [
        [STAR_REASON] * (c in NO_REDSHIFT_CLASSES) + [MASKED_REASON] * bool(f & FLAG_MASKED) + [UNSEEN_REASON] * (not k)
        for c, f, k in zip(classes, flags, fit.known(rows), strict=True)
    ]
    warnings = [[AGN_REASON] * (CLASSES[c] == "agn") for c in classes]
    prediction = estimate(fit, rows, estimator=name)
    return _answers(
        shelf,
        fit,
        name,
        prediction,
        source_ids=list(source_ids),
        refusals=refusals,
        warnings=warnings,
        pdf=pdf,
        bands_missing=(),
    )


def redshift_of_vector(
    shelf: OpenShelf,
    vector: npt.NDArray[np.float32],
    *,
    encoder: str | None = None,
    estimator: str | None = None,
    pdf: bool = True,
    bands_missing: tuple[str, ...] = (),
) -> RedshiftAnswer:
    """Redshift of a vector (dim,) of one encoder's space, such as that of an uploaded cutout."""
    fit, name = _chosen(shelf, encoder, estimator)
    features = np.asarray(vector, dtype=np.float32)[None]
    if len(fit.parts) > 1 or features.shape[1] != fit.parts[0].index.dim:
        raise BadInput(f"a vector of {features.shape[1]} numbers does not fit estimator {fit.published.encoder!r}")
    prediction = fit.model.predict(features, estimator=name)
    return _answers(
        shelf,
        fit,
        name,
        prediction,
        source_ids=[None],
        refusals=[[]],
        warnings=[[]],
        pdf=pdf,
        bands_missing=bands_missing,
    )[0]

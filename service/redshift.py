"""Redshifts by source or by vector, with everything that says how far to trust them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from redshelf.indexing.columns import CLASSES
from redshelf.indexing.store import FLAG_MASKED
from redshelf.models import support
from redshelf.models.errors import BadInput, NotFound, nearest
from redshelf.models.threads import default_threads
from redshelf.service import answers
from redshelf.service.answers import PdfAnswer, RedshiftAnswer, Support
from redshelf.service.shelf import OpenRedshift, OpenShelf
from redshelf.service.stages import timed

if TYPE_CHECKING:
    from redshelf.models.redshift import Prediction

MAX_IDS = 1000
BLOCK = 4096  # rows that a thread answers at a time
NO_REDSHIFT_CLASSES = [CLASSES.index("star")]  # a galaxy's redshift for these would be wrong in kind
STAR_REASON = "classified as a star: a galaxy's redshift does not apply"
UNSEEN_REASON = "no band of it was observed by an encoder that this estimator needs"
MASKED_REASON = "masked in the catalogue: its photometry is not to be trusted"
AGN_REASON = "classified as an AGN: the labels are galaxies"
REFUSALS = (STAR_REASON, MASKED_REASON, UNSEEN_REASON)  # a source has no redshift; with any other it has one
REASONS = (*REFUSALS, AGN_REASON, *support.REASONS)

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@timed("estimate")
def estimate(fit: OpenRedshift, rows: npt.NDArray[np.int64], *, estimator: str, threads: int = 0) -> Prediction:
    """Densities and support of `rows`; a row that is among the labels is left out of its own neighbours."""
    position = np.searchsorted(fit.label_rows, rows)
    clipped = np.minimum(position, len(fit.label_rows) - 1)
    own = np.where(fit.label_rows[clipped] == rows, clipped, -1)
    return fit.model.predict(fit.features(rows), estimator=estimator, exclude=own, threads=threads)


def points(fit: OpenRedshift, rows: npt.NDArray[np.int64], *, estimator: str) -> Floats:
    """The redshift of each of many `rows`, (N,), as `estimate` gives it: a block to each core, and no core to two."""
    import faiss
    from threadpoolctl import threadpool_limits

    def of_block(start: int) -> Floats:
        return estimate(fit, rows[start : start + BLOCK], estimator=estimator, threads=1).point

    single = {"initializer": faiss.omp_set_num_threads, "initargs": (1,)}  # OpenMP's number is a thread's own
    with threadpool_limits(1), ThreadPoolExecutor(default_threads(), "points", **single) as pool:
        return np.concatenate([np.empty(0), *pool.map(of_block, range(0, len(rows), BLOCK))])


def choose(shelf: OpenShelf, encoder: str | None, estimator: str | None) -> tuple[OpenRedshift, str]:
    """A published fit and one of its estimators, by default the default ones; `NotFound` naming those there are."""
    fit = shelf.redshift(encoder)
    is_default = fit.published.encoder == shelf.generation.default_redshift
    name = estimator or (shelf.generation.default_estimator if is_default else None) or fit.model.default_estimator
    if name not in fit.published.estimators:
        known = fit.published.estimators
        raise NotFound(f"no estimator {name!r} on encoder {fit.published.encoder}; {nearest(name, known)}")
    return fit, name


def judge(shelf: OpenShelf, fit: OpenRedshift, rows: npt.NDArray[np.int64]) -> Bools:
    """Which of the first four `REASONS`, those that the catalogue gives, hold for each of `rows`, (N, 4)."""
    classes, flags = shelf.columns["object_class"][rows], shelf.columns["flags"][rows]
    star, masked = np.isin(classes, NO_REDSHIFT_CLASSES), (flags & FLAG_MASKED) != 0
    return np.column_stack([star, masked, ~fit.known(rows), classes == CLASSES.index("agn")])


def is_refused(flags: Bools) -> Bools:
    """Which sources have no redshift, (N,), by their flags of the first `REASONS`, (N, 3 or more)."""
    return np.asarray(flags[:, : len(REFUSALS)].any(axis=1))


def numbers(fit: OpenRedshift, prediction: Prediction) -> dict[str, Floats]:
    """What is said of each density in numbers, (N,) each: median, mode, and the ends of 68% and 95%.

    First as quantiles of the density, then as conformal intervals, NaN where the labels cannot promise the level.
    """
    density = prediction.pdf
    quantiles = {"z_q16": 0.16, "z_q84": 0.84, "z_q025": 0.025, "z_q975": 0.975}
    found = {"z_median": prediction.point, "z_mode": density.mode()}
    found |= dict(zip(quantiles, density.quantiles(list(quantiles.values())), strict=True))
    for percent in (68, 95):
        ends = fit.model.interval(prediction, percent / 100)
        for side, end in zip(("low", "high"), ends, strict=True):
            found[f"conformal_{side}_{percent}"] = np.where(np.isfinite(end), end, np.nan)
    return found


def calibration(fit: OpenRedshift, estimator: str) -> answers.Calibration:
    """How far the densities of an estimator can be trusted, from labels that were held out."""
    validation = fit.model.report["validation"][estimator]
    how = "recalibrated" if validation["recalibrated"] else "no recalibration needed"
    on = "rehearsed on the faint labels" if fit.model.report["rehearsal"] else "weighted to the target"
    return answers.Calibration(
        method=f"{how}, {on}",
        pit_ks=validation["pit_ks_weighted"],
        coverage_68=validation["coverage_68_weighted"],
        coverage_95=validation["coverage_95_weighted"],
        effective_sample_size=validation["weighted"]["ess"],
    )


def _ends(z: dict[str, Floats], percent: int, row: int) -> tuple[float, float] | None:
    low, high = (float(z[f"conformal_{side}_{percent}"][row]) for side in ("low", "high"))
    return None if np.isnan(low) else (low, high)


@timed("hydrate")
def _answers(
    shelf: OpenShelf,
    fit: OpenRedshift,
    estimator: str,
    prediction: Prediction,
    *,
    source_ids: list[str | None],
    judged: Bools,
    pdf: bool,
    bands_missing: tuple[str, ...],
) -> list[RedshiftAnswer]:
    density, z = prediction.pdf, numbers(fit, prediction)
    flags = np.column_stack([judged, prediction.support.flags])
    refused = is_refused(flags)
    shift, trust = fit.model.shift, calibration(fit, estimator)
    found = []
    for i, source_id in enumerate(source_ids):
        reasons = [text for text, flag in zip(REASONS, flags[i], strict=True) if flag]
        points = {name: None if refused[i] else float(z[name][i]) for name in ("z_median", "z_mode", "z_q16", "z_q84")}
        found.append(
            RedshiftAnswer(
                source_id=source_id,
                **points,
                interval_95=None if refused[i] else (float(z["z_q025"][i]), float(z["z_q975"][i])),
                conformal=answers.Conformal(
                    interval_68=None if refused[i] else _ends(z, 68, i),
                    interval_95=None if refused[i] else _ends(z, 95, i),
                ),
                pdf=PdfAnswer(z=density.edges.tolist(), density=density.density[i].tolist())
                if pdf and not refused[i]
                else None,
                support=Support(
                    in_support=not reasons,
                    reasons=reasons,
                    **{name: float(getattr(prediction.support, name)[i]) for name in support.NUMBERS},
                ),
                shift=answers.Shift(method=shift.method, effective_sample_size=shift.effective_sample_size),
                calibration=trust,
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
    fit, name = choose(shelf, encoder, estimator)
    rows = np.array([shelf.row(source_id) for source_id in source_ids], dtype=np.int64)
    prediction = estimate(fit, rows, estimator=name)
    return _answers(
        shelf,
        fit,
        name,
        prediction,
        source_ids=list(source_ids),
        judged=judge(shelf, fit, rows),
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
    fit, name = choose(shelf, encoder, estimator)
    features = np.asarray(vector, dtype=np.float32)[None]
    if len(fit.parts) > 1 or features.shape[1] != fit.parts[0].index.dim:
        raise BadInput(f"a vector of {features.shape[1]} numbers does not fit estimator {fit.published.encoder!r}")
    prediction = timed("estimate")(fit.model.predict)(features, estimator=name)
    return _answers(
        shelf,
        fit,
        name,
        prediction,
        source_ids=[None],
        judged=np.zeros((1, len(REASONS) - len(support.REASONS)), dtype=bool),
        pdf=pdf,
        bands_missing=bands_missing,
    )[0]

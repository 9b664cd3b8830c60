"""What redshelf answers. The HTTP routes and `--json` of the command line print these models, field for field.

Angles in degrees unless the name says otherwise, fluxes in microjansky, magnitudes AB; JSON has no NaN, so what is not
known is null.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BandAnswer(Answer):
    name: str
    wavelength_nm: float
    depth_ab: float | None = Field(description="median 3-sigma limiting magnitude")
    psf_fwhm_arcsec: float | None


class EncoderAnswer(Answer):
    name: str
    revision: str
    kind: str
    dim: int
    needs: list[str]
    weights: str = Field(description="where they come from: published name and sha256, training, or random")
    exact: bool
    recall: float = Field(description="recall@10 against exact search, measured when the index was built")
    texts: bool = Field(description="whether its space can be asked by a text")


class RedshiftModelAnswer(Answer):
    encoder: str
    estimators: list[str]
    fault: str | None = Field(None, description="why it does not answer, and what mends it; null where it does")


class LimitsAnswer(Answer):
    """What this server takes, of each of its workers where there are several. Rates are null where none is set."""

    max_k: int
    max_batch: int
    max_upload_bytes: int
    decode_seconds: float = Field(description="of CPU, to decode an upload; beyond it 422")
    decode_bytes: int = Field(description="of memory, to decode an upload; beyond it 422")
    max_encode_batch: int = Field(description="uploads that are encoded together")
    encode_wait_seconds: float = Field(description="that the first of them waits for others")
    max_encode_queue: int = Field(description="uploads that wait to be encoded; beyond it 503")
    max_jobs: int = Field(description="jobs of one key that have not ended; beyond it 429")
    max_kept_jobs: int = Field(description="jobs of one key, with those that have ended; beyond it 429")
    max_job_ids: int = Field(description="ids in the list of a job")
    max_job_bytes: int = Field(description="of the result of a job; beyond it the job ends as ERROR")
    job_seconds: float = Field(description="after which a job is destroyed")
    max_concurrent: int = Field(description="requests at the same time; beyond them 503")
    deadline_seconds: float = Field(description="of a request; after it 503, or 408 where its body has not arrived")
    rate_per_key: str | None = Field(description="requests with the same key; beyond it 429")
    rate_per_address: str | None = Field(description="requests from the same address, but for this machine's own")


class ShelfAnswer(Answer):
    survey: str
    generation: int
    n_sources: int
    n_labelled: int
    bands: list[BandAnswer]
    cutout_px: int
    pixel_scale_arcsec: float | None
    encoders: list[EncoderAnswer]
    redshifts: list[RedshiftModelAnswer]
    default_encoder: str
    default_redshift: str | None
    default_estimator: str | None
    limits: LimitsAnswer


class Photometry(Answer):
    """One source in one band; the flux stays as measured whatever the state."""

    band: str
    state: Literal["not_observed", "not_detected", "measured", "saturated"]
    flux_ujy: float | None
    flux_error_ujy: float | None
    magnitude_ab: float | None


class SourceAnswer(Answer):
    source_id: str
    iau_name: str
    ra_deg: float
    dec_deg: float
    tile: str
    object_class: str
    flags: list[str]
    ebv: float | None
    z_spec: float | None
    z_error: float | None
    z_kind: str | None
    z_quality: float | None
    z_survey: str | None
    z_reference: float | None
    z_phot: float | None
    photometry: list[Photometry]
    generation: int
    links: dict[str, str]


class Listed(Answer):
    """What every list of sources says of each."""

    source_id: str
    ra_deg: float
    dec_deg: float
    z_spec: float | None
    z_error: float | None = Field(description="of the label, null where its catalogue gives none")
    z_kind: str | None
    z_quality: float | None = Field(description="of the label, in its catalogue's own scale")
    z_phot: float | None
    object_class: str


class Neighbour(Listed):
    rank: int
    distance: float = Field(
        description="Euclidean, in the encoder's space, from the query; of a classifier's answer, from the mean of the "
        "positive sources"
    )
    score: float | None = Field(None, description="of the classifier, by which its answer is ordered: 1 is positive")


class NeighboursAnswer(Answer):
    query: str | None = Field(description="the source asked about; null where it is none of the survey's, or several")
    encoder: str
    revision: str
    generation: int
    exact: bool
    recall: float
    n_matching: int = Field(description="rows with a vector that pass the filters, those asked about apart")
    complete: bool = Field(
        description="whether all that pass the filters and lie within max_distance were looked at, as far as `recall` "
        "says; false where there are more than k"
    )
    method: Literal["rocchio", "classifier"] | None = Field(None, description="how examples were made a query")
    n_candidates: int | None = Field(
        None,
        description="how many sources the classifier ranked: the nearest of each positive one and of Rocchio's vector",
    )
    bands_missing: list[str] = Field([], description="survey bands that an uploaded cutout lacked")
    neighbours: list[Neighbour]


class ConeSource(Listed):
    separation_arcsec: float


class ConeAnswer(Answer):
    """The sources nearest to the axis of a cone; `n_within` says how many there are in all."""

    ra_deg: float
    dec_deg: float
    radius_arcsec: float
    generation: int
    n_within: int
    sources: list[ConeSource]


class CompareAnswer(Answer):
    """The neighbours of one source by two encoders, and how alike the two lists are."""

    query: str
    generation: int
    k: int
    neighbours: list[NeighboursAnswer] = Field(description="one answer an encoder, in the order asked")
    shared: list[str] = Field(description="ids in both lists, in the order of the first")
    jaccard: float | None = Field(description="shared ids over all ids; null where both lists are empty")
    rank_biased_overlap: float | None = Field(
        description="extrapolated, p = 0.9 (Webber et al. 2010), down to the end of the shorter list: 1 where both are "
        "in the same order, 0 where they share nothing; null where one is empty"
    )


class Outlier(Listed):
    rank: int
    distance: float = Field(description="to the 10th nearest other source, Euclidean, in the encoder's space")


class OutliersAnswer(Answer):
    """The most isolated sources, out of those that were kept when the index was built."""

    encoder: str
    revision: str
    generation: int
    exact: bool = Field(
        description="whether every source was compared with every other one when the index was built; else the most "
        "isolated were looked for among those far from the centre of their cluster"
    )
    n_matching: int = Field(description="sources with a vector that pass the filters")
    n_kept: int = Field(description="how many of these are among the sources kept: no more can be told")
    outliers: list[Outlier]


class RecallAnswer(Answer):
    """What a search finds now of the true `k` nearest of `n` sources, drawn anew for each generation."""

    encoder: str
    revision: str
    generation: int
    exact: bool
    n: int
    k: int
    recall: float
    promised: float = Field(description="as measured when the index was built")


class PdfAnswer(Answer):
    """p(z), constant between edges: `z` has one value more than `density`."""

    z: list[float]
    density: list[float]


class Support(Answer):
    in_support: bool
    reasons: list[str]
    distance_ratio: float
    labels_in_radius: float = Field(
        description="of the 20 nearest labelled sources, how many are nearer than its 10th nearest target, of as many "
        "targets as labels (at most 10,000): about 10 where labels are as common as targets, 0 where they are rare"
    )
    effective_neighbours: float
    beyond_labels: float = Field(description="probability beyond the 99.5th percentile of the labelled redshifts")
    disagreement: float = Field(description="of nearest neighbours and network, |difference| / (1 + z)")
    mass_at_infinity: float = Field(
        description="share of the conformal distribution that no label stands for: intervals of a level above 1 minus "
        "it are infinite"
    )


class Shift(Answer):
    method: str
    effective_sample_size: float


class Calibration(Answer):
    """Of the estimator on labels that it had not seen, as `method` says: how far PIT is from uniform, and their number.

    The recalibration itself was fitted on the same labels. Coverages are those of labels in support; each has an error
    of about sqrt(c (1 - c) / effective_sample_size).
    """

    method: str
    pit_ks: float | None
    coverage_68: float
    coverage_95: float
    effective_sample_size: float


class Conformal(Answer):
    """Weighted split conformal intervals (Tibshirani et al. 2019); null where the labels cannot promise the level."""

    interval_68: tuple[float, float] | None
    interval_95: tuple[float, float] | None


class RedshiftAnswer(Answer):
    """Redshift of one source; every z is null for a star and for a masked source, with the reason in `support`."""

    source_id: str | None
    z_median: float | None
    z_mode: float | None
    z_q16: float | None
    z_q84: float | None
    interval_95: tuple[float, float] | None = Field(description="quantiles of the density, 2.5% and 97.5%")
    conformal: Conformal
    pdf: PdfAnswer | None
    support: Support
    shift: Shift
    calibration: Calibration
    n_neighbours: int
    encoder: str
    revision: str
    estimator: str
    generation: int
    bands_missing: list[str]


class RedshiftsAnswer(Answer):
    redshifts: list[RedshiftAnswer]


Phase = Literal["PENDING", "QUEUED", "EXECUTING", "COMPLETED", "ERROR", "ABORTED"]


class JobAnswer(Answer):
    """One job, in the words of the VO's Universal Worker Service. Times are ISO 8601, UTC."""

    job_id: str
    phase: Phase
    what: Literal["neighbours", "redshifts"]
    format: str
    n_ids: int
    n_done: int = Field(description="of them, as of a moment ago")
    created: str
    started: str | None
    ended: str | None
    destruction: str = Field(description="when the job and its result are deleted")
    generation: int | None = Field(description="that it is, or was last, answered from")
    error: str | None = Field(description="why it ended as ERROR")
    result_bytes: int | None
    links: dict[str, str] = Field(description="`self`, and once it is COMPLETED `result`")


class JobsAnswer(Answer):
    jobs: list[JobAnswer] = Field(description="those of the key that asks, the newest first")


class ManyNeighboursAnswer(Answer):
    """The result of a job of neighbours as JSON."""

    answers: list[NeighboursAnswer]


class Problem(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    request_id: str

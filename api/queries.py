"""What a request may say: the query parameters, bodies and forms of the routes. Anything else in them is refused.

Every route takes one of these models whole, `NoQuery` where it has no parameters, so that a misspelt parameter is a
422 and never a silent default.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Annotated, Any, Literal, Self

from fastapi import Depends, HTTPException, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from redshelf.indexing.filters import Filters
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.answers import Phase, Problem
from redshelf.service.examples import MAX_EXAMPLES, MAX_TEXT, Method
from redshelf.service.explore import MAX_CONE_ARCSEC
from redshelf.service.jobs import Asked, What
from redshelf.service.redshift import MAX_IDS
from redshelf.service.serving import Serving
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf
from redshelf.service.upload import MAX_EBV

# for FastAPI(responses=...): what every route may answer instead, as problem+json
PROBLEMS: dict[int | str, dict[str, Any]] = {
    400: {"model": Problem, "description": "The body cannot be read as what it is said to be"},
    401: {"model": Problem, "description": "A key is needed, or the one that was sent is unknown"},
    403: {"model": Problem, "description": "The scope of the key does not reach so far"},
    404: {"model": Problem, "description": "What was named does not exist"},
    408: {"model": Problem, "description": "The body has not arrived in time"},
    409: {"model": Problem, "description": "The request contradicts what is stored"},
    410: {"model": Problem, "description": "The `generation` that was named is no longer served"},
    413: {"model": Problem, "description": "The body is longer than this address takes"},
    422: {"model": Problem, "description": "A value is malformed or out of range"},
    429: {"model": Problem, "description": "Too many requests with this key or from this address; see Retry-After"},
    503: {"model": Problem, "description": "Too many requests at a time, or no answer in time; see Retry-After"},
}


K = 10  # neighbours, where a request does not say
N = 100  # sources of a list, likewise
MAX_GENERATION = 1_000_000_000
MAX_DIGITS = 10  # of a generation as it is written
N_TEXT = f"how many; {N}, or the server's `max_k` where it is less"


Format = Literal["json", "votable", "csv", "parquet", "fits"]


class Strict(BaseModel):
    """Unknown names are refused, and so are NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NoQuery(Strict):
    """A route without parameters."""


class OfGeneration(Strict):
    generation: int | None = Field(
        None,
        ge=1,
        lt=MAX_GENERATION,
        description="answer from this generation or not at all: 410 where an older one was named, 409 a newer",
    )


class Tabular(OfGeneration):
    format: Format | None = Field(None, description="of the list; by default what the Accept header prefers, else json")


FILTERS = tuple(field.name for field in fields(Filters))


class FilterQuery(Strict):
    """`indexing.filters.Filters`, name for name; a source without the value never passes."""

    z_min: float | None = Field(None, description="lowest photometric redshift")
    z_max: float | None = Field(None, description="highest photometric redshift")
    z_spec_min: float | None = Field(None, description="lowest redshift of a label")
    z_spec_max: float | None = Field(None, description="highest redshift of a label")
    mag_band: str | None = Field(None, description="the band of mag_min and mag_max")
    mag_min: float | None = Field(None, description="brightest AB magnitude")
    mag_max: float | None = Field(None, description="faintest AB magnitude")
    ra: float | None = Field(None, description="centre of a cone, degrees; with dec and radius_arcsec")
    dec: float | None = Field(None, description="centre of a cone, degrees")
    radius_arcsec: float | None = Field(None, description="radius of the cone")
    tile: str | None = None
    observed_band: str | None = Field(None, description="only sources observed in this band")
    object_class: str | None = Field(None, description="unknown, galaxy, star or agn")
    labelled_only: bool = Field(False, description="only sources with a label")
    exclude_radius_arcsec: float | None = Field(None, description="leaves out what lies this near to the query")

    def filters(self) -> Filters:
        return Filters(**{name: getattr(self, name) for name in FILTERS})


class Neighbourhood(FilterQuery):
    encoder: str | None = Field(None, description="an embedding space of /v1/shelf; the default one by default")
    k: int | None = Field(None, ge=1, le=1000, description=f"how many; {K}, or the server's `max_k` where it is less")
    exact: bool = Field(False, description="compare with every source, whatever the index is")
    max_distance: float | None = Field(
        None, ge=0, description="only what lies this near in the encoder's space, at most k; see `complete`"
    )
    mutual: bool = Field(
        False, description="only those that have the query among their own k nearest; the query is a source, k <= 200"
    )

    def how(self, settings: Settings) -> dict[str, Any]:
        """The arguments of the service's searches."""
        told = {name: getattr(self, name) for name in ("encoder", "exact", "max_distance", "mutual")}
        return {**told, "k": how_many(self.k, settings), "filters": self.filters()}


class NeighboursQuery(Tabular, Neighbourhood):
    """Of a GET, which has no body."""


class RecallQuery(Strict):
    encoder: str | None = Field(None, description="an embedding space of /v1/shelf; the default one by default")
    n: int = Field(20, ge=1, le=100, description="how many sources to ask about")


class Redshift(Strict):
    encoder: str | None = Field(None, description="one of `redshifts` of /v1/shelf; the default one by default")
    estimator: str | None = Field(None, description="one of its `estimators`; the default one by default")
    pdf: bool = Field(True, description="with the density p(z)")


class RedshiftQuery(OfGeneration, Redshift):
    """Of a GET, which has no body."""


class CutoutQuery(OfGeneration):
    format: Literal["png", "fits"] = "png"
    bands: str | None = Field(
        None, description="comma-separated. png: one (grey) or three (red, green, blue); fits: any; by default all"
    )
    stretch: float = Field(
        3.0, ge=0.001, le=10_000, description="png: the flux, in noise units, where linear turns into log"
    )


class Position(Strict):
    ra_deg: float = Field(ge=0, lt=360)
    dec_deg: float = Field(ge=-90, le=90)
    radius_arcsec: float = Field(5.0, gt=0, le=3600, description="how far the source may lie from the position")


class PositionQuery(OfGeneration, Position):
    """Of a GET, which has no body."""


class Cone(Tabular):
    ra_deg: float = Field(ge=0, lt=360)
    dec_deg: float = Field(ge=-90, le=90)
    radius_arcsec: float = Field(gt=0, le=MAX_CONE_ARCSEC)
    n: int | None = Field(None, ge=1, le=1000, description=N_TEXT)


class CompareQuery(Tabular, FilterQuery):
    encoders: str = Field(description="two embedding spaces of /v1/shelf, with a comma between them")
    k: int | None = Field(None, ge=1, le=1000, description=f"how many; {K}, or the server's `max_k` where it is less")
    exact: bool = Field(False, description="compare with every source, whatever the index is")


class OutliersQuery(Tabular, FilterQuery):
    encoder: str | None = Field(None, description="an embedding space of /v1/shelf; the default one by default")
    n: int | None = Field(None, ge=1, le=1000, description=N_TEXT)


QUESTIONS = ("source_id", "position", "vector", "text", "positive")


class NeighboursBody(Neighbourhood):
    """Exactly one of `source_id`, `position`, `vector` (of the encoder's space), `text` and `positive`."""

    source_id: str | None = None
    position: Position | None = None
    vector: list[float] | None = Field(None, min_length=1, max_length=65_536)
    text: str | None = Field(None, min_length=1, max_length=MAX_TEXT, description="where `texts` of /v1/shelf says so")
    positive: list[str] | None = Field(None, min_length=1, max_length=MAX_EXAMPLES, description="ids to be like")
    negative: list[str] = Field([], max_length=MAX_EXAMPLES, description="ids to be unlike; with positive")
    method: Method | None = Field(
        None,
        description="with positive. rocchio, the default: nearest to the positive mean moved away from the negative "
        "one; classifier: a linear one, which ranks the nearest of each positive source and of Rocchio's vector",
    )
    exact: StrictBool = False
    mutual: StrictBool = False

    @model_validator(mode="after")
    def _one_query(self) -> Self:
        given = [name for name in QUESTIONS if getattr(self, name) is not None]
        if len(given) != 1:
            expected = f"{', '.join(QUESTIONS[:-1])} and {QUESTIONS[-1]}"
            raise ValueError(f"expected exactly one of {expected}, got {' and '.join(given) or 'none'}")
        for name in ("negative", "method"):
            if getattr(self, name) and self.positive is None:
                raise ValueError(f"{name} goes with positive, and {given[0]} was given")
        return self


class RedshiftsBody(Redshift):
    ids: list[str] = Field(min_length=1, max_length=MAX_IDS, description="sources; at most the server's `max_batch`")


class JobBody(Neighbourhood):
    """`what` of each of `ids`: neighbours, with the fields of a question about one source, or redshifts, with encoder,
    estimator and pdf."""

    what: What
    ids: list[str] = Field(min_length=1, max_length=1_000_000, description="sources; any of them may stand twice")
    format: Format = Field("json", description="of the result")
    run: StrictBool = Field(True, description="at once; false leaves the job PENDING")
    estimator: str | None = Field(None, description="one of the fit's `estimators`; the default one by default")
    pdf: StrictBool = Field(False, description="redshifts with their density p(z)")
    exact: StrictBool = False
    mutual: StrictBool = False
    labelled_only: StrictBool = False

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        own = {"encoder", *(("estimator", "pdf") if self.what == "redshifts" else Neighbourhood.model_fields)}
        for name in sorted(self.model_fields_set - {"what", "ids", "format", "run"} - own):
            raise ValueError(f"{name} does not go with what={self.what}")
        if self.pdf and self.format == "csv":
            raise ValueError("pdf=true: a density is a list, which CSV cannot hold: take votable, parquet or fits")
        return self

    def asked(self, settings: Settings) -> Asked:
        """What the job does."""
        told: dict[str, Any] = {"encoder": self.encoder, "estimator": self.estimator, "pdf": self.pdf}
        if self.what == "neighbours":
            told = {**self.how(settings), "filters": asdict(self.filters())}
        return Asked(self.what, tuple(self.ids), self.format, told)


class JobPhase(Strict):
    phase: Literal["RUN", "ABORT"]


class JobsQuery(Strict):
    phase: Phase | None = Field(None, description="only jobs of this phase")


class CutoutForm(Strict):
    """An uploaded cutout. `bands`: comma-separated, for a cube or an array; `unit`: of the pixels;
    `pixel_scale_arcsec`: their size, by default that of a FITS header's WCS, else the survey's; `ebv`: Galactic
    reddening, by default that of a FITS header's EBV card, else the median of the survey."""

    file: UploadFile = Field(
        description="FITS (an image HDU a band, or a cube; plain, .fits.gz or compressed by tiles), .npy or .npz"
    )
    bands: str | None = None
    unit: Literal["uJy", "noise"] = "uJy"
    pixel_scale_arcsec: float | None = Field(None, gt=0, le=3600, description="of north-up pixels; else as FITS says")
    ebv: float | None = Field(None, ge=0, le=MAX_EBV, description="mag")


def serving_of(request: Request) -> Serving:
    """What holds the generation that is served."""
    serving: Serving = request.app.state.serving
    return serving


async def _serving(request: Request) -> Serving:
    return serving_of(request)


async def _shelf(request: Request) -> OpenShelf:
    """The generation that is served now, taken once a request: an answer never mixes two. Where the request names
    another one it is refused."""
    shelf = await _served(request)
    named, served = request.query_params.get("generation", ""), shelf.generation.number
    if len(named) > MAX_DIGITS:  # of any length, which Python would refuse to read
        raise BadInput(f"generation={named[:80]}: expected a number of at most {MAX_DIGITS} digits")
    if named.isascii() and named.isdigit() and 0 < int(named) < MAX_GENERATION and int(named) != served:
        instead = f"this server answers from generation {served}: leave `generation` out, or name that one"
        if int(named) > served:
            raise Conflict(f"generation={named} is not served yet; {instead}")
        raise HTTPException(410, f"generation={named} is no longer served; {instead}")
    return shelf


async def _served(request: Request) -> OpenShelf:
    """The same, whatever the request names: the Virtual Observatory ignores parameters that it does not know."""
    shelf: OpenShelf = getattr(request.state, "shelf", None) or serving_of(request).current
    request.state.generation = shelf.generation.number  # for the log
    return shelf


async def _settings(request: Request) -> Settings:
    settings: Settings = request.app.state.settings
    return settings


Shelf = Annotated[OpenShelf, Depends(_shelf)]
Served = Annotated[OpenShelf, Depends(_served)]
InService = Annotated[Serving, Depends(_serving)]
InForce = Annotated[Settings, Depends(_settings)]


def at_most(name: str, value: int, limit: int) -> None:
    """`BadInput` where a number passes the limit that this server sets."""
    if value > limit:
        raise BadInput(f"{name}={value}: this server takes at most {limit}")


def how_many(k: int | None, settings: Settings, *, usual: int = K, name: str = "k") -> int:
    """`k`, or the usual number as far as this server allows it; `BadInput` calling it `name` where `k` passes the
    limit."""
    if k is not None:
        at_most(name, k, settings.max_k)
    return min(usual, settings.max_k) if k is None else k


def names(text: str) -> tuple[str, ...]:
    """The names in a comma-separated list."""
    return tuple(name.strip() for name in text.split(","))


def band_list(text: str | None) -> tuple[str, ...] | None:
    """The names in a comma-separated list, None for none."""
    return None if text is None else names(text)

"""What a client asks a server, and what it makes of the answers; the same for a client that waits and one that awaits.

Each question is a generator: it yields calls, is sent their responses, and returns what was asked for; between calls it
may ask for a pause. Lists come as Parquet, which is short and exact, and become tables of astropy. `job_calls.py` has
the questions about jobs.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from redshelf.models.errors import BadInput, Conflict, NotFound, RedshelfError
from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer, ShelfAnswer, SourceAnswer

if TYPE_CHECKING:
    import httpx
    import qp
    from astropy.io.fits import HDUList
    from astropy.table import Table

ERRORS: dict[int, type[RedshelfError]] = {404: NotFound, 409: Conflict, 410: Conflict, 422: BadInput}
T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)
AT_ONCE = 1000  # ids in one request, where the server does not take fewer


@dataclass(frozen=True)
class Call:
    """One request; parameters that are None are not sent."""

    method: str
    path: str
    params: dict[str, Any] = field(default_factory=dict)
    json: dict[str, Any] | None = None
    files: dict[str, tuple[str, bytes]] | None = None
    data: dict[str, Any] | None = None
    expected: int = 200

    def words(self) -> dict[str, Any]:
        """As httpx takes them."""
        told = {"params": self.params, "json": self.json, "data": self.data}
        kept = {name: _given(values) for name, values in told.items() if values is not None}
        return kept if self.files is None else {**kept, "files": self.files}


@dataclass(frozen=True)
class Pause:
    """Instead of a call: so long until the next."""

    seconds: float


def _given(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def checked(call: Call, response: httpx.Response) -> httpx.Response:
    """The response, or the error that it tells of: `NotFound`, `BadInput`, `Conflict`, or any `RedshelfError`."""
    if response.status_code == call.expected:
        return response
    short = f"{call.path} answered {response.status_code}"
    try:
        detail = str(response.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"{short}, and no reason that this client understands"
    raise ERRORS.get(response.status_code, RedshelfError)(detail)


Asking = Generator[Call | Pause, Any, T]


def answer(kind: type[Model], call: Call) -> Asking[Model]:
    """What a call is answered with, as the service answers it."""
    response = yield call
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise RedshelfError(f"{call.path} answered what no redshelf of this version does: {error}") from error


def _table(call: Call) -> Asking[Table]:
    """The list that a call is answered with, whose facts are in `meta`."""
    import pyarrow.parquet as pq

    from redshelf.indexing import tabular

    response = yield replace(call, params={**call.params, "format": "parquet"})
    return tabular.to_astropy(pq.read_table(BytesIO(response.content)))


def of_source(source_id: str, what: str = "") -> str:
    """The address of a source, or of what is asked of it."""
    return f"/v1/sources/{quote(source_id, safe='')}{what and '/'}{what}"


def _upload(cutout: Path | bytes) -> tuple[str, bytes]:
    if isinstance(cutout, bytes):
        return "cutout", cutout
    if not cutout.is_file():
        raise NotFound(f"cutout {cutout} does not exist")
    return cutout.name, cutout.read_bytes()


def _with_cutout(
    what: str,
    cutout: Path | bytes,
    *,
    bands: str | None = None,
    unit: str | None = None,
    pixel_scale_arcsec: float | None = None,
    ebv: float | None = None,
    **asked: Any,
) -> Call:
    form = {"bands": bands, "unit": unit, "pixel_scale_arcsec": pixel_scale_arcsec, "ebv": ebv}
    return Call("POST", f"/v1/cutouts/{what}", asked, files={"file": _upload(cutout)}, data=form)


def shelf() -> Asking[ShelfAnswer]:
    """The survey, its bands, encoders, estimators, and the server's limits."""
    return answer(ShelfAnswer, Call("GET", "/v1/shelf"))


def source(source_id: str) -> Asking[SourceAnswer]:
    """The catalogue row of a source."""
    return answer(SourceAnswer, Call("GET", of_source(source_id)))


def source_at(ra_deg: float, dec_deg: float, *, radius_arcsec: float | None = None) -> Asking[SourceAnswer]:
    """That of the source nearest to a position."""
    place = {"ra_deg": ra_deg, "dec_deg": dec_deg, "radius_arcsec": radius_arcsec}
    return answer(SourceAnswer, Call("GET", "/v1/sources", place))


def redshift(
    source_id: str | None = None, *, cutout: Path | bytes | None = None, **asked: Any
) -> Asking[RedshiftAnswer]:
    """The redshift of a source, or of a `cutout`, with all that is said of it. `asked`: encoder, estimator, pdf; with a
    cutout also bands, unit, pixel_scale_arcsec, ebv."""
    if (source_id is None) == (cutout is None):
        raise BadInput("expected a source id or a cutout")
    if cutout is not None:
        return answer(RedshiftAnswer, _with_cutout("redshift", cutout, **asked))
    return answer(RedshiftAnswer, Call("GET", of_source(str(source_id), "redshift"), asked))


def _like(
    source_id: str | None = None,
    *,
    position: tuple[float, float] | None = None,
    vector: Sequence[float] | None = None,
    text: str | None = None,
    like: Sequence[str] = (),
    unlike: Sequence[str] = (),
    cutout: Path | bytes | None = None,
    **asked: Any,
) -> Call:
    given = {
        "source_id": source_id,
        "position": None if position is None else {"ra_deg": position[0], "dec_deg": position[1]},
        "vector": None if vector is None else [float(value) for value in vector],
        "text": text,
        "positive": list(like) or None,
    }
    named = [name for name, value in {**given, "cutout": cutout}.items() if value is not None]
    if len(named) != 1:
        expected = "a source id, position, vector, text, like and cutout"
        raise BadInput(f"expected one of {expected}, got {' and '.join(named) or 'none'}")
    if cutout is not None:
        return _with_cutout("neighbours", cutout, **asked)
    return Call("POST", "/v1/neighbours", json={**given, "negative": list(unlike) or None, **asked})


def neighbours(source_id: str | None = None, **asked: Any) -> Asking[Table]:
    """The galaxies like a source, by its id or by `position=(ra, dec)` in degrees; like a `vector`, a `text`, the
    sources `like` these and `unlike` those, or a `cutout` (a file or its bytes, with `bands`, `unit`,
    `pixel_scale_arcsec`, `ebv`).

    Further: k, encoder, exact, max_distance, mutual, and the filters of the route.
    """
    return _table(_like(source_id, **asked))


def neighbours_answer(source_id: str | None = None, **asked: Any) -> Asking[NeighboursAnswer]:
    """The same as the service answers it."""
    return answer(NeighboursAnswer, _like(source_id, **asked))


def cone(ra_deg: float, dec_deg: float, radius_arcsec: float, *, n: int | None = None) -> Asking[Table]:
    """The sources in a cone, nearest to its axis first."""
    told = {"ra_deg": ra_deg, "dec_deg": dec_deg, "radius_arcsec": radius_arcsec, "n": n}
    return _table(Call("GET", "/v1/cone", told))


def outliers(*, encoder: str | None = None, n: int | None = None, **filters: Any) -> Asking[Table]:
    """The most isolated sources."""
    return _table(Call("GET", "/v1/outliers", {"encoder": encoder, "n": n, **filters}))


def cutout(source_id: str, *, bands: str | None = None) -> Asking[HDUList]:
    """The cutout of a source, an HDU a band, in microjansky."""
    from astropy.io import fits

    response = yield Call("GET", of_source(source_id, "cutout"), {"format": "fits", "bands": bands})
    return fits.open(BytesIO(response.content))


def redshifts(
    source_ids: Sequence[str],
    *,
    encoder: str | None = None,
    estimator: str | None = None,
    pdf: bool = False,
    at_once: int | None = None,
    progress: bool = False,
) -> Asking[Table]:
    """Redshifts of any number of sources, in their order, all of one generation; `pdf`: with the densities.

    At most `at_once` are asked for in one request, by default as many as the server takes. `Conflict` where another
    generation took the place of the first batch's.
    """
    from astropy.table import vstack
    from tqdm import tqdm

    if not source_ids or isinstance(source_ids, str):
        raise BadInput("expected a list of at least one source id")
    if at_once is None:
        at_once = min(AT_ONCE, (yield from shelf()).limits.max_batch)
    tables: list[Table] = []
    with tqdm(total=len(source_ids), unit=" sources", desc="redshifts", disable=not progress) as bar:
        for start in range(0, len(source_ids), at_once):
            batch = list(source_ids[start : start + at_once])
            body = {"ids": batch, "encoder": encoder, "estimator": estimator, "pdf": pdf}
            pinned = {"generation": tables[0].meta["generation"]} if tables else {}
            tables.append((yield from _table(Call("POST", "/v1/redshifts", pinned, json=body))))
            bar.update(len(batch))
    return vstack(tables, metadata_conflicts="silent") if len(tables) > 1 else tables[0]


def ensemble(source_ids: Sequence[str], **asked: Any) -> Asking[qp.Ensemble]:
    """The densities of sources as an ensemble of qp, everything else in its `ancil`. A source that is given no redshift
    is not in it. Wants the `sim` extra."""
    try:
        import qp
    except ImportError as error:
        raise RedshelfError("qp is not installed: it comes with the `sim` extra") from error
    import numpy as np

    table = yield from redshifts(source_ids, pdf=True, **asked)
    density = np.asarray(table["pdf_density"], dtype=float)
    given = np.isfinite(density).all(axis=1)
    if not given.any():
        raise NotFound("none of these sources is given a redshift")
    kept = table[given]
    ancil = {name: np.ma.filled(kept[name], np.nan) if kept[name].dtype.kind == "f" else np.asarray(kept[name])
             for name in kept.colnames if not name.startswith("pdf_")}  # fmt: skip
    data = {"bins": np.asarray(kept["pdf_z"], dtype=float)[0], "pdfs": density[given]}
    return qp.Ensemble(qp.hist, data=data, ancil=ancil)

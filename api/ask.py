"""One question from the terminal, put to a shelf on disk or to a server: the same answer either way."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from redshelf.models.errors import BadInput, Conflict, NotFound, RedshelfError
from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer

if TYPE_CHECKING:
    from redshelf.service.shelf import OpenEncoder
    from redshelf.service.upload import Cutout

K = 10  # neighbours, where a question does not say
TIMEOUT_S = 120  # the first upload makes the server load torch and the weights
ERRORS: dict[int, type[RedshelfError]] = {404: NotFound, 409: Conflict, 422: BadInput}


@dataclass(frozen=True)
class Question:
    """One of `source_id`, `position` (RA, Dec in degrees), `cutout`, `text` and `like`; `bands`, `unit` and `ebv` go
    with a cutout, `unlike` with `like`."""

    source_id: str | None = None
    position: tuple[float, float] | None = None
    cutout: Path | None = None
    bands: str | None = None
    unit: Literal["uJy", "noise"] = "uJy"
    ebv: float | None = None
    text: str | None = None
    like: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()

    @property
    def of_one(self) -> bool:
        """Whether it is about one galaxy, which has a redshift."""
        return self.text is None and not self.like

    def __str__(self) -> str:
        """What is asked about, where that is no source."""
        if self.like:
            unlike = f" and unlike {', '.join(self.unlike)}" if self.unlike else ""
            return ", ".join(self.like) + unlike
        return "the cutout" if self.text is None else repr(self.text)


class Asked(Protocol):
    """What both ways of asking offer."""

    def neighbours(self, question: Question, *, encoder: str | None, k: int | None) -> NeighboursAnswer: ...
    def redshift(self, question: Question, *, estimator: str | None) -> RedshiftAnswer: ...


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise NotFound(f"cutout {path} does not exist")
    return path.read_bytes()


class OnDisk:
    """Asks the newest generation of a shelf in this process."""

    def __init__(self, root: Path) -> None:
        from redshelf.service.shelf import open_shelf

        self.shelf = open_shelf(root)

    def _id(self, question: Question) -> str:
        from redshelf.service.search import nearest_source

        if question.position is not None:
            return nearest_source(self.shelf, *question.position)
        assert question.source_id is not None  # the command line takes exactly one of the three
        return question.source_id

    def _cutout(self, question: Question, encoder: str | None) -> tuple[OpenEncoder, Cutout]:
        from redshelf.service import upload

        assert question.cutout is not None
        chosen = upload.pixel_encoder(self.shelf, encoder)
        bands = tuple(name.strip() for name in question.bands.split(",")) if question.bands else None
        blob = _read(question.cutout)
        return chosen, upload.read(blob, self.shelf.info, bands=bands, unit=question.unit, ebv=question.ebv)

    def neighbours(self, question: Question, *, encoder: str | None, k: int | None) -> NeighboursAnswer:
        from redshelf.service import examples, search, upload

        k = K if k is None else k
        if question.text is not None:
            return examples.neighbours_of_text(self.shelf, question.text, encoder=encoder, k=k)
        if question.like:
            return examples.neighbours_of_examples(self.shelf, question.like, question.unlike, encoder=encoder, k=k)
        if question.cutout is None:
            return search.neighbours(self.shelf, self._id(question), encoder=encoder, k=k)
        chosen, cutout = self._cutout(question, encoder)
        vector = upload.embed(self.shelf, chosen, cutout)
        return search.neighbours_of_vector(
            self.shelf, vector, encoder=chosen.name, k=k, bands_missing=cutout.bands_missing
        )

    def redshift(self, question: Question, *, estimator: str | None) -> RedshiftAnswer:
        from redshelf.service import redshift, upload

        if question.cutout is None:
            return redshift.redshifts(self.shelf, [self._id(question)], estimator=estimator)[0]
        chosen, cutout = self._cutout(question, None)
        vector = upload.embed(self.shelf, chosen, cutout)
        return redshift.redshift_of_vector(
            self.shelf, vector, encoder=chosen.name, estimator=estimator, bands_missing=cutout.bands_missing
        )


class OverHttp:
    """Asks a running server, with the key in `$REDSHELF_KEY` where there is one."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def _call(self, method: str, route: str, **kwargs: Any) -> Any:
        import httpx

        try:
            key = os.environ.get("REDSHELF_KEY")
            headers = {"x-api-key": key} if key else {}
            response = httpx.request(method, self.url + route, timeout=TIMEOUT_S, headers=headers, **kwargs)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise RedshelfError(f"cannot ask {self.url}: {error}") from error
        try:
            document = response.json()
        except ValueError as error:
            raise RedshelfError(f"{self.url}{route} answered {response.status_code}, and no JSON") from error
        if response.status_code != 200:
            kind = ERRORS.get(response.status_code, RedshelfError)
            raise kind(document.get("detail", f"{self.url}{route} answered {response.status_code}"))
        return document

    def _source(self, question: Question) -> str:
        """The address of the source that is asked about, by id or by position."""
        from urllib.parse import quote

        source_id = question.source_id
        if question.position is not None:
            ra, dec = question.position
            source_id = self._call("GET", "/v1/sources", params={"ra_deg": ra, "dec_deg": dec})["source_id"]
        return f"/v1/sources/{quote(str(source_id), safe='')}"

    def _ask(self, question: Question, what: str, **given: Any) -> Any:
        parameters = {name: value for name, value in given.items() if value is not None}
        if question.cutout is None:
            return self._call("GET", f"{self._source(question)}/{what}", params=parameters)
        form = {"unit": question.unit, "bands": question.bands or None, "ebv": question.ebv}
        return self._call(
            "POST",
            f"/v1/cutouts/{what}",
            params=parameters,
            files={"file": (question.cutout.name, _read(question.cutout))},
            data={name: value for name, value in form.items() if value is not None},
        )

    def neighbours(self, question: Question, *, encoder: str | None, k: int | None) -> NeighboursAnswer:
        if question.of_one:
            return NeighboursAnswer.model_validate(self._ask(question, "neighbours", encoder=encoder, k=k))
        examples = {"positive": question.like, "negative": question.unlike}
        body: dict[str, Any] = {"text": question.text} if question.text is not None else examples
        body |= {name: value for name, value in {"encoder": encoder, "k": k}.items() if value is not None}
        return NeighboursAnswer.model_validate(self._call("POST", "/v1/neighbours", json=body))

    def redshift(self, question: Question, *, estimator: str | None) -> RedshiftAnswer:
        return RedshiftAnswer.model_validate(self._ask(question, "redshift", estimator=estimator))


def open_asked(shelf: Path, url: str | None) -> Asked:
    """The server at `url`, else the shelf on disk."""
    return OverHttp(url) if url else OnDisk(shelf)

"""One question from the terminal, put to a shelf on disk or to a server: the same answer either way."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from redshelf.api import calls
from redshelf.api.calls import Asking, T
from redshelf.models.errors import NotFound
from redshelf.service.answers import NeighboursAnswer, RedshiftAnswer

if TYPE_CHECKING:
    from redshelf.service.shelf import OpenEncoder
    from redshelf.service.upload import Cutout

K = 10  # neighbours, where a question does not say


@dataclass(frozen=True)
class Question:
    """One of `source_id`, `position` (RA, Dec in degrees), `cutout`, `text` and `like`; `bands`, `unit`,
    `pixel_scale_arcsec` and `ebv` go with a cutout, `unlike` with `like`."""

    source_id: str | None = None
    position: tuple[float, float] | None = None
    cutout: Path | None = None
    bands: str | None = None
    unit: Literal["uJy", "noise"] = "uJy"
    pixel_scale_arcsec: float | None = None
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
        assert question.source_id is not None  # the command line takes one of these, a cutout, a text or examples
        return question.source_id

    def _cutout(self, question: Question, encoder: str | None) -> tuple[OpenEncoder, Cutout]:
        from redshelf.service import upload

        assert question.cutout is not None
        chosen = upload.pixel_encoder(self.shelf, encoder)
        bands = tuple(name.strip() for name in question.bands.split(",")) if question.bands else None
        told: dict[str, Any] = {"unit": question.unit, "scale_arcsec": question.pixel_scale_arcsec, "ebv": question.ebv}
        return chosen, upload.read(_read(question.cutout), self.shelf.info, bands=bands, **told)

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
    """Asks a running server, with a key where it wants one."""

    def __init__(self, url: str, api_key: str | None = None) -> None:
        self.url, self.api_key = url, api_key

    def _ask(self, asking: Asking[T]) -> T:
        from redshelf.api.client import Client

        with Client(self.url, api_key=self.api_key) as client:
            return client.ask(asking)

    @staticmethod
    def _cutout(question: Question) -> dict[str, Any]:
        told = {name: getattr(question, name) for name in ("unit", "pixel_scale_arcsec", "ebv")}
        return {"cutout": question.cutout, "bands": question.bands or None, **told}

    def neighbours(self, question: Question, *, encoder: str | None, k: int | None) -> NeighboursAnswer:
        asked: dict[str, Any] = {"encoder": encoder, "k": k}
        if question.cutout is not None:
            return self._ask(calls.neighbours_answer(**self._cutout(question), **asked))
        told = {"position": question.position, "text": question.text, "like": question.like, "unlike": question.unlike}
        return self._ask(calls.neighbours_answer(question.source_id, **told, **asked))

    def redshift(self, question: Question, *, estimator: str | None) -> RedshiftAnswer:
        if question.cutout is not None:
            return self._ask(calls.redshift(**self._cutout(question), estimator=estimator))
        source_id = question.source_id
        if question.position is not None:
            source_id = self._ask(calls.source_at(*question.position)).source_id
        return self._ask(calls.redshift(source_id, estimator=estimator))


def open_asked(shelf: Path, url: str | None, api_key: str | None = None) -> Asked:
    """The server at `url`, else the shelf on disk."""
    return OverHttp(url, api_key) if url else OnDisk(shelf)

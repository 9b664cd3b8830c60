"""The grid of similar galaxies: like one source or several, unlike others, filtered, by one encoder or by two.

All of a page is in its address, so that the back button and a bookmark bring it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Query
from fastapi.responses import HTMLResponse, Response
from pydantic import Field, model_validator

from redshelf.api import cards
from redshelf.api.cards import STRETCHES, Card, Look, Size
from redshelf.api.pages import render
from redshelf.api.queries import FilterQuery, InForce, NeighboursQuery, OfGeneration, Shelf, how_many, names
from redshelf.indexing.columns import CLASSES
from redshelf.models import ranking
from redshelf.models.errors import BadInput
from redshelf.service import examples, maps, pictures, search
from redshelf.service.answers import NeighboursAnswer
from redshelf.service.examples import MAX_EXAMPLES, Method
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf

router = APIRouter()
GRID = 60
COUNTS = (12, 24, 60, 120, 240)


def without_blanks(given: Any) -> Any:
    """What somebody has filled in of a form, which sends the other fields, too: they are as good as not there."""
    if not isinstance(given, dict):
        return given
    kept = {name: [v for v in value if v != ""] if isinstance(value, list) else value for name, value in given.items()}
    return {name: value for name, value in kept.items() if value not in ("", [])}


class Blank(OfGeneration):
    """Of a form: fields left empty are not there."""

    @model_validator(mode="before")
    @classmethod
    def _without_blanks(cls, given: Any) -> Any:
        return without_blanks(given)


class LookQuery(Blank):
    """How the grid is drawn and which neighbours it holds, for every question alike."""

    encoder: str | None = Field(None, description="an embedding space; the default one by default")
    k: int | None = Field(None, ge=1, le=1000)
    size: Size = "medium"
    bands: str | None = Field(None, description="of the pictures: one, or three as red, green, blue")
    stretch: float = Field(cards.STRETCH, ge=0.001, le=10_000)
    unfolded: bool = Field(False, description="show near-duplicates, too")

    @property
    def look(self) -> Look:
        return Look(self.bands, self.stretch, self.size)


class SimilarQuery(LookQuery, FilterQuery):
    """The question of a grid."""

    like: list[str] = Field(min_length=1, max_length=MAX_EXAMPLES, description="ids to be like")
    unlike: list[str] = Field([], max_length=MAX_EXAMPLES, description="ids to be unlike")
    method: Method | None = None
    against: str | None = Field(None, description="a second encoder, whose neighbours stand beside")
    exact: bool = False

    @property
    def said(self) -> dict[str, Any]:
        """What differs from the defaults, as it stands in an address."""
        fields, given = type(self).model_fields, self.model_dump()
        names = ["like", "unlike", *(name for name in given if name not in ("like", "unlike", "generation"))]
        return {name: given[name] for name in names if given[name] != fields[name].default}

    @property
    def n_filters(self) -> int:
        """How many fields restrict the answer."""
        return len(self.said.keys() & FilterQuery.model_fields.keys())

    def address(self, **changes: Any) -> str:
        """The address of this question with some fields changed, None leaving one out."""
        first: dict[str, Any] = {"like": None, "unlike": None}
        told = {name: v for name, v in {**first, **self.said, **changes}.items() if v not in (None, [], ())}
        words = {name: str(value).lower() if isinstance(value, bool) else value for name, value in told.items()}
        return f"/similar?{urlencode(words, doseq=True)}"

    @property
    def unfiltered(self) -> str:
        """The address of this question without its filters."""
        return self.address(**dict.fromkeys(FilterQuery.model_fields))

    def table(self, encoder: str, k: int) -> str:
        """The address of the same list in /v1, of a question about one source."""
        asked = {name: value for name, value in self.said.items() if name in NeighboursQuery.model_fields}
        words = {name: "true" if value is True else value for name, value in asked.items()}
        told = urlencode({**words, "encoder": encoder, "k": k})
        return f"/v1/sources/{quote(self.like[0], safe='')}/neighbours?{told}"

    def with_like(self, source_id: str) -> str:
        """With one more positive example."""
        kept = [one for one in self.unlike if one != source_id]
        return self.address(like=[*self.like, source_id], unlike=kept)

    def with_unlike(self, source_id: str) -> str:
        """With one more negative example."""
        return self.address(unlike=[*self.unlike, source_id])

    def without(self, source_id: str) -> str:
        """Without this example; the first page where it was the only one to be like."""
        like = [one for one in self.like if one != source_id]
        return self.address(like=like, unlike=[one for one in self.unlike if one != source_id]) if like else "/"


@dataclass(frozen=True)
class Column:
    """The neighbours by one encoder, and the near-duplicates of the query that were folded into it."""

    answer: NeighboursAnswer
    cards: list[Card]
    own: list[str]


@dataclass(frozen=True)
class Overlap:
    """How alike the lists of two encoders are."""

    shared: int
    jaccard: float | None
    rank_biased: float | None


def _asked(shelf: OpenShelf, query: SimilarQuery, encoder: str | None, k: int) -> NeighboursAnswer:
    how: dict[str, Any] = {"encoder": encoder, "k": k, "filters": query.filters(), "exact": query.exact}
    if len(query.like) == 1 and not query.unlike and query.method is None:
        return search.neighbours(shelf, query.like[0], **how)
    method = query.method or "rocchio"
    return examples.neighbours_of_examples(shelf, query.like, query.unlike, method=method, **how)


def places_of(shelf: OpenShelf, ids: Sequence[str]) -> list[tuple[float, float]]:
    """RA and Dec in degrees of sources."""
    rows = [shelf.row(one) for one in ids]
    return [(float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])) for row in rows]


def columns(
    shelf: OpenShelf, answers: Sequence[NeighboursAnswer], ids: Sequence[str], *, unfolded: bool
) -> list[Column]:
    """The cards of one answer, or of two with what they share marked; `ids` are those asked about."""
    lists = [{one.source_id for one in answer.neighbours} for answer in answers]
    shared = lists[0] & lists[1] if len(lists) == 2 else set[str]()
    beside = places_of(shelf, ids)
    told: dict[str, Any] = {"unfolded": unfolded, "shared": shared}
    return [Column(one, *cards.of_neighbours(shelf, one.neighbours, beside=beside, **told)) for one in answers]


def overlap(answers: Sequence[NeighboursAnswer]) -> Overlap | None:
    """Of two answers; None of one."""
    if len(answers) < 2:
        return None
    first, second = ([one.source_id for one in answer.neighbours] for answer in answers)
    both = len(set(first) & set(second))
    return Overlap(both, ranking.jaccard(first, second), ranking.rank_biased_overlap(first, second))


def drawn(shelf: OpenShelf, query: LookQuery, settings: Settings, k: int) -> dict[str, Any]:
    """What the form that chooses the look of a grid is made of. `BadInput` for bands that cannot be drawn."""
    choices = cards.band_choices(shelf.info) if shelf.info.has_images else []
    if query.bands is not None and shelf.info.has_images:
        pictures.check_bands(shelf.info, names(query.bands))
        if query.bands not in dict(choices):
            choices.append((query.bands, query.bands.replace(",", " ")))
    stretches = STRETCHES if query.stretch in STRETCHES else {**STRETCHES, query.stretch: f"{query.stretch:g}"}
    return {
        "look": query.look,
        "band_choices": choices,
        "stretches": stretches,
        "counts": [n for n in sorted({*COUNTS, k}) if n <= settings.max_k],
        "k": k,
        "encoders": sorted(shelf.encoders),
        "unfolded": query.unfolded,
        "generation": shelf.generation.number,
        # to a program that asks this server itself, and has none of the browser's keys
        "sends": settings.on_loopback and not settings.require_key,
    }


@router.get("/similar", response_class=HTMLResponse)
def similar(query: Annotated[SimilarQuery, Query()], shelf: Shelf, settings: InForce) -> Response:
    """The galaxies most like the ones that are named, as a grid of pictures."""
    k = how_many(query.k, settings, usual=GRID)
    asked = shelf.encoder(query.encoder).name
    by = [asked] if query.against is None else [asked, shelf.encoder(query.against).name]
    if len(set(by)) < len(by):
        raise BadInput(f"against={query.against!r} is the encoder itself: expected another one, or none")
    answers = [_asked(shelf, query, name, k) for name in by]
    about = [*query.like, *query.unlike]
    return render(
        shelf.info,
        "similar.html",
        q=query.like[0] if len(about) == 1 else "",
        ask=query,
        asked=asked,
        like=query.like,
        unlike=query.unlike,
        pinned=[
            *((card, "+") for card in cards.of_ids(shelf, query.like)),
            *((card, "−") for card in cards.of_ids(shelf, query.unlike)),
        ],
        on_map=query.like[0] if asked in maps.made(shelf) else None,
        table=query.table(asked, k) if answers[0].query is not None else None,
        columns=columns(shelf, answers, about, unfolded=query.unfolded),
        overlap=overlap(answers),
        permalink=query.address(encoder=asked, k=k, generation=shelf.generation.number),
        band_names=shelf.info.band_names,
        classes=CLASSES,
        **drawn(shelf, query, settings, k),
    )

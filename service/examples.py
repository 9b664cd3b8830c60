"""Similar galaxies by examples and by words: like these and unlike those, or what a text describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import numpy as np

from redshelf.indexing.filters import Filters
from redshelf.models import ranking
from redshelf.models.errors import BadInput, nearest
from redshelf.service.answers import NeighboursAnswer
from redshelf.service.search import Floats, Ints, Wanted, answer, known_row, look, scope
from redshelf.service.shelf import OpenEncoder, OpenShelf

Method = Literal["rocchio", "classifier"]
METHODS = get_args(Method)
MAX_EXAMPLES = 100  # positive ones, and negative ones
EACH = 300  # candidates for the classifier around each positive example, and at least around Rocchio's vector
MAX_TEXT = 1000  # characters: a CLIP reads some seventy words


def _examples(
    shelf: OpenShelf, encoder: OpenEncoder, positive: Sequence[str], negative: Sequence[str]
) -> tuple[Ints, Ints]:
    """Rows of the examples, each once. Raises as `known_row` does, and `BadInput` for a wrong number of them and for
    one that is both."""
    if not 1 <= len(positive) <= MAX_EXAMPLES:
        raise BadInput(f"{len(positive)} positive sources: expected 1 to {MAX_EXAMPLES}")
    if len(negative) > MAX_EXAMPLES:
        raise BadInput(f"{len(negative)} negative sources: expected at most {MAX_EXAMPLES}")
    for source_id in positive:
        if source_id in negative:
            raise BadInput(f"source {source_id!r} is among the positive and among the negative ones: expected one")
    rows = (np.array([known_row(shelf, encoder, one) for one in dict.fromkeys(ids)]) for ids in (positive, negative))
    first, second = (some.astype(np.int64) for some in rows)
    return first, second


def neighbours_of_examples(
    shelf: OpenShelf,
    positive: Sequence[str],
    negative: Sequence[str] = (),
    *,
    method: Method = "rocchio",
    encoder: str | None = None,
    filters: Filters | None = None,
    **how: Any,
) -> NeighboursAnswer:
    """The `k` sources most like the `positive` and unlike the `negative` ones, none of which is in the answer.

    `rocchio`: the nearest to one vector made of all (`ranking.rocchio`). `classifier`: a linear classifier of positive
    against negative examples and sources at random, which ranks the `EACH` nearest of each positive example and of
    Rocchio's vector; nothing else is ever in its answer. `how`: the other fields of `Wanted`; `max_distance` is from
    Rocchio's vector, or with the classifier from the mean of the positive examples.
    """
    if method not in METHODS:
        raise BadInput(f"method={method!r}; {nearest(method, METHODS)}")
    chosen, wanted = shelf.encoder(encoder), Wanted(filters=filters or Filters(), **how)
    liked, unliked = _examples(shelf, chosen, positive, negative)
    examples = np.concatenate([liked, unliked])
    query = ranking.rocchio(chosen.vectors(liked), chosen.vectors(unliked))
    if method == "rocchio":
        return look(shelf, chosen, query, wanted, left_out=examples, method=method)
    if wanted.mutual:
        raise BadInput("mutual needs a query that is a source of this survey: others are nobody's neighbours")
    return _classified(shelf, chosen, query, liked, unliked, wanted)


def _classified(
    shelf: OpenShelf, encoder: OpenEncoder, query: Floats, liked: Ints, unliked: Ints, wanted: Wanted
) -> NeighboursAnswer:
    within = scope(shelf, encoder, wanted.filters, left_out=np.concatenate([liked, unliked]))
    positive = encoder.vectors(liked)
    _, around = within.nearest(positive, EACH, exact=wanted.exact)
    _, ahead = within.nearest(query[None], max(EACH, wanted.k), exact=wanted.exact)
    pool = np.union1d(around, ahead)
    pool = pool[pool >= 0]
    vectors = encoder.vectors(pool)
    distance = np.linalg.norm(vectors - positive.mean(axis=0), axis=1)
    score = ranking.discriminant(positive, encoder.vectors(unliked), encoder.background).score(vectors)
    inside = np.flatnonzero(distance <= (np.inf if wanted.max_distance is None else wanted.max_distance))
    best = inside[np.argsort(-score[inside], kind="stable")][: wanted.k]
    found = answer(
        shelf,
        within,
        pool[best],
        distance[best],
        complete=len(pool) == within.n_matching and len(inside) <= wanted.k,
        exact=wanted.exact,
        method="classifier",
        n_candidates=len(pool),
    )
    scored = zip(found.neighbours, score[best].tolist(), strict=True)
    return found.model_copy(update={"neighbours": [one.model_copy(update={"score": value}) for one, value in scored]})


def text_encoder(shelf: OpenShelf, name: str | None) -> OpenEncoder:
    """The encoder that embeds a text: `name`, else the default one, or the first that can. `BadInput` naming those."""
    able = shelf.default_first(name for name, one in shelf.encoders.items() if one.takes_texts)
    if not able:
        raise BadInput(
            "no encoder here has texts in its space: embed with --space projected of a CLIP, index and publish"
        )
    chosen = shelf.encoder(name or able[0])
    if chosen.name not in able:
        raise BadInput(f"encoder {name!r} has no texts in its space; those that have: {', '.join(able)}")
    return chosen


def neighbours_of_text(
    shelf: OpenShelf, text: str, *, encoder: str | None = None, filters: Filters | None = None, **how: Any
) -> NeighboursAnswer:
    """The `k` sources nearest to what `text` says, of which a CLIP reads the first seventy words or so; `how`: the
    other fields of `Wanted`."""
    if not text.strip() or len(text) > MAX_TEXT:
        raise BadInput(f"text of {len(text.strip())} characters: expected 1 to {MAX_TEXT}")
    chosen, wanted = text_encoder(shelf, encoder), Wanted(filters=filters or Filters(), **how)
    model: Any = chosen.model()
    vector = cast(Floats, model.embed_text([text])[0].cpu().numpy().astype(np.float32))
    return look(shelf, chosen, vector, wanted)

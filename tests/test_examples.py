"""Neighbours by examples and by text: the right class, not the examples, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_foundation
from fastapi.testclient import TestClient
from known_shelf import open_known

from redshelf.api.app import create_app
from redshelf.api.cli import main
from redshelf.indexing import ann
from redshelf.indexing.filters import Filters
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.examples import METHODS, neighbours_of_examples, neighbours_of_text
from redshelf.service.settings import Settings
from redshelf.service.shelf import OpenShelf, open_shelf

CLASSES, EACH, DIM, EXAMPLES = 20, 200, 64, 20


def classed() -> npt.NDArray[np.float16]:
    """Clouds of `EACH` sources, class after class, which overlap, class 1 lying closest to class 0; one number is
    noisier than any two classes differ in it."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(CLASSES, DIM))
    centres[1] = centres[0] + 0.3 * rng.normal(size=DIM)
    spread = np.where(np.arange(DIM) == 5, 3.0, 1.0)
    return (np.repeat(centres, EACH, axis=0) + rng.normal(size=(CLASSES * EACH, DIM)) * spread).astype(np.float16)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> OpenShelf:
    return open_known(tmp_path_factory.mktemp("known"), {"e": classed()})


def ids(label: int, some: slice) -> list[str]:
    return [f"s{row}" for row in range(label * EACH, (label + 1) * EACH)][some]


def share(shelf: OpenShelf, method: Any, *, negative: bool) -> float:
    """Of class 0 among 50 answers, the mean over five draws of examples."""
    found = []
    for draw in (slice(n * EXAMPLES, (n + 1) * EXAMPLES) for n in range(5)):
        unlike = ids(1, draw) if negative else []
        answer = neighbours_of_examples(shelf, ids(0, draw), unlike, method=method, k=50)
        assert len(answer.neighbours) == 50 and not {n.source_id for n in answer.neighbours} & {*ids(0, draw), *unlike}
        found.append(np.mean([int(n.source_id[1:]) < EACH for n in answer.neighbours]))
    return float(np.mean(found))


@pytest.mark.parametrize("method", METHODS)
def test_answers_are_of_the_class_of_the_examples_and_more_so_with_negative_ones(shelf: OpenShelf, method: str) -> None:
    alone, told_apart = (share(shelf, method, negative=negative) for negative in (False, True))
    assert alone > 8 / CLASSES
    assert told_apart > alone + 0.05, (alone, told_apart)


def test_rocchio_without_negative_ones_is_the_neighbours_of_the_mean(shelf: OpenShelf) -> None:
    liked = ids(3, slice(4))
    vectors = classed().astype(np.float64)
    distance = np.linalg.norm(vectors - vectors[3 * EACH : 3 * EACH + 4].mean(axis=0), axis=1)
    distance[3 * EACH : 3 * EACH + 4] = np.inf
    nearest = np.argsort(distance)[:7]
    answer = neighbours_of_examples(shelf, liked, k=7)
    assert [n.source_id for n in answer.neighbours] == [f"s{row}" for row in nearest]
    assert [n.distance for n in answer.neighbours] == pytest.approx(distance[nearest], rel=1e-4)
    assert (answer.query, answer.method, answer.n_candidates, answer.complete) == (None, "rocchio", None, False)
    assert answer.n_matching == CLASSES * EACH - 4
    within = neighbours_of_examples(shelf, liked, k=7, max_distance=float(distance[nearest[3]]) + 1e-3)
    assert within.neighbours == answer.neighbours[:4] and within.complete


def test_the_classifier_says_what_it_ranked_and_scores_descend(shelf: OpenShelf) -> None:
    answer = neighbours_of_examples(shelf, ids(0, slice(5)), ids(1, slice(5)), method="classifier", k=1000)
    scores = [n.score for n in answer.neighbours]
    assert scores == sorted(scores, reverse=True) and None not in scores  # type: ignore[type-var]
    assert answer.n_candidates is not None and 1000 <= answer.n_candidates < answer.n_matching == CLASSES * EACH - 10
    assert not answer.complete
    middle = classed()[:5].astype(np.float64).mean(axis=0)
    first = answer.neighbours[0]
    distance = np.linalg.norm(classed()[int(first.source_id[1:])] - middle)
    assert first.distance == pytest.approx(distance, rel=1e-3)
    near = neighbours_of_examples(shelf, ids(0, slice(5)), method="classifier", k=1000, max_distance=first.distance)
    assert near.neighbours and all(n.distance <= first.distance for n in near.neighbours)


def test_filters_hold_for_examples_too(shelf: OpenShelf) -> None:
    ra, dec = (float(shelf.columns[name][0]) for name in ("ra", "dec"))
    filters = Filters(ra=ra, dec=dec, radius_arcsec=300)
    for method in METHODS:
        answer = neighbours_of_examples(shelf, ["s0", "s1", "s1"], ["s2"], method=method, k=1000, filters=filters)
        found = {n.source_id for n in answer.neighbours}
        inside = np.hypot((shelf.columns["ra"] - ra) * np.cos(np.radians(dec)), shelf.columns["dec"] - dec) * 3600 < 300
        assert found == {f"s{row}" for row in np.flatnonzero(inside)} - {"s0", "s1", "s2"}
        assert answer.n_matching == len(found) and answer.complete


@pytest.mark.parametrize(
    ("positive", "negative", "how", "message"),
    [
        ([], [], {}, "0 positive sources: expected 1 to 100"),
        (["s1"] * 101, [], {}, "101 positive sources"),
        (["s1"], ["s2"] * 101, {}, "101 negative sources: expected at most 100"),
        (["s1", "s2"], ["s2"], {}, "source 's2' is among the positive and among the negative ones"),
        (["s1"], [], {"mutual": True}, "mutual needs a query that is a source"),
        (["s1"], [], {"method": "classifier", "mutual": True}, "mutual needs a query that is a source"),
        (["s1"], [], {"method": "rochio"}, "method='rochio'; nearest: rocchio"),
        (["s1"], [], {"filters": Filters(exclude_radius_arcsec=5.0)}, "exclude_radius_arcsec needs a query"),
        (["s1"], [], {"k": 1001}, "k=1001: expected 1 <= k <= 1000"),
    ],
)
def test_examples_that_make_no_sense_are_refused(
    shelf: OpenShelf, positive: list[str], negative: list[str], how: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadInput, match=message):
        neighbours_of_examples(shelf, positive, negative, **how)


def test_an_example_that_there_is_not_is_named(shelf: OpenShelf) -> None:
    with pytest.raises(NotFound, match="no source 'x7'"):
        neighbours_of_examples(shelf, ["s1"], ["x7"])


@pytest.fixture(scope="module")
def clip_shelf(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny shelf, with a CLIP of random weights in the space of its texts, and one that has none."""
    pytest.importorskip("open_clip")
    from redshelf.service.embedding import Pretrained, embed
    from redshelf.service.index import build_index
    from redshelf.service.publish import publish

    folder = tmp_path_factory.mktemp("clip")
    shutil.copytree(tiny_shelf, folder / "shelf")
    tiny_foundation.clip(folder / "hub")
    for name, space in (("clip", "projected"), ("trunk", "trunk")):
        embed(folder / "shelf", encoder=name, weights=folder / "hub", options=Pretrained(space=space))
        build_index(folder / "shelf", encoder=name)
    publish(folder / "shelf")
    return folder / "shelf"


def test_a_text_finds_the_images_nearest_to_it_in_a_space_of_both(clip_shelf: Path) -> None:
    shelf = open_shelf(clip_shelf)
    clip: Any = shelf.encoder("clip").model()
    text = clip.embed_text(["a red round galaxy"])[0].numpy()
    distance, rows = ann.brute_force(shelf.encoder("clip").index.take(slice(None)), text[None], 6)
    answer = neighbours_of_text(shelf, "a red round galaxy", k=6)
    assert (answer.encoder, answer.query) == ("clip", None)
    assert [n.source_id for n in answer.neighbours] == [shelf.source_id(row) for row in rows[0]]
    assert [n.distance for n in answer.neighbours] == pytest.approx(distance[0], rel=1e-4)
    with TestClient(create_app(Settings(shelf=clip_shelf))) as client:
        asked = {"text": "a red round galaxy", "k": 6}
        assert client.post("/v1/neighbours", json=asked).json() == answer.model_dump()
        wrong = client.post("/v1/neighbours", json={**asked, "encoder": "trunk"})
        assert wrong.status_code == 422
        assert wrong.json()["detail"] == "encoder 'trunk' has no texts in its space; those that have: clip"
        told = {e["name"]: e["texts"] for e in client.get("/v1/shelf").json()["encoders"]}
    assert told == {"clip": True, "photometry": False, "trunk": False, "vit": False}


def test_a_shelf_without_a_space_of_texts_says_so(tiny_shelf: Path) -> None:
    shelf = open_shelf(tiny_shelf)
    with pytest.raises(BadInput, match="no encoder here has texts in its space"):
        neighbours_of_text(shelf, "a galaxy")
    for text in ("", "  ", "x" * 1001):
        with pytest.raises(BadInput, match=r"text of \d+ characters: expected 1 to 1000"):
            neighbours_of_text(shelf, text)


def test_examples_over_http_and_on_the_command_line_get_the_same_answer(
    tiny_shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = neighbours_of_examples(open_shelf(tiny_shelf), ["s0001", "s0002"], ["s0003"], k=5).model_dump()
    with TestClient(create_app(Settings(shelf=tiny_shelf))) as client:
        asked = {"positive": ["s0001", "s0002"], "negative": ["s0003"], "k": 5}
        assert client.post("/v1/neighbours", json=asked).json() == answer
        classified = client.post("/v1/neighbours", json={**asked, "method": "classifier"}).json()
        assert classified["method"] == "classifier" and len(classified["neighbours"]) == 5
    words = ["search", "--like", "s0001", "--like", "s0002", "--unlike", "s0003", "-k", "5", "--shelf", str(tiny_shelf)]
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == answer
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("like s0001, s0002 and unlike s0003, by ") and "z =" not in printed

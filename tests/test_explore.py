"""Lists of sources: cones, two encoders side by side, and the routes to them and to the most isolated sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.indexing.filters import Filters, separation_arcsec
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.explore import compare, cone, outliers
from redshelf.service.search import neighbours
from redshelf.service.settings import load
from redshelf.service.shelf import OpenShelf


@pytest.fixture(scope="module")
def client(tiny_shelf: Path) -> TestClient:
    return TestClient(create_app(load(environ={}, shelf=tiny_shelf, max_k=50)), raise_server_exceptions=False)


def test_a_cone_has_every_source_in_it_nearest_first_and_counts_them_all(shelf: OpenShelf) -> None:
    ra, dec = (float(shelf.columns[name][shelf.row("s0042")]) for name in ("ra", "dec"))
    separation = separation_arcsec(shelf.columns["ra"], shelf.columns["dec"], ra, dec)
    order = np.argsort(separation)
    inside = order[: (separation <= 30).sum()]
    whole = cone(shelf, ra, dec, 30.0)
    assert [s.source_id for s in whole.sources] == [shelf.source_id(row) for row in inside]
    assert whole.sources[0].source_id == "s0042" and whole.n_within == len(inside) > 5
    assert [s.separation_arcsec for s in whole.sources] == pytest.approx(separation[inside], abs=1e-6)
    few = cone(shelf, ra, dec, 30.0, n=3)
    assert few.sources == whole.sources[:3] and few.n_within == whole.n_within
    assert cone(shelf, 10.0, -45.0, 5.0).sources == []


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((400.0, 0.0, 1.0, 1), "ra=400"),
        ((0.0, 91.0, 1.0, 1), "dec=91"),
        ((0.0, 0.0, 0.0, 1), "radius_arcsec=0.0: expected 0 < radius_arcsec <= 36000"),
        ((0.0, 0.0, 36_001.0, 1), "radius_arcsec=36001.0"),
        ((0.0, 0.0, float("nan"), 1), "radius_arcsec=nan"),
        ((0.0, 0.0, 1.0, 0), "n=0: expected 1 <= n <= 1000"),
        ((0.0, 0.0, 1.0, 1001), "n=1001"),
    ],
)
def test_a_cone_out_of_range_is_refused(shelf: OpenShelf, asked: tuple[float, float, float, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cone(shelf, *asked[:3], n=asked[3])


def test_two_encoders_are_compared_on_one_source(shelf: OpenShelf) -> None:
    answer = compare(shelf, "s0007", ("vit", "photometry"), k=40)
    lists = [
        [n.source_id for n in neighbours(shelf, "s0007", encoder=e, k=40).neighbours] for e in ("vit", "photometry")
    ]
    assert [[n.source_id for n in one.neighbours] for one in answer.neighbours] == lists
    assert [one.encoder for one in answer.neighbours] == ["vit", "photometry"]
    both = set(lists[0]) & set(lists[1])
    assert both and answer.shared == [name for name in lists[0] if name in both]
    assert answer.jaccard == pytest.approx(len(both) / (80 - len(both)))
    assert answer.rank_biased_overlap is not None and 0 < answer.rank_biased_overlap < 1
    nobody = compare(shelf, "s0007", ("vit", "photometry"), filters=Filters(mag_band="i", mag_max=1.0))
    assert (nobody.shared, nobody.jaccard, nobody.rank_biased_overlap) == ([], None, None)


def test_compare_wants_two_different_encoders(shelf: OpenShelf) -> None:
    for encoders in (("vit",), ("vit", "vit"), ("vit", "photometry", "vit")):
        with pytest.raises(BadInput, match=f"encoders='{','.join(encoders)}': expected the names of two"):
            compare(shelf, "s0007", encoders)
    with pytest.raises(NotFound, match="nearest: vit"):
        compare(shelf, "s0007", ("vitt", "photometry"))


def test_outliers_are_those_of_brute_force_also_under_filters_and_deletions(shelf: OpenShelf) -> None:
    vectors = shelf.encoder("vit").index.take(slice(None)).astype(np.float64)
    distance = np.sort(np.linalg.norm(vectors[:, None] - vectors[None], axis=2), axis=1)[:, 10]
    order = np.argsort(-distance, kind="stable")
    answer = outliers(shelf, encoder="vit", n=20)
    assert [o.source_id for o in answer.outliers] == [shelf.source_id(row) for row in order[:20]]
    assert [o.distance for o in answer.outliers] == pytest.approx(distance[order[:20]], rel=1e-4)
    assert (answer.exact, answer.n_kept, answer.n_matching) == (True, 300, 300)
    stars = outliers(shelf, encoder="vit", filters=Filters(object_class="star"))
    passing = shelf.columns["object_class"] == 2
    assert [o.source_id for o in stars.outliers] == [shelf.source_id(row) for row in order if passing[row]]
    assert stars.n_kept == stars.n_matching == passing.sum()
    gone = np.zeros(len(shelf), dtype=bool)
    gone[order[:5]] = True
    without = shelf.encoder("vit").index.without(gone)
    opened = OpenShelf(
        shelf.layout, shelf.info, shelf.generation, shelf.columns,
        {"vit": type(shelf.encoder("vit"))(shelf.encoder("vit").published, without, Path())}, {},
    )  # fmt: skip
    assert [o.source_id for o in outliers(opened, encoder="vit", n=15).outliers] == [
        o.source_id for o in answer.outliers[5:]
    ]


def test_the_routes_answer_what_the_service_does(client: TestClient, shelf: OpenShelf) -> None:
    ra, dec = (float(shelf.columns[name][shelf.row("s0042")]) for name in ("ra", "dec"))
    at = {"ra_deg": ra, "dec_deg": dec, "radius_arcsec": 40}
    assert client.get("/v1/cone", params={**at, "n": 7}).json() == cone(shelf, ra, dec, 40.0, n=7).model_dump()
    compared = client.get("/v1/sources/s0007/compare?encoders=vit, photometry&k=9&labelled_only=true").json()
    filters = Filters(labelled_only=True)
    assert compared == compare(shelf, "s0007", ("vit", "photometry"), k=9, filters=filters).model_dump()
    isolated = client.get("/v1/outliers?encoder=vit&n=9&object_class=galaxy").json()
    assert isolated == outliers(shelf, encoder="vit", n=9, filters=Filters(object_class="galaxy")).model_dump()
    assert len(client.get("/v1/outliers").json()["outliers"]) == 50  # as many as this server gives
    mutual = client.get("/v1/sources/s0007/neighbours?k=20&mutual=true&max_distance=1000").json()
    assert mutual == neighbours(shelf, "s0007", k=20, mutual=True, max_distance=1000).model_dump()
    body = {"source_id": "s0007", "k": 20, "mutual": True, "max_distance": 1000}
    assert client.post("/v1/neighbours", json=body).json() == mutual
    cutout = {"file": client.get("/v1/sources/s0012/cutout?format=fits").content}
    near = client.post("/v1/cutouts/neighbours?max_distance=0.01&encoder=vit", files=cutout).json()
    assert [n["source_id"] for n in near["neighbours"]] == ["s0012"] and near["complete"]
    assert client.post("/v1/cutouts/neighbours?mutual=true", files=cutout).status_code == 422


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/cone?ra_deg=1&dec_deg=1", 422, "radius_arcsec is missing"),
        ("/v1/cone?ra_deg=1&dec_deg=1&radius_arcsec=36001", 422, "radius_arcsec='36001'"),
        ("/v1/cone?ra_deg=1&dec_deg=1&radius_arcsec=1&n=51", 422, "n=51: this server takes at most 50"),
        ("/v1/cone?ra_deg=1&dec_deg=1&radius_arcsec=1&k=5", 422, "unknown query parameter 'k'"),
        ("/v1/sources/s0007/compare", 422, "encoders is missing"),
        ("/v1/sources/s0007/compare?encoders=vit", 422, "encoders='vit': expected the names of two different ones"),
        ("/v1/sources/s0007/compare?encoders=vit,dino", 404, "no encoder 'dino'"),
        ("/v1/sources/nope/compare?encoders=vit,photometry", 404, "no source 'nope'"),
        ("/v1/outliers?n=0", 422, "n='0'"),
        ("/v1/outliers?encoder=dino", 404, "no encoder 'dino'"),
        ("/v1/outliers?exclude_radius_arcsec=5", 422, "exclude_radius_arcsec needs a query"),
        ("/v1/sources/s0007/neighbours?max_distance=-1", 422, "max_distance='-1'"),
    ],
)
def test_a_wrong_list_is_a_problem_in_words(client: TestClient, path: str, status: int, words: str) -> None:
    response = client.get(path)
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"negative": ["s0001"], "source_id": "s0002"}, "negative goes with positive, and source_id was given"),
        ({"method": "rocchio", "vector": [1.0]}, "method goes with positive, and vector was given"),
        ({"positive": []}, "positive=[]"),
        ({"positive": ["s0001"] * 101}, "positive="),
        ({"positive": ["s0001"], "negative": ["s0001"]}, "source 's0001' is among the positive and among the negative"),
        ({"positive": ["s0001"], "method": "magic"}, "method='magic'"),
        ({"positive": ["s0001"], "text": "a"}, "got text and positive"),
        ({"positive": ["s0001"], "mutual": True}, "mutual needs a query that is a source"),
        ({"vector": [0.0] * 192, "encoder": "vit", "mutual": True}, "mutual needs a query that is a source"),
        ({"source_id": "s0001", "mutual": 1}, "mutual=1"),
        ({"text": "a galaxy"}, "no encoder here has texts in its space"),
        ({"text": ""}, "text=''"),
    ],
)
def test_wrong_examples_are_a_problem_in_words(client: TestClient, body: dict[str, object], words: str) -> None:
    response = client.post("/v1/neighbours", json=body)
    assert response.status_code == 422, response.text
    assert words in response.json()["detail"]

"""The grid of similar galaxies: what it shows, filters and examples, two encoders, addresses that bring it back."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from fastapi.testclient import TestClient

from redshelf.api.similar import SimilarQuery
from redshelf.service import folding, places
from redshelf.service.answers import Neighbour
from redshelf.service.shelf import OpenShelf

CARD = re.compile(r'<a class="id" href="/source/([^"]+)">')


def shown(html: str) -> list[str]:
    """The ids of the cards, in their order."""
    return CARD.findall(html)


def link(html: str, words: str) -> str:
    """The address behind an attribute or text."""
    found = re.search(rf'href="([^"]+)"[^>]*{re.escape(words)}', html)
    assert found, words
    return unescape(found[1])


def answered(client: TestClient, question: str) -> list[str]:
    return [one["source_id"] for one in client.get(question).json()["neighbours"]]


def test_the_grid_shows_the_neighbours_in_their_order_with_their_numbers(client: TestClient) -> None:
    html = client.get("/similar?like=s0003&encoder=vit&k=12&unfolded=true").text
    assert shown(html) == answered(client, "/v1/sources/s0003/neighbours?encoder=vit&k=12")
    first = client.get("/v1/sources/s0003/neighbours?encoder=vit&k=12").json()["neighbours"][0]
    assert f"d {first['distance']:#.3g}" in html
    estimate = client.get(f"/v1/sources/{first['source_id']}/redshift").json()
    if estimate["z_q16"] is not None:
        assert f"{estimate['z_q16']:.3f}–{estimate['z_q84']:.3f}" in html
    assert html.count('class="flag good"') + html.count('class="flag bad"') == 12


def test_filters_restrict_the_grid_as_they_do_in_v1_and_blank_fields_do_nothing(client: TestClient) -> None:
    asked = "encoder=photometry&k=12&mag_band=i&mag_max=22.5&labelled_only=true&z_spec_min=0.1"
    html = client.get(f"/similar?like=s0003&{asked}&unfolded=true&z_min=&tile=&against=&unlike=").text
    assert shown(html) == answered(client, f"/v1/sources/s0003/neighbours?{asked}")
    assert "4 set" in html and '<details class="filters" open>' in html


def test_examples_are_gathered_by_links_and_left_out_again(client: TestClient) -> None:
    html = client.get("/similar?like=s0003&encoder=vit&k=12").text
    first = shown(html)[0]
    html = client.get(link(html, f'aria-label="Like {first}, too"')).text
    assert first not in shown(html)
    second = shown(html)[1]
    html = client.get(link(html, f'aria-label="Unlike {second}"')).text
    body = {"positive": ["s0003", first], "negative": [second], "encoder": "vit", "k": 12}
    expected = [one["source_id"] for one in client.post("/v1/neighbours", json=body).json()["neighbours"]]
    assert [one for one in expected if one in shown(html)] == shown(html) != []
    html = client.get(link(html, f'aria-label="Leave out {second}"')).text
    assert "unlike those" not in html and link(html, f'aria-label="Leave out {first}"')


def test_two_encoders_stand_side_by_side_with_what_they_share_marked(client: TestClient) -> None:
    asked = "/similar?like=s0003&encoder=vit&against=photometry&k=60&unfolded=true"
    html = client.get(asked).text
    lists = [answered(client, f"/v1/sources/s0003/neighbours?encoder={name}&k=60") for name in ("vit", "photometry")]
    both = len(set(lists[0]) & set(lists[1]))
    assert shown(html) == lists[0] + lists[1]
    assert html.count("in both</span>") == 2 * both and f"<b>{both}</b> of 60" in html
    refused = client.get("/similar?like=s0003&encoder=vit&against=vit")
    assert refused.status_code == 422 and "is the encoder itself" in refused.text


def test_a_click_asks_for_more_like_that_one_and_keeps_the_filters(client: TestClient) -> None:
    html = client.get("/similar?like=s0003&unlike=s0007&encoder=vit&k=12&z_max=3&size=small&bands=r").text
    first = shown(html)[0]
    asked = parse_qs(urlsplit(link(html, f'title="More like {first}"')).query)
    assert asked == {
        "like": [first],
        "encoder": ["vit"],
        "k": ["12"],
        "z_max": ["3.0"],
        "size": ["small"],
        "bands": ["r"],
    }
    assert f"/v1/sources/{first}/cutout?bands=r" in html


def test_a_permalink_brings_the_same_back_and_an_older_generation_is_told_to_be_gone(client: TestClient) -> None:
    html = client.get("/similar?like=s0003&like=s0008&k=12&mag_band=i&mag_max=24").text
    permalink = link(html, ">Permalink")
    assert "generation=1" in permalink and "encoder=" in permalink
    assert shown(client.get(permalink).text) == shown(html)
    later = client.get(permalink.replace("generation=1", "generation=99"))
    assert later.status_code == 409 and "is not served yet" in later.text


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ("", 422, "like is missing"),
        ("like=nope", 404, "no source &#39;nope&#39;"),
        ("like=s0003&bands=r,K,i", 422, "band &#39;K&#39; is not in survey"),
        ("like=s0003&bands=r,i", 422, "expected one band, or three"),
        ("like=s0003&liek=s0004", 422, "unknown query parameter"),
        ("like=s0003&unlike=s0003", 422, "expected one"),
        ("like=s0003&mag_max=20", 422, "need mag_band"),
    ],
)
def test_what_is_wrong_with_a_question_is_told_in_words(
    client: TestClient, asked: str, status: int, words: str
) -> None:
    response = client.get(f"/similar?{asked}")
    assert response.status_code == status and words in response.text


def test_where_nothing_passes_the_page_says_so_and_how_to_go_on(client: TestClient) -> None:
    html = client.get("/similar?like=s0003&encoder=vit&mag_band=i&mag_max=1").text
    assert "Nothing here." in html and "passes these filters" in html
    assert link(html, ">Clear the filters") == "/similar?like=s0003&encoder=vit"


def test_an_address_leaves_out_what_is_usual() -> None:
    query = SimilarQuery(like=["a"], k=5, generation=3)
    assert query.address() == "/similar?like=a&k=5"
    assert query.with_unlike("b") == "/similar?like=a&unlike=b&k=5" and query.without("a") == "/"


def neighbour(name: str, ra: float, dec: float) -> Neighbour:
    nothing = dict.fromkeys(("z_spec", "z_error", "z_kind", "z_quality", "z_phot"))
    return Neighbour(source_id=name, ra_deg=ra, dec_deg=dec, rank=1, distance=0.1, object_class="galaxy", **nothing)


def test_near_duplicates_are_folded_into_the_first_and_into_the_query() -> None:
    second = 1 / 3600
    given = [
        neighbour("a", 359.9999, 60),
        neighbour("b", 150, 2),
        neighbour("c", 359.9999 + 3.9 * second, 60),  # on 60 degrees half as far
        neighbour("d", 150, 2 + 2.1 * second),
        neighbour("e", 10, 10 + second),
    ]
    folds, own = folding.fold(given, [(10.0, 10.0)])
    assert [(one.first.source_id, [other.source_id for other in one.others]) for one in folds] == [
        ("a", ["c"]),
        ("b", []),
        ("d", []),
    ]
    assert [one.source_id for one in own] == ["e"]
    assert folding.fold([]) == ([], [])


@pytest.mark.parametrize(
    ("ra", "expected"),
    [([150.25, 149.5, 151.0], (149.5, 151.0)), ([359.75, 0.5, 358.5], (358.5, 0.5)), ([10.5], (10.5, 10.5))],
)
def test_a_survey_lies_in_the_smallest_box_that_holds_its_sources(
    shelf: OpenShelf, ra: list[float], expected: tuple[float, float]
) -> None:
    n = len(ra)
    columns = {
        **shelf.columns,
        "ra": np.array([*ra, 77.0]),
        "deleted": np.array([False] * n + [True]),
        "dec_sorted": np.linspace(-1, 2, n),
    }
    box = places.footprint(replace(shelf, columns=columns))
    assert (box.ra_low, box.ra_high) == expected and box.n == n
    assert str(box).count("over RA 0") == (expected[0] > expected[1])


def test_a_survey_of_which_everything_is_deleted_has_no_place(shelf: OpenShelf) -> None:
    gone = replace(shelf, columns={**shelf.columns, "dec_sorted": np.empty(0)})
    assert str(places.footprint(gone)) == "has no source."

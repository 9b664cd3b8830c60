"""The page: search, a source, errors in words, nothing unescaped, no script."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx import Response

from redshelf.api import drawing, typed
from redshelf.api.app import create_app
from redshelf.api.queries import CutoutForm
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf, default_edges
from redshelf.models.support import NUMBERS
from redshelf.service.answers import Calibration, Conformal, PdfAnswer, RedshiftAnswer, Shift, Support
from redshelf.service.settings import load

VOID = {"meta", "link", "input", "img", "br", "line", "path"}


@pytest.fixture(scope="module")
def client(tiny_shelf: Path) -> TestClient:
    return TestClient(create_app(load(environ={}, shelf=tiny_shelf)), follow_redirects=False)


class _Balance(HTMLParser):
    """Fails on a tag that is not closed, or closed out of turn; collects the tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in ("li", "option") and self.open[-1] != tag:
            return
        assert self.open.pop() == tag


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Balance()
    parser.feed(html)
    assert parser.open == []
    return parser.seen


def answer(centre: float, width: float) -> RedshiftAnswer:
    edges = default_edges(2.0)
    middle = 0.5 * (edges[1:] + edges[:-1])
    pdf = Pdf.from_mass(edges, (np.exp(-0.5 * ((middle - centre) / width) ** 2) * np.diff(edges))[None])
    return RedshiftAnswer(
        source_id="a",
        z_median=float(pdf.median()[0]),
        z_mode=float(pdf.mode()[0]),
        z_q16=float(pdf.quantile(0.16)[0]),
        z_q84=float(pdf.quantile(0.84)[0]),
        interval_95=(float(pdf.quantile(0.025)[0]), float(pdf.quantile(0.975)[0])),
        pdf=PdfAnswer(z=edges.tolist(), density=pdf.density[0].tolist()),
        conformal=Conformal(interval_68=None, interval_95=None),
        support=Support(in_support=True, reasons=[], **dict.fromkeys(NUMBERS, 1.0)),
        shift=Shift(method="none", effective_sample_size=10),
        calibration=Calibration(
            method="none", pit_ks=None, coverage_68=0.68, coverage_95=0.95, effective_sample_size=10
        ),
        n_neighbours=5,
        encoder="e",
        revision="r",
        estimator="knn",
        generation=1,
        bands_missing=[],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("150.1 2.2", (150.1, 2.2)),
        (" 150.1,  -2.2 ", (150.1, -2.2)),
        ("10:00:28.6 +02:12:21", (150.11916667, 2.20583333)),
        ("10h00m28.6s -02d12m21s", (150.11916667, -2.20583333)),
        ("10 00 28.6 -00 12 21.5", (150.11916667, -0.20597222)),
        ("00:00:00 -00:00:01", (0.0, -1 / 3600)),
        ("s0003", None),
        ("J100028.6+021221", None),
        ("two words", None),
    ],
)
def test_positions_are_read_in_degrees_and_sexagesimal(text: str, expected: tuple[float, float] | None) -> None:
    found = typed.position(text)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-7))


@pytest.mark.parametrize("text", ["360 0", "10 91", "25:00:00 +01:00:00", "10:61:00 +01:00:00", "nan 1", "1e999 0"])
def test_a_position_out_of_range_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="position"):
        typed.position(text)


def test_the_drawing_has_median_band_and_ticks_where_they_belong() -> None:
    plot = drawing.plot(answer(0.5, 0.05), z_spec=0.7, neighbours=[0.5, 5.0])
    assert plot is not None and plot.median is not None and plot.z_spec is not None
    scale = (plot.z_spec - plot.median) / (0.7 - answer(0.5, 0.05).z_median)
    assert plot.neighbours == pytest.approx((plot.median,), abs=0.02 * scale)  # the one off the plot is left out
    by_label = {float(tick.label): tick.at for tick in plot.x_ticks}
    assert by_label[0.6] == pytest.approx(plot.median + 0.1 * scale, abs=1)
    xs = [float(x) for x in re.findall(r"[MH]([\d.]+)", plot.band)]
    assert (max(xs) - min(xs)) / scale == pytest.approx(2 * 0.05 * 0.9945, rel=0.02)
    assert all(plot.left - 0.1 <= x <= plot.right + 0.1 for x in map(float, re.findall(r"[MH]([\d.]+)", plot.curve)))


@pytest.mark.parametrize(("centre", "width"), [(0.01, 0.002), (1.9, 0.5), (0.5, 1e-4)])
def test_extreme_densities_can_be_drawn(centre: float, width: float) -> None:
    plot = drawing.plot(answer(centre, width), z_spec=None, neighbours=[])
    assert plot is not None and len(plot.x_ticks) >= 2 and "nan" not in plot.curve + plot.band


def test_an_answer_without_pdf_has_no_drawing() -> None:
    assert drawing.plot(answer(0.5, 0.1).model_copy(update={"pdf": None}), z_spec=None, neighbours=[]) is None


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/source/s0003",
        "/source/s0003?encoder=vit&k=5",
        "/source/nope",
        "/?q=1+95",
        "/similar?like=s0003&against=photometry&encoder=vit",
        "/similar?like=s0003&like=s0004&unlike=s0005&method=classifier&mag_band=i&mag_max=10",
        "/similar",
        "/status",
        "/study",
    ],
)
def test_every_page_is_sound_html_with_our_one_script_under_a_strict_policy(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "script-src 'self';" in policy
    found = tags(response.text)
    assert [a for tag, a in found if tag == "script"] == [{"src": "/static/page.js", "defer": None}]
    assert not any("style" in attributes for _, attributes in found)
    assert not any(name.startswith("on") for _, attributes in found for name in attributes)
    assert all(str(a.get("src", "/")).startswith("/") for _, a in found)  # nothing from elsewhere


def test_search_leads_to_the_source_by_id_and_by_position(client: TestClient) -> None:
    assert client.get("/", params={"q": " s0003 "}).headers["location"] == "/source/s0003"
    facts = client.get("/v1/sources/s0003").json()
    at = client.get("/", params={"q": f"{facts['ra_deg']} {facts['dec_deg']}"})
    assert (at.status_code, at.headers["location"]) == (303, "/source/s0003")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/?q=nope", 404, "no source &#39;nope&#39; in small"),
        ("/?q=10+10", 404, "no source within 5.0 arcsec"),
        ("/?q=10+10", 404, "The survey lies between RA 1"),
        ("/?q=J004000.0%2B100000", 404, "no source within"),
        ("/?q=400+10", 422, "expected 0 &lt;= RA"),
        ("/source/nope", 404, "no source &#39;nope&#39;"),
        ("/source/s0003?encoder=dino", 404, "no encoder &#39;dino&#39; is published here"),
        ("/source/s0003?k=0", 422, "k=&#39;0&#39;"),
        ("/source/s0003?kk=1", 422, "unknown query parameter"),
    ],
)
def test_errors_are_told_in_words_beside_the_box(client: TestClient, path: str, status: int, words: str) -> None:
    response = client.get(path)
    assert response.status_code == status
    assert words in response.text
    assert any(tag == "input" and a.get("aria-invalid") for tag, a in tags(response.text))


@pytest.mark.security
@pytest.mark.parametrize(
    "hostile", ["<script>alert(1)</script>", '"><img src=x onerror=y>', "{{7*1913}}", "' or 1=1 --"]
)
def test_what_is_typed_is_escaped(client: TestClient, hostile: str) -> None:
    for response in (client.get("/", params={"q": hostile}), client.get(f"/source/{hostile.replace('/', '%2F')}")):
        assert response.status_code == 404
        found = tags(response.text)
        assert not any((tag == "script" and a.get("src") != "/static/page.js") or "onerror" in a for tag, a in found)
        assert "13391" not in response.text


def test_a_source_has_its_picture_facts_redshift_and_similar_ones(client: TestClient) -> None:
    html = client.get("/source/s0003?encoder=vit&k=12").text
    found = tags(html)
    pictures = [a["src"] for tag, a in found if tag == "img"]
    assert pictures[0] == "/v1/sources/s0003/cutout" and len(pictures) == 1 + 3 + 12
    assert client.get(str(pictures[4])).headers["content-type"] == "image/png"
    more = [a["href"] for tag, a in found if tag == "a" and str(a.get("title", "")).startswith("More like")]
    assert len(more) == 12 and client.get(str(more[0])).status_code == 200 and "encoder=vit" in str(more[0])
    assert {tag for tag, _ in found} >= {"svg", "select", "table"}
    assert "median" in html and "68%" in html and ("Supported." in html or "Not supported." in html)
    chosen = [a for tag, a in found if tag == "option" and "selected" in a]
    assert chosen[0]["value"] == "vit"


def test_a_source_that_the_encoder_has_not_seen_has_a_page(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = client.app.state.serving.current.encoders  # type: ignore[attr-defined]

    def hide_from(name: str) -> None:
        known = encoders[name].index.known.copy()
        known[client.app.state.serving.current.row("s0003")] = False  # type: ignore[attr-defined]
        index = replace(encoders[name].index, known=known)
        monkeypatch.setitem(encoders, name, replace(encoders[name], index=index))

    hide_from("vit")  # the default
    for path in ("/source/s0003", "/source/s0003?encoder=vit&k=5"):
        response = client.get(path)
        assert response.status_code == 200 and "vit has no vector of this source" in response.text
        found = tags(response.text)
        assert [a["value"] for tag, a in found if tag == "option" and "value" in a] == ["photometry"]
        assert not any(a.get("class") == "card" for _, a in found)
        assert "How far away" in response.text and "J1000" in response.text
    assert client.get("/source/s0003?encoder=photometry").text.count('class="card"') == 24
    hide_from("photometry")
    response = client.get("/source/s0003")
    assert response.status_code == 200 and not any(a.get("class") == "chooser" for _, a in tags(response.text))


def test_a_star_is_given_no_redshift_and_the_page_says_so(client: TestClient) -> None:
    assert "No redshift is given." in client.get("/source/s0049").text


def test_a_shelf_without_images_and_redshifts_has_a_page(bare_shelf: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=bare_shelf)))
    home, source = client.get("/"), client.get("/source/s0003")
    assert home.status_code == source.status_code == 200
    assert "<img" not in home.text + source.text and "How far away" not in source.text
    assert [a["class"] for tag, a in tags(source.text) if tag == "svg"] == ["pz sed"]
    assert source.text.count('class="card"') == 24


def test_the_style_sheet_is_served_and_asks_for_nothing_from_elsewhere(client: TestClient) -> None:
    sheet = client.get("/static/page.css")
    assert sheet.status_code == 200 and "prefers-color-scheme: dark" in sheet.text
    assert "url(" not in sheet.text and "@import" not in sheet.text


def test_the_positions_offered_as_examples_are_answered(client: TestClient) -> None:
    offered = re.findall(r"<code>(.*?)</code>", client.get("/").text)
    assert len(offered) == 3
    for text in offered:
        found = client.get("/", params={"q": html.unescape(text)}, follow_redirects=False)
        assert found.status_code == 303, text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("J100028.60+021221.5", (150.11918750, 2.20598611, 5.0)),
        ("SIM J100028.60-021221.5", (150.11918750, -2.20598611, 5.0)),
        ("J100028+021221", (150.11875, 2.20597222, 7.5166481)),
        ("J235959.99+000000", (359.99997917, 0.00013889, 5.0)),
        ("J10:00:28", None),
        ("s0003", None),
    ],
)
def test_iau_names_stand_for_the_middle_of_what_was_truncated(
    text: str, expected: tuple[float, float, float] | None
) -> None:
    found = typed.iau_position(text)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-7))


def test_an_iau_name_that_is_none_is_refused() -> None:
    with pytest.raises(BadInput, match="minutes and seconds must be below 60"):
        typed.iau_position("J106028.60+021221.5")


def test_what_to_begin_with_is_looked_for_once_and_spread_over_redshift(bare_shelf: Path, tiny_shelf: Path) -> None:
    app = create_app(load(environ={}, shelf=tiny_shelf))
    opened = app.state.serving.current
    first = TestClient(app).get("/").text
    kept = opened.__dict__["beginnings"]
    shown = [a["href"] for tag, a in tags(first) if tag == "a" and a.get("class") == "id"]
    assert shown == [f"/source/{one}" for one in kept] and len(kept) == 12
    z = [float(opened.columns["z_spec"][opened.row(one)]) for one in kept]
    assert z == sorted(z) and z[0] == np.nanmin(opened.columns["z_spec"][opened.columns["z_spec"] > 0])
    opened.__dict__["beginnings"] = kept[:3]
    again = [a["href"] for tag, a in tags(TestClient(app).get("/").text) if a.get("class") == "id"]
    assert again == shown[:3]
    unlabelled = create_app(load(environ={}, shelf=bare_shelf)).state.serving.current
    assert unlabelled.beginnings[0] == unlabelled.source_id(0) and unlabelled.beginnings[-1] == unlabelled.source_id(59)


def test_search_leads_to_the_source_by_its_iau_name(client: TestClient) -> None:
    name = client.get("/v1/sources/s0003").json()["iau_name"]
    assert client.get("/", params={"q": name}).headers["location"] == "/source/s0003"


@pytest.mark.parametrize("path", ["/?q=s0003x", "/source/s0003x"])
def test_an_unknown_id_is_answered_with_pictures_of_those_like_it(client: TestClient, path: str) -> None:
    found = tags(client.get(path).text)
    assert "/source/s0003" in [a["href"] for tag, a in found if tag == "a" and a.get("class") == "id"]


def test_a_random_galaxy_is_another_one_each_time(client: TestClient) -> None:
    answers = [client.get("/random") for _ in range(5)]
    assert {one.status_code for one in answers} == {303} and answers[0].headers["cache-control"] == "no-store"
    assert len({one.headers["location"] for one in answers}) > 1


def sent(client: TestClient, blob: bytes, **fields: str) -> Response:
    return client.post("/upload", files={"file": ("mine<b>.fits", blob)}, data=fields)


def test_a_cutout_sent_by_the_form_is_answered_with_a_grid(client: TestClient) -> None:
    blob = client.get("/v1/sources/s0003/cutout?format=fits").content
    response = sent(client, blob, bands="", encoder="vit", k="12")
    assert response.status_code == 200 and response.headers["cache-control"] == "no-store"
    assert "img-src 'self' data:" in response.headers["content-security-policy"]
    found = tags(response.text)
    cards = [a["href"] for tag, a in found if tag == "a" and a.get("class") == "id"]
    assert cards[0] == "/source/s0003" and 10 <= len(cards) <= 12
    assert "mine&lt;b&gt;.fits" in response.text and "68%" in response.text


def test_a_cutout_without_a_band_is_answered_and_the_page_says_which(client: TestClient) -> None:
    blob = client.get("/v1/sources/s0003/cutout?format=fits&bands=r,i").content
    response = sent(client, blob)
    assert response.status_code == 200 and "Without g." in response.text


def test_the_form_says_how_large_the_pixels_are_as_v1_does(client: TestClient) -> None:
    fields = {a.get("name") for tag, a in tags(client.get("/").text) if tag in ("input", "select")}
    assert set(CutoutForm.model_fields) <= fields
    image = np.random.default_rng(0).normal(0, 1, (3, 120, 120)).astype(np.float32)
    np.save(stream := BytesIO(), image)
    told = {"bands": "g,r,i", "unit": "noise", "pixel_scale_arcsec": "0.1", "encoder": "vit", "k": "12"}
    asked = {name: told[name] for name in ("bands", "unit", "pixel_scale_arcsec")}
    route = "/v1/cutouts/neighbours?encoder=vit&k=12"
    answers = client.post(route, files={"file": stream.getvalue()}, data=asked).json()["neighbours"]
    page = sent(client, stream.getvalue(), **told)
    cards = [a["href"] for tag, a in tags(page.text) if tag == "a" and a.get("class") == "id"]
    assert cards == [f"/source/{one['source_id']}" for one in answers]
    unsaid = sent(client, stream.getvalue(), **{**told, "pixel_scale_arcsec": ""})
    assert cards != [a["href"] for tag, a in tags(unsaid.text) if tag == "a" and a.get("class") == "id"]


@pytest.mark.security
def test_what_is_no_cutout_is_refused_in_words(client: TestClient) -> None:
    response = sent(client, b"no image")
    assert response.status_code == 422 and "expected FITS" in response.text
    assert sent(client, b"no image", surprise="1").status_code == 422

"""The routes: right answers, problems in one form, nothing ignored."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.api.envelope import longest_body
from redshelf.api.queries import FilterQuery, NeighboursQuery
from redshelf.indexing.ann import brute_force
from redshelf.indexing.filters import Filters
from redshelf.models import support
from redshelf.models.errors import BadInput, NotFound
from redshelf.service.settings import Settings, load
from redshelf.service.shelf import OpenShelf


@pytest.fixture(scope="module")
def client(tiny_shelf: Path) -> TestClient:
    settings = load(environ={}, shelf=tiny_shelf, max_upload_bytes=1 << 20, max_batch=5)
    return TestClient(create_app(settings), raise_server_exceptions=False)


def npy(array: np.ndarray) -> bytes:
    stream = BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_the_shelf_is_described(client: TestClient) -> None:
    body = client.get("/v1/shelf").json()
    assert (body["survey"], body["n_sources"], body["n_labelled"]) == ("small", 300, 240)
    assert [e["name"] for e in body["encoders"]] == ["photometry", "vit"]
    assert body["limits"] == {
        "max_k": 1000, "max_batch": 5, "max_upload_bytes": 1 << 20, "max_concurrent": 64, "deadline_seconds": 30.0,
        "decode_seconds": 0.8, "decode_bytes": 1 << 30,
        "max_jobs": 16, "max_kept_jobs": 100, "max_job_ids": 100_000, "max_job_bytes": 256 << 20,
        "job_seconds": 604_800.0,
        "max_encode_batch": 16, "encode_wait_seconds": 0.002, "max_encode_queue": 64,
        "rate_per_key": "6000/minute", "rate_per_address": "6000/minute",
    }  # fmt: skip


def test_a_source_is_its_catalogue_row(client: TestClient, shelf: OpenShelf) -> None:
    body = client.get("/v1/sources/s0003").json()
    row = shelf.row("s0003")
    assert body["source_id"] == "s0003" and body["ra_deg"] == float(shelf.columns["ra"][row])
    assert [p["state"] for p in body["photometry"]] == ["measured"] * 3
    for link in body["links"].values():
        assert client.get(link).status_code == 200
    unobserved = client.get("/v1/sources/s0000").json()["photometry"][0]
    assert (unobserved["state"], unobserved["flux_ujy"], unobserved["magnitude_ab"]) == ("not_observed", None, None)


@pytest.mark.parametrize("encoder", ["photometry", "vit"])
def test_neighbours_equal_brute_force_and_leave_the_query_out(
    client: TestClient, shelf: OpenShelf, encoder: str
) -> None:
    vectors = shelf.encoder(encoder).index.take(slice(None))
    row = shelf.row("s0010")
    distance, rows = brute_force(np.asarray(vectors), np.asarray(vectors[[row]], np.float32), 8)
    expected = [(shelf.source_id(r), d) for r, d in zip(rows[0], distance[0], strict=True) if r != row]
    body = client.get("/v1/sources/s0010/neighbours", params={"encoder": encoder, "k": 7}).json()
    assert [n["source_id"] for n in body["neighbours"]] == [i for i, _ in expected]
    assert [n["distance"] for n in body["neighbours"]] == pytest.approx([d for _, d in expected], rel=1e-3)
    assert [n["rank"] for n in body["neighbours"]] == list(range(1, 8))
    assert (body["exact"], body["n_matching"], body["query"]) == (True, 299, "s0010")


def test_filters_restrict_the_neighbours(client: TestClient, shelf: OpenShelf) -> None:
    asked = {"z_spec_min": 0.3, "z_spec_max": 0.5, "mag_band": "i", "mag_max": 21.0, "k": 1000, "labelled_only": True}
    body = client.get("/v1/sources/s0010/neighbours", params=asked).json()
    z, magnitude = shelf.columns["z_spec"], shelf.columns["magnitudes"][:, 2]
    passing = np.flatnonzero((z >= 0.3) & (z <= 0.5) & (magnitude <= 21.0))
    expected = {shelf.source_id(r) for r in passing} - {"s0010"}
    assert {n["source_id"] for n in body["neighbours"]} == expected
    assert body["n_matching"] == len(expected) > 0


def test_the_filter_parameters_are_those_of_the_search() -> None:
    assert {f.name: f.default for f in fields(Filters)} == {
        name: field.default for name, field in FilterQuery.model_fields.items()
    }


def test_a_source_a_position_and_a_vector_ask_the_same(client: TestClient, shelf: OpenShelf) -> None:
    facts = client.get("/v1/sources/s0010").json()
    by_id = client.get("/v1/sources/s0010/neighbours?k=4&encoder=vit").json()
    position = {"ra_deg": facts["ra_deg"], "dec_deg": facts["dec_deg"] + 1 / 3600}
    for body in ({"source_id": "s0010"}, {"position": position}):
        assert client.post("/v1/neighbours", json={**body, "k": 4, "encoder": "vit"}).json() == by_id
    vector = shelf.encoder("vit").vectors(np.array([shelf.row("s0010")]))[0].tolist()
    found = client.post("/v1/neighbours", json={"vector": vector, "k": 5, "encoder": "vit"}).json()
    assert [n["source_id"] for n in found["neighbours"]] == ["s0010", *[n["source_id"] for n in by_id["neighbours"]]]


def test_a_position_leads_to_the_row_of_its_source(client: TestClient) -> None:
    facts = client.get("/v1/sources/s0010").json()
    at = {"ra_deg": facts["ra_deg"], "dec_deg": facts["dec_deg"] + 1 / 3600}
    assert client.get("/v1/sources", params=at).json() == facts
    assert client.get("/v1/sources", params={**at, "radius_arcsec": 0.5}).status_code == 404


def test_an_exact_search_can_be_asked_for(client: TestClient) -> None:
    usual = client.get("/v1/sources/s0010/neighbours").json()
    assert usual["exact"] is True
    for exact in ("true", "false"):
        assert client.get(f"/v1/sources/s0010/neighbours?exact={exact}").json() == usual
    for given in (True, False):
        assert client.post("/v1/neighbours", json={"source_id": "s0010", "exact": given}).json() == usual


@pytest.mark.parametrize("words", [{"max_k": 1001}, {"max_k": 0}, {"max_batch": 1001}, {"max_batch": 0}])
def test_a_limit_that_no_route_keeps_is_refused(words: dict[str, int]) -> None:
    with pytest.raises(BadInput, match=f"{next(iter(words))}="):
        load(environ={}, **words)


def test_the_switch_of_the_tests_is_no_setting() -> None:
    assert load(environ={"REDSHELF_TORTURE": "1"}) == Settings()


def test_without_k_there_are_as_many_neighbours_as_the_server_allows(tiny_shelf: Path) -> None:
    few = TestClient(create_app(load(environ={}, shelf=tiny_shelf, max_k=4)))
    cutout = {"file": few.get("/v1/sources/s0010/cutout?format=fits").content}
    for response in (
        few.get("/v1/sources/s0010/neighbours"),
        few.post("/v1/neighbours", json={"source_id": "s0010"}),
        few.post("/v1/cutouts/neighbours", files=cutout),
    ):
        assert len(response.json()["neighbours"]) == 4
    assert few.get("/v1/sources/s0010/neighbours?k=5").status_code == 422
    page = few.get("/source/s0010")
    assert page.status_code == 200 and page.text.count('class="card"') == 4
    assert re.findall(r"<option[^>]*>(\d+)</option>", page.text) == ["4"]


def test_the_reddening_of_a_cutout_can_be_given(client: TestClient) -> None:
    files = {"file": client.get("/v1/sources/s0012/cutout?format=fits").content}
    for route, value in (("neighbours", "neighbours"), ("redshift", "pdf")):
        answers = [
            client.post(f"/v1/cutouts/{route}?encoder=vit", files=files, data=form).json()[value]
            for form in ({}, {"ebv": "0.1"}, {"ebv": "5"})
        ]
        assert answers[0] != answers[1] != answers[2]


def test_a_redshift_has_its_density_support_and_names(client: TestClient) -> None:
    body = client.get("/v1/sources/s0003/redshift").json()
    edges, density = np.array(body["pdf"]["z"]), np.array(body["pdf"]["density"])
    assert len(edges) == len(density) + 1
    assert (density * np.diff(edges)).sum() == pytest.approx(1, abs=1e-6)
    assert body["z_q16"] < body["z_median"] < body["z_q84"]
    assert body["interval_95"][0] <= body["z_q16"] and body["z_q84"] <= body["interval_95"][1]
    assert set(body["support"]) == {"in_support", "reasons", *support.NUMBERS}
    assert client.get("/v1/sources/s0003/redshift?pdf=false").json() == {**body, "pdf": None}


def test_many_redshifts_come_in_the_order_asked(client: TestClient) -> None:
    ids = ["s0030", "s0003", "s0004"]
    body = client.post("/v1/redshifts", json={"ids": ids, "encoder": "photometry", "pdf": False}).json()
    assert [r["source_id"] for r in body["redshifts"]] == ids
    single = client.get("/v1/sources/s0003/redshift?encoder=photometry&pdf=false").json()
    assert body["redshifts"][1]["z_median"] == pytest.approx(single["z_median"], abs=1e-6)


def test_a_star_gets_no_redshift_and_a_reason(client: TestClient) -> None:
    body = client.get("/v1/sources/s0049/redshift").json()
    assert body["z_median"] is None and body["support"]["in_support"] is False and body["support"]["reasons"]


def test_an_uploaded_cutout_finds_its_source_and_has_a_redshift(client: TestClient) -> None:
    cutout = client.get("/v1/sources/s0012/cutout?format=fits").content
    found = client.post("/v1/cutouts/neighbours?k=3", files={"file": cutout}).json()
    assert found["encoder"] == "vit" and found["query"] is None and found["bands_missing"] == []
    assert found["neighbours"][0]["source_id"] == "s0012"
    redshift = client.post("/v1/cutouts/redshift?encoder=vit&pdf=false", files={"file": cutout}).json()
    assert redshift["source_id"] is None and 0 < redshift["z_median"] < 2


def test_a_subset_of_bands_is_answered_and_said(client: TestClient, shelf: OpenShelf) -> None:
    pixels, _, _ = shelf.cutout(shelf.row("s0012"))
    form = {"bands": "i, g", "unit": "noise"}
    found = client.post("/v1/cutouts/neighbours", files={"file": npy(pixels[[2, 0]])}, data=form)
    assert found.status_code == 200 and found.json()["bands_missing"] == ["r"]


def test_png_and_fits_are_served(client: TestClient) -> None:
    png = client.get("/v1/sources/s0003/cutout?bands=i,r,g&stretch=5")
    assert (png.headers["content-type"], png.content[:8]) == ("image/png", b"\x89PNG\r\n\x1a\n")
    fits = client.get("/v1/sources/s0003/cutout?format=fits&bands=g")
    assert (fits.headers["content-type"], fits.content[:9]) == ("application/fits", b"SIMPLE  =")


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/sources/nope", 404, "no source 'nope' in small"),
        ("/v1/sources/s0003%00", 404, "no source 's0003\\x00'"),
        ("/v1/sources/s0003%C3%A9", 404, "no source 's0003é'"),
        ("/v1/sources/nope/neighbours", 404, "no source 'nope'"),
        ("/v1/sources/nope/redshift", 404, "no source 'nope'"),
        ("/v1/sources/nope/cutout", 404, "no source 'nope'"),
        ("/v1/sources/s0003/neighbours?encoder=vitt", 404, "nearest: vit"),
        ("/v1/sources/s0003/redshift?encoder=dino", 404, "photometry, vit"),
        ("/v1/sources/s0003/neighbours?k=0", 422, "k='0'"),
        ("/v1/sources/s0003/neighbours?k=1001", 422, "k='1001'"),
        ("/v1/sources/s0003/neighbours?k=ten", 422, "k='ten'"),
        ("/v1/sources/s0003/neighbours?encodr=vit", 422, "unknown query parameter 'encodr'; nearest: encoder"),
        ("/v1/sources/s0003/neighbours?exact=perhaps", 422, "exact='perhaps'"),
        ("/v1/sources/s0003/neighbours?exact=2", 422, "exact='2'"),
        ("/v1/sources?ra_deg=10", 422, "dec_deg is missing"),
        ("/v1/sources?ra_deg=10&dec_deg=91", 422, "dec_deg='91'"),
        ("/v1/sources?ra_deg=10&dec_deg=10", 404, "no source within 5.0 arcsec"),
        ("/v1/sources/s0003/neighbours?z_min=nan", 422, "z_min='nan'"),
        ("/v1/sources/s0003/neighbours?mag_min=1", 422, "need mag_band"),
        ("/v1/sources/s0003/neighbours?ra=400&dec=0&radius_arcsec=1", 422, "ra=400.0"),
        ("/v1/sources/s0003/neighbours?observed_band=K", 422, "band 'K'"),
        ("/v1/sources/s0003/neighbours?object_class=galaxi", 422, "nearest: galaxy"),
        ("/v1/sources/s0003/cutout?bands=K", 422, "band 'K'"),
        ("/v1/sources/s0003/cutout?bands=", 422, "band ''"),
        ("/v1/sources/s0003/cutout?format=gif", 422, "format='gif'"),
        ("/v1/sources/s0003/cutout?stretch=0", 422, "stretch='0'"),
        ("/v1/shelf?x=1", 422, "unknown query parameter 'x'"),
        ("/healthz?x=1", 422, "unknown query parameter 'x'"),
        ("/v1/nothing", 404, "Not Found"),
    ],
)
def test_a_wrong_question_is_a_problem_in_words(client: TestClient, path: str, status: int, words: str) -> None:
    response = client.get(path)
    body = response.json()
    assert response.headers["content-type"] == "application/problem+json"
    assert (response.status_code, body["status"]) == (status, status)
    assert words in body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]


@pytest.mark.parametrize(
    ("route", "body", "status", "words"),
    [
        ("neighbours", {}, 422, "exactly one of source_id, position, vector, text and positive, got none"),
        ("neighbours", {"source_id": "a", "vector": [1.0]}, 422, "got source_id and vector"),
        ("neighbours", {"source_id": "nope"}, 404, "no source 'nope'"),
        ("neighbours", {"vector": [1.0]}, 422, "has 1 numbers: expected 192"),
        ("neighbours", {"vector": []}, 422, "vector=[]"),
        ("neighbours", {"vector": [1e25]}, 422, "length 1e+25: expected at most 1e+19"),
        ("neighbours", {"vector": [1e300]}, 422, "length 1e+300: expected at most 1e+19"),
        ("neighbours", {"source_id": "s0003", "exact": "yes"}, 422, "exact='yes'"),
        ("neighbours", {"source_id": "s0003", "exact": 1}, 422, "exact=1"),
        ("neighbours", {"position": {"ra_deg": 10, "dec_deg": 10}}, 404, "no source within 5.0 arcsec"),
        ("neighbours", {"position": {"ra_deg": 400, "dec_deg": 10}}, 422, "position.ra_deg=400"),
        ("neighbours", {"source_id": "s0003", "kk": 3}, 422, "unknown field 'kk'"),
        ("redshifts", {"ids": []}, 422, "ids=[]"),
        ("redshifts", {"ids": ["s0001"] * 6}, 422, "number of ids=6: this server takes at most 5"),
        ("redshifts", {"ids": ["s0001", "nope"]}, 404, "no source 'nope'"),
        ("redshifts", {"ids": ["s0001"], "estimator": "crystal"}, 404, "crystal"),
    ],
)
def test_a_wrong_body_is_a_problem_in_words(
    client: TestClient, route: str, body: dict[str, object], status: int, words: str
) -> None:
    response = client.post(f"/v1/{route}", json=body)
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]


@pytest.mark.parametrize("body", [b"{", b"[]", b"", b'{"vector": [NaN]}', b"\xff\xfe"])
def test_a_body_that_is_no_json_object_is_422(client: TestClient, body: bytes) -> None:
    response = client.post("/v1/neighbours", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("files", "form", "query", "status", "words"),
    [
        ({"file": b"\x89PNG...."}, {}, "", 422, "the upload is no image"),
        ({"file": npy(np.zeros((1, 32, 32)))}, {"bands": "K"}, "", 422, "band 'K' is not in survey small"),
        ({"file": npy(np.zeros((1, 32, 32)))}, {}, "", 422, "needs its band names"),
        ({"file": npy(np.zeros((1, 30, 32)))}, {"bands": "g"}, "", 422, "expected at least 32 x 32"),
        ({"file": npy(np.zeros((1, 32, 32)))}, {"bands": "g", "unit": "Jy"}, "", 422, "unit='Jy'"),
        ({"file": npy(np.zeros((1, 32, 32)))}, {"band": "g"}, "", 422, "unknown field 'band'"),
        ({"file": b"x"}, {"ebv": "11"}, "", 422, "ebv='11'"),
        ({"file": b"x"}, {"ebv": "-0.1"}, "", 422, "ebv='-0.1'"),
        ({"file": b"x"}, {"ebv": "nan"}, "", 422, "ebv='nan'"),
        ({"file": b"x"}, {"ebv": "dusty"}, "", 422, "ebv='dusty'"),
        ({"fil": b"x"}, {}, "", 422, "file is missing"),
        ({"file": b"x"}, {}, "?encoder=photometry", 422, "encoder 'photometry' needs fluxes"),
        ({"file": b"x"}, {}, "?encoder=dino", 404, "no encoder 'dino'"),
        ({"file": b"x"}, {}, "?kk=1", 422, "unknown query parameter 'kk'"),
    ],
)
def test_a_wrong_upload_is_a_problem_in_words(
    client: TestClient, files: dict[str, bytes], form: dict[str, str], query: str, status: int, words: str
) -> None:
    response = client.post(f"/v1/cutouts/neighbours{query}", files=files, data=form)
    assert response.status_code == status, response.text
    assert words in response.json()["detail"]


def test_an_address_takes_what_its_longest_body_needs_and_no_more() -> None:
    usual = load(environ={})
    assert longest_body("/upload", usual) == longest_body("/v1/cutouts/redshift", usual) == (32 << 20) + (16 << 10)
    assert longest_body("/v1/jobs", usual) == 6_400_000 + (16 << 10)
    others = ("/v1/neighbours", "/v1/redshifts", "/v1/jobs/abc/phase", "/v1/maps/vit/select", "/key", "/upload/", "/")
    assert {longest_body(path, usual) for path in others} == {2 << 20}
    assert longest_body("/v1/jobs", load(environ={}, max_job_ids=1)) == 2 << 20
    assert len(json.dumps({"vector": [-1.2345678901234567e-300] * 65_536})) < 2 << 20


def test_many_ids_are_refused_by_the_description_before_they_are_looked_up(client: TestClient) -> None:
    answer = client.post("/v1/redshifts", json={"ids": ["s0001"] * 1001})
    assert answer.status_code == 422 and "List should have at most 1000 items" in answer.json()["detail"]


@pytest.mark.parametrize("digits", ["0" * 9 + "1" * 5000, "1" * 5000, "0" * 12 + "2"])
def test_a_generation_of_too_many_digits_is_refused(client: TestClient, digits: str) -> None:
    answer = client.get("/v1/shelf", params={"generation": digits})
    assert answer.status_code == 422 and "expected a number of at most 10 digits" in answer.json()["detail"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_over_the_limit_is_413(client: TestClient, chunked: bool) -> None:
    body = bytes((2 << 20) + 1)
    content = iter([body[: 1 << 20], body[1 << 20 :]]) if chunked else body
    response = client.post("/v1/neighbours", content=content, headers={"content-type": "application/json"})
    assert response.status_code == 413
    assert response.json()["detail"] == "the body is longer than the 2097152 bytes that this address takes"
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["request_id"] == response.headers["x-request-id"]


def test_a_wrong_method_is_a_problem_that_names_the_right_one(client: TestClient) -> None:
    response = client.delete("/v1/shelf")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert response.json()["title"] == "Method Not Allowed"


def test_the_request_id_is_taken_over_unless_it_is_no_word(client: TestClient) -> None:
    assert client.get("/healthz", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    strange = client.get("/healthz", headers={"x-request-id": "a b\t<"}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", strange)


def test_an_unexpected_error_is_500_without_its_inside(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from redshelf.api import sources

    def broken(*_: object) -> None:
        raise RuntimeError("secret /path/inside")

    monkeypatch.setattr(sources.service, "source", broken)
    response = client.get("/v1/sources/s0003")
    assert response.status_code == 500 and response.headers["content-type"] == "application/problem+json"
    assert "secret" not in response.text
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert response.json()["request_id"] in caplog.text and "secret" in caplog.text


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "generation": 1, "n_sources": 300, "refused": None}


def test_not_ready_where_the_shelf_has_gone(bare_shelf: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "shelf"
    shutil.copytree(bare_shelf, copy)
    client = TestClient(create_app(load(environ={}, shelf=copy)))
    assert client.get("/readyz").status_code == 200
    (copy / "generations" / "1.json").unlink()
    assert client.get("/readyz").status_code == 503
    assert client.get("/healthz").status_code == 200


def test_a_shelf_without_images_or_redshifts_says_so(bare_shelf: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=bare_shelf)))
    assert client.get("/v1/sources/s0003/cutout").json()["detail"] == "survey small has no images"
    assert "run `redshelf fit`" in client.get("/v1/sources/s0003/redshift").json()["detail"]
    upload = client.post("/v1/cutouts/neighbours", files={"file": b"x"})
    assert upload.status_code == 422


def test_no_shelf_is_told_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a shelf"):
        create_app(Settings(shelf=tmp_path))


def test_every_route_documents_its_problems(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert not [path for path in document["paths"] if path.startswith(("/source/", "/static"))]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answered = set(operation["responses"])
            assert answered >= {"404", "422"} and answered & {"200", "204", "303"}, path


def test_asking_a_source_needs_no_torch(tiny_shelf: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path\n"
        "from fastapi.testclient import TestClient\n"
        "import redshelf.service.ingest\n"
        "from redshelf.api.app import create_app; from redshelf.service.settings import Settings\n"
        f"client = TestClient(create_app(Settings(shelf=Path({str(tiny_shelf)!r}))), base_url='http://localhost')\n"
        "for path in ('/v1/sources/s0003/neighbours', '/v1/sources/s0003/redshift', '/source/s0003'):\n"
        "    assert client.get(path).status_code == 200, path\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_misspelt_field_of_a_body_is_told_the_nearest_one(client: TestClient) -> None:
    wrong = client.post("/v1/redshifts", json={"idz": ["s0001"]}).json()["detail"]
    assert "unknown field 'idz'; nearest: ids" in wrong
    wrong = client.post("/v1/neighbours", json={"position": {"ra": 1.0, "dec_deg": 2.0}}).json()["detail"]
    assert "unknown field 'position.ra'; nearest: ra_deg" in wrong
    wrong = client.post("/v1/redshifts", content=b'{"ids": ["s0001"]}').json()["detail"]
    assert "sent as content-type: application/json" in wrong


def test_a_plus_in_an_estimators_name_may_come_unescaped(client: TestClient) -> None:
    assert (
        client.get("/v1/sources/s0001/redshift?encoder=a+b")
        .json()["detail"]
        .startswith("no redshift estimator on encoder 'a+b'")
    )


def test_a_taken_port_is_said_in_one_line(tiny_shelf: Path) -> None:
    import socket

    from redshelf.api.app import serve
    from redshelf.models.errors import Conflict

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(Conflict, match=f"cannot listen on 127.0.0.1 port {port}"):
            serve(Settings(shelf=tiny_shelf, port=port))


def test_a_query_is_read_as_its_model_says_and_described_by_it(client: TestClient) -> None:
    path = "/v1/sources/s0003/neighbours"
    told = client.get(path, params=[("k", "3"), ("k", "4"), ("exact", "true")])  # of what stands twice the last
    assert told.status_code == 200 and len(told.json()["neighbours"]) == 4 and told.json()["exact"]
    wrong = client.get(path, params={"k": "many", "colour": "red"})
    assert wrong.status_code == 422
    assert "k='many': Input should be a valid integer" in wrong.json()["detail"]
    assert "unknown query parameter 'colour'" in wrong.json()["detail"]
    described = client.get("/openapi.json").json()["paths"]["/v1/sources/{source_id}/neighbours"]["get"]["parameters"]
    assert [one["name"] for one in described] == ["source_id", *NeighboursQuery.model_fields]
    k = next(one for one in described if one["name"] == "k")
    assert k["in"] == "query" and not k["required"] and k["schema"]["anyOf"][0]["maximum"] == 1000

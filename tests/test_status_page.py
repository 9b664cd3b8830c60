"""The status in words, and the report of a study shown inside the site."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from redshelf.api import status_page
from redshelf.api.app import create_app
from redshelf.models.errors import BadInput
from redshelf.service.settings import environment, load

REPORT = "<!doctype html><title>t</title><style>p { color: red }</style><img src='data:image/png;base64,'>"


def of_study(bare_shelf: Path, folder: Path | None) -> TestClient:
    return TestClient(create_app(load(environ={}, shelf=bare_shelf, study_dir=folder)))


@pytest.mark.parametrize(("level", "expected"), [(0.5, 1.5), (0.25, 1.0), (0.95, 2.0), (1.0, 2.0), (0.125, 0.5)])
def test_quantiles_of_a_histogram_are_on_a_line_within_a_bucket(level: float, expected: float) -> None:
    assert status_page.quantile([1.0, 2.0, math.inf], [2, 6, 8], level) == pytest.approx(expected)


def test_a_histogram_of_nothing_has_no_quantile() -> None:
    assert math.isnan(status_page.quantile([], [], 0.5)) and math.isnan(status_page.quantile([1.0], [0], 0.5))


def test_the_status_says_what_is_served_and_how_long_answers_take(tiny_shelf: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=tiny_shelf)))
    assert "Nothing has been asked yet." in client.get("/status").text
    for _ in range(3):
        client.get("/v1/sources/s0003/neighbours?k=5")
    html = client.get("/status").text
    assert "Generation 1 of small: 300 sources in 3 bands" in html and "Up to date." in html
    assert "the nearest vectors are found</td>" in html and '<td class="figure">3</td>' in html
    assert '1.000 <a href="/v1/recall?encoder=vit&amp;n=20"' in html


def test_a_shelf_without_redshifts_says_how_to_make_them(bare_shelf: Path) -> None:
    html = of_study(bare_shelf, None).get("/status").text
    assert "No redshifts are published." in html


def test_where_there_is_no_study_the_page_says_how_to_make_one(bare_shelf: Path, tmp_path: Path) -> None:
    client = of_study(bare_shelf, None)
    assert "redshelf study -o" in client.get("/study").text and "<iframe" not in client.get("/study").text
    assert client.get("/study/report").status_code == 404 and client.get("/study/numbers").status_code == 404
    assert "it appears once" in of_study(bare_shelf, tmp_path).get("/study").text


def test_a_report_is_shown_under_a_policy_that_runs_nothing(bare_shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(REPORT)
    (tmp_path / "study.csv").write_text("a,b\n1,2\n")
    (tmp_path / "secret.txt").write_text("no")
    client = of_study(bare_shelf, tmp_path)
    page, report = client.get("/study"), client.get("/study/report")
    assert '<iframe class="report" src="/study/report"' in page.text and "/study/numbers" in page.text
    assert "frame-src 'self'" in page.headers["content-security-policy"]
    policy = report.headers["content-security-policy"]
    assert report.text == REPORT and "script-src" not in policy and "sandbox" in policy
    assert "img-src data:" in policy and "style-src 'unsafe-inline'" in policy and "frame-ancestors 'self'" in policy
    assert client.get("/study/numbers").text == "a,b\n1,2\n"
    for name in ("secret.txt", "..%2Fsecret.txt", "index.html"):
        assert client.get(f"/study/{name}").status_code == 404


def test_the_folder_of_a_study_is_a_setting_that_workers_are_told_of(tmp_path: Path) -> None:
    assert load(environ={}).study_dir is None
    for folder in (None, tmp_path):
        settings = load(environ={}, study_dir=folder)
        assert load(environ=environment(settings)).study_dir == folder
    with pytest.raises(BadInput, match="unknown setting 'study'"):
        load(environ={"REDSHELF_STUDY": "x"})

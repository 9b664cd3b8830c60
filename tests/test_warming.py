"""Nobody waits for what the first question loads: a server loads it in the background, and before a new generation."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import server as servers

from redshelf.api import warming
from redshelf.service import redshift
from redshelf.service.publish import publish
from redshelf.service.serving import Serving
from redshelf.service.settings import load
from redshelf.service.shelf import OpenShelf

PAGES = ("/", "/source/s0010", "/similar?like=s0011", "/v1/sources/s0010/cutout", "/v1/sources/s0010/redshift")
ALONE = f"""
import sys
from pathlib import Path
from fastapi.testclient import TestClient
from redshelf.api import warming
from redshelf.api.app import create_app
from redshelf.service.settings import load

settings = load(environ={{}}, shelf=Path(sys.argv[1]))
app = create_app(settings)
client = TestClient(app, base_url="http://localhost")
client.get("/readyz")  # what any request loads
assert "lightgbm" not in sys.modules
warming.warm(app.state.serving.current, settings)
loaded = set(sys.modules)
for path in {PAGES}:
    assert client.get(path).status_code == 200, path
    assert set(sys.modules) == loaded, (path, sorted(set(sys.modules) - loaded))
assert "lightgbm" in loaded and "torch" not in loaded
"""


def test_after_the_first_questions_no_page_loads_anything_and_torch_is_left_alone(tiny_shelf: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "links")}
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(tiny_shelf)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_kind_of_question_is_asked_and_one_that_fails_is_logged(
    tiny_shelf: Path, shelf: OpenShelf, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings = load(environ={}, shelf=tiny_shelf)
    estimators = sum(len(fit.published.estimators) for fit in shelf.redshifts.values())
    assert warming.warm(shelf, settings) == 6 + estimators

    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no such luck")

    monkeypatch.setattr(redshift, "redshifts", broken)
    with caplog.at_level(logging.ERROR, logger="redshelf"):
        assert warming.warm(shelf, settings) == 4  # two of the pages show redshifts, too
    assert len(caplog.records) == 2 + estimators and "no such luck" in caplog.text
    assert warming.warm(shelf, settings, stopping=lambda: True) == 0


def test_a_shelf_without_images_or_redshifts_has_its_own_questions(bare_shelf: Path) -> None:
    from redshelf.service.shelf import open_shelf

    assert warming.warm(open_shelf(bare_shelf), load(environ={}, shelf=bare_shelf)) == 4


def test_a_newer_generation_is_prepared_before_it_takes_the_place_of_the_other(own_bare: Path) -> None:
    seen: list[tuple[int, int]] = []

    def prepare(shelf: OpenShelf) -> None:
        seen.append((shelf.generation.number, serving.current.generation.number))

    serving = Serving(own_bare, refresh_seconds=60, prepare=prepare)
    assert seen == []  # the first is served at once
    publish(own_bare)
    assert serving.refresh() and seen == [(2, 1)]
    serving.start()
    servers.wait_for(lambda: seen == [(2, 1), (2, 2)], "the thread to prepare what is served")
    serving.stop()


@pytest.mark.slow
def test_questions_that_come_while_it_loads_are_answered(tiny_shelf: Path, tmp_path: Path) -> None:
    with servers.serve(tiny_shelf, tmp_path) as server, ThreadPoolExecutor(8) as pool:

        def ask(path: str) -> int:
            connection = server.connect()
            try:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                return response.status
            finally:
                connection.close()

        assert set(pool.map(ask, [*PAGES] * 4)) == {200}
        servers.wait_for(lambda: "first questions answered" in server.log.read_text(), "the first questions")
        assert "failed" not in server.log.read_text()

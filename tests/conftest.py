"""Fixtures for all tests: one small shelf, made once a session the way a user makes one, opened, served and copied."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import small_survey
import training_length

if TYPE_CHECKING:
    import blobs
    import chromium
    from fastapi import FastAPI
    from fastapi.testclient import TestClient

    from redshelf.service.shelf import OpenShelf


# what `make check` does without, so that it takes under a minute: they train, ingest, ask a shelf or import much
LONG = (
    "adaptive", "api", "around", "assembly", "bank", "bombs", "boost", "browse", "bulk", "caching", "calibrate",
    "check", "chromium", "clap", "cli", "client", "cnn", "contrastive", "curves", "cutting", "deploy", "described",
    "docs", "examples", "explore", "filters", "fits", "fitting", "formats", "foundation", "hard_labels", "hostile",
    "ingest", "isolation", "ivf", "jobs", "keys", "lancedb", "limits", "map", "map_api", "map_browser", "map_page",
    "methods", "neighbours", "network", "observability", "outputs", "overload", "parallel", "photoz", "pictures",
    "plots", "rail", "ratios", "redshift", "redshift_network", "resume", "samp", "sandbox", "search", "selfquery",
    "service", "serving", "similar", "simulate", "simulate_halves", "sky", "slurm", "specialise", "stamps",
    "status_page", "study", "success", "swaps", "targets", "tracing", "training", "update", "upload", "uploads", "vo",
    "vo_judges", "warming", "workers",
)  # fmt: skip
# minutes each, so that no process of `make test` begins with one of them when the others are done
LONGEST = (
    "test_study", "test_encoders", "test_update", "test_slurm", "test_docs", "test_overload", "test_assembly",
    "test_resume", "test_kills", "test_specialise", "test_described", "test_scenarios", "test_swaps",
)  # fmt: skip
QUICK = "not slow"  # as `make check` selects


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Modules that would be deselected are not imported either."""
    return True if config.option.markexpr == QUICK and collection_path.stem.removeprefix("test_") in LONG else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those of the longest modules first, all others as they come."""
    place = {name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def short_training() -> Iterator[None]:
    """Fits take a second or two instead of half a minute."""
    with training_length.short():
        yield


@pytest.fixture(scope="session", autouse=True)
def asked_by_address() -> Iterator[None]:
    """Clients of an app ask 127.0.0.1, not "testserver", which is a Host that needs a key."""
    from starlette.testclient import TestClient

    usual = TestClient.__init__.__defaults__
    assert usual is not None and usual[0] == "http://testserver"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TestClient.__init__, "__defaults__", ("http://127.0.0.1", *usual[1:]))
        yield


@pytest.fixture(scope="session", autouse=True)
def state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The keys of who runs the tests are none of theirs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def small_survey_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """survey.toml of 300 blobs in 3 bands, with images and labels."""
    return small_survey.write(tmp_path_factory.mktemp("survey"))


@pytest.fixture(scope="session")
def tiny_shelf(small_survey_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published shelf of those: encoders `photometry` and `vit` (hardly trained), fits on both. Only to be read."""
    from redshelf.service.embedding import embed
    from redshelf.service.fit import fit
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish
    from redshelf.service.training import Run, pretrain

    root = tmp_path_factory.mktemp("tiny") / "shelf"
    ingest(small_survey_file, root)
    pretrain(root, name="vit", run=Run(steps=3))
    for encoder in ("photometry", "vit"):
        embed(root, encoder=encoder)
        build_index(root, encoder=encoder)
        fit(root, encoder=encoder)
    publish(root)
    return root


@pytest.fixture(scope="session")
def bare_shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published shelf without images, labels or redshifts: 60 sources, encoder `photometry`."""
    from redshelf.service.embedding import embed
    from redshelf.service.index import build_index
    from redshelf.service.ingest import ingest
    from redshelf.service.publish import publish

    root = tmp_path_factory.mktemp("bare") / "shelf"
    ingest(small_survey.write(root.parent, sources=60, images=False, labels=False), root)
    embed(root, encoder="photometry")
    build_index(root, encoder="photometry")
    publish(root)
    return root


@pytest.fixture(scope="session")
def mapped_shelf(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny shelf with maps of `vit` and of the sky, and none of `photometry`. Only to be read."""
    from redshelf.service.mapping import make

    root = Path(shutil.copytree(tiny_shelf, tmp_path_factory.mktemp("mapped") / "shelf"))
    for name in ("vit", "sky"):
        make(root, name)
    return root


@pytest.fixture(scope="session")
def shelf(tiny_shelf: Path) -> OpenShelf:
    """The tiny shelf, opened. Modules that test other shelves have a `shelf` of their own."""
    from redshelf.service.shelf import open_shelf

    return open_shelf(tiny_shelf)


@pytest.fixture(scope="session")
def client(tiny_shelf: Path) -> TestClient:
    """What asks the service of the tiny shelf, whose settings are all the usual ones."""
    from fastapi.testclient import TestClient

    from redshelf.api.app import create_app
    from redshelf.service.settings import load

    return TestClient(create_app(load(environ={}, shelf=tiny_shelf)), raise_server_exceptions=False)


@pytest.fixture(scope="session")
def sky() -> blobs.Blobs:
    """The blobs that image encoders learn from, whose colours and sizes are known."""
    import blobs
    import pretext

    return blobs.make(pretext.N)


@pytest.fixture(scope="module")
def app(tiny_shelf: Path) -> FastAPI:
    """The service of the tiny shelf for one module, to be served or changed."""
    from redshelf.api.app import create_app
    from redshelf.service.settings import load

    return create_app(load(environ={}, shelf=tiny_shelf))


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    """A real server of `app` on a free port, in a thread of this process."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Page]:
    """A page of headless Chromium, for one module."""
    import chromium

    with chromium.browser(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


@pytest.fixture
def own_shelf(tiny_shelf: Path, tmp_path: Path) -> Path:
    """A copy of the tiny shelf, which a test may break."""
    return Path(shutil.copytree(tiny_shelf, tmp_path / "shelf"))


@pytest.fixture
def own_bare(bare_shelf: Path, tmp_path: Path) -> Path:
    """A copy of the bare shelf, which a test may break."""
    return Path(shutil.copytree(bare_shelf, tmp_path / "shelf"))

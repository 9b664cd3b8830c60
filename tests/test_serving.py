"""A newer generation is taken up while requests are answered, and one that is at fault is not."""

from __future__ import annotations

import gc
import logging
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from redshelf.api.app import create_app, worker_app
from redshelf.indexing import generation
from redshelf.indexing.filters import Filters
from redshelf.indexing.layout import Layout
from redshelf.models.errors import Conflict, NotFound
from redshelf.service import search, selfquery, sources
from redshelf.service import serving as service
from redshelf.service.delete import delete
from redshelf.service.publish import publish
from redshelf.service.search import neighbours
from redshelf.service.serving import Serving
from redshelf.service.settings import Settings, environment, load

BRIGHT = Filters(mag_band="i", mag_max=30.0)


@pytest.fixture
def serving(own_bare: Path) -> Serving:
    return Serving(own_bare, refresh_seconds=60)


def flip(path: Path) -> None:
    """Damage a file, or mend what this has damaged."""
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(bytes(blob))


def mapped(folder: Path) -> list[str]:
    """The files below `folder` that this process has mapped, once for each map."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sorted(line.split(maxsplit=5)[5] for line in lines if str(folder) in line)


def test_a_newer_generation_is_taken_up_and_who_has_the_old_one_keeps_it(own_bare: Path, serving: Serving) -> None:
    old = serving.current
    assert not serving.refresh() and serving.current is old
    delete(own_bare, ["s0007"])
    publish(own_bare)
    assert serving.refresh() and serving.current.generation.number == 2
    assert not serving.refresh()
    with pytest.raises(NotFound, match="no source 's0007'"):
        neighbours(serving.current, "s0007")
    assert neighbours(old, "s0007").generation == 1
    assert neighbours(serving.current, "s0008").n_matching == neighbours(old, "s0008").n_matching - 1 == 58


def test_the_old_generation_is_closed_with_its_last_request(own_bare: Path, serving: Serving) -> None:
    client = TestClient(create_app(Settings(shelf=own_bare, refresh_seconds=60)))
    own: Serving = client.app.state.serving  # type: ignore[attr-defined]
    gc.collect()
    columns, index = own_bare / "columns" / "1", own_bare / "index"
    of_one = [len(mapped(columns)) // 2, len(mapped(index)) // 2]  # two have it open: this one and the app's
    assert of_one[0] > 10 and of_one[1] > 0
    in_flight = own.current
    asked = client.get("/v1/sources/s0003/neighbours?mag_band=i&mag_max=30").json()  # a filter that is remembered
    publish(own_bare)
    assert own.refresh() and serving.refresh()
    gc.collect()
    assert len(mapped(columns)) == of_one[0], "the request in flight has it, and nobody else"
    assert neighbours(in_flight, "s0003", filters=BRIGHT).model_dump(mode="json") == asked
    del in_flight
    gc.collect()
    assert mapped(columns) == []
    assert len(mapped(own_bare / "columns" / "2")) == 2 * of_one[0] and len(mapped(index)) == 2 * of_one[1]
    assert client.get("/v1/sources/s0003/neighbours").json()["generation"] == 2


def test_a_shelf_holds_no_reference_to_itself_so_that_it_is_closed_at_once(serving: Serving, own_bare: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        neighbours(serving.current, "s0003", filters=BRIGHT)
        publish(own_bare)
        gc.collect()
        serving.refresh()
        assert mapped(own_bare / "columns" / "1") == []
    finally:
        gc.enable()


def test_a_damaged_generation_is_refused_told_once_and_taken_up_when_it_is_mended(
    own_bare: Path, serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    publish(own_bare)
    damaged = own_bare / "columns" / "2" / "ra.npy"
    flip(damaged)
    for _ in range(3):
        assert not serving.refresh() and serving.current.generation.number == 1
    assert serving.refused == ("generation 2 of shelf is damaged: columns/2/ra.npy: sha256 differs from the manifest")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert caplog.records[0].getMessage() == f"{serving.refused}; it is not served"
    flip(damaged)
    assert serving.refresh() and serving.current.generation.number == 2 and serving.refused is None


def test_a_refused_generation_is_not_opened_again_before_one_of_its_files_has_changed(
    own_bare: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(own_bare)
    path = generation.path_of(serving.layout, 2)
    flip(path)
    opened: list[int] = []
    original = service.open_checked

    def counting(root: Path, number: int) -> object:
        opened.append(number)
        return original(root, number)

    monkeypatch.setattr(service, "open_checked", counting)
    for _ in range(3):
        serving.refresh()
    assert opened == [2]
    os.utime(path)
    serving.refresh()
    serving.refresh()
    assert opened == [2, 2]
    flip(path)
    assert serving.refresh() and opened == [2, 2, 2]


def test_a_generation_that_could_not_be_read_for_a_while_is_looked_at_again(
    own_bare: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(own_bare)
    with monkeypatch.context() as patch:
        patch.setattr(service, "open_shelf", lambda *_: (_ for _ in ()).throw(OSError(24, "Too many open files")))
        assert not serving.refresh() and "Too many open files" in str(serving.refused)
    assert not serving.refresh()  # within a minute
    monkeypatch.setattr(service.time, "monotonic", lambda: float("inf"))
    assert serving.refresh() and serving.refused is None


def test_the_newest_that_can_be_served_is(own_bare: Path, serving: Serving) -> None:
    for _ in range(3):
        publish(own_bare)
    flip(own_bare / "columns" / "4" / "ra.npy")
    assert serving.refresh() and serving.current.generation.number == 3
    assert serving.refused is not None and serving.refused.startswith("generation 4 of shelf is damaged")
    publish(own_bare)
    assert serving.refresh() and serving.current.generation.number == 5 and serving.refused is None


def _rewrite(layout: Layout, **changes: object) -> None:
    published = generation.read(layout)
    encoder = published.encoders[0].model_copy(update=changes)
    generation.write(layout, published.model_copy(update={"encoders": [encoder]}))


def _other_dimension(layout: Layout) -> None:
    _rewrite(layout, dim=99)


def _other_kind(layout: Layout) -> None:
    _rewrite(layout, kind="vit")


def _no_model(layout: Layout) -> None:
    published = generation.read(layout)
    files = {name: facts for name, facts in published.files.items() if not name.startswith("models/")}
    generation.write(layout, published.model_copy(update={"files": files}))
    shutil.rmtree(layout.models)


def _no_index(layout: Layout) -> None:
    _rewrite(layout, revision="0123456789ab")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_other_dimension, "has dimension .*, its encoder 99"),
        (_other_kind, "encoder photometry: its kind is photometry, vit was published"),
        (_no_model, "encoder photometry: revision .* is not on the shelf: no models/photometry"),
        (_no_index, "no index for photometry.0123456789ab of 60 rows"),
    ],
)
def test_a_generation_whose_encoder_is_not_on_the_shelf_as_published_is_refused(
    own_bare: Path, serving: Serving, change: Callable[[Layout], None], reason: str
) -> None:
    publish(own_bare)
    change(serving.layout)
    assert not serving.refresh() and serving.current.generation.number == 1
    assert serving.refused is not None and re.search(reason, serving.refused)


def test_a_generation_whose_vectors_do_not_find_themselves_is_refused(
    own_bare: Path, serving: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(own_bare)
    monkeypatch.setattr(selfquery, "ask", lambda index, stored: selfquery.SelfQuery(60, 12, 60))
    assert not serving.refresh()
    name = next((own_bare / "index").iterdir()).name
    assert serving.refused == (
        f"generation 2: encoder photometry: by index/{name}/60 12 of 60 stored vectors find themselves, expected at "
        "least 60: remove that folder, run `redshelf index --encoder photometry`, and publish"
    )
    with pytest.raises(Conflict, match="12 of 60 stored vectors"):
        Serving(own_bare, refresh_seconds=60)


def test_a_server_that_is_started_tells_of_a_damaged_newest_generation_a_worker_takes_the_one_before(
    own_bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(own_bare)
    flip(own_bare / "columns" / "2" / "ra.npy")
    settings = Settings(shelf=own_bare)
    with pytest.raises(Conflict, match=r"generation 2 .* is damaged"):
        create_app(settings)
    for name, value in environment(settings).items():
        monkeypatch.setenv(name, value)
    ready = TestClient(worker_app()).get("/readyz").json()
    assert (ready["status"], ready["generation"], ready["n_sources"]) == ("ready", 1, 60)
    assert ready["refused"].startswith("generation 2 of shelf is damaged: columns/2/ra.npy")
    flip(own_bare / "columns" / "1" / "ra.npy")
    with pytest.raises(Conflict, match=r"generation 2 .* is damaged"):
        worker_app()


def test_workers_read_from_the_environment_what_the_command_was_told(tmp_path: Path) -> None:
    file = tmp_path / "redshelf.toml"
    file.write_text("max_k = 7\n")
    told = load(file, environ={}, shelf=tmp_path / "a shelf", workers=3, port=0, refresh_seconds=0.25)
    assert load(environ={**environment(told), "PATH": "/bin"}) == told


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_running_server_looks_by_itself_and_goes_on_when_it_cannot(
    own_bare: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = generation.numbers
    away = [True]
    looked = []

    def unsteady(layout: Layout) -> list[int]:
        looked.append(away[0])
        if away[0]:
            raise OSError("stale file handle")
        return numbers(layout)

    app = create_app(Settings(shelf=own_bare, refresh_seconds=0.02))
    publish(own_bare)
    monkeypatch.setattr(generation, "numbers", unsteady)
    with TestClient(app) as client:
        _until(lambda: len(looked) > 3)
        assert client.get("/readyz").json()["generation"] == 1
        away[0] = False
        _until(lambda: bool(client.get("/readyz").json()["generation"] == 2))
    assert sum("cannot look for a newer generation" in record.message for record in caplog.records) == 1
    count = len(looked)
    time.sleep(0.1)
    assert len(looked) == count, "it has stopped with the server"


@pytest.mark.parametrize(
    ("path", "module", "function"),
    [
        ("/", sources, "describe"),
        ("/source/s0003", sources, "source"),
        ("/v1/sources/s0003/neighbours?k=20", search, "neighbours"),
        ("/v1/recall", search, "live_recall"),
    ],
)
def test_an_answer_is_of_one_generation_though_another_is_taken_up_meanwhile(
    own_bare: Path, monkeypatch: pytest.MonkeyPatch, path: str, module: ModuleType, function: str
) -> None:
    app = create_app(Settings(shelf=own_bare, refresh_seconds=60))
    client, own = TestClient(app), app.state.serving
    before = client.get(path).text
    whole, swapped = getattr(module, function), []

    def swapping(*args: object, **kwargs: object) -> object:
        if not swapped:  # with a generation that is prepared the same functions are called
            swapped.append(True)
            delete(own_bare, ["s0030"])
            publish(own_bare)
            assert own.refresh()
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, function, swapping)
    assert client.get(path).text == before and own.current.generation.number == 2
    monkeypatch.undo()
    assert client.get(path).text != before

"""Fits on a shelf: what they are told of their sources, which are published, and what becomes of old ones."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from redshelf.api.app import create_app
from redshelf.indexing import generation, store
from redshelf.indexing.files import manifest, sha256
from redshelf.indexing.generation import FileFacts
from redshelf.indexing.layout import Layout
from redshelf.models import fitting
from redshelf.models.errors import Conflict
from redshelf.service import fits
from redshelf.service.check import check
from redshelf.service.fit import FitReport, fit
from redshelf.service.outputs import Asked, write
from redshelf.service.publish import publish
from redshelf.service.redshift import redshifts
from redshelf.service.settings import load
from redshelf.service.shelf import open_shelf
from redshelf.service.status import status


@pytest.fixture
def aged(own_shelf: Path) -> Path:
    """The shelf as an earlier redshelf has published it, whose fit on vit, the default one, lacks an array."""
    layout, one = Layout(own_shelf), generation.read(Layout(own_shelf))
    (folder,) = layout.redshift.glob("vit.*")
    with np.load(folder / "model.npz") as stored:
        arrays = {name: stored[name] for name in stored.files if name != "companions"}
    np.savez(folder / "model.npz", **arrays)
    name = fits.name_of("vit", [layout.newest("vit")], sha256(folder / "model.npz"))
    folder.rename(folder.with_name(name))
    redshifts = [f.model_copy(update={"folder": name}) if f.encoder == "vit" else f for f in one.redshifts]
    files = [own_shelf / file.replace(folder.name, name) for file in one.files]
    facts = {file: FileFacts(**found) for file, found in manifest(own_shelf, files).items()}
    changed = {"redshifts": redshifts, "files": facts, "default_redshift": "vit"}
    generation.write(layout, one.model_copy(update=changed))
    return own_shelf


def keep_bright_labels(root: Path, n: int) -> None:
    """The `n` labels of the brightest sources in i; every other source becomes a target."""
    layout = Layout(root)
    labels = store.open_table(layout.labels).to_table()
    flux = store.open_table(layout.sources).take(labels["row"].to_numpy(), columns=["flux_i"])["flux_i"].to_numpy()
    store.replace_table(layout.labels, labels.take(np.sort(np.argsort(-flux)[:n])))


def test_an_embedding_alone_is_rehearsed_where_the_targets_are_fainter(
    own_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_bright_labels(own_shelf, 120)
    monkeypatch.setattr(fitting, "REHEARSAL_LABELS", 100)
    for folder in Layout(own_shelf).models.glob("photometry.*"):
        shutil.rmtree(folder)  # the fluxes tell, not an embedding of them
    report = fit(own_shelf, encoder="vit").details
    assert set(report["rehearsal"]) == {"nothing"} and report["left_out"] == []
    assert report["validation"] == report["rehearsal"]["nothing"]
    assert report["support"]["chosen"] is False, "there is one space alone"
    assert report["shift"]["mean_weight"] < 0.8, "seen in magnitudes, which this embedding hardly knows"


def test_a_rehearsed_fit_is_the_default_one_before_any_that_was_scored_on_brighter_sources(
    own_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep_bright_labels(own_shelf, 120)
    plain = fit(own_shelf, encoder="photometry")
    monkeypatch.setattr(fitting, "REHEARSAL_LABELS", 100)
    rehearsed = fit(own_shelf, encoder="vit")
    assert not plain.details["rehearsal"] and rehearsed.details["rehearsal"]

    def score(report: FitReport) -> float:
        return float(report.details["validation"][report.details["default_estimator"]]["crps_weighted"])

    assert score(plain) < score(rehearsed), "else the better score would win by itself"
    assert publish(own_shelf).default_redshift == "vit"
    fit(own_shelf, encoder="photometry", seed=1)
    assert publish(own_shelf).default_redshift == "photometry", "both are rehearsed: the better score"


MENDED = r"redshift/vit\..*'companions' is missing.*: run `redshelf fit --encoder vit` and `redshelf publish`"


def test_an_old_fit_keeps_nothing_but_its_own_redshifts_from_being_served(aged: Path) -> None:
    shelf = open_shelf(aged)
    assert set(shelf.encoders) == {"photometry", "vit"} and set(shelf.redshifts) == {"photometry"}
    assert redshifts(shelf, ["s0004"], encoder="photometry")[0].z_median is not None
    for encoder in ("vit", None):
        with pytest.raises(Conflict, match=MENDED):
            redshifts(shelf, ["s0004"], encoder=encoder)
    with pytest.raises(Conflict, match=MENDED):
        write(aged, aged / "out.parquet", Asked("redshift"))


def test_an_old_fit_is_told_by_http_and_on_the_page(aged: Path) -> None:
    client = TestClient(create_app(load(environ={}, shelf=aged)))
    told = {fit["encoder"]: fit["fault"] for fit in client.get("/v1/shelf").json()["redshifts"]}
    assert told["photometry"] is None and re.search(MENDED, told["vit"])
    refused = client.get("/v1/sources/s0004/redshift")
    assert refused.status_code == 409 and re.search(MENDED, refused.json()["detail"])
    assert client.get("/v1/sources/s0004/neighbours?encoder=vit").status_code == 200
    page = client.get("/source/s0004")
    assert page.status_code == 200 and "No fit to ask." in page.text and "redshelf fit --encoder vit" in page.text


def test_an_old_fit_is_told_by_status_and_check_until_it_is_made_anew_and_published(aged: Path) -> None:
    (line,) = [line for line in status(aged).missing if "that can be read" in line]
    assert line.startswith("a fit on vit that can be read: run `redshelf fit --encoder vit` and `redshelf publish` (")
    assert [e.fits for e in status(aged).encoders] == [["photometry"], []]
    (fault,) = check(aged).faults
    assert re.fullmatch(MENDED, fault)
    with pytest.raises(Conflict, match=r"'companions' is missing.*: run `redshelf fit --encoder vit`$"):
        publish(aged)
    fit(aged, encoder="vit")
    (line,) = [line for line in status(aged).missing if "that can be read" in line or "can be read:" in line]
    assert line.startswith("a generation whose fit on vit can be read: run `redshelf publish` (")
    assert [fault.endswith(": run `redshelf publish`") for fault in check(aged).faults] == [True]
    publish(aged)
    assert "vit" in open_shelf(aged).redshifts and open_shelf(aged, 1).unreadable
    assert not [line for line in status(aged).missing if "can be read" in line]
    found = check(aged, every=True)
    assert found.faults == [] and found.notes[-1].endswith("generation 1 answers no redshifts by it")


def test_a_fit_whose_bytes_have_changed_is_not_published_and_made_anew_in_its_place(own_shelf: Path) -> None:
    shutil.rmtree(own_shelf / "generations")  # whose sha256 would tell
    (folder,) = own_shelf.glob("redshift/photometry.*")
    kept = (folder / "model.npz").read_bytes()
    (folder / "model.npz").write_bytes(kept[:-30] + b"?" + kept[-29:])
    assert [line.startswith(f"redshift/{folder.name}: ") for line in check(own_shelf).faults] == [True]
    with pytest.raises(Conflict, match=r"redshift/photometry\..*: run `redshelf fit --encoder photometry`$"):
        publish(own_shelf)
    fit(own_shelf, encoder="photometry")
    assert (folder / "model.npz").read_bytes() == kept and check(own_shelf).faults == []
    (folder / "config.json").write_text("{")
    with pytest.raises(Conflict, match="not valid JSON"):
        publish(own_shelf)
    fit(own_shelf, encoder="photometry")
    assert [f.encoder for f in publish(own_shelf).redshifts] == ["photometry", "vit"]


def test_every_estimator_of_every_fit_is_asked_before_it_is_published(own_shelf: Path) -> None:
    one, (folder,) = generation.read(Layout(own_shelf)), own_shelf.glob("redshift/photometry.*")
    assert one.default_redshift == "vit" or one.default_estimator != "lightgbm", "z_phot does not ask it"
    with np.load(folder / "model.npz") as stored:
        arrays = {name: stored[name] for name in stored.files}
    arrays["boost.texts"] = np.frombuffer(b"tree\nno more of it", dtype=np.uint8)
    np.savez(folder / "model.npz", **arrays)
    digest = sha256(folder / "model.npz")
    folder.rename(folder.with_name(fits.name_of("photometry", [Layout(own_shelf).newest("photometry")], digest)))
    with pytest.raises(Conflict, match=r"redshift/photometry\..*: its lightgbm .*: run `redshelf fit --encoder phot"):
        publish(own_shelf)

"""Where to point a spectrograph: which sources may be chosen, what is told of them, files, and clear refusals."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.table import Table

from redshelf.api import cli
from redshelf.indexing.columns import CLASSES
from redshelf.indexing.filters import separation_arcsec
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import targets as service
from redshelf.service.shelf import OpenShelf, open_shelf
from redshelf.service.targets import targets


@pytest.fixture(scope="module")
def shelf(tiny_shelf: Path) -> OpenShelf:
    return open_shelf(tiny_shelf)


def rows(shelf: OpenShelf, found: service.Targets) -> np.ndarray:
    return np.array([shelf.row(source_id) for source_id in found.table["source_id"].to_pylist()])


def allowed(shelf: OpenShelf) -> np.ndarray:
    columns = shelf.columns
    good = ~np.isfinite(columns["z_spec"]) & ~columns["deleted"] & (columns["flags"] & 1 == 0)
    return np.flatnonzero(good & (columns["object_class"] != CLASSES.index("star")))


def test_the_sources_have_no_label_are_no_stars_and_come_once(shelf: OpenShelf) -> None:
    found = targets(shelf, 10, encoder="photometry")
    chosen = rows(shelf, found)
    assert len(set(chosen.tolist())) == 10
    assert set(chosen.tolist()) <= set(allowed(shelf).tolist())
    assert found.table["rank"].to_pylist() == list(range(1, 11))


def test_more_than_there_are_gives_every_one(shelf: OpenShelf) -> None:
    found = targets(shelf, 10_000, encoder="photometry")
    assert sorted(rows(shelf, found).tolist()) == allowed(shelf).tolist()
    assert found.facts["n"] == found.facts["n_matching"] == found.facts["n_targets"] == len(allowed(shelf))


def test_each_line_tells_what_the_shelf_knows_of_its_source(shelf: OpenShelf) -> None:
    found = targets(shelf, 5, encoder="photometry")
    for row, line in zip(rows(shelf, found), found.table.to_pylist(), strict=True):
        assert line["ra_deg"] == shelf.columns["ra"][row] and line["dec_deg"] == shelf.columns["dec"][row]
        assert line["magnitude"] == pytest.approx(float(shelf.columns["magnitudes"][row, 2]))  # i, the third band
        assert line["z_phot"] == pytest.approx(float(shelf.columns["z_phot"][row]))
        assert line["expected_gain"] >= 0
    told = found.facts
    assert told["mag_band"] == "i" and told["encoder"] == "photometry" and told["generation"] == 1
    assert told["expected_gain_of_all"] >= told["expected_gain_at_random"] - 1e-9
    assert told["expected_gain_of_all"] == pytest.approx(sum(found.table["expected_gain"].to_pylist()), rel=1e-6)


def test_the_same_question_has_the_same_answer(shelf: OpenShelf) -> None:
    assert targets(shelf, 8).table.equals(targets(shelf, 8).table)


def test_none_is_fainter_than_the_limit(shelf: OpenShelf) -> None:
    magnitudes = shelf.columns["magnitudes"][:, 1]
    limit = float(np.nanmedian(magnitudes[allowed(shelf)]))
    found = targets(shelf, 1000, mag_band="r", mag_max=limit)
    assert sorted(rows(shelf, found).tolist()) == [n for n in allowed(shelf) if magnitudes[n] <= limit]
    assert found.facts["mag_max"] == limit and found.facts["mag_band"] == "r"
    assert found.facts["n_targets"] == len(allowed(shelf))  # answered for are all


def test_none_lies_outside_the_area(shelf: OpenShelf) -> None:
    ra, dec = (float(np.median(shelf.columns[name])) for name in ("ra", "dec"))
    distance = separation_arcsec(shelf.columns["ra"], shelf.columns["dec"], ra, dec)
    found = targets(shelf, 1000, ra=ra, dec=dec, radius_arcsec=40.0)
    assert sorted(rows(shelf, found).tolist()) == [n for n in allowed(shelf) if distance[n] <= 40]
    assert 0 < found.facts["n"] < found.facts["n_targets"]


def test_deleted_masked_and_active_sources_are_never_chosen(shelf: OpenShelf) -> None:
    some = allowed(shelf)[:6]
    changed: dict[str, Any] = {name: np.array(shelf.columns[name]) for name in ("deleted", "flags", "object_class")}
    changed["deleted"][some[:2]] = True
    changed["flags"][some[2:4]] |= 1
    changed["object_class"][some[4:]] = CLASSES.index("agn")
    found = targets(replace(shelf, columns={**shelf.columns, **changed}), 1000)
    assert sorted(rows(shelf, found).tolist()) == sorted(set(allowed(shelf).tolist()) - set(some.tolist()))


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        ({"n": 0}, BadInput, "n=0: expected 1 <= n <= 10000"),
        ({"n": 10_001}, BadInput, "n=10001"),
        ({"mag_band": "q"}, BadInput, "band 'q' is not in this survey"),
        ({"mag_max": 3.0}, NotFound, r"none of \d+ passes mag_band=i, mag_max=3.0"),
        ({"ra": 10.0}, BadInput, "a cone needs ra, dec and radius_arcsec together"),
        ({"ra": 10.0, "dec": 0.0, "radius_arcsec": 1.0}, NotFound, "passes ra=10.0, dec=0.0, radius_arcsec=1.0"),
        ({"mag_max": float("nan")}, BadInput, "mag_max=nan"),
        ({"encoder": "photometri"}, NotFound, "photometri"),
    ],
)
def test_what_cannot_be_asked_is_refused(
    shelf: OpenShelf, asked: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        targets(shelf, **asked)


def test_a_shelf_without_a_fit_is_refused(bare_shelf: Path) -> None:
    with pytest.raises(NotFound, match="run `redshelf fit`"):
        targets(service.open_for(bare_shelf))


@pytest.mark.parametrize("ending", ["parquet", "fits", "vot", "csv"])
def test_the_file_has_the_lines_in_every_format(shelf: OpenShelf, tmp_path: Path, ending: str) -> None:
    found = targets(shelf, 7)
    path = tmp_path / f"chosen.{ending}"
    service.write(path, found)
    table = Table.read(path, format={"vot": "votable", "csv": "ascii.csv"}.get(ending))
    assert [str(name) for name in table["source_id"].astype(str)] == found.table["source_id"].to_pylist()
    np.testing.assert_array_equal(table["expected_gain"], found.table["expected_gain"].to_numpy())
    with pytest.raises(Conflict, match="is there already"):
        service.write(path, found)


def test_an_unknown_ending_and_a_missing_folder_are_refused_before_any_work(tiny_shelf: Path, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "a.txt", "unknown ending '.txt'"), (tmp_path / "b" / "a.fits", "no folder")):
        with pytest.raises(BadInput, match=message):
            service.check_path(path)


def test_the_command_writes_a_file_and_tells_the_facts(
    tiny_shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chosen.parquet"
    words = ["targets", "--shelf", str(tiny_shelf), "-n", "6", "--encoder", "vit", "--json"]
    assert cli.main([*words, "-o", str(path), "--mag-max", "30", "--mag-band", "g"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["path"] == str(path) and told["n"] == 6 and told["encoder"] == "vit" and told["mag_band"] == "g"
    assert len(Table.read(path)) == 6
    assert cli.main(words) == 0
    lines = json.loads(capsys.readouterr().out)["targets"]
    assert [line["rank"] for line in lines] == [1, 2, 3, 4, 5, 6]


def test_the_command_prints_the_first_sources(tiny_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "--shelf", str(tiny_shelf), "-n", "30"]) == 0
    out = capsys.readouterr().out
    assert "galaxies without a label, by" in out and "at random by" in out
    assert "and 10 more: -o FILE writes them all" in out


def test_a_refusal_of_the_command_is_one_line(tiny_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["targets", "--shelf", str(tiny_shelf), "-n", "0"]) == 1
    assert "n=0: expected 1 <= n <= 10000" in capsys.readouterr().err

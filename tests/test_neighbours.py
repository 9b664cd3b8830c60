"""The neighbours of every source: as a search finds them, whatever was killed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from redshelf.api.cli import main
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import neighbours as service
from redshelf.service.neighbours import write_neighbours
from redshelf.service.search import neighbours
from redshelf.service.shelf import open_shelf


def test_every_source_has_the_neighbours_that_a_search_finds(tiny_shelf: Path, tmp_path: Path) -> None:
    report = write_neighbours(tiny_shelf, tmp_path / "n.parquet", k=7, encoder="vit", part_rows=64)
    table, shelf = pq.read_table(tmp_path / "n.parquet"), open_shelf(tiny_shelf)
    assert (report.sources, report.k, report.exact) == (len(table), 7, True)
    ids = table["source_id"].to_pylist()
    assert len(set(ids)) == len(ids) == shelf.encoder("vit").index.findable
    found, distances = table["neighbours"].to_pylist(), table["distances"].to_pylist()
    for at in range(0, len(ids), 23):
        expected = neighbours(shelf, ids[at], encoder="vit", k=7).neighbours
        assert [ids[n] for n in found[at]] == [n.source_id for n in expected]
        np.testing.assert_allclose(distances[at], [n.distance for n in expected], rtol=1e-5)
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    assert told["redshelf.encoder"] == "vit" and told["redshelf.revision"] == report.revision
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.parquet"]


def test_more_than_there_are_is_padded(tiny_shelf: Path, tmp_path: Path) -> None:
    write_neighbours(tiny_shelf, tmp_path / "n.parquet", k=400, encoder="photometry")
    table = pq.read_table(tmp_path / "n.parquet")
    found = np.array(table["neighbours"].to_pylist())
    assert (found[:, : len(table) - 1] >= 0).all() and (found[:, len(table) - 1 :] == -1).all()
    assert np.isinf(np.array(table["distances"].to_pylist())[:, -1]).all()


def test_a_killed_run_goes_on_and_another_question_is_refused(
    tiny_shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    write_neighbours(tiny_shelf, tmp_path / "whole.parquet", k=5, part_rows=64)
    made, real = [0], service._part

    def killing(*args: object) -> object:
        if made[0] == 2:
            raise Killed
        made[0] += 1
        return real(*args)  # type: ignore[arg-type]

    path = tmp_path / "n.parquet"
    monkeypatch.setattr(service, "_part", killing)
    with pytest.raises(Killed):
        write_neighbours(tiny_shelf, path, k=5, part_rows=64)
    assert not path.exists() and len(list(tmp_path.glob(".n.parquet.parts/part-*"))) == 2
    with pytest.raises(Conflict, match="holds parts of another generation, encoder, k"):
        write_neighbours(tiny_shelf, path, k=6, part_rows=64)
    made[0] = -100
    write_neighbours(tiny_shelf, path, k=5, part_rows=64)
    assert made[0] == -100 + 3  # of five parts
    assert pq.read_table(path).equals(pq.read_table(tmp_path / "whole.parquet"))
    with pytest.raises(Conflict, match="is there already"):
        write_neighbours(tiny_shelf, path, k=5)


def test_bad_questions_leave_nothing(tiny_shelf: Path, tmp_path: Path) -> None:
    for how, error in (({"k": 0}, BadInput), ({"k": 1001}, BadInput), ({"encoder": "vitt"}, NotFound)):
        with pytest.raises(error):
            write_neighbours(tiny_shelf, tmp_path / "n.parquet", **how)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_command_writes_the_file(tiny_shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "n.parquet"
    assert main(["neighbours", "--shelf", str(tiny_shelf), "-k", "3", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["k"] == 3 and pq.read_table(path).num_rows > 200

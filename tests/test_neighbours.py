"""The neighbours of every source: as a search finds them. (Kills and parts: test_outputs.py.)"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from redshelf.api.cli import main
from redshelf.service import outputs
from redshelf.service.outputs import Asked
from redshelf.service.search import neighbours
from redshelf.service.shelf import open_shelf


def test_every_source_has_the_neighbours_that_a_search_finds(tiny_shelf: Path, tmp_path: Path) -> None:
    outputs.write(tiny_shelf, tmp_path / "n.parquet", Asked("neighbours", k=7, encoder="vit", part_rows=64))
    table, shelf = pq.read_table(tmp_path / "n.parquet"), open_shelf(tiny_shelf)
    ids = table["source_id"].to_pylist()
    assert len(set(ids)) == len(ids) == shelf.encoder("vit").index.findable
    found, distances = table["neighbours"].to_pylist(), table["distances"].to_pylist()
    for at in range(0, len(ids), 23):
        expected = neighbours(shelf, ids[at], encoder="vit", k=7).neighbours
        assert [ids[n] for n in found[at]] == [n.source_id for n in expected]
        np.testing.assert_allclose(distances[at], [n.distance for n in expected], rtol=1e-5)
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    expected = {"survey": "small", "generation": "1", "encoder": "vit", "k": "7", "exact": "True", "recall": "1.0"}
    expected["revision"] = shelf.encoder("vit").published.revision
    assert {name: told[f"redshelf.{name}"] for name in expected} == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n.parquet"]


def test_more_than_there_are_is_padded(tiny_shelf: Path, tmp_path: Path) -> None:
    outputs.write(tiny_shelf, tmp_path / "n.parquet", Asked("neighbours", k=400, encoder="photometry"))
    table = pq.read_table(tmp_path / "n.parquet")
    found = np.array(table["neighbours"].to_pylist())
    assert (found[:, : len(table) - 1] >= 0).all() and (found[:, len(table) - 1 :] == -1).all()
    assert np.isinf(np.array(table["distances"].to_pylist())[:, -1]).all()


def test_the_command_writes_the_file(tiny_shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "n.parquet"
    assert main(["neighbours", "--shelf", str(tiny_shelf), "-k", "3", "-o", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["k"] == "3" and pq.read_table(path).num_rows > 200

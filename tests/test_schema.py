"""Shelves of earlier redshelves: what was laid down once goes on being read, and added to."""

import json
import re
import tarfile
from pathlib import Path

import pytest

from redshelf.indexing.layout import SCHEMA_VERSION, Layout
from redshelf.models.errors import BadInput
from redshelf.service.check import check
from redshelf.service.embedding import embed
from redshelf.service.index import build_index
from redshelf.service.publish import publish
from redshelf.service.search import neighbours
from redshelf.service.shelf import open_shelf

KEPT = sorted((Path(__file__).parent / "data").glob("shelf-schema-*.tar.xz"))


def kept(path: Path, folder: Path) -> Path:
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    return folder / "shelf"


def test_there_is_a_shelf_of_this_schema() -> None:
    assert f"shelf-schema-{SCHEMA_VERSION}.tar.xz" in {path.name for path in KEPT}  # by tests/data/make_shelf.py


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name.partition(".")[0])
def test_a_shelf_that_was_laid_down_is_read_answers_the_same_and_takes_another_generation(
    path: Path, tmp_path: Path
) -> None:
    root = kept(path, tmp_path)
    assert not check(root, every=True).faults
    expected = json.loads((root / "expected.json").read_text())
    for again in range(2):
        shelf = open_shelf(root)
        assert shelf.generation.number == again + 1
        for source, near in expected.items():
            assert [one.source_id for one in neighbours(shelf, source, k=5).neighbours] == near
        embed(root, encoder="photometry")
        build_index(root, encoder="photometry")
        publish(root)
    assert not check(root, every=True).faults


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (SCHEMA_VERSION + 1, f"this redshelf reads version {SCHEMA_VERSION}: a newer one made it, upgrade"),
        (SCHEMA_VERSION - 1, f"this redshelf reads version {SCHEMA_VERSION}: ingest the survey again"),
    ],
)
def test_a_shelf_of_another_schema_is_refused_with_what_to_do(version: int, said: str, tmp_path: Path) -> None:
    root = kept(KEPT[-1], tmp_path)
    layout = Layout(root)
    text = layout.info_file.read_text()
    layout.info_file.write_text(re.sub(r"schema_version = \d+", f"schema_version = {version}", text))
    with pytest.raises(BadInput, match=said):
        layout.read_info()

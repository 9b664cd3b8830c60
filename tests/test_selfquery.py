"""The self-query: what passes it, what it allows an approximate index, and what it keeps from being published."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import small_survey

from redshelf.indexing import ann, assembly, generation, ivf
from redshelf.indexing.files import manifest, read_json, write_json
from redshelf.indexing.layout import Layout
from redshelf.models.errors import Conflict
from redshelf.service import selfquery
from redshelf.service.check import check
from redshelf.service.embedding import embed
from redshelf.service.index import build_index
from redshelf.service.ingest import ingest
from redshelf.service.publish import publish
from redshelf.service.shelf import open_shelf

N, DIM = 3000, 12


def vectors(seed: int) -> npt.NDArray[np.float16]:
    return np.random.default_rng(seed).normal(size=(N, DIM)).astype(np.float16)


def build(folder: Path, values: npt.NDArray[np.float16]) -> ann.Index:
    folder.mkdir(parents=True)
    assembly.build(folder, [values], rows=len(values), dim=values.shape[1])
    return ann.open_index(folder)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[ann.Index, ann.Index]:
    """Approximate indexes of two embeddings of the same size."""
    home = tmp_path_factory.mktemp("e")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "EXACT_VALUES", 1000)
        return build(home / "a" / "1", vectors(0)), build(home / "b" / "1", vectors(1))


def test_every_vector_of_an_exact_index_finds_itself_or_its_double(tmp_path: Path) -> None:
    values = vectors(0)[:40]
    values[20:] = values[:20]
    values[3] = 0  # which an encoder that saw nothing leaves
    found = selfquery.ask(build(tmp_path / "1", values))
    assert (found.asked, found.found, found.expected, found.passed) == (39, 39, 39, True)


def test_rows_that_are_deleted_are_not_asked_for(tmp_path: Path) -> None:
    gone = np.arange(50) < 45
    index = build(tmp_path / "1", vectors(0)[:50])
    assert selfquery.ask(index.without(gone)) == selfquery.SelfQuery(5, 5, 5)
    assert selfquery.ask(index.without(np.ones(50, dtype=bool))).passed


def test_vectors_of_another_embedding_do_not_find_themselves(tmp_path: Path) -> None:
    index, others = build(tmp_path / "1", vectors(0)[:200]), vectors(1)
    with pytest.raises(
        Conflict, match=r"encoder vit: by index/\S+ \d+ of 100 stored vectors find themselves, expected at least 100"
    ):
        selfquery.require("vit", "0" * 12, index, stored=lambda rows: others[rows])


def test_an_approximate_index_passes_and_lists_before_other_vectors_do_not(lists: tuple[ann.Index, ann.Index]) -> None:
    index, other = lists
    assert index.lists is not None and other.lists is not None and not index.exact
    found = selfquery.ask(index)
    assert found.passed and found.asked == 100 and found.found >= 95
    mixed = replace(index.lists, index=other.lists.index, refined=ivf.refined(other.lists.index, index.flat))
    found = selfquery.ask(replace(index, lists=mixed))
    assert not found.passed and found.found < 50


@pytest.mark.parametrize(
    ("promised", "asked", "least"), [(0.95, 100, 87), (0.999, 100, 97), (0.5, 100, 34), (0.95, 2, 0)]
)
def test_what_an_approximate_index_is_allowed_to_miss_follows_from_its_promise(
    lists: tuple[ann.Index, ann.Index], promised: float, asked: int, least: int
) -> None:
    index = lists[0]
    assert index.lists is not None
    tuning = replace(index.lists.tuning, wanted=promised)
    assert selfquery.expected(replace(index, recall=1.0, lists=replace(index.lists, tuning=tuning)), asked) == least
    assert selfquery.expected(replace(index, lists=None), asked) == asked


def wrong_index(root: Path) -> None:
    """Put an index of other vectors in the place of the encoder's, whole and with its checksums."""
    layout = Layout(root)
    facts = generation.read(layout).encoders[0]
    rows = len(open_shelf(root))
    folder = layout.index(facts.name, facts.revision, rows)
    told = {key: value for key, value in read_json(folder / ann.MANIFEST).items() if key in ("encoder", "revision")}
    other = np.random.default_rng(0).normal(size=(rows, facts.dim)).astype(np.float16)
    assembly.build(folder, [other], rows=rows, dim=facts.dim, **told)


def test_an_index_of_other_vectors_is_not_published(bare_shelf: Path, tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)
    wrong_index(root)
    with pytest.raises(
        Conflict,
        match=r"encoder photometry: by index/\S+ \d+ of 60 stored vectors find themselves, expected at least 60",
    ):
        publish(root)
    assert generation.numbers(Layout(root)) == [1]
    assert not Layout(root).columns(2).exists()


def test_lists_before_other_vectors_are_told_by_check_and_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "EXACT_VALUES", 1000)
    root = tmp_path / "shelf"
    ingest(small_survey.write(tmp_path, sources=1600, images=False), root)
    revision, _ = embed(root, encoder="photometry")
    _, told = build_index(root, encoder="photometry")
    publish(root)
    assert told["kind"] == "ivf" and check(root).faults == []
    folder = Layout(root).index("photometry", revision, 1600)
    other = np.random.default_rng(0).normal(size=(1600, told["dim"])).astype(np.float16)
    assembly.build(tmp_path / "other" / "1600", [other], rows=1600, dim=told["dim"])
    document = read_json(folder / ann.MANIFEST)
    for name in (ann.INDEX, ann.LISTS):
        shutil.copy(tmp_path / "other" / "1600" / name, folder / name)
    document["lists"] = ann.read_manifest(tmp_path / "other" / "1600")["lists"]
    document["files"] = manifest(folder, [folder / name for name in document["files"]])
    write_json(folder / ann.MANIFEST, document)
    shutil.rmtree(root / "generations")  # which would tell of the checksums first
    assert any("of 100 stored vectors find themselves, expected at least 87" in line for line in check(root).faults)
    with pytest.raises(Conflict, match=r"by index/\S+ \d+ of 100 stored vectors find themselves, expected at least 87"):
        publish(root)
    assert generation.numbers(Layout(root)) == []
    shutil.rmtree(folder)  # as the error says
    build_index(root, encoder="photometry")
    publish(root)
    assert check(root).faults == []

"""Making an index by parts: in any order, by any process, after any kill, the same index to the bit."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import small_survey
import torture
from hypothesis import given, settings
from hypothesis import strategies as st
from test_ivf import DIM, VECTORS, galaxies

from redshelf.api.cli import main
from redshelf.indexing import ann, assembly, ivf, lists
from redshelf.indexing.assembly import Building, IndexPlan
from redshelf.indexing.layout import Layout
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import index as service
from redshelf.service.embedding import embed
from redshelf.service.ingest import ingest
from redshelf.service.publish import publish
from redshelf.service.shelf import open_shelf

N = len(VECTORS)


@pytest.fixture(scope="module", autouse=True)
def small_is_large() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "EXACT_VALUES", 1000 * DIM)
        yield


def batches(vectors: np.ndarray = VECTORS) -> Iterator[np.ndarray]:
    return iter([vectors[start : start + 5000] for start in range(0, len(vectors), 5000)])


def begun(folder: Path, part_rows: int = 2500, vectors: np.ndarray = VECTORS) -> Building:
    plan = IndexPlan(rows=len(vectors), dim=DIM, part_rows=part_rows, task_parts=2)
    return assembly.begin(folder / "home", folder / str(len(vectors)), plan)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of an index; of the manifest not the times."""
    found = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ann.MANIFEST}
    told = json.loads((folder / ann.MANIFEST).read_bytes())
    for line in told["table"]:
        del line["ms"]
    return {**found, ann.MANIFEST: json.dumps(told).encode()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    building = begun(tmp_path_factory.mktemp("u"))
    assembly.add_parts(building, batches, range(building.plan.parts))
    assembly.finish(building, batches)
    assert not building.home.exists()
    return contents(building.folder)


def test_parts_in_any_order_and_twice_give_the_same_index(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    building = begun(tmp_path)
    for part in (3, 0, 4, 3, 2, 1):
        assembly.add_parts(building, batches, [part])
        assembly.add_parts(building, batches, [part, part])
    assert not building.missing()
    assembly.finish(building, batches)
    assert contents(building.folder) == undisturbed


def test_the_size_of_the_parts_changes_no_list(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    for part_rows in (N, 999):
        building = begun(tmp_path / str(part_rows), part_rows)
        assembly.add_parts(building, batches, range(building.plan.parts))
        assembly.finish(building, batches)
        found = contents(building.folder)
        assert all(found[name] == undisturbed[name] for name in (ann.INDEX, ann.LISTS, ann.LIST_OF, ann.VECTORS))


def test_many_lists_are_filled_by_a_graph_of_their_centres(
    tmp_path: Path, undisturbed: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ivf, "GRAPH_LISTS", 10)
    monkeypatch.setattr(ivf, "GRAPH_EFFORT", (40, 4))  # so little that some vectors go to another list
    found = []
    for name in ("once", "again"):
        building = begun(tmp_path / name)
        assembly.add_parts(building, batches, range(5))
        assembly.finish(building, batches)
        found.append(contents(building.folder))
    assert found[0] == found[1]
    opened, known = ann.open_index(building.folder), np.flatnonzero(VECTORS.any(axis=1))
    assert opened.lists is not None and (opened.lists.list_of[known] >= 0).all()
    _, nearest = opened.lists.index.quantizer.search(VECTORS[known].astype(np.float32), 1)
    assert 0.9 < (opened.lists.list_of[known] == nearest[:, 0]).mean() < 1
    assert found[0][ann.LISTS] != undisturbed[ann.LISTS] and found[0][ann.INDEX] == undisturbed[ann.INDEX]
    assert opened.recall >= 0.95 and ann.measure(opened, queries=200) >= 0.94


def test_a_missing_part_is_named_and_nothing_is_served(tmp_path: Path) -> None:
    building = begun(tmp_path)
    assembly.add_parts(building, batches, [0, 2, 4])
    with pytest.raises(Conflict, match="2 of 5 parts have no receipt: 1,3"):
        assembly.finish(building, batches)
    with pytest.raises(NotFound):
        ann.open_index(building.folder)


def test_a_damaged_part_is_set_aside_and_made_again(tmp_path: Path, undisturbed: dict[str, bytes]) -> None:
    building = begun(tmp_path)
    assembly.add_parts(building, batches, range(5))
    path = building.work / "part-000002.lists"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    with pytest.raises(Conflict, match="1 of 5 parts are damaged and set aside, run them again: part 2: part-000002"):
        assembly.finish(building, batches)
    assert building.missing() == {2}
    assembly.add_parts(building, batches, range(5))
    assembly.finish(building, batches)
    assert contents(building.folder) == undisturbed


KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
from pathlib import Path
import test_assembly as here
from redshelf.indexing import ann, assembly
ann.EXACT_VALUES = 1000 * here.DIM
building = here.begun(Path({folder!r}))
left = {after}
def progress(rows):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
write = assembly.write_json
def dying(path, document):
    if {at!r} in path.name:
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, document)
assembly.write_json = dying
if {at!r} == "discard":
    assembly.discard = lambda home: os.kill(os.getpid(), signal.SIGKILL)
assembly.add_parts(building, here.batches, range(building.plan.parts), progress=progress)
assembly.finish(building, here.batches)
"""


@pytest.mark.parametrize(("after", "at"), [(0, "prepared"), (1, "-"), (4, "-"), (0, "manifest"), (0, "discard")])
def test_a_killed_build_goes_on_and_ends_with_the_same_index(
    tmp_path: Path, undisturbed: dict[str, bytes], after: int, at: str
) -> None:
    tests = Path(__file__).parent
    told = KILLED.format(paths=[str(tests / "links"), str(tests)], folder=str(tmp_path), after=after, at=at)
    assert subprocess.run([sys.executable, "-c", told], check=False).returncode == -9
    building = Building(begun(tmp_path / "other").plan, tmp_path / "home", tmp_path / str(N))
    assert building.is_open and building.is_in_place == (building.folder / ann.MANIFEST).exists() == (at == "discard")
    assert len(building.missing()) == {"prepared": 5, "-": 5 - after, "manifest": 0, "discard": 0}[at]
    building = begun(tmp_path)
    assembly.add_parts(building, batches, range(5))
    assembly.finish(building, batches)
    assert contents(building.folder) == undisturbed


def test_another_plan_takes_the_place_of_one_that_is_open_and_an_altered_one_is_refused(tmp_path: Path) -> None:
    building = begun(tmp_path)
    assembly.add_parts(building, batches, [0])
    other = begun(tmp_path, part_rows=6000)
    assert other.is_open and not building.is_open and other.missing() == {0, 1} and not building.work.exists()
    path = other.home / assembly.PLAN_FILE
    path.write_text(path.read_text().replace("6000", "5000"))
    with pytest.raises(BadInput, match="was altered"):
        assembly.read(other.home)
    path.unlink()
    with pytest.raises(NotFound, match="no index is planned"):
        assembly.read(other.home)
    for wrong, says in ((dict(rows=0), "without rows"), (dict(part_rows=0), "part_rows=0"), (dict(recall=1.0), "1.0")):
        with pytest.raises(BadInput, match=says):
            IndexPlan(**{"rows": 5, "dim": 2, **wrong})


@pytest.mark.parametrize("large", [True, False])
def test_what_comes_after_the_end_of_a_plan_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    monkeypatch.setattr(ann, "EXACT_VALUES", 1000 * DIM if large else 10**9)
    building = begun(tmp_path)
    assembly.add_parts(building, batches, range(5))
    assembly.finish(building, batches)
    before = {path.name: path.read_bytes() for path in building.folder.iterdir()}
    for late in (lambda: assembly.add_parts(building, batches, [0]), lambda: assembly.finish(building, batches)):
        with pytest.raises(Conflict, match=f"the plan {building.plan.id} in .* has ended, or was replaced"):
            late()
    assert {path.name: path.read_bytes() for path in building.folder.iterdir()} == before
    assert not building.home.exists()


def test_a_part_whose_plan_ends_while_it_is_made_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    building = begun(tmp_path)
    assembly.prepare(building, batches)
    write = assembly.write_receipt

    def ended(*arguments: object) -> None:
        assembly.discard(building.home)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(assembly, "write_receipt", ended)
    with pytest.raises(Conflict, match="has ended, or was replaced"):
        assembly.add_parts(building, batches, [0])
    assert not building.work.exists()


def test_damaged_lists_of_a_shorter_index_are_not_added_to(tmp_path: Path) -> None:
    assembly.build(tmp_path / str(N), batches, rows=N, dim=DIM)
    path = tmp_path / str(N) / ann.LISTS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    (tmp_path / "12000.bad").mkdir()  # whatever else lies there
    more = np.concatenate([VECTORS, galaxies(1000, seed=9)])
    assembly.build(tmp_path / str(len(more)), partial(batches, more), rows=len(more), dim=DIM)
    assert ann.read_manifest(tmp_path / str(len(more)))["added_to"] == 0


def test_an_index_grows_from_the_lists_of_the_shorter_one(tmp_path: Path) -> None:
    """What is added to lists that are joined is found as if all had been added in one go."""
    assembly.build(tmp_path / str(N), batches, rows=N, dim=DIM)
    more = np.concatenate([VECTORS, galaxies(4000, seed=9)])
    building = begun(tmp_path, 2500, more)
    assembly.add_parts(building, partial(batches, more), range(building.plan.parts))
    assembly.finish(building, partial(batches, more))
    assert ann.read_manifest(building.folder)["added_to"] == N
    grown, before = ann.open_index(building.folder), ann.open_index(tmp_path / str(N))
    assert grown.lists is not None and before.lists is not None
    assert (grown.lists.list_of[:N] == before.lists.list_of).all() and grown.lists.sizes.sum() == grown.findable
    known = np.flatnonzero(more.any(axis=1))
    _, assigned = grown.lists.index.quantizer.search(more[known].astype(np.float32), 1)
    assert (grown.lists.list_of[known] == assigned[:, 0]).all()


def trained(rows: np.ndarray, codes: int, dim: int) -> object:
    import faiss

    quantiser = faiss.IndexFlatL2(dim)
    index = faiss.IndexIVFPQFastScan(quantiser, dim, 3, codes, 4)
    index.own_fields = True
    quantiser.this.disown()
    index.train(rows)
    return index


@pytest.mark.timeout(3600)
@given(
    cuts=st.lists(st.integers(0, 700), min_size=1, max_size=5),
    shape=st.sampled_from([(24, 12), (26, 13), (8, 8), (6, 3)]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=torture.count(30, 1000), deadline=None)
def test_lists_that_are_joined_are_those_that_faiss_would_have_filled(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], shape: tuple[int, int], seed: int
) -> None:
    import faiss

    folder, (dim, codes), rng = tmp_path_factory.mktemp("j"), shape, np.random.default_rng(seed)
    index = trained(rng.normal(size=(300, dim)).astype(np.float32), codes, dim)
    blank = faiss.serialize_index(index)
    edges = [0, *np.cumsum([*cuts, 32 * int(rng.integers(1, 20))]).tolist()]  # often whole blocks
    rows = rng.normal(size=(edges[-1], dim)).astype(np.float32)
    ids = rng.permutation(edges[-1] * 2)[: edges[-1]].astype(np.int64)
    parts = []
    for number, (first, past) in enumerate(pairwise(edges)):
        part = faiss.deserialize_index(blank)
        if past > first:
            part.add_with_ids(rows[first:past], ids[first:past])
        parts.append(folder / f"{number}.lists")
        lists.write(parts[-1], part)
    whole = faiss.deserialize_index(blank)
    whole.add_with_ids(rows, ids)
    lists.write(folder / "whole.lists", whole)
    lists.join(folder / "joined.lists", parts, index)
    assert (folder / "joined.lists").read_bytes() == (folder / "whole.lists").read_bytes()
    opened = lists.mapped(folder / "joined.lists", faiss.deserialize_index(blank))
    asked, how = rng.normal(size=(20, dim)).astype(np.float32), faiss.SearchParametersIVF(nprobe=2)
    for found, expected in zip(opened.search(asked, 7, params=how), whole.search(asked, 7, params=how), strict=True):
        np.testing.assert_array_equal(found, expected)
    of = lists.list_of(folder / "joined.lists", index, edges[-1] * 2)
    assert (of[ids] == whole.quantizer.search(rows, 1)[1][:, 0]).all() and (of >= 0).sum() == len(ids)


def test_a_file_of_other_lists_is_refused(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(300, 24)).astype(np.float32)
    index = trained(rows, 12, 24)
    index.add_with_ids(rows, np.arange(300))  # type: ignore[attr-defined]
    path = tmp_path / "l"
    lists.write(path, index)
    data = path.read_bytes()
    for wrong in (data[:-1], data + b"\0", data[:20], b"", data[:3] + b"\x99" + data[4:]):
        path.write_bytes(wrong)
        with pytest.raises(Conflict, match="which are not 3 lists of codes of 6 bytes"):
            lists.mapped(path, trained(rows, 12, 24))


MEASURE = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
import numpy as np
from redshelf.indexing import ann
index = ann.open_index(Path({folder!r}))
index.search(np.ones((4, {dim}), np.float32), 10)
maps, inside = dict(), ""
for line in Path("/proc/self/smaps").read_text().splitlines():
    if "-" in line.split(" ", 1)[0]:
        inside = line
    if {folder!r} in inside and line.startswith("Private_Dirty"):
        maps[inside.split()[-1].rpartition("/")[2]] = int(line.split()[1])
print(sorted(maps), sum(maps.values()))
"""


def test_a_process_that_searches_holds_none_of_the_lists_itself(tmp_path: Path) -> None:
    folder = tmp_path / str(N)
    assembly.build(folder, batches, rows=N, dim=DIM)
    told = MEASURE.format(paths=[str(Path(__file__).parent / "links")], folder=str(folder), dim=DIM)
    found = subprocess.run([sys.executable, "-c", told], check=True, capture_output=True, text=True).stdout
    assert found.startswith("['all.faiss', 'all.lists', 'known.npy', 'list_of.npy', 'vectors.faiss'] 0"), found


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    root = tmp_path / "shelf"
    ingest(small_survey.write(tmp_path, sources=1600, images=False, labels=False), root)
    embed(root, encoder="photometry")
    return root


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "EXACT_VALUES", 1000)


def test_the_steps_of_the_command_give_the_index_of_one_call(
    shelf: Path, few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> dict[str, object]:
        assert main(["index", "--encoder", "photometry", "--shelf", str(shelf), "--json", *words]) == 0
        return dict(json.loads(capsys.readouterr().out))

    revision, _ = service.build_index(shelf, encoder="photometry", part_rows=300)
    folder = Layout(shelf).index("photometry", revision, 1600)
    once = contents(folder)
    (folder / ann.MANIFEST).unlink()
    assert run("--plan", "--part-rows", "300", "--task-parts", "2")["parts"] == 6
    assert run("--task", "1") == {"encoder": "photometry", "parts": 2, "done_before": 0, "rows": 600}
    assert run("--part", "2") == {"encoder": "photometry", "parts": 1, "done_before": 1, "rows": 300}
    assert main(["status", "--shelf", str(shelf)]) == 0
    assert "index      photometry: 2 of 6 parts, 600 of 1600 sources" in capsys.readouterr().out
    assert main(["index", "--encoder", "photometry", "--shelf", str(shelf), "--commit"]) == 1
    assert "4 of 6 parts have no receipt: 0-1,4-5" in capsys.readouterr().err
    run("--task", "0")
    run("--task", "2")
    assert run("--commit")["kind"] == "ivf"
    assert run("--commit")["recall"] == ann.read_manifest(folder)["recall"]["value"]
    assert run("--plan") == {"encoder": "photometry", "parts": 0}
    assert contents(folder) == once
    assert main(["index", "--encoder", "photometry", "--shelf", str(shelf), "--part", "0"]) == 1
    assert "no index is planned" in capsys.readouterr().err


def test_an_open_plan_is_gone_on_with_and_other_sizes_are_refused(shelf: Path, few: None) -> None:
    plan = service.make_plan(shelf, encoder="photometry", part_rows=300, recall=0.9)
    assert plan is not None and plan.parts == 6
    service.do(shelf, encoder="photometry", part=1)
    for asked in ({}, {"part_rows": 300}, {"recall": 0.9}):
        again = service.make_plan(shelf, encoder="photometry", **asked)
        assert again is not None and again.id == plan.id
    assert service.do(shelf, encoder="photometry", part=1)["done_before"] == 1
    with pytest.raises(
        Conflict, match=r"an open plan has recall=0\.9, not 0\.8: end it, or remove .*index\.photometry"
    ):
        service.make_plan(shelf, encoder="photometry", recall=0.8)
    with pytest.raises(BadInput, match="part 9: the plan has parts 0 to 5"):
        service.do(shelf, encoder="photometry", part=9)
    with pytest.raises(BadInput, match="processes=0: expected 1 or more"):
        service.build_index(shelf, encoder="photometry", processes=0)
    _, told = service.build_index(shelf, encoder="photometry")
    assert told["asked"]["recall"] == 0.9


def test_an_index_that_was_published_meanwhile_is_not_replaced(shelf: Path, few: None) -> None:
    service.build_index(shelf, encoder="photometry")
    assert service.make_plan(shelf, encoder="photometry", recall=0.9) is not None
    publish(shelf)
    service.do(shelf, encoder="photometry", part=0)
    open_shelf(shelf)
    with pytest.raises(Conflict, match=r"generation 1 serves the index in .* as it is"):
        service.commit(shelf, encoder="photometry")
    open_shelf(shelf)


def test_a_plan_that_was_killed_at_its_very_end_is_forgotten(
    shelf: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(home: Path) -> None:
        if (home / assembly.PLAN_FILE).is_file():
            raise KeyboardInterrupt

    for end in (service.build_index, service.commit, service.make_plan):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(assembly, "discard", killed)
            service.build_index(shelf, encoder="photometry")
        assert len(assembly.open_plans(shelf / "work")) == 1
        folder = Layout(shelf).index("photometry", Layout(shelf).newest("photometry"), 1600)
        before = (folder / ann.MANIFEST).read_bytes()
        end(shelf, encoder="photometry")
        assert not assembly.open_plans(shelf / "work") and (folder / ann.MANIFEST).read_bytes() == before
        shutil.rmtree(folder)


def test_a_plan_that_cannot_be_read_is_named_and_hides_no_other(shelf: Path, few: None) -> None:
    service.make_plan(shelf, encoder="photometry", part_rows=300)
    other = shelf / "work" / "index.other.0123" / assembly.PLAN_FILE
    other.parent.mkdir()
    other.write_text("{}")
    assert [plan.encoder for plan in assembly.open_plans(shelf / "work").values()] == ["photometry"]
    (home,) = (path for path in (shelf / "work").glob("index.photometry.*") if path.is_dir())
    (home / assembly.PLAN_FILE).write_text("{}")
    with pytest.raises(BadInput, match=r"plan\.json is no plan of this redshelf: 'id'; remove .* to begin anew"):
        service.build_index(shelf, encoder="photometry")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("words", [["--processes", "2"], pytest.param(["--runner", "ray"], marks=pytest.mark.ray)])
def test_several_processes_give_the_index_of_one(shelf: Path, few: None, tmp_path: Path, words: list[str]) -> None:
    if "ray" in words:
        pytest.importorskip("ray", reason="needs the `ray` extra")
    few_ = "import redshelf.indexing.ann as ann; ann.EXACT_VALUES = 1000\n"  # here and, by its name, in each process
    (tmp_path / "sitecustomize.py").write_text(few_)
    revision, _ = service.build_index(shelf, encoder="photometry", part_rows=300)
    folder = Layout(shelf).index("photometry", revision, 1600)
    once = contents(folder)
    (folder / ann.MANIFEST).unlink()
    paths = os.pathsep.join([str(tmp_path), str(Path(__file__).parent / "links")])
    command = [sys.executable, "-m", "redshelf.api.cli", "index", "--encoder", "photometry", "--part-rows", "300"]
    subprocess.run([*command, *words, "--shelf", str(shelf)], check=True, env={**os.environ, "PYTHONPATH": paths})
    found = contents(folder)
    assert {name for name in once if once[name] != found[name]} <= {ann.MANIFEST}  # which has the batch's times
    assert ann.open_index(folder).search(np.ones((1, ann.open_index(folder).dim), np.float32), 5)[1].min() >= 0

"""The approximate index: the promised recall, under any filter, and what it refuses."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import small_survey
from hypothesis import given, settings
from hypothesis import strategies as st

from redshelf.indexing import ann, assembly, flat, ivf
from redshelf.indexing.files import write_json
from redshelf.indexing.filters import Filters
from redshelf.models.errors import BadInput, Conflict
from redshelf.service.check import check
from redshelf.service.embedding import embed
from redshelf.service.index import build_index, size_of
from redshelf.service.ingest import ingest
from redshelf.service.publish import publish
from redshelf.service.search import live_recall, neighbours
from redshelf.service.shelf import open_shelf

N, DIM = 12_000, 24
Bools = npt.NDArray[np.bool_]


def galaxies(rows: int, seed: int = 0) -> npt.NDArray[np.float16]:
    """A curved set of five dimensions, plus noise; a hundred rows are zero, as where an encoder saw nothing."""
    shape = np.random.default_rng(7)
    waves, into, phase = shape.normal(size=(5, 32)), shape.normal(size=(32, DIM)) / 6, shape.uniform(0, 6, 32)
    rng = np.random.default_rng(seed)
    points = np.sin(rng.normal(size=(rows, 5)) @ waves * 0.6 + phase) @ into
    out = (points + rng.normal(size=(rows, DIM)) * 0.05).astype(np.float16)
    out[rng.choice(rows, 100, replace=False)] = 0
    return out


VECTORS = galaxies(N)


@pytest.fixture(scope="module", autouse=True)
def small_is_large() -> object:
    """Inverted lists from a thousand vectors on, and rows that pass a filter compared one by one up to two hundred."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "EXACT_VALUES", 1000 * DIM)
        patch.setattr(ann, "FEW_VALUES", 200 * DIM)
        yield


def build(folder: Path, vectors: npt.NDArray[np.float16] = VECTORS, **how: object) -> Path:
    folder = folder / f"{len(vectors)}"
    batches = [vectors[start : start + 5000] for start in range(0, len(vectors), 5000)]
    assembly.build(folder, batches, rows=len(vectors), dim=DIM, **{"part_rows": 5000, **how})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("e.0"))


@pytest.fixture(scope="module")
def index(folder: Path) -> ann.Index:
    return ann.open_index(folder)


QUERIES = galaxies(300, seed=1)[galaxies(300, seed=1).any(axis=1)].astype(np.float32)


def recall(found: npt.NDArray[np.int64], true: npt.NDArray[np.int64]) -> float:
    hits = [len(np.intersect1d(a[a >= 0], b[b >= 0])) for a, b in zip(found, true, strict=True)]
    return sum(hits) / max(1, int((true >= 0).sum()))


def test_the_manifest_says_what_was_measured_and_the_promise_is_kept(folder: Path, index: ann.Index) -> None:
    told = ann.read_manifest(folder)
    assert (told["kind"], told["exact"], told["vectors"]) == ("ivf", False, N - 100)
    assert told["recall"]["value"] >= 0.95 == told["recall"]["wanted"] and not index.exact
    lists, found = ([line[name] for line in told["table"]] for name in ("lists", "recall"))
    assert lists == sorted(lists) and found[0] < 0.9 < found[-1]
    assert all(a[1] <= b[1] for a, b in zip(told["coverage"], told["coverage"][1:], strict=False))
    for k in (1, 5, 10, 30, 100, 1000):
        true = index.search(QUERIES, k, exact=True)[1]
        assert recall(index.search(QUERIES, k)[1], true) >= (0.94 if k >= 10 else 0.9), k
    assert ann.measure(index, queries=300) >= 0.94


def test_exact_search_is_that_of_brute_force_and_distances_are_those_of_the_vectors(index: ann.Index) -> None:
    distance, rows = index.search(QUERIES[:20], 12, exact=True)
    known = np.flatnonzero(VECTORS.any(axis=1))
    expected, nearest = ann.brute_force(VECTORS, QUERIES[:20], 12, rows=known)
    np.testing.assert_array_equal(rows, nearest)
    np.testing.assert_allclose(distance, expected, rtol=1e-5)
    distance, rows = index.search(QUERIES, 12)
    direct = np.linalg.norm(VECTORS[rows].astype(np.float64) - QUERIES[:, None], axis=2)
    np.testing.assert_allclose(distance, direct, rtol=1e-4, atol=1e-5)
    assert (np.diff(distance, axis=1) >= 0).all()


def masks() -> dict[str, Bools]:
    rng, value = np.random.default_rng(3), VECTORS[:, 0].astype(np.float32)
    order = np.argsort(value)
    found: dict[str, Bools] = {}
    for share in (0.5, 0.1, 0.03):
        found[f"random {share}"] = rng.random(N) < share
        for name, rows in (("lowest", order[: int(share * N)]), ("highest", order[-int(share * N) :])):
            found[f"{name} {share}"] = np.zeros(N, dtype=bool)
            found[f"{name} {share}"][rows] = True
    return found


@pytest.mark.parametrize("name", masks())
def test_the_promise_is_kept_under_filters_also_where_nothing_passes_near_the_query(
    index: ann.Index, name: str
) -> None:
    mask = masks()[name]
    among = index.select(mask)
    assert among.few is None and among.count == (mask & VECTORS.any(axis=1)).sum()
    true = index.search(QUERIES, 10, among=among, exact=True)[1]
    assert recall(index.search(QUERIES, 10, among=among)[1], true) >= 0.94
    single = np.concatenate([index.search(query[None], 10, among=among)[1] for query in QUERIES[:60]])
    assert recall(single, true[:60]) >= 0.93
    assert mask[single[single >= 0]].all()


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.0001, 0.016), k=st.integers(1, 300))
@settings(max_examples=60, deadline=None)
def test_few_rows_are_compared_one_by_one(index: ann.Index, seed: int, share: float, k: int) -> None:
    mask = np.random.default_rng(seed).random(N) < share
    among = index.select(mask)
    rows = np.flatnonzero(mask & VECTORS.any(axis=1))
    if among.few is None:
        assert len(rows) > 200
        return
    distance, found = index.search(QUERIES[:2], k, among=among)
    expected, nearest = ann.brute_force(VECTORS, QUERIES[:2], k, rows=rows)
    width = min(k, len(rows))
    np.testing.assert_allclose(distance[:, :width], expected, rtol=1e-5)
    assert found.shape == (2, k) and (found[:, width:] == -1).all() and np.isinf(distance[:, width:]).all()
    assert set(found[0, :width]) <= set(rows.tolist()) and (width == 0 or found[0, 0] == nearest[0, 0])


def test_as_many_as_there_are_come_back_when_many_are_asked_for(index: ann.Index) -> None:
    for share in (0.03, 0.1, 0.5):
        among = index.select(np.random.default_rng(8).random(N) < share)
        assert among.few is None
        for k in (100, 300, 1000):
            rows = index.search(QUERIES[:40], k, among=among)[1]
            assert ((rows >= 0).sum(axis=1) == min(k, among.count)).all(), (share, k)


def test_few_known_rows_of_many_are_searched_exactly(tmp_path: Path) -> None:
    vectors = np.zeros_like(VECTORS)
    vectors[::400] = VECTORS[1::400]
    opened = ann.open_index(build(tmp_path, vectors))
    assert opened.exact and opened.findable == vectors.any(axis=1).sum()
    assert vectors.any(axis=1)[opened.search(QUERIES[:5], 20)[1]].all()


def test_rows_without_a_vector_and_deleted_ones_are_never_found(index: ann.Index) -> None:
    nobody = np.zeros((1, DIM), dtype=np.float32)  # where the rows without a vector lie
    known = VECTORS.any(axis=1)
    gone = np.random.default_rng(5).random(N) < 0.3
    for opened, findable in ((index, known), (index.without(gone), known & ~gone)):
        assert opened.findable == findable.sum()
        for exact in (False, True):
            for among in (None, opened.select(np.random.default_rng(6).random(N) < 0.4)):
                rows = opened.search(np.concatenate([nobody, QUERIES]), 50, among=among, exact=exact)[1]
                assert findable[rows].all()
    assert index.without(~known) is index


def test_threads_with_different_parameters_get_the_answers_of_one(index: ann.Index) -> None:
    halves = [index.select(mask) for mask in list(masks().values())[:3]]
    asked = [(k, among, exact) for k in (1, 10, 70) for among in (None, *halves) for exact in (False, True)][:16]
    alone_ = [index.search(QUERIES, k, among=among, exact=exact)[1] for k, among, exact in asked]
    found: dict[int, npt.NDArray[np.int64]] = {}

    def ask(number: int) -> None:
        k, among, exact = asked[number]
        for _ in range(3):
            found[number] = index.search(QUERIES, k, among=among, exact=exact)[1]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone_):
        np.testing.assert_array_equal(found[number], expected)


def test_an_embedding_that_has_grown_keeps_its_lists_and_the_promise(folder: Path, tmp_path: Path) -> None:
    more = np.concatenate([VECTORS, galaxies(3000, seed=9)])
    shutil.copytree(folder, tmp_path / "e.0" / folder.name)
    grown = build(tmp_path / "e.0", more)
    assert ann.read_manifest(grown)["added_to"] == N
    opened = ann.open_index(grown)
    true = opened.search(QUERIES, 10, exact=True)[1]
    assert (true >= N).any() and recall(opened.search(QUERIES, 10)[1], true) >= 0.94
    others = np.concatenate([VECTORS[:1000], galaxies(20_000, seed=2)])
    assert ann.read_manifest(build(tmp_path / "e.0", others))["added_to"] == 0  # most of it is new
    kept = ann.open_index(tmp_path / "e.0" / folder.name)  # what is published stays as it was
    np.testing.assert_array_equal(kept.search(QUERIES, 10)[1], ann.open_index(folder).search(QUERIES, 10)[1])


@pytest.mark.parametrize("wanted", [0.7, 0.99])
def test_more_recall_looks_into_more_lists(tmp_path: Path, wanted: float) -> None:
    opened = ann.open_index(build(tmp_path, recall=wanted))
    assert opened.recall >= wanted and opened.lists is not None
    looked = opened.lists.tuning.lists(np.array([10.0]))[0] * opened.lists.tuning.factor(10)
    usual = ann.open_index(build(tmp_path / "usual")).lists
    assert usual is not None
    assert (looked > usual.tuning.lists(np.array([10.0]))[0] * usual.tuning.factor(10)) == (wanted > 0.95)


def test_memory_decides_the_codes_and_too_little_is_refused(tmp_path: Path) -> None:
    roomy, tight = (ivf.choose(10**6, 384, memory=size) for size in (2**33, 40 * 10**6))
    assert (roomy.lists, roomy.codes, tight.codes) == (2048, 96, 32)
    assert tight.bytes(10**6, 384) <= 40 * 10**6
    assert ivf.choose(10**6, 13, memory=2**33).codes == 13  # a prime: a code a number
    assert ivf.choose(40 * 10**6, 128, memory=6 * 10**9).lists == 16_384
    with pytest.raises(BadInput, match=r"memory=1000 bytes: an index of 11900 vectors of 24 numbers takes at least"):
        build(tmp_path, memory=1000)
    with pytest.raises(BadInput, match=r"recall=1\.0: expected more than 0 and less than 1"):
        build(tmp_path, recall=1.0)
    assert not list(tmp_path.glob(f"*/{ann.MANIFEST}"))


@pytest.mark.parametrize("name", [ann.INDEX, ann.LISTS, ann.VECTORS, ann.KNOWN])
def test_a_file_of_another_index_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    other = build(tmp_path, galaxies(2000, seed=4))
    whole = tmp_path / "copy"
    shutil.copytree(folder, whole)
    shutil.copyfile(other / name, whole / name)
    with pytest.raises((Conflict, ValueError)):
        ann.open_index(whole)


def test_the_file_of_the_vectors_is_that_of_faiss_and_holds_them_to_the_bit(tmp_path: Path) -> None:
    import faiss

    path = tmp_path / "v.faiss"
    assert flat.write(path, [VECTORS[:7], VECTORS[7:50]], rows=50, dim=DIM).sum() == VECTORS[:50].any(axis=1).sum()
    np.testing.assert_array_equal(flat.open_flat(path, rows=50, dim=DIM).take(slice(0, 50)), VECTORS[:50])
    index = faiss.read_index(str(path))
    np.testing.assert_array_equal(index.reconstruct_n(0, 50), VECTORS[:50].astype(np.float32))
    for rows, dim in ((49, DIM), (50, DIM + 1), (100, DIM // 2)):
        with pytest.raises(Conflict, match=str(path)):
            flat.open_flat(path, rows=rows, dim=dim)


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * 2**30), ("500 MB", 5 * 10**8), ("1.5KiB", 1536), ("1000", 1000)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize("text", ["", "0", "-1GiB", "8 giga", "GiB", "nan"])
def test_a_size_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected a number of bytes"):
        size_of(text)


def test_a_shelf_with_lists_is_served_probed_and_checked(tmp_path: Path) -> None:
    """The whole way with an approximate index: a filter of few rows is exact, others say what they promise."""
    survey = small_survey.write(tmp_path, sources=1600, images=False)
    root = tmp_path / "shelf"
    ingest(survey, root)
    embed(root, encoder="photometry")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "EXACT_VALUES", 1000)
        _, told = build_index(root, encoder="photometry")
    assert told["kind"] == "ivf" and told["recall"]["value"] >= 0.95
    publish(root)
    assert not check(root).faults
    shelf = open_shelf(root)
    answer = neighbours(shelf, "s0007", k=20)
    assert not answer.exact and answer.recall == told["recall"]["value"] and len(answer.neighbours) == 20
    assert "s0007" not in {n.source_id for n in answer.neighbours} and answer.n_matching == 1599
    exact = neighbours(shelf, "s0007", k=20, exact=True)
    assert exact.exact and exact.recall == 1.0
    hits = {n.source_id for n in exact.neighbours} & {n.source_id for n in answer.neighbours}
    assert len(hits) >= 17
    stars = neighbours(shelf, "s0007", k=20, filters=Filters(object_class="star"))
    assert stars.exact and stars.n_matching == 32 and {n.object_class for n in stars.neighbours} == {"star"}
    probed = live_recall(shelf, n=100)
    assert (probed.n, probed.k, probed.exact) == (100, 10, False) and probed.recall >= 0.9
    with pytest.raises(BadInput, match="n=0: expected 1 <= n <= 100"):
        live_recall(shelf, n=0)
    shutil.rmtree(root / "generations")  # which would tell that the manifest was altered
    folder = next((root / "index").glob("*/*"))
    document = ann.read_manifest(folder)
    document |= {"coverage": [[1, 1], [10, 1], [1000, 1]], "factors": [[10, 1]]}  # as if one list were enough
    write_json(folder / ann.MANIFEST, document)
    assert any("of the true neighbours, and 0.95 were promised" in line for line in check(root).faults)

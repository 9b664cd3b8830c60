"""The most isolated sources: planted ones are found, exactly where all are compared, else nearly all others too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from redshelf.indexing import ann, assembly, isolation
from redshelf.models.errors import Conflict

N, DIM, PLANTED = 6000, 16, 40


def vectors() -> npt.NDArray[np.float16]:
    """Thirty clouds of different widths, `PLANTED` rows far from all, in pairs that lie close together, and fifty rows
    without a vector."""
    rng = np.random.default_rng(0)
    centres, widths = rng.normal(size=(30, DIM)) * 2, rng.uniform(0.05, 0.5, 30)
    label = rng.integers(0, 30, N)
    out = centres[label] + rng.normal(size=(N, DIM)) * widths[label][:, None]
    far = rng.normal(size=(PLANTED // 2, DIM))
    far *= 9 / np.linalg.norm(far, axis=1, keepdims=True)
    out[:PLANTED] = np.repeat(far, 2, axis=0) + rng.normal(size=(PLANTED, DIM)) * 0.01
    out[-50:] = 0
    return out[np.random.default_rng(1).permutation(N)].astype(np.float16)


VECTORS = vectors()


@pytest.fixture(scope="module")
def tenth() -> npt.NDArray[np.float64]:
    """Distance of each row to its 10th nearest other one, (N,), by brute force; -inf for rows without a vector."""
    known = np.flatnonzero(VECTORS.any(axis=1))
    distance, _ = ann.brute_force(VECTORS, VECTORS[known].astype(np.float32), 11, rows=known)
    out = np.full(N, -np.inf)
    out[known] = distance[:, 10]
    return out


@pytest.fixture(scope="module")
def true(tenth: npt.NDArray[np.float64]) -> npt.NDArray[np.intp]:
    """The rows (N,), the most isolated first."""
    return np.argsort(-tenth, kind="stable")


def build(root: Path) -> ann.Index:
    folder = root / "e.0" / f"{N}"
    assembly.build(folder, [VECTORS], rows=N, dim=DIM)
    return ann.open_index(folder)


def test_where_all_are_compared_the_answer_is_that_of_brute_force(
    tenth: npt.NDArray[np.float64], true: npt.NDArray[np.intp], tmp_path: Path
) -> None:
    index = build(tmp_path)
    found = index.isolated
    assert index.exact and found is not None and found.exact
    assert len(found.rows) == isolation.KEPT
    np.testing.assert_array_equal(found.rows[:200], true[:200])
    np.testing.assert_allclose(found.distance, tenth[found.rows], rtol=1e-4)
    assert (np.diff(found.distance) <= 0).all()


@pytest.mark.parametrize("lists", [False, True])
def test_a_shortlist_finds_the_planted_ones_and_most_of_the_others(
    tenth: npt.NDArray[np.float64],
    true: npt.NDArray[np.intp],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lists: bool,
) -> None:
    monkeypatch.setattr(isolation, "SHORTLIST", 1000)
    monkeypatch.setattr(isolation, "KEPT", 300)
    monkeypatch.setattr(isolation, "MOST_NUMBERS", 400 * N * DIM if lists else 1000 * N * DIM)
    if lists:
        monkeypatch.setattr(ann, "EXACT_VALUES", 1000)
    index = build(tmp_path)
    found = index.isolated
    assert index.exact is not lists and found is not None and not found.exact and len(found.rows) == 300
    assert set(true[:PLANTED]) <= set(found.rows[: PLANTED + 2])
    assert len(np.intersect1d(found.rows[:100], true[:100])) >= 90
    assert (found.distance >= tenth[found.rows] * (1 - 1e-4)).all()
    assert np.median(found.distance / tenth[found.rows]) < 1.001
    assert VECTORS[found.rows].any(axis=1).all()


def test_so_few_that_none_has_a_tenth_neighbour_gives_none(tmp_path: Path) -> None:
    for rows, expected in ((10, 0), (11, 11)):
        folder = tmp_path / f"{rows}"
        assembly.build(folder, [VECTORS[VECTORS.any(axis=1)][:rows]], rows=rows, dim=DIM)
        found = ann.open_index(folder).isolated
        assert found is not None and len(found.rows) == expected


def test_the_file_is_listed_in_the_manifest_and_a_wrong_one_is_refused(tmp_path: Path) -> None:
    build(tmp_path)
    folder = tmp_path / "e.0" / f"{N}"
    path = folder / isolation.ISOLATED
    assert ann.read_manifest(folder)["files"][isolation.ISOLATED]["size"] == path.stat().st_size
    blob = path.read_bytes()
    path.write_bytes(blob[: len(blob) // 2])
    with pytest.raises(Conflict, match=r"isolated\.npz is missing or damaged"):
        ann.open_index(folder)
    np.savez(path, rows=np.array([N]), distance=np.array([1.0], np.float32), exact=np.array(True))
    with pytest.raises(Conflict, match=f"is not of the index beside it, which has {N} rows"):
        ann.open_index(folder)
    path.unlink()
    with pytest.raises(Conflict, match=r"isolated\.npz is missing or damaged"):
        ann.open_index(folder)

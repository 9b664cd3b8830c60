"""The rows that an index is trained on: the bright end, the faint end and every part of the sky have their share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_survey
from hypothesis import given, settings
from hypothesis import strategies as st

from redshelf.indexing import ann, ivf, sample, store
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.service import index as service
from redshelf.service.embedding import embed
from redshelf.service.ingest import ingest

N, WANTED = 100_000, 5000


def test_the_brightest_and_the_faintest_hundredth_have_their_share_wherever_they_lie() -> None:
    rng = np.random.default_rng(0)
    flux = (10 ** rng.normal(0, 0.7, N)).astype(np.float32)
    flux[: N // 50] *= 1000  # a cluster of galaxies in one corner of the sky
    rank = np.argsort(np.argsort(flux))
    for seed in range(5):
        picked = sample.spread(np.ones(N, dtype=bool), WANTED, brightness=flux, seed=seed)
        assert (np.diff(picked) > 0).all() and len(picked) == WANTED
        assert np.abs(np.bincount(100 * rank[picked] // N) - WANTED / 100).max() < 2
        assert np.abs(np.bincount(10 * picked // N) - WANTED / 10).max() < 0.05 * WANTED / 10


@given(data=st.data(), n=st.integers(1, 400), wanted=st.integers(1, 500), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_every_class_has_its_share_whatever_the_fluxes(data: st.DataObject, n: int, wanted: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = data.draw(st.sampled_from([[1.0], [1.0, np.nan], [np.nan], [-2.0, 0.0, 5.0, np.inf], rng.normal(size=n)]))
    flux, known = rng.choice(values, n).astype(np.float32), rng.random(n) < 0.9
    picked = sample.spread(known, wanted, brightness=flux, seed=seed % 7)
    rows, count = np.flatnonzero(known), min(wanted, int(known.sum()))
    assert known[picked].all() and len(np.unique(picked)) == len(picked) == count
    np.testing.assert_array_equal(picked, sample.spread(known, wanted, brightness=flux, seed=seed % 7))
    of = np.zeros(n, dtype=np.uint8)
    of[rows] = sample.classes(flux[rows])
    for number in np.unique(of[rows]):
        among = known & (of == number)
        assert abs(among[picked].sum() - count * among.sum() / len(rows)) < 2


def test_classes_are_hundredths_from_the_faintest_and_what_was_not_measured_is_one_more() -> None:
    flux = np.random.default_rng(1).permutation(np.arange(-100, 900)).astype(np.float32)
    np.testing.assert_array_equal(sample.classes(flux), (flux + 100) // 10)
    told = sample.classes(np.append(flux, [np.nan, np.inf]).astype(np.float32))
    np.testing.assert_array_equal(told[:-2], (flux + 100) // 10)
    assert told[-2:].tolist() == [sample.CLASSES] * 2
    assert set(sample.classes(np.full(5, np.nan, dtype=np.float32))) == {sample.CLASSES}


def test_without_fluxes_one_of_every_so_many_rows_is_taken() -> None:
    known = np.arange(N) % 10 != 3
    rows = np.flatnonzero(known).reshape(WANTED // 5, -1)
    for brightness in (None, np.full(N, np.nan, dtype=np.float32)):
        picked = sample.spread(known, WANTED // 5, brightness=brightness)
        assert ((rows[:, 0] <= picked) & (picked <= rows[:, -1])).all()
    np.testing.assert_array_equal(sample.spread(known, N), np.flatnonzero(known))


def test_an_index_by_parts_is_trained_on_the_sample_of_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, drawn = tmp_path / "shelf", []
    ingest(small_survey.write(tmp_path, sources=1600, images=False, labels=False), root)
    embed(root, encoder="photometry")
    monkeypatch.setattr(ann, "EXACT_VALUES", 1000)
    monkeypatch.setattr(ivf, "SAMPLE_PER_LIST", 5)
    monkeypatch.setattr(ivf, "spread", lambda *a, **b: drawn.append(sample.spread(*a, **b)) or drawn[-1])
    revision, _ = service.build_index(root, encoder="photometry")
    folder = Layout(root).index("photometry", revision, 1600)
    known = np.load(folder / ann.KNOWN)
    (folder / ann.MANIFEST).unlink()
    service.make_plan(root, encoder="photometry", part_rows=300)
    for part in (3, 0):
        service.do(root, encoder="photometry", part=part)
    flux = store.open_table(Layout(root).sources).to_table(columns=["flux_i"])["flux_i"].to_numpy()
    assert len(drawn) == 2 and len(drawn[0]) < known.sum()
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], sample.spread(known, len(drawn[0]), brightness=flux))
    for first in range(0, 1600, 160):
        among = known & np.isin(np.arange(1600), np.argsort(flux)[first : first + 160])
        assert abs(among[drawn[0]].sum() - len(drawn[0]) * among.sum() / known.sum()) < 4


def test_a_source_that_was_not_observed_has_no_brightness(tmp_path: Path) -> None:
    root = tmp_path / "shelf"
    ingest(small_survey.write(tmp_path, sources=100, images=False, labels=False), root)
    embed(root, encoder="photometry")
    plan = service.make_plan(root, encoder="photometry")
    assert plan is not None
    sources = store.open_table(Layout(root).sources).to_table()
    np.testing.assert_array_equal(service._brightness(Layout(root), plan), sources["flux_i"].to_numpy())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShelfInfo, "reference_band", "g")  # g, in which the first was not observed
        got = service._brightness(Layout(root), plan)
    unseen = sources["source_id"].to_numpy() == "s0000"
    assert unseen.sum() == 1
    np.testing.assert_array_equal(np.isnan(got), unseen)
    np.testing.assert_array_equal(got[~unseen], sources["flux_g"].to_numpy()[~unseen])

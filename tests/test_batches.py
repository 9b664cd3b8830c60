"""indexing/batches.py against the arrays that were written."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_shelf
import torch
from small_shelf import SmallShelf

from redshelf.indexing.batches import Reader, in_memory
from redshelf.models.backbone import visible
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput

PIXELS = frozenset({"pixels"})
ORDER = np.array([40, 2, 2, 59, 0, 17, 41, 2])


@pytest.fixture(scope="module", params=[8, 5], ids=["whole bytes", "25 bits"])
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SmallShelf:
    return small_shelf.write(tmp_path_factory.mktemp("small") / "shelf", cutout_px=request.param)


def reader_of(shelf: SmallShelf, bands: tuple[str, ...] = small_shelf.NAMES, needs: Any = PIXELS) -> Reader:
    return Reader(shelf.layout, shelf.info, bands=bands, needs=needs)


def assert_holds(batch: Batch, shelf: SmallShelf, rows: np.ndarray, columns: list[int]) -> None:
    """Every array of the batch is what was written, in the order of `rows` and `columns`."""
    at = np.ix_(rows, columns)
    expected = {
        "pixels": shelf.pixels[at],
        "pixel_mask": shelf.bad[at],
        "state": shelf.state[at],
        "flux_ujy": shelf.flux[at],
        "flux_error_ujy": shelf.error[at],
        "ebv": shelf.ebv[rows],
        "depth_ab": np.array([small_shelf.BANDS[k].depth_ab for k in columns], np.float32),
    }
    for name, values in expected.items():
        found = getattr(batch, name).numpy()
        assert found.dtype == values.dtype, name
        np.testing.assert_array_equal(found, values, err_msg=name)


def same(first: Batch, second: Batch) -> None:
    for name in Batch.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(first, name).numpy(), getattr(second, name).numpy(), err_msg=name)


def test_rows_come_in_the_order_that_was_asked_for_and_as_often(shelf: SmallShelf) -> None:
    assert_holds(reader_of(shelf).read(ORDER), shelf, ORDER, [0, 1, 2, 3])


def test_bands_come_in_the_order_of_the_encoder(shelf: SmallShelf) -> None:
    assert_holds(reader_of(shelf, ("z", "g", "i")).read(ORDER), shelf, ORDER, [3, 0, 2])


def test_a_span_across_fragments_is_those_rows(shelf: SmallShelf) -> None:
    reader = reader_of(shelf, ("i", "r"))
    assert_holds(reader.batch(reader.span(9, 45)), shelf, np.arange(9, 45), [2, 1])
    assert len(reader.span(59, 60)) == 1


def test_the_state_is_of_the_fluxes_where_they_are_needed(shelf: SmallShelf) -> None:
    both = reader_of(shelf, needs=PIXELS | {"fluxes"}).read(ORDER)
    np.testing.assert_array_equal(both.state.numpy(), shelf.flux_state[ORDER])
    alone = reader_of(shelf, needs=frozenset({"fluxes"})).read(ORDER)
    assert alone.pixels is None and alone.pixel_mask is None
    np.testing.assert_array_equal(alone.flux_ujy, shelf.flux[ORDER])


def test_photometry_of_some_rows_is_that_of_the_catalogue(shelf: SmallShelf) -> None:
    found = reader_of(shelf, ("z", "r")).photometry(ORDER)
    np.testing.assert_array_equal(found.flux_ujy, shelf.flux[np.ix_(ORDER, [3, 1])])
    np.testing.assert_array_equal(found.ebv, shelf.ebv[ORDER])


def test_a_source_is_visible_by_its_packed_mask_as_by_its_pixels(shelf: SmallShelf) -> None:
    for bands in (small_shelf.NAMES, ("g",), ("z", "r")):
        reader = reader_of(shelf, bands)
        rows = reader.span(0, 60)
        columns = [small_shelf.NAMES.index(band) for band in bands]
        good = (shelf.state[:, columns] != 0) & ~shelf.bad[:, columns].all(axis=(2, 3))
        np.testing.assert_array_equal(rows.visible(), good.any(axis=1))
        np.testing.assert_array_equal(visible(reader.batch(rows)), good.any(axis=1))
    assert not reader_of(shelf).span(0, 60).visible()[list(small_shelf.BLIND)].any()


def test_what_is_read_may_be_written_to_without_changing_the_shelf(shelf: SmallShelf) -> None:
    reader = reader_of(shelf)
    batch = reader.read(ORDER)
    assert batch.pixels is not None and batch.ebv is not None
    batch.pixels.zero_(), batch.ebv.zero_()
    assert_holds(reader.read(ORDER), shelf, ORDER, [0, 1, 2, 3])


def test_a_band_that_the_survey_lacks_is_named(shelf: SmallShelf) -> None:
    with pytest.raises(BadInput, match=r"needs band 'K'; survey small has g, r, i, z"):
        reader_of(shelf, ("g", "K"))


@pytest.mark.parametrize("rows", [None, np.array([50, 7, 7, 31, 17])], ids=["all", "some"])
def test_what_is_held_in_memory_equals_the_shelf_and_is_read_once(
    shelf: SmallShelf, rows: np.ndarray | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = reader_of(shelf, ("z", "g"))
    drawn = np.array([4, 0, 0, 3, 2]) if rows is not None else ORDER
    expected = reader.read(drawn if rows is None else rows[drawn])
    held, read = in_memory(reader, rows=rows), in_memory(reader, rows=rows, limit_bytes=0)
    same(read(drawn), expected)
    for name in ("take", "span", "read"):
        monkeypatch.setattr(reader, name, None)
    same(held(drawn), expected)


def test_the_memory_of_a_source_is_what_its_arrays_take(shelf: SmallShelf) -> None:
    for needs in (PIXELS, frozenset({"fluxes"})):
        reader = reader_of(shelf, ("z", "g", "i"), needs)
        rows = reader.span(0, 60)
        assert sum(value.nbytes for value in rows.arrays().values()) == 60 * reader.row_bytes


def test_a_shelf_larger_than_the_limit_is_not_read_ahead(shelf: SmallShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(shelf)
    monkeypatch.setattr(reader, "span", None)
    same(in_memory(reader, limit_bytes=60 * reader.row_bytes - 1)(ORDER), reader.read(ORDER))


def test_the_limit_is_a_quarter_of_what_is_free(shelf: SmallShelf, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = reader_of(shelf)
    size = 60 * reader.row_bytes
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(reader, "span", None)
    monkeypatch.setattr("redshelf.indexing.batches.available_bytes", lambda: 8 * size - 8)
    in_memory(reader)
    monkeypatch.setattr("redshelf.indexing.batches.available_bytes", lambda: 8 * size)
    with pytest.raises(TypeError):  # it begins to read
        in_memory(reader)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_thread_that_fetches_starts_no_threads_of_torch(shelf: SmallShelf) -> None:
    def tasks() -> int:
        return sum(1 for _ in Path("/proc/self/task").iterdir())

    usual = torch.get_num_threads()
    fetch = in_memory(reader_of(shelf))
    many = np.arange(5000) % 60  # enough pixels for torch to share them out
    torch.set_num_threads(2)
    try:
        fetch(many).pixels.exp()  # type: ignore[union-attr]  # starts the threads of this thread
        with ThreadPoolExecutor(1) as pool:
            pool.submit(int).result()
            before = tasks()
            pool.submit(fetch, many).result()
            assert tasks() <= before
    finally:
        torch.set_num_threads(usual)


def test_no_rows_give_a_batch_of_nothing(tmp_path: Path) -> None:
    reader = reader_of(small_shelf.write(tmp_path / "shelf"))
    assert len(in_memory(reader, rows=np.zeros(0, np.int64))(np.zeros(0, np.int64))) == 0

"""indexing/embed.py and vectors.py with an encoder whose every answer a test can compute."""

from __future__ import annotations

import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_shelf
import torch
from small_shelf import SmallShelf
from torch import Tensor

from redshelf.indexing import embed as bulk
from redshelf.indexing import partition, parts, store
from redshelf.indexing.batches import Reader
from redshelf.indexing.layout import Layout
from redshelf.indexing.vectors import cut, vectors
from redshelf.models.encoder import Batch
from redshelf.models.errors import BadInput
from redshelf.models.threads import ahead

N = 60


class Sums(torch.nn.Module):
    """Sum of each band's good pixels, exact in float16, and what the batches were."""

    name, revision, needs = "sums", "1", frozenset({"pixels"})
    bands, dim = ("z", "g", "i"), 3

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def embed(self, batch: Batch) -> Tensor:
        assert batch.pixels is not None and batch.pixel_mask is not None
        self.sizes.append(len(batch))
        good = ~batch.pixel_mask & (batch.state != 0)[:, :, None, None]
        return torch.where(good, batch.pixels.float(), 0.0).sum(dim=(2, 3))


class Failing(Sums):
    """Does what `how` says to the vectors of batch number `at`."""

    def __init__(self, at: int, how: Any) -> None:
        super().__init__()
        self.at, self.how = at, how

    def embed(self, batch: Batch) -> Tensor:
        found = super().embed(batch)
        return self.how(found) if len(self.sizes) == self.at + 1 else found


class PlainSums:
    """The same without torch's machinery, which is asked by several threads."""

    name, revision, needs, bands, dim = "plain", "1", Sums.needs, Sums.bands, Sums.dim

    def embed(self, batch: Batch) -> Tensor:
        return Sums().embed(batch)


@pytest.fixture
def shelf(tmp_path: Path) -> SmallShelf:
    return small_shelf.write(tmp_path / "shelf")


def expected(shelf: SmallShelf) -> np.ndarray:
    columns = [small_shelf.NAMES.index(band) for band in Sums.bands]
    good = ~shelf.bad & (shelf.state != 0)[:, :, None, None]
    return np.where(good, shelf.pixels, 0).sum(axis=(2, 3))[:, columns]


def embedded(layout: Layout, encoder: Any) -> np.ndarray:
    table = store.open_table(layout.embeddings(encoder.name, encoder.revision)).to_table()
    assert table["row"].to_pylist() == list(range(len(table)))
    return store.list_values(table["vector"])


def test_every_source_has_the_vector_of_its_own_pixels(shelf: SmallShelf) -> None:
    assert bulk.embed_all(shelf.layout, Sums()) == N
    found = embedded(shelf.layout, Sums)
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, expected(shelf))


def test_an_encoder_that_is_no_module_gives_the_same(shelf: SmallShelf) -> None:
    assert bulk.embed_all(shelf.layout, PlainSums(), batch_size=3, part_rows=25) == N
    np.testing.assert_array_equal(embedded(shelf.layout, PlainSums), expected(shelf))


@pytest.mark.parametrize(("batch_size", "part_rows"), [(1, 7), (4, 4), (7, 50), (64, 60), (5, 1000)])
def test_the_sizes_of_batches_and_parts_do_not_matter(shelf: SmallShelf, batch_size: int, part_rows: int) -> None:
    encoder = Sums()
    assert bulk.embed_all(shelf.layout, encoder, batch_size=batch_size, part_rows=part_rows) == N
    np.testing.assert_array_equal(embedded(shelf.layout, Sums), expected(shelf))
    assert max(encoder.sizes) <= batch_size


def test_sources_without_any_band_are_zero_and_never_shown_to_the_encoder(shelf: SmallShelf) -> None:
    encoder = Sums()
    bulk.embed_all(shelf.layout, encoder, batch_size=1)
    reader = Reader(shelf.layout, shelf.info, bands=Sums.bands, needs=Sums.needs)
    seen = reader.span(0, N).visible()
    assert len(encoder.sizes) == seen.sum() < N
    assert not embedded(shelf.layout, Sums)[~seen].any()


def test_a_vit_gives_each_source_what_it_gives_it_alone(shelf: SmallShelf) -> None:
    from redshelf.models.vit import MultiBandViT, Size

    torch.manual_seed(0)
    encoder = MultiBandViT(small_shelf.NAMES, groups=[["g", "r"], ["i", "z"]], cutout_px=8, size=Size(32, 2, 2, 4))
    bulk.embed_all(shelf.layout, encoder, batch_size=16, part_rows=25)
    found = embedded(shelf.layout, encoder)
    reader = Reader(shelf.layout, shelf.info, bands=encoder.bands, needs=encoder.needs)
    for row in range(N):
        batch = reader.read(np.array([row]))
        if row in small_shelf.BLIND:
            assert not found[row].any()
        else:
            # another shape of batch, another order of sums in bfloat16
            np.testing.assert_allclose(found[row], encoder.embed(batch)[0].numpy(), atol=0.05, rtol=0.02)


def test_a_vector_that_is_not_finite_names_its_row_and_nothing_is_committed(shelf: SmallShelf) -> None:
    def spoil(found: Tensor) -> Tensor:
        found[-1, 1] = float("nan")
        return found

    with pytest.raises(BadInput, match="encoder sums gives NaN or infinity for row 29"):
        bulk.embed_all(shelf.layout, Failing(2, spoil), batch_size=10, part_rows=20)
    assert store.count_rows(shelf.layout.embeddings("sums", "1")) == 0


def test_a_vector_beyond_float16_names_its_row(shelf: SmallShelf) -> None:
    with pytest.raises(BadInput, match="NaN or infinity for row 0"):
        bulk.embed_all(shelf.layout, Failing(0, lambda found: found + 1e6))


def test_vectors_of_another_shape_are_refused(shelf: SmallShelf) -> None:
    with pytest.raises(BadInput, match=r"gives vectors of shape \(58, 2\), expected \(58, 3\)"):
        bulk.embed_all(shelf.layout, Failing(0, lambda found: found[:, :2]))


def test_what_was_finished_before_an_error_is_not_computed_again(shelf: SmallShelf) -> None:
    def fail(found: Tensor) -> Tensor:
        raise OSError("the machine is on fire")

    with pytest.raises(OSError, match="on fire"):
        bulk.embed_all(shelf.layout, Failing(4, fail), batch_size=10, part_rows=20)
    encoder = Sums()
    assert bulk.embed_all(shelf.layout, encoder, batch_size=10, part_rows=20) == N
    assert sum(encoder.sizes) == 20, "two parts of three were finished"
    np.testing.assert_array_equal(embedded(shelf.layout, Sums), expected(shelf))
    assert bulk.embed_all(shelf.layout, encoder) == N
    assert sum(encoder.sizes) == 20, "and a third call finds nothing to do"


def test_sources_that_were_added_are_embedded_alone(shelf: SmallShelf) -> None:
    import lance

    bulk.embed_all(shelf.layout, Sums())
    more = small_shelf.write(shelf.layout.root.parent / "more", seed=1)
    for path, new in ((shelf.layout.sources, more.layout.sources), (shelf.layout.cutouts, more.layout.cutouts)):
        table = store.open_table(new).to_table()
        rows = np.arange(N, 2 * N)
        lance.write_dataset(table.set_column(0, "row", [rows]), str(path), mode="append")
    encoder = Sums()
    assert bulk.embed_all(shelf.layout, encoder) == 2 * N
    assert sum(encoder.sizes) < N
    np.testing.assert_array_equal(embedded(shelf.layout, Sums)[N:], expected(more))


@pytest.mark.parametrize("broken", ["span", "write_part"])
def test_an_error_of_another_thread_comes_out_as_it_was_raised(
    shelf: SmallShelf, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Reader if broken == "span" else bulk, broken, fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="no space left"):
        bulk.embed_all(shelf.layout, Sums(), batch_size=5, part_rows=20)
    assert threading.active_count() == before


def test_progress_counts_every_row_that_is_new(shelf: SmallShelf) -> None:
    told: list[int] = []
    plan = partition.make(shelf.layout, Sums(), part_rows=25)
    assert plan is not None
    bulk.embed_parts(shelf.layout, Sums(), plan, [1, 2], batch_size=10, progress=told.append)
    assert told == [10, 10, 5, 10]
    assert parts.done_parts(partition.receipts(shelf.layout, plan)) == {1, 2}
    bulk.embed_parts(shelf.layout, Sums(), plan, [1, 0], batch_size=10, progress=told.append)
    assert told[4:] == [10, 10, 5], "part 1 was done"


def test_jobs_ahead_come_in_order_and_are_no_more_than_asked_for() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def job(k: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002 * (k % 3))
        with lock:
            running -= 1
        return k

    begun: list[int] = []

    def jobs() -> Any:
        for k in range(20):
            begun.append(k)
            yield partial(job, k)

    results = ahead(jobs(), threads=3, depth=4)
    assert next(results) == 0
    assert begun == [0, 1, 2, 3, 4]
    assert list(results) == list(range(1, 20))
    assert most <= 3


def test_closing_gives_up_the_jobs_that_have_not_begun() -> None:
    done: list[int] = []
    results = ahead((partial(done.append, k) for k in range(1000)), depth=3)
    next(results)
    results.close()
    assert len(done) <= 4
    assert not any(thread.name.startswith("read") for thread in threading.enumerate())


def test_an_error_comes_in_its_turn() -> None:
    jobs = [lambda: 1, lambda: 1 // 0, lambda: 3]
    results = ahead(jobs)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named_before_any_work(shelf: SmallShelf) -> None:
    encoder = Sums()
    with pytest.raises(BadInput, match="device 'cuda': this machine has no GPU"):
        bulk.embed_all(shelf.layout, encoder, device="cuda")
    assert not encoder.sizes


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_vectors_of_the_cpu_and_the_encoder_comes_back(shelf: SmallShelf) -> None:
    from redshelf.models.vit import MultiBandViT, Size

    torch.manual_seed(0)
    encoder = MultiBandViT(small_shelf.NAMES, groups=[["g", "r"], ["i", "z"]], cutout_px=8, size=Size(32, 2, 2, 4))
    reader = Reader(shelf.layout, shelf.info, bands=encoder.bands, needs=encoder.needs)
    spans = cut((0, N), 20)
    on_cpu = np.concatenate([v for _, v in vectors(encoder, reader, spans, batch_size=7)])
    bulk.embed_all(shelf.layout, encoder, batch_size=7, part_rows=20, device="cuda")
    assert next(encoder.parameters()).device.type == "cpu"
    np.testing.assert_allclose(embedded(shelf.layout, encoder), on_cpu, atol=0.05, rtol=0.02)

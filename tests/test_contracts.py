"""The contracts that everything is built against: each survives a round trip and refuses what does not fit."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from redshelf.indexing import columns, generation, parts, store
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.bands import Band, State, ab_to_flux, asinh_magnitude, flux_to_ab, states
from redshelf.models.encoder import KINDS, Batch, encoder_class
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.models.pdf import Pdf, default_edges
from redshelf.service import answers, settings


def test_magnitudes_and_fluxes_are_inverse_and_asinh_agrees_when_bright() -> None:
    magnitude = np.array([15.0, 20.0, 23.9])
    assert flux_to_ab(ab_to_flux(magnitude)) == pytest.approx(magnitude, abs=1e-12)
    assert asinh_magnitude(ab_to_flux(magnitude), 0.001) == pytest.approx(magnitude, abs=1e-4)
    assert np.isfinite(asinh_magnitude(np.array([-3.0, 0.0]), 0.1)).all()


def test_states_are_told_apart() -> None:
    flux = np.array([np.nan, 1.0, 1.0, -2.0, 5.0, 5.0])
    error = np.array([1.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    saturated = np.array([False, False, False, False, False, True])
    expected = [
        State.NOT_OBSERVED,
        State.NOT_OBSERVED,
        State.NOT_DETECTED,
        State.NOT_DETECTED,
        State.MEASURED,
        State.SATURATED,
    ]
    assert states(flux, error, saturated=saturated).tolist() == expected


def test_a_batch_refuses_wrong_shapes_and_names_a_missing_need() -> None:
    batch = Batch(state=torch.ones(4, 3, dtype=torch.int8))
    with pytest.raises(BadInput, match="encoder 'vit' needs pixels"):
        batch.require(frozenset({"pixels"}), "vit")
    with pytest.raises(BadInput, match=r"flux_ujy has shape \(4, 2\): expected \(4, 3\)"):
        Batch(state=torch.ones(4, 3, dtype=torch.int8), flux_ujy=torch.ones(4, 2))
    with pytest.raises(BadInput, match="pixel_mask is compulsory"):
        Batch(state=torch.ones(4, 3, dtype=torch.int8), pixels=torch.ones(4, 3, 8, 8))


def test_every_registered_encoder_kind_can_be_imported_and_an_unknown_one_is_named() -> None:
    for kind in KINDS:
        assert encoder_class(kind).kind == kind
    with pytest.raises(BadInput, match="'vitt' is not registered; nearest: vit"):
        encoder_class("vitt")


def test_shelf_toml_round_trips_and_another_schema_version_is_refused(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    info = ShelfInfo("cosmos", (Band("g", 480.0, 27.1, 0.7, 0.01, 3.2), Band("Ks", 2150.0)), 64, 0.168, "abc")
    layout.write_info(info)
    read = layout.read_info()
    assert read.band_names == ("g", "Ks") and read.bands[0] == info.bands[0] and read.fingerprint == "abc"
    assert math.isnan(read.bands[1].noise_ujy)
    layout.info_file.write_text(layout.info_file.read_text().replace("schema_version = 3", "schema_version = 7"))
    with pytest.raises(BadInput, match="schema version 7, this redshelf reads version 3"):
        layout.read_info()
    with pytest.raises(NotFound, match="is not a shelf"):
        Layout(tmp_path / "elsewhere").read_info()


def test_a_generation_round_trips_and_the_newest_is_taken(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(NotFound, match="nothing is published"):
        generation.read(layout)
    for number in (1, 2, 10):
        facts = generation.FileFacts(sha256="0" * 64, size=3)
        written = generation.Generation(
            number=number,
            created=1.5,
            tables={"sources": generation.TableVersion(version=1, rows=5)},
            encoders=[
                generation.PublishedEncoder(
                    name="vit", revision="ab", kind="vit", dim=8, needs=["pixels"], weights="random"
                ),
            ],
            redshifts=[generation.PublishedEstimators(encoder="vit", folder="vit.ab.cd", estimators=["knn"])],
            default_encoder="vit",
            default_redshift="vit",
            default_estimator="knn",
            files={"sources.lance/a": facts},
        )
        generation.write(layout, written)
    assert generation.read(layout) == written
    assert generation.read(layout, 2).number == 2
    with pytest.raises(NotFound, match="no generation 3"):
        generation.read(layout, 3)


def test_settings_come_from_file_environment_and_command_line_in_that_order(tmp_path: Path) -> None:
    file = tmp_path / "redshelf.toml"
    file.write_text('port = 1000\nhost = "::1"\nmax_k = 7\n')
    environ = {"REDSHELF_PORT": "2000", "REDSHELF_DATA": "elsewhere", "REDSHELF_SETTINGS": str(file)}
    found = settings.load(environ=environ, shelf=tmp_path, host="127.0.0.2")
    assert (found.port, found.host, found.max_k, found.shelf) == (2000, "127.0.0.2", 7, tmp_path)
    file.write_text("prt = 1000\n")
    with pytest.raises(BadInput, match="unknown setting 'prt'; nearest: port"):
        settings.load(file, environ={})


def test_answers_refuse_unknown_fields_and_round_trip() -> None:
    neighbour = answers.Neighbour(
        source_id="9007199254740993",
        rank=1,
        distance=0.5,
        ra_deg=1,
        dec_deg=2,
        z_spec=None,
        z_error=None,
        z_kind=None,
        z_quality=None,
        z_phot=0.3,
        object_class="star",
    )
    assert answers.Neighbour.model_validate_json(neighbour.model_dump_json()) == neighbour
    with pytest.raises(ValueError, match="extra"):
        answers.Neighbour.model_validate({**neighbour.model_dump(), "z": 1})


def test_columns_find_every_id_and_no_other(tmp_path: Path) -> None:
    ids = np.array([b"b", b"a10", b"a9"])
    columns.write(tmp_path, columns.id_columns(ids, np.zeros(3, dtype=bool)))
    opened = columns.open_columns(tmp_path)
    assert [columns.row_of(opened, i.decode()) for i in ids] == [0, 1, 2]
    assert columns.row_of(opened, "a1") is None and columns.row_of(opened, "é") is None
    with pytest.raises(BadInput, match="'a' stands twice"):
        columns.id_columns(np.array([b"a", b"b", b"a"]), np.zeros(3, dtype=bool))
    twice = columns.id_columns(np.array([b"a", b"b", b"a", b"c"]), np.array([True, False, False, True]))
    assert [columns.row_of(twice, i) for i in "abc"] == [2, 1, None]


def _vectors(first: int, n: int) -> pa.RecordBatch:
    rows = np.arange(first, first + n)
    values = np.repeat(rows[:, None], 4, axis=1).astype(np.float16)
    return pa.record_batch([pa.array(rows), store.fixed_list(values)], schema=store.embeddings_schema(4))


def test_parts_are_committed_once_in_order_and_whole(tmp_path: Path) -> None:
    table, receipts, schema = tmp_path / "e.lance", tmp_path / "work" / "e", store.embeddings_schema(4)
    parts.write_part(table, schema, [_vectors(30, 10)], receipts=receipts, part=1, first_row=30, plan="p")
    with pytest.raises(Conflict, match="1 of 2 parts have no receipt: 0"):
        parts.commit_parts(table, schema, receipts=receipts, parts=2, plan="p")
    parts.write_part(
        table, schema, [_vectors(0, 20), _vectors(20, 10)], receipts=receipts, part=0, first_row=0, plan="p"
    )
    assert parts.commit_parts(table, schema, receipts=receipts, parts=2, plan="p") == 40
    assert parts.commit_parts(table, schema, receipts=receipts, parts=2, plan="p") == 40, (
        "committing twice changes nothing"
    )
    dataset = store.open_table(table)
    assert dataset.count_rows() == 40
    found = store.list_values(dataset.to_table()["vector"])
    assert (found[:, 0] == np.arange(40)).all()


def test_a_part_whose_rows_do_not_count_up_leaves_no_receipt(tmp_path: Path) -> None:
    table, receipts, schema = tmp_path / "e.lance", tmp_path / "work" / "e", store.embeddings_schema(4)
    with pytest.raises(BadInput, match=r"^e\.lance part 0: rows do not count up from 20$"):
        parts.write_part(table, schema, [_vectors(0, 20), _vectors(21, 2)], receipts=receipts, part=0, first_row=0)
    assert parts.done_parts(receipts) == set()


def test_an_error_of_the_batches_comes_out_as_it_was_raised_with_its_cause(tmp_path: Path) -> None:
    wrong, cause = BadInput("m.fits is truncated"), OSError("short read")

    def batches() -> Iterator[pa.RecordBatch]:
        yield _vectors(0, 5)
        raise wrong from cause

    schema, receipts = store.embeddings_schema(4), tmp_path / "work" / "e"
    with pytest.raises(BadInput) as caught:
        parts.write_part(tmp_path / "e.lance", schema, batches(), receipts=receipts, part=0, first_row=0)
    assert caught.value is wrong and caught.value.__cause__ is cause
    assert parts.done_parts(receipts) == set()


def test_an_error_of_the_table_itself_is_not_hidden(tmp_path: Path) -> None:
    (tmp_path / "e.lance").write_text("a file where the table's folder should be")
    with pytest.raises(OSError, match=r"e\.lance"):
        parts.write_part(
            tmp_path / "e.lance", store.embeddings_schema(4), [_vectors(0, 5)],
            receipts=tmp_path / "work", part=0, first_row=0,
        )  # fmt: skip


def test_a_plan_that_does_not_continue_the_table_is_refused(tmp_path: Path) -> None:
    table, schema = tmp_path / "e.lance", store.embeddings_schema(4)
    for plan, first in (("a", 0), ("b", 5)):
        parts.write_part(
            table, schema, [_vectors(first, 5)], receipts=tmp_path / plan, part=0, first_row=first, plan=plan
        )
        parts.commit_parts(table, schema, receipts=tmp_path / plan, parts=1, plan=plan)
    parts.write_part(table, schema, [_vectors(5, 5)], receipts=tmp_path / "c", part=0, first_row=5, plan="c")
    with pytest.raises(Conflict, match="starts at row 5, expected 10"):
        parts.commit_parts(table, schema, receipts=tmp_path / "c", parts=1, plan="c")
    assert store.count_rows(table) == 10


def test_pdf_of_a_known_gaussian_gives_its_moments_quantiles_and_uniform_pit() -> None:
    from scipy.stats import kstest, norm

    edges, rng = default_edges(3.0), np.random.default_rng(0)
    mean, sigma = rng.uniform(0.8, 1.2, 2000), 0.1
    cdf = norm.cdf((edges[None] - mean[:, None]) / sigma)
    pdf = Pdf.from_mass(edges, np.diff(cdf, axis=1))
    assert (pdf.density * pdf.widths).sum(axis=1) == pytest.approx(1)
    assert pdf.mean() == pytest.approx(mean, abs=2e-3)
    assert pdf.median() == pytest.approx(mean, abs=2e-3)
    assert pdf.mode() == pytest.approx(mean, abs=0.02)
    assert pdf.quantile(0.84134) == pytest.approx(mean + sigma, abs=2e-3)
    pit = pdf.pit(rng.normal(mean, sigma))
    assert kstest(pit, "uniform").pvalue > 0.01
    assert pdf.pit(pdf.quantile(0.3)) == pytest.approx(0.3)


def test_a_pdf_row_without_mass_is_uniform() -> None:
    pdf = Pdf.from_mass(np.array([0.0, 1.0, 3.0]), np.zeros((1, 2)))
    assert pdf.density.tolist() == [[1 / 3, 1 / 3]]

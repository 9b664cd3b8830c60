"""A photo-z for every source: the numbers of an answer over HTTP, in Parquet, FITS, and as a `qp` ensemble."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from redshelf.indexing import outputs as parts_of_plan
from redshelf.indexing.columns import CLASSES
from redshelf.indexing.store import FLAG_MASKED
from redshelf.service import outputs, photoz
from redshelf.service.outputs import Asked
from redshelf.service.redshift import REASONS, redshifts
from redshelf.service.shelf import OpenShelf, open_shelf

REAL = ["ra_deg", "dec_deg", *photoz.POINTS, *photoz.SUPPORT, "z_spec"]


@pytest.fixture(scope="module")
def shelf(tiny_shelf: Path) -> OpenShelf:
    """The tiny shelf, in which row 3 is masked, 5 a labelled AGN, 8 deleted, and 11 was seen by no encoder."""
    opened = open_shelf(tiny_shelf)
    columns = {**opened.columns, **{name: opened.columns[name].copy() for name in ("flags", "object_class", "deleted")}}
    columns["flags"][3] |= FLAG_MASKED
    columns["object_class"][5] = CLASSES.index("agn")
    columns["deleted"][8] = True
    fits = {}
    for name, fit in opened.redshifts.items():
        hidden = np.arange(len(opened)) == 11
        fits[name] = replace(fit, parts=tuple(replace(part, index=part.index.without(hidden)) for part in fit.parts))
    return replace(opened, columns=columns, redshifts=fits)


@pytest.fixture(scope="module")
def written(tiny_shelf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the redshifts of the tiny shelf in each format, by parts of 64."""
    folder = tmp_path_factory.mktemp("redshifts")
    for ending in photoz.FORMATS:
        how = {"encoder": "photometry", "estimator": "lightgbm", "part_rows": 64}
        outputs.write(tiny_shelf, folder / f"z.{ending}", Asked("redshift", **how))  # type: ignore[arg-type]
    return folder


@pytest.mark.parametrize("encoder", ["photometry", "vit"])
@pytest.mark.parametrize("estimator", ["knn", "lightgbm"])
def test_every_source_has_the_numbers_of_its_answer(shelf: OpenShelf, encoder: str, estimator: str) -> None:
    table = photoz.table(shelf, encoder=encoder, estimator=estimator, format="hdf5")
    in_words = photoz.table(shelf, encoder=encoder, estimator=estimator, format="parquet")
    assert table.rows == len(shelf) - 1
    lines, words = (pa.Table.from_batches([t.lines(0, t.rows)]).to_pylist() for t in (table, in_words))
    assert shelf.source_id(8) not in {line["source_id"] for line in lines}, "a deleted source is left out"
    answers = redshifts(shelf, [line["source_id"] for line in lines], encoder=encoder, estimator=estimator)
    for line, word, answer in zip(lines, words, answers, strict=True):
        assert (line["source_id"], line["in_support"]) == (answer.source_id, answer.support.in_support)
        assert word["reasons"] == answer.support.reasons
        assert [r for bit, r in enumerate(REASONS) if line["reasons"] & 1 << bit] == answer.support.reasons
        for name in ("z_median", "z_mode", "z_q16", "z_q84"):
            assert line[name] == word[name] == getattr(answer, name)
        assert (line["z_q025"], line["z_q975"]) == (answer.interval_95 or (None, None))
        for name in photoz.SUPPORT:
            assert line[name] == getattr(answer.support, name)
        density = None if answer.pdf is None else np.array(answer.pdf.density, dtype=np.float32)
        np.testing.assert_array_equal(line["pdf"], np.full(len(line["pdf"]), np.nan) if density is None else density)
    refused = [bool(answer.z_median is None) for answer in answers]
    assert refused[3] and not refused[5] and refused[10], "masked; an AGN, which is warned of; seen by no encoder"
    assert sum(refused) > 5, "and the stars"


def test_labelled_sources_have_their_label_beside_and_others_null(shelf: OpenShelf) -> None:
    table = photoz.table(shelf, encoder="photometry", estimator="knn", format="parquet")
    found = table.lines(0, table.rows)["z_spec"]
    expected = shelf.columns["z_spec"][~shelf.columns["deleted"]]
    assert found.null_count == np.isnan(expected).sum() > 0
    np.testing.assert_array_equal(found.to_numpy(zero_copy_only=False), expected.astype(np.float64))


def test_parquet_says_what_it_was_made_with(written: Path, tiny_shelf: Path) -> None:
    table = pq.read_table(written / "z.parquet")
    told = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    fit = open_shelf(tiny_shelf).redshift("photometry")
    (answer,) = redshifts(open_shelf(tiny_shelf), ["s0004"], encoder="photometry", estimator="lightgbm", pdf=False)
    expected = {
        "survey": "small", "generation": "1", "encoder": "photometry", "revision": fit.revision,
        "estimator": "lightgbm", "calibration_method": answer.calibration.method,
        "calibration_pit_ks": str(answer.calibration.pit_ks), "shift_method": answer.shift.method,
        "shift_effective_sample_size": str(answer.shift.effective_sample_size), "sources": "300",
    }  # fmt: skip
    assert {name: told[f"redshelf.{name}"] for name in expected} == expected
    assert table.column_names[-1] == "z_spec", "densities are in HDF5 alone"


def test_fits_holds_what_parquet_holds(written: Path) -> None:
    from astropy.io import fits
    from astropy.table import Table

    table = pq.read_table(written / "z.parquet")
    with fits.open(written / "z.fits") as file:
        file.verify("exception")
        header, found = file[1].header, Table(file[1].data)
    assert (written / "z.fits").stat().st_size % 2880 == 0
    assert found.colnames == table.column_names and header["TUNIT2"] == "deg"
    assert list(found["source_id"]) == table["source_id"].to_pylist() and header["TFORM1"] == "5A"
    assert list(found["in_support"]) == table["in_support"].to_pylist()
    for name in REAL:
        np.testing.assert_array_equal(found[name], table[name].to_numpy())
    words = [[r for bit, r in enumerate(REASONS) if flags & 1 << bit] for flags in found["reasons"]]
    assert words == table["reasons"].to_pylist()
    assert (header["REDSHELF ENCODER"], header["REDSHELF ESTIMATOR"]) == ("photometry", "lightgbm")
    assert "reasons: 1 is classified as a star" in str(header["COMMENT"])


def test_qp_reads_the_densities_and_what_is_beside_them(written: Path, tiny_shelf: Path) -> None:
    qp = pytest.importorskip("qp", reason="the `sim` extra is not installed")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There are non-finite values in the pdfs")
        ensemble = qp.read(str(written / "z.hdf5"))
    table = pq.read_table(written / "z.parquet")
    assert ensemble.npdf == len(table) and list(ensemble.ancil["source_id"]) == table["source_id"].to_pylist()
    for name in REAL:
        np.testing.assert_array_equal(ensemble.ancil[name], table[name].to_numpy())
    given = table["z_median"].is_valid().to_numpy()
    assert not np.isfinite(ensemble.objdata["pdfs"][~given]).any()
    kept = ensemble[np.flatnonzero(given)]
    np.testing.assert_allclose(kept.median().ravel(), table["z_median"].to_numpy()[given], rtol=1e-5)
    ids = table["source_id"].filter(table["z_median"].is_valid()).to_pylist()
    answers = redshifts(open_shelf(tiny_shelf), ids, encoder="photometry", estimator="lightgbm")
    for row in range(0, len(ids), 17):
        pdf = answers[row].pdf
        assert pdf is not None
        np.testing.assert_array_equal(ensemble.metadata["bins"], pdf.z)
        np.testing.assert_allclose(kept.objdata["pdfs"][row], pdf.density, rtol=1e-6)


def test_a_chunk_of_the_ensemble_can_be_read_alone(written: Path) -> None:
    qp = pytest.importorskip("qp", reason="the `sim` extra is not installed")
    part = qp.read(str(written / "z.hdf5"), read_slice=slice(2, 5))
    table = pq.read_table(written / "z.parquet").slice(2, 3)
    assert list(part.ancil["source_id"]) == table["source_id"].to_pylist() and part.npdf == 3


@pytest.mark.parametrize("ending", photoz.FORMATS)
def test_a_file_without_sources_has_its_columns(shelf: OpenShelf, tmp_path: Path, ending: str) -> None:
    from redshelf.indexing import joining

    table = photoz.table(shelf, encoder="photometry", estimator="knn", format=ending)
    path = tmp_path / f"z.{ending}"
    told = {"what": "redshift", "path": str(path), "format": ending, "generation": 1, "generation_sha256": ""}
    plan = parts_of_plan.Plan(**told, **table.facts, rows=0, part_rows=9, task_parts=1)  # type: ignore[arg-type]
    parts_of_plan.write(shelf.layout, plan)
    parts_of_plan.do_parts(plan, replace(table, rows=0), [0])
    parts_of_plan.commit(shelf.layout, plan)
    assert joining.read_facts(path, ending)["sources"] == "0"
    if ending == "parquet":
        assert pq.read_table(path).column_names == table.schema.names
    elif ending == "fits":
        from astropy.table import Table

        assert Table.read(path).colnames == table.schema.names
    assert list(tmp_path.iterdir()) == [path]

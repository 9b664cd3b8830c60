"""Labels: matched by id or position, merged by priority, quality and error, disagreements listed."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.table import Table

from redshelf.indexing import labels
from redshelf.indexing import survey as surveys
from redshelf.indexing.labels import MergedLabels
from redshelf.models.errors import BadInput

IDS = np.array([b"a", b"b", b"c", b"d"])
RA = np.array([10.0, 10.0, 0.0001, 359.9999])
DEC = np.array([5.0, 5.0 + 2.0 / 3600, 0.0, 89.99])
CLASSES = np.array(["galaxy", "star", "unknown", "galaxy"])


def build(tmp_path: Path, *sections: dict[str, Any]) -> MergedLabels:
    """`sections` hold their own table under "rows"."""
    written = []
    for number, section in enumerate(sections):
        rows = section.pop("rows")
        Table(rows).write(tmp_path / f"l{number}.ecsv", overwrite=True)
        written.append({"path": f"l{number}.ecsv", "z": "z", "survey": f"s{number}", **section})
        if section.get("match") == "position":
            written[-1] = {"ra": "ra", "dec": "dec", **written[-1]}
        else:
            written[-1] = {"id": "id", **written[-1]}
    document = {
        "survey": {"name": "s"},
        "catalogue": {"path": "c.csv", "id": "id", "ra": "ra", "dec": "dec"},
        "bands": [{"name": "g", "wavelength_nm": 480, "magnitude": "m", "default_error": 0.1}],
        "labels": written,
    }
    survey = surveys.parse(document, folder=tmp_path, source="survey.toml")
    return labels.build(survey, IDS, RA, DEC, CLASSES)


def test_labels_match_by_id_and_leave_the_unknown_out(tmp_path: Path) -> None:
    found = build(tmp_path, {"rows": {"id": ["c", "nobody", "a"], "z": [0.3, 0.4, 0.5]}})
    assert found.table["row"].to_pylist() == [0, 2]
    np.testing.assert_allclose(found.table["z_spec"], [0.5, 0.3], rtol=1e-6)
    assert found.table["z_survey"].to_pylist() == ["s0", "s0"] and found.table["z_kind"].to_pylist() == ["spec"] * 2
    assert (found.sections[0].rows, found.sections[0].matched, found.sections[0].unmatched) == (3, 2, 1)


def test_labels_match_the_nearest_source_within_the_radius_across_zero_hours_and_at_the_pole(tmp_path: Path) -> None:
    rows = {
        "ra": [10.0, 10.0, 359.9999, 180.0],
        "dec": [5 + 0.9 / 3600, 5 + 1.2 / 3600, 0.0, 89.99],
        "z": [0.1, 0.2, 0.3, 0.4],
    }
    found = build(tmp_path, {"rows": rows, "match": "position", "radius_arcsec": 1.0})
    assert found.table["row"].to_pylist() == [0, 1, 2]  # the third is 0.72 arcsec away, over RA 0
    np.testing.assert_allclose(found.table["z_spec"], [0.1, 0.2, 0.3], rtol=1e-6)
    assert found.sections[0].unmatched == 1  # 72 arcsec away, over the pole


def test_positions_match_as_astropy_matches_them() -> None:
    rng = np.random.default_rng(2)
    ra, dec = rng.uniform(149.99, 150.01, 500), rng.uniform(1.99, 2.01, 500)
    source_ra, source_dec = rng.uniform(149.99, 150.01, 800), rng.uniform(1.99, 2.01, 800)
    nearest, distance, _ = SkyCoord(ra * u.deg, dec * u.deg).match_to_catalog_sky(
        SkyCoord(source_ra * u.deg, source_dec * u.deg)
    )
    expected = np.where(distance.arcsec <= 1.0, nearest, -1)
    found = labels.match_positions(ra, dec, source_ra, source_dec, radius_arcsec=1.0)
    np.testing.assert_array_equal(found, expected)
    assert 0 < (found >= 0).sum() < 500


def test_priority_beats_quality_beats_error(tmp_path: Path) -> None:
    columns = {"quality": "q", "z_error": "e"}
    first = {"rows": {"id": ["a", "b", "c"], "z": [0.1, 0.1, 0.1], "q": [9, 3, 3], "e": [1e-4, 1e-4, 1e-3]}, **columns}
    second = {"rows": {"id": ["a", "b", "c"], "z": [0.2, 0.2, 0.2], "q": [1, 4, 3], "e": [1e-2, 1e-2, 1e-4]}, **columns}
    equal = build(tmp_path, {**first}, {**second}).table
    np.testing.assert_allclose(equal["z_spec"], [0.1, 0.2, 0.2], rtol=1e-6)
    second = {"rows": {"id": ["a", "b", "c"], "z": [0.2, 0.2, 0.2], "q": [1, 4, 3], "e": [1e-2, 1e-2, 1e-4]}, **columns}
    first = {"rows": {"id": ["a", "b", "c"], "z": [0.1, 0.1, 0.1], "q": [9, 3, 3], "e": [1e-4, 1e-4, 1e-3]}, **columns}
    found = build(tmp_path, first, {**second, "priority": 1}).table
    assert found["z_survey"].to_pylist() == ["s1"] * 3 and found["n_labels"].to_pylist() == [2] * 3


def test_labels_that_contradict_each_other_are_flagged_and_listed(tmp_path: Path) -> None:
    one = {"rows": {"id": ["a", "b", "c"], "z": [1.0, 1.0, 0.5]}, "priority": 1}
    two = {"rows": {"id": ["a", "b"], "z": [1.019, 1.021]}}
    found = build(tmp_path, one, two)
    assert found.table["disagrees"].to_pylist() == [False, True, False]
    assert found.disagreeing_rows.tolist() == [1]


def test_redshifts_that_cannot_be_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = {"id": ["a", "a", "b", "b", "c"], "z": [np.nan, -99.0, 20.1, -0.005, np.inf]}
    found = build(tmp_path, {"rows": rows})
    assert found.table["row"].to_pylist() == [1] and found.sections[0].bad_z == 4


def test_a_star_keeps_its_class_and_a_spectrum_gives_one(tmp_path: Path) -> None:
    classless = build(tmp_path, {"rows": {"id": ["a", "b", "c"], "z": [0.1, 0.2, 0.3]}})
    assert classless.table["object_class"].to_pylist() == ["galaxy", "star", "unknown"]
    rows = {"id": ["a", "b", "c"], "z": [0.0001, 1.2, 0.3], "t": ["STAR", "QSO", "?"]}
    classed = build(tmp_path, {"rows": rows, "object_class": "t", "class_values": {"STAR": "star", "QSO": "agn"}})
    assert classed.table["object_class"].to_pylist() == ["star", "agn", "unknown"]


def test_quality_cuts_apply_and_errors_that_are_no_errors_are_nan(tmp_path: Path) -> None:
    rows = {"id": ["a", "b", "c"], "z": [0.1, 0.2, 0.3], "q": [3.5, 2.5, 4.1], "e": [-99.0, 0.1, 0.002]}
    cuts = [{"column": "q", "operator": "in", "value": [3, 4], "floor": True}]
    found = build(tmp_path, {"rows": rows, "quality": "q", "z_error": "e", "cuts": cuts}).table
    assert found["row"].to_pylist() == [0, 2]
    np.testing.assert_allclose(found["z_error"], [np.nan, 0.002], rtol=1e-6)
    np.testing.assert_allclose(found["z_quality"], [3.5, 4.1], rtol=1e-6)


def test_label_positions_off_the_sky_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"l0\.ecsv: ra=-99.0 of 1 "):
        build(tmp_path, {"rows": {"ra": [1.0, -99.0], "dec": [0.0, 0.0], "z": [0.1, 0.2]}, "match": "position"})


def test_a_survey_without_labels_has_an_empty_table(tmp_path: Path) -> None:
    found = build(tmp_path)
    assert isinstance(found.table, pa.Table) and len(found.table) == 0 and found.sections == ()

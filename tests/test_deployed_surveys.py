"""The survey files of deploy/surveys, on catalogues of exactly the columns they name; oracles computed by hand."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from redshelf.indexing import catalogue as catalogues
from redshelf.indexing import labels, store
from redshelf.indexing import survey as surveys
from redshelf.indexing.layout import Layout
from redshelf.indexing.store import FLAG_MASKED
from redshelf.indexing.survey import as_list
from redshelf.models.bands import State
from redshelf.service.ingest import IngestReport, ingest

DEPLOY = Path(__file__).resolve().parent.parent / "deploy" / "surveys"
SPECZ = "specz_compilation_COSMOS_DR1.1_unique.fits"
RA, DEC = 150.0, 2.0  # the n-th source lies at RA + n / 100
NULL = -1  # of integer columns: FITS has no NaN for them
Values = list[float]


def write(path: Path, columns: dict[str, Values]) -> None:
    """A FITS table; a column of integers is stored as such, with a TNULL."""
    made = []
    for name, values in columns.items():
        whole = all(isinstance(value, int) for value in values)
        array = np.array(values, dtype=np.int64 if whole else np.float32)
        made.append(fits.Column(name, format="K" if whole else "E", array=array, null=NULL if whole else None))
    for n, column in enumerate(made):
        if column.name.lower() in ("ra", "dec", "alpha_j2000", "delta_j2000", "ra_corrected", "dec_corrected"):
            made[n] = fits.Column(column.name, format="D", array=np.array(columns[column.name]))
    fits.BinTableHDU.from_columns(made).writeto(path)


def ingested(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, given: dict[str, Values], specz: dict[str, Values]
) -> tuple[IngestReport, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Ingest the survey file `name` on a catalogue of its columns: those `given`, every other flux 10 with error 1.

    Returns the report, and the sources' and labels' rows by source id."""
    monkeypatch.setenv("REDSHELF_DATA", str(folder))
    survey = surveys.load(DEPLOY / f"{name}.toml")
    count = len(next(iter(given.values())))
    columns: dict[str, Values] = {}
    for band in survey.bands:
        columns |= {column: [10.0] * count for column in band.photometry_columns}
        columns |= {column: [1.0] * count for column in band.error_columns}
    section = survey.catalogue
    known = {*columns, section.id, section.ra, section.dec, section.object_class, section.z_reference}
    columns |= {column: [0.5] * count for column in section.z_references.values()}
    known |= {
        *section.z_references.values(),
        *as_list(section.ebv),
        *section.mask_flags,
        *(band.aperture_to_total for band in survey.bands),
    }
    assert given.keys() <= known, "a column that the survey file does not name"
    columns |= {section.id: list(range(1, count + 1)), section.ra: [RA + n / 100 for n in range(count)]}
    columns |= {section.dec: [DEC] * count, **given}
    write(survey.resolve(section.path), columns)
    write(folder / SPECZ, specz)
    report = ingest(DEPLOY / f"{name}.toml", folder / "shelf")
    layout = Layout(folder / "shelf")
    rows = store.open_table(layout.sources).to_table().to_pylist()
    by_row = {row["row"]: row["source_id"] for row in rows}
    found = store.open_table(layout.labels).to_table().to_pylist()
    return report, {row["source_id"]: row for row in rows}, {by_row[label["row"]]: label for label in found}


def spectra(*rows: tuple[int, float, float, int]) -> dict[str, Values]:
    """Label rows: number of the source (from 0), arcseconds north of it, redshift, flag."""
    return {
        "ra_corrected": [RA + n / 100 for n, _, _, _ in rows],
        "dec_corrected": [DEC + north / 3600 for _, north, _, _ in rows],
        "specz": [z for _, _, z, _ in rows],
        "flag": [flag for _, _, _, flag in rows],
    }


def close(found: Any, expected: float) -> None:
    np.testing.assert_allclose(found, expected, rtol=2e-6)


NO_SPECTRA = spectra((0, 60.0, 0.5, 4))


def test_farmer_fluxes_are_dereddened_and_missing_ones_are_not_observed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    _, sources, _ = ingested(
        tmp_path,
        monkeypatch,
        "cosmos2020-farmer",
        {
            "EBV": [0.05, 0.0, 0.1],
            "FLAG_COMBINED": [0, 1, NULL],
            "lp_type": [0, 1, 0],
            "lp_zBEST": [0.75, 0.0, 1.25],
            "HSC_i_FLUX": [1.0, 3.0, -0.5],
            "HSC_i_FLUXERR": [0.1, 0.1, 0.5],
            "CFHT_u_FLUX": [1.0, nan, 1.0],
            "HSC_g_FLUX": [1.0, -99.0, 1.0],
            "UVISTA_Ks_FLUXERR": [1.0, -99.0, nan],
            "IRAC_CH2_FLUXERR": [0.0, 1.0, 1.0],
        },
        NO_SPECTRA,
    )
    first, second, third = (sources[name] for name in ("1", "2", "3"))
    close(first["flux_i"], 1.0964782)  # 10^(0.4 x 2.0 x 0.05) = 10^0.04
    close(first["flux_error_i"], 0.10964782)
    close(first["flux_u"], 1.2477857)  # 10^(0.4 x 4.807 x 0.05) = 10^0.09614
    close(first["flux_ustar"], 12.401665)  # 10 x 10^(0.4 x 4.674 x 0.05) = 10 x 10^0.09348
    close(first["flux_Ks"], 10.169513)  # 10 x 10^(0.4 x 0.365 x 0.05) = 10 x 10^0.0073
    close(third["flux_i"], -0.60113222)  # -0.5 x 10^(0.4 x 2.0 x 0.1) = -0.5 x 10^0.08; a negative flux stays one
    close(second["flux_i"], 3.0)
    assert [row["state_i"] for row in (first, second, third)] == [State.MEASURED, State.MEASURED, State.NOT_DETECTED]
    assert second["state_u"] == second["state_g"] == State.NOT_OBSERVED and np.isnan(second["flux_g"])
    assert second["state_Ks"] == third["state_Ks"] == first["state_ch2"] == State.NOT_OBSERVED
    assert [row["flags"] for row in (first, second, third)] == [0, FLAG_MASKED, FLAG_MASKED]  # a missing flag counts
    close([row["ebv"] for row in (first, second, third)], [0.05, 0.0, 0.1])


def test_farmer_classes_and_reference_redshifts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, sources, _ = ingested(
        tmp_path,
        monkeypatch,
        "cosmos2020-farmer",
        {
            "EBV_MW": [0.0] * 5,  # its name in the released files
            "FLAG_COMBINED": [0] * 5,
            "lp_type": [0, 1, 2, -9, NULL],
            "lp_zBEST": [0.75, 0.0, float("nan"), -99.0, 6.5],
            "ez_z_phot": [0.8, 0.1, 2.5, -1.0, 20.5],
        },
        NO_SPECTRA,
    )
    assert [sources[str(n)]["object_class"] for n in range(1, 6)] == ["galaxy", "star", "agn", "unknown", "unknown"]
    np.testing.assert_array_equal(
        [sources[str(n)]["z_reference"] for n in range(1, 6)], [0.75, 0.0, np.nan, np.nan, 6.5]
    )
    np.testing.assert_array_equal(
        [sources[str(n)]["z_reference_eazy"] for n in range(1, 6)], np.float32([0.8, 0.1, 2.5, np.nan, np.nan])
    )


def test_spectra_are_joined_to_farmer_by_position_within_half_an_arcsecond(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report, _, found = ingested(
        tmp_path,
        monkeypatch,
        "cosmos2020-farmer",
        {"EBV": [0.0] * 7, "FLAG_COMBINED": [0] * 7, "lp_type": [0] * 7, "lp_zBEST": [0.5] * 7},
        spectra(
            (0, 0.49, 0.5, 4),
            (1, 0.51, 0.6, 4),  # too far
            (2, 0.0, 0.7, 2),  # not sure enough
            (3, 0.0, 0.0003, 3),  # a star, whatever lp_type says
            (4, -0.2, 2.0, 14),  # broad lines
            (5, 0.3, 1.0, 3),  # beats the broad-line one nearer by, and contradicts it
            (5, 0.1, 1.5, 13),
            (6, 0.0, -99.0, 4),  # no redshift
        ),
    )
    assert {name: round(label["z_spec"], 5) for name, label in found.items()} == {
        "1": 0.5,
        "4": 0.0003,
        "5": 2.0,
        "6": 1.0,
    }
    assert {name: label["object_class"] for name, label in found.items()} == {
        "1": "galaxy",
        "4": "star",
        "5": "agn",
        "6": "galaxy",
    }
    assert report.labelled == 4 and report.disagreements == ("6",)
    assert [(s.rows, s.matched, s.unmatched, s.bad_z) for s in report.labels] == [(5, 3, 1, 1), (2, 2, 0, 0)]
    assert {label["z_kind"] for label in found.values()} == {"spec"}


def test_classic_apertures_become_total_and_dereddened_and_irac_only_dereddened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nan = float("nan")
    report, sources, found = ingested(
        tmp_path,
        monkeypatch,
        "cosmos2020-classic",
        {
            "EBV_MW": [0.05, 0.0, 0.0, 0.0],
            "FLAG_COMBINED": [0, 0, 1, 0],
            "lp_type": [0, 0, 0, 1],
            "lp_zBEST": [0.75, 0.5, 0.5, 0.0],
            "total_off2": [-0.25, 0.1, nan, -99.0],
            "HSC_i_FLUX_APER2": [2.0, -1.0, 2.0, 2.0],
            "HSC_i_FLUXERR_APER2": [0.2, 1.0, 0.2, 0.2],
            "SC_B_FLUX_APER2": [2.0, -99.0, 2.0, 2.0],
            "IRAC_CH1_FLUX": [3.0, 3.0, 3.0, nan],
        },
        spectra((1, 0.4, 1.1, 3), (2, 0.6, 1.2, 4)),
    )
    first, second, third, fourth = (sources[str(n)] for n in range(1, 5))
    close(first["flux_i"], 2.7607685)  # 2 x 10^(0.4 x (0.25 + 2.0 x 0.05)) = 2 x 10^0.14: an offset below 0 brightens
    close(first["flux_error_i"], 0.27607685)
    close(first["flux_B"], 3.0328435)  # 2 x 10^(0.4 x (0.25 + 4.041 x 0.05)) = 2 x 10^0.18082
    close(first["flux_ch1"], 3.0226047)  # 3 x 10^(0.4 x 0.163 x 0.05): no aperture, no offset
    close(second["flux_i"], -0.91201084)  # -1 x 10^(-0.4 x 0.1): an offset above 0 dims
    close(second["flux_error_i"], 0.91201084)
    assert second["state_i"] == State.NOT_DETECTED and second["state_B"] == State.NOT_OBSERVED
    for row in (third, fourth):  # without its offset an aperture flux is no total flux
        assert row["state_i"] == row["state_NB118"] == State.NOT_OBSERVED and np.isnan(row["flux_i"])
    assert third["state_ch1"] == State.MEASURED and fourth["state_ch1"] == State.NOT_OBSERVED
    assert third["flags"] == FLAG_MASKED and fourth["object_class"] == "star"
    assert [found[name]["z_spec"] for name in found] == [pytest.approx(1.1)] and list(found) == ["2"]
    assert report.states["i"] == {"not_observed": 2, "not_detected": 1, "measured": 1, "saturated": 0}


def test_clauds_magnitudes_are_taken_as_already_dereddened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bands = ("u", "uS", "g", "r", "i", "z", "y")
    report, sources, found = ingested(
        tmp_path,
        monkeypatch,
        "hsc-clauds",
        {
            **{band: [23.9, 23.9, 23.9] for band in bands},
            **{f"{band}_err": [0.1, 0.1, 0.1] for band in bands},
            "EB_V": [0.02, 0.1, 0.03],
            "MASK": [0, 1, 0],
            "OBJ_TYPE": [0, 2, 1],
            "ZPHOT": [0.75, 0.0, -99.0],
            "u": [23.9, -99.0, float("nan")],
            "g": [22.4, 99.0, 23.9],
            "r_err": [0.1, -99.0, 0.5],
        },
        spectra((0, -0.3, 0.8, 4), (1, 0.7, 0.9, 4)),
    )
    first, second, third = (sources[str(n)] for n in range(1, 4))
    close(first["flux_g"], 3.9810717)  # 10^(-0.4 x (22.4 - 23.9)) = 10^0.6, whatever E(B-V)
    close(first["flux_error_g"], 0.36667025)  # x 0.1 x 0.4 ln 10
    close(second["flux_uS"], 1.0)
    assert second["state_u"] == third["state_u"] == second["state_g"] == second["state_r"] == State.NOT_OBSERVED
    assert third["state_r"] == State.NOT_DETECTED and first["state_r"] == State.MEASURED
    assert [row["object_class"] for row in (first, second, third)] == ["galaxy", "star", "unknown"]
    assert [row["flags"] for row in (first, second, third)] == [0, FLAG_MASKED, 0]
    np.testing.assert_array_equal([row["z_reference"] for row in (first, second, third)], [0.75, 0.0, np.nan])
    assert list(found) == ["1"] and report.labels[0].unmatched == 1


def real(name: str, file: str) -> surveys.Survey:
    if not (Path(os.environ.get("REDSHELF_DATA", "")) / file).is_file():
        pytest.skip(f"$REDSHELF_DATA has no {file}")
    return surveys.load(DEPLOY / f"{name}.toml")


@pytest.mark.data
def test_the_lephare_table_is_read_whole() -> None:
    survey = real("lephare-cosmos", "COSMOS_first100specz.fits")
    found, _ = catalogues.read(survey)
    assert len(found) == 100 and len(survey.bands) == 30
    table = fits.getdata(survey.resolve(survey.catalogue.path))
    named = {column for band in survey.bands for column in (*band.photometry_columns, *band.error_columns)}
    assert named == {name for name in table.names if name.startswith(("f_", "ferr_"))}  # no band of it left out
    for b, band in enumerate(survey.bands):
        flux, error = (np.asarray(table[name], float) for name in (str(band.flux), str(band.flux_error)))
        observed = np.isfinite(flux) & (error > 0)
        np.testing.assert_allclose(found.flux_ujy[:, b], np.where(observed, flux * 1e29, np.nan), rtol=1e-6)
        np.testing.assert_array_equal(found.state[:, b] == State.NOT_OBSERVED, ~observed)
    merged = labels.build(survey, found.source_id, found.ra_deg, found.dec_deg, found.object_class).table
    np.testing.assert_allclose(merged["z_spec"], table["zspec"], rtol=1e-6)
    assert found.source_id[[0, 99]].tolist() == [b"1", b"100"]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "file", "sources", "stars"),
    [("zcosmos", "zcosmost_bright20k.csv", 10_102, 338), ("vvds-deep", "vvds_deep_veryreliable.csv", 5_976, 645)],
)
def test_the_spectroscopic_surveys_are_read_whole_with_their_stars(
    name: str, file: str, sources: int, stars: int
) -> None:
    survey = real(name, file)
    found, _ = catalogues.read(survey)
    merged = labels.build(survey, found.source_id, found.ra_deg, found.dec_deg, found.object_class)
    assert len(found) == len(merged.table) == sources
    assert (found.object_class == "star").sum() == stars and not merged.disagreeing_rows.size

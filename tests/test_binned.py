"""Tables by bin: rows hold what the scores of their objects alone are."""

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from redshelf.models import binned, density_scores, metrics, slopes
from redshelf.models.errors import BadInput
from redshelf.models.pdf import Pdf

PAGE = (Path(__file__).parent.parent / "docs" / "python.md").read_text(encoding="utf-8")


def sample(n=3000, seed=0):
    rng = np.random.default_rng(seed)
    spec = rng.gamma(2, 0.4, n)
    phot = np.abs(spec + (1 + spec) * rng.standard_t(3, n) * 0.03)
    return phot, spec, rng.uniform(16, 27, n), rng.lognormal(0, 1, n)


@settings(deadline=None)
@given(arrays.arrays(np.float64, st.integers(1, 30), elements=st.integers(-1, 9).map(lambda i: i / 2)))
def test_every_value_falls_where_histogram_counts_it(values):
    edges = [0, 1, 2.5, 4]
    bins = binned.edged(values, edges)
    assert np.bincount(bins.codes[bins.codes >= 0], minlength=3).tolist() == np.histogram(values, edges)[0].tolist()
    assert ((bins.codes < 0) == ((values < 0) | (values > 4))).all()


def test_a_row_holds_the_scores_of_its_objects_alone():
    phot, spec, magnitude, weights = sample()
    rows = binned.point_table(phot, spec, binned.edged(magnitude, binned.MAGNITUDE_EDGES), weights, slopes=True)
    assert [(row["low"], row["high"]) for row in rows] == [(17, 22.5), (22.5, 24), (24, 25), (25, 26)]
    for row in rows:
        own = (magnitude >= row["low"]) & (magnitude < row["high"])
        expected = metrics.summary(phot[own], spec[own], weights[own])
        lines = slopes.residual_slopes(phot[own], spec[own], weights[own])
        assert expected is not None and lines is not None
        assert row == pytest.approx({"low": row["low"], "high": row["high"]} | expected | lines)


def test_few_objects_keep_their_count_and_get_no_number():
    phot, spec, _, _ = sample()
    rows = binned.point_table(phot, spec, binned.edged(spec, [0, 1, 3.5, 40]), bootstrap=20)
    assert rows[0]["bias"] is not None and rows[0]["bias_error"] > 0
    assert 0 < rows[2]["n"] < 100 and rows[2]["ess"] == rows[2]["n"]
    assert rows[2]["bias"] is None and rows[2]["bias_error"] is None
    assert len({tuple(row) for row in rows}) == 1  # the same columns in every row
    alone = binned.point_table(phot[:50], spec[:50], binned.edged(spec[:50], [0, 50]))
    assert alone[0]["n"] == 50 and alone[0]["sigma_mad"] is None


def test_a_mean_near_zero_hides_what_the_table_shows():
    spec = np.concatenate([np.full(500, 0.5), np.full(500, 1.5)])
    phot = spec + 0.1 * (1 + spec) * np.where(spec < 1, 1, -1)
    assert metrics.bias(metrics.delta_z(phot, spec)) == pytest.approx(0)
    rows = binned.point_table(phot, spec, binned.edged(spec, [0, 1, 2]))
    assert [row["bias"] for row in rows] == pytest.approx([0.1, -0.1])


def test_a_posterior_mean_is_unbiased_by_z_phot_and_attenuated_by_z_spec():
    rng = np.random.default_rng(1)
    spec = rng.normal(1, 0.2, 40_000)
    phot = 1 + 0.5 * (spec + rng.normal(0, 0.2, 40_000) - 1)
    residual = phot - spec  # of dz the mean is not quite 0: the scale 1 + z_spec is attenuated with it
    tables = binned.point_tables(phot, spec, redshift_edges=[0.5, 0.8, 1.2, 1.5])
    by_spec = [row["bias"] for row in tables["z_spec"]]
    assert by_spec[0] > 0.03 and by_spec[2] < -0.03
    codes = binned.edged(phot, [0.5, 0.8, 1.2, 1.5]).codes
    assert [residual[codes == code].mean() for code in range(3)] == pytest.approx([0, 0, 0], abs=0.01)


def test_whole_number_weights_are_repeated_rows():
    phot, spec, magnitude, _ = sample()
    counts = np.random.default_rng(2).integers(0, 3, len(phot))
    one = binned.point_table(phot, spec, binned.edged(magnitude, [17, 22, 26]), counts)
    phot, spec, magnitude = (np.repeat(values, counts) for values in (phot, spec, magnitude))
    other = binned.point_table(phot, spec, binned.edged(magnitude, [17, 22, 26]))
    for row, expected in zip(one, other, strict=True):
        for name in ("bias", "median", "sigma_mad", "sigma_68", "rmse", "outliers", "outliers_3sigma"):
            assert row[name] == pytest.approx(expected[name])


def test_all_tables_come_weighted_and_not():
    phot, spec, magnitude, weights = sample()
    tables = binned.point_tables(phot, spec, magnitude, weights)
    assert set(tables) == {
        *("z_spec", "z_phot", "magnitude"),
        *("z_spec_weighted", "z_phot_weighted", "magnitude_weighted"),
    }
    plain, weighted = tables["magnitude"][0], tables["magnitude_weighted"][0]
    assert plain["n"] == weighted["n"] == plain["ess"] and weighted["ess"] < plain["n"]
    assert plain["bias"] != weighted["bias"]


def test_flags_and_fields_make_groups():
    phot, spec, _, _ = sample(400)
    flagged = np.arange(400) % 2 == 0
    rows = binned.point_table(phot, spec, binned.grouped(flagged))
    assert [(row["group"], row["n"]) for row in rows] == [("False", 200), ("True", 200)]
    names = binned.point_table(phot, spec, binned.grouped(np.where(flagged, "deep", "wide")))
    assert [row["group"] for row in names] == ["deep", "wide"] and names[0]["bias"] == rows[1]["bias"]


def test_errors_over_tiles_tell_one_bin_from_another():
    rng = np.random.default_rng(3)
    tiles = np.arange(4000) % 40
    magnitude = np.repeat([20.0, 24.5], 2000)
    shared = rng.normal(0, 0.05, 40)[tiles] * (magnitude > 22)  # a field's zero point, felt by faint sources alone
    phot = 1 + 2 * (rng.normal(0, 0.05, 4000) + shared)
    bins = binned.edged(magnitude, [17, 22, 26])
    objects = binned.point_table(phot, np.ones(4000), bins, bootstrap=200)
    blocks = binned.point_table(phot, np.ones(4000), bins, bootstrap=200, tiles=tiles)
    assert blocks[0]["bias_error"] == pytest.approx(objects[0]["bias_error"], rel=0.4)
    assert blocks[1]["bias_error"] > 3 * objects[1]["bias_error"]


def test_a_bin_inside_one_tile_has_no_error_over_tiles():
    phot, spec, _, _ = sample(400)
    halves = np.repeat([0.0, 1.0], 200)
    rows = binned.point_table(phot, spec, binned.edged(halves, [0, 0.5, 1]), bootstrap=20, tiles=halves)
    assert rows[0]["bias"] is not None and rows[0]["bias_error"] is None


def test_local_pits_find_the_bin_that_is_not_calibrated():
    rng = np.random.default_rng(4)
    edges = np.linspace(0, 2, 201)
    z = rng.normal(1, 0.1, 2000)
    width = np.where(np.arange(2000) < 1000, 0.1, 0.04)  # the second half claims too much
    centre = z + rng.normal(0, 0.1, 2000)
    mass = np.exp(-0.5 * ((edges[1:] + edges[:-1]) / 2 - centre[:, None]) ** 2 / width[:, None] ** 2)
    pdf = Pdf.from_mass(edges, mass)
    bins = binned.grouped(np.repeat(["honest", "bold"], 1000))
    bold, honest = binned.density_table(density_scores.density_scores(pdf, z), bins)
    assert (bold["group"], honest["group"]) == ("bold", "honest")
    assert honest["coverage_68"] == pytest.approx(0.68, abs=0.04) and bold["coverage_68"] < 0.5
    assert bold["pit_cvm"] > 10 * honest["pit_cvm"] and bold["crps"] > honest["crps"]
    pits = binned.pit_table(pdf.pit(z), bins)
    assert [row["pit_w1"] for row in pits] == [bold["pit_w1"], honest["pit_w1"]]


def test_the_example_of_the_page_runs(capsys):
    phot, spec, magnitude, weights = sample(2000)
    edges = np.linspace(0, 6, 121)
    mass = np.exp(-0.5 * ((edges[1:] + edges[:-1]) / 2 - phot[:, None]) ** 2 / 0.1**2) + 1e-9
    given_names = {
        "z_phot": phot,
        "z_spec": spec,
        "magnitude": magnitude,
        "weights": weights,
        "healpix29": np.arange(2000) * 4**21 // 20,
        "pdf": Pdf.from_mass(edges, mass),
        "distance_ratio": magnitude / 20,
    }
    (code,) = re.findall(r"<!-- scores: run by tests/test_binned\.py -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    exec(code, given_names)
    printed = capsys.readouterr().out
    assert "magnitude_weighted" in printed and "slope_z_phot_error" in printed and "delta_mean_scaled" in printed


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: binned.edged([1.0], [0, 2, 1], name="z_phot"), r"edges: 1\.0 after 2\.0"),
        (lambda: binned.edged([1.0, np.inf], [0, 2], name="magnitude"), "magnitude: inf in row 1"),
        (lambda: binned.edged([1.0], [0]), "at least 2 edges"),
        (lambda: binned.grouped([[1]]), r"labels of shape \(1, 1\)"),
        (lambda: binned.grouped([np.nan]), "labels: nan in row 0"),
        (lambda: binned.point_table([0.1], [0.1], binned.edged([1, 1], [0, 2])), "bins of 2 objects: expected 1"),
        (lambda: binned.point_table([0.1], [np.nan], binned.edged([1], [0, 2])), "z_spec: nan in row 0"),
        (lambda: binned.point_table([0.1], [0.1], binned.edged([1], [0, 2]), [0]), "all zero"),
        (lambda: binned.point_tables([0.1], [0.1], [20, 21]), "bins of 2 objects: expected 1"),
    ],
)
def test_bad_input_is_named(call, says):
    with pytest.raises(BadInput, match=says):
        call()

"""Any filters on any source, against an oracle that goes through the rows one by one and compares every vector."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_ivf import DIM, VECTORS

from redshelf.indexing import ann, assembly, columns
from redshelf.indexing.filters import Filters, nearest_first
from redshelf.indexing.generation import Generation, PublishedEncoder
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.bands import Band
from redshelf.service.search import neighbours
from redshelf.service.shelf import OpenEncoder, OpenShelf

N, K = 6000, 10
BANDS = ("u", "g", "i")
TILES = ("north", "south", "")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenShelf]:
    """6,000 sources in a field of six arcminutes; the embedding has inverted lists, is indexed as if it were large."""
    rng, folder = np.random.default_rng(5), tmp_path_factory.mktemp("e.0") / str(N)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "EXACT_VALUES", 1000 * DIM)
        patch.setattr(ann, "FEW_VALUES", 200 * DIM)
        assembly.build(folder, [VECTORS[:N]], rows=N, dim=DIM)
        deleted = rng.random(N) < 0.05
        index = ann.open_index(folder).without(deleted)
        bright = 18 + 8 * rng.random(N) ** 0.5
        found: dict[str, Any] = {
            **columns.id_columns(np.array([f"s{row:04d}" for row in rng.permutation(N)], dtype="S64"), deleted),
            "ra": (359.95 + rng.random(N) * 0.1) % 360,
            "dec": rng.random(N) * 0.1 - 0.05,
            "tile": rng.choice(np.array(TILES, dtype="S64"), N),
            "states": rng.integers(0, 4, (N, 3)).astype(np.int8),
            "magnitudes": np.where(rng.random((N, 3)) < 0.1, np.nan, bright[:, None] + rng.normal(size=(N, 3))),
            "object_class": rng.integers(0, 4, N).astype(np.int8),
            "z_spec": np.where(rng.random(N) < 0.8, np.nan, rng.gamma(2, 0.4, N)).astype(np.float32),
            "z_kind": np.zeros(N, np.int8),
            "z_phot": np.where(rng.random(N) < 0.05, np.nan, VECTORS[:N, 0] + 1).astype(np.float32),
        }
        found |= columns.dec_columns(found["dec"], deleted)
        facts = PublishedEncoder(name="e", revision="0" * 12, kind="any", dim=DIM, needs=[])
        info = ShelfInfo("any", tuple(Band(name, 500.0, 25.0, 0.7, 0.1, 3.0) for name in BANDS))
        published = Generation.model_construct(number=1, default_encoder="e")
        encoders = {"e": OpenEncoder(facts, index, Path())}
        yield OpenShelf(Layout(Path()), info, published, found, encoders, {})


def bounds(low: str, high: str, values: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, Any]]:
    both = st.tuples(values, values).map(lambda pair: {low: min(pair), high: max(pair)})
    return st.one_of(st.just({}), both, values.map(lambda v: {low: v}), values.map(lambda v: {high: v}))


asked = st.tuples(
    bounds("z_min", "z_max", st.floats(-1, 3)),
    st.one_of(st.just({}), bounds("z_spec_min", "z_spec_max", st.floats(0, 3))),
    st.tuples(st.sampled_from(BANDS), bounds("mag_min", "mag_max", st.floats(17, 28))).map(
        lambda pair: {"mag_band": pair[0], **pair[1]} if pair[1] else {}
    ),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {
                "ra": st.one_of(st.floats(359.9, 359.9999), st.floats(0, 0.1)),
                "dec": st.floats(-0.1, 0.1),
                "radius_arcsec": st.floats(1, 600),
            }
        ),
    ),
    st.one_of(st.just({}), st.just({}), st.fixed_dictionaries({"tile": st.sampled_from([*TILES[:2], "nowhere"])})),
    st.one_of(st.just({}), st.just({}), st.fixed_dictionaries({"observed_band": st.sampled_from(BANDS)})),
    st.one_of(st.just({}), st.just({}), st.fixed_dictionaries({"object_class": st.sampled_from(columns.CLASSES)})),
    st.one_of(st.just({}), st.just({}), st.just({}), st.just({"labelled_only": True})),
    st.one_of(st.just({}), st.just({}), st.fixed_dictionaries({"exclude_radius_arcsec": st.floats(0.1, 100)})),
).map(lambda parts: {key: value for part in parts for key, value in part.items()})


def separation(ra: float, dec: float, ra0: float, dec0: float) -> float:
    """By the chord between unit vectors."""
    a, d, a0, d0 = map(math.radians, (ra, dec, ra0, dec0))
    one = (math.cos(d) * math.cos(a), math.cos(d) * math.sin(a), math.sin(d))
    two = (math.cos(d0) * math.cos(a0), math.cos(d0) * math.sin(a0), math.sin(d0))
    return math.degrees(2 * math.asin(min(1, math.dist(one, two) / 2))) * 3600


def passes(its: dict[str, Any], row: int, query: int, told: dict[str, Any]) -> bool:
    """One row, one filter after the other; a value that is not known passes none."""

    def within(value: float, low: str, high: str) -> bool:
        if low not in told and high not in told:
            return True
        return told.get(low, -math.inf) <= value <= told.get(high, math.inf)  # never of NaN

    magnitude = its["magnitudes"][row][BANDS.index(told.get("mag_band", "u"))]
    ra, dec = float(its["ra"][row]), float(its["dec"][row])
    apart = told.get("exclude_radius_arcsec")
    return (
        row != query
        and not its["deleted"][row]
        and VECTORS[row].any()
        and within(float(its["z_phot"][row]), "z_min", "z_max")
        and within(float(its["z_spec"][row]), "z_spec_min", "z_spec_max")
        and within(float(magnitude), "mag_min", "mag_max")
        and ("ra" not in told or separation(ra, dec, told["ra"], told["dec"]) <= told["radius_arcsec"])
        and ("tile" not in told or its["tile"][row] == told["tile"].encode())
        and ("observed_band" not in told or its["states"][row][BANDS.index(told["observed_band"])] > 0)
        and ("object_class" not in told or columns.CLASSES[its["object_class"][row]] == told["object_class"])
        and (not told.get("labelled_only") or math.isfinite(its["z_spec"][row]))
        and (apart is None or separation(ra, dec, float(its["ra"][query]), float(its["dec"][query])) > apart)
    )


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_any_filters_keep_what_an_oracle_keeps_and_find_its_nearest(shelf: OpenShelf) -> None:
    its, hits, wanted = dict(shelf.columns), 0, 0
    plain = {name: values.tolist() if values.dtype.kind != "S" else values for name, values in its.items()}
    queries = [row for row in range(0, N, 7) if VECTORS[row].any() and not its["deleted"][row]]

    @given(told=asked, query=st.sampled_from(queries))
    @settings(
        max_examples=torture.count(150, 10_000),
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    def one(told: dict[str, Any], query: int) -> None:
        nonlocal hits, wanted
        rows = np.array([row for row in range(N) if passes(plain, row, query, told)], dtype=np.int64)
        source_id = shelf.source_id(query)
        answer = neighbours(shelf, source_id, k=K, filters=Filters(**told))
        assert answer.n_matching == len(rows)
        found = [shelf.row(n.source_id) for n in answer.neighbours]
        assert len(set(found)) == len(found) == min(K, len(rows)) and set(found) <= set(rows.tolist())
        distance, nearest = ann.brute_force(VECTORS[:N], VECTORS[[query]].astype(np.float32), K, rows=rows)
        mine = np.array([n.distance for n in answer.neighbours])
        np.testing.assert_allclose(
            mine,
            np.linalg.norm(VECTORS[found].astype(float) - VECTORS[query].astype(float), axis=1),
            rtol=1e-4,
            atol=1e-5,
        )
        if answer.exact:
            np.testing.assert_allclose(mine, distance[0], rtol=1e-4, atol=1e-5)
        else:
            assert answer.recall >= 0.95
            hits += int((mine <= distance[0][-1] * (1 + 1e-5)).sum())
            wanted += len(nearest[0])
        exact = neighbours(shelf, source_id, k=K, filters=Filters(**told), exact=True)
        np.testing.assert_allclose([n.distance for n in exact.neighbours], distance[0], rtol=1e-4, atol=1e-5)

    one()
    assert wanted > 100 and hits / wanted >= 0.95, f"{hits} of {wanted} true neighbours found by inverted lists"


def test_the_first_of_a_list_are_those_of_sorting_it_whole() -> None:
    rng = np.random.default_rng(5)
    for size in (0, 1, 7, 400):
        distance = rng.integers(0, 30, size).astype(float)  # many are equal
        for n in (0, 1, 3, size, size + 5):
            expected = np.argsort(distance, kind="stable")[:n]
            np.testing.assert_array_equal(nearest_first(distance, n), expected)

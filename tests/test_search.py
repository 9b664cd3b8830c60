"""Search: neighbours equal brute force, filters do what they say, indexes refuse what is wrong."""

from pathlib import Path

import numpy as np
import pytest
from known_shelf import open_known

from redshelf.indexing import ann, assembly
from redshelf.indexing.filters import Filters, row_mask, separation_arcsec
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service.search import nearest_source, neighbours, neighbours_of_vector
from redshelf.service.shelf import OpenShelf
from redshelf.service.sources import iau_name


def _index(folder: Path, rows: int = 400, dim: int = 24) -> ann.Index:
    vectors = np.random.default_rng(0).normal(size=(rows, dim)).astype(np.float16)
    assembly.build(folder, [vectors[:150], vectors[150:]], rows=rows, dim=dim)
    return ann.open_index(folder)


def test_neighbours_equal_brute_force_one_by_one_and_batched(tmp_path: Path) -> None:
    index = _index(tmp_path)
    queries = np.random.default_rng(1).normal(size=(50, 24)).astype(np.float32)
    distance, rows = ann.brute_force(index.take(slice(None)), queries, 7)
    found = index.search(queries, 7)
    assert (found[1] == rows).all()
    assert found[0] == pytest.approx(distance, rel=1e-5)
    single = [index.search(query[None], 7)[1][0] for query in queries]
    assert (np.array(single) == rows).all()
    assert index.exact and index.recall == 1.0


def test_a_masked_search_equals_brute_force_on_the_rows_that_pass(tmp_path: Path) -> None:
    index = _index(tmp_path)
    query = np.random.default_rng(2).normal(size=(1, 24)).astype(np.float32)
    mask = np.random.default_rng(3).random(400) < 0.02
    _, rows = ann.brute_force(index.take(mask), query, 50)
    distance, found = index.search(query, 50, among=index.select(mask))
    assert (found[0, : mask.sum()] == np.flatnonzero(mask)[rows[0]]).all()
    assert (found[0, mask.sum() :] == -1).all() and np.isinf(distance[0, mask.sum() :]).all()


def test_an_index_refuses_bad_vectors_and_a_cut_file(tmp_path: Path) -> None:
    index = _index(tmp_path)
    with pytest.raises(BadInput, match="has 23 numbers: expected 24"):
        index.search(np.zeros((1, 23), np.float32), 3)
    with pytest.raises(BadInput, match="NaN or infinity"):
        index.search(np.full((1, 24), np.nan, np.float32), 3)
    with pytest.raises(BadInput, match="near row 150"):
        bad = np.zeros((10, 24), np.float16)
        bad[3] = np.inf
        assembly.build(tmp_path / "b", [np.zeros((150, 24), np.float16), bad], rows=160, dim=24)
    assert not (tmp_path / "b" / ann.MANIFEST).exists()
    blob = (tmp_path / ann.VECTORS).read_bytes()
    (tmp_path / ann.VECTORS).write_bytes(blob[:-2])
    with pytest.raises(Conflict, match="19279 bytes, expected 19281"):
        ann.open_index(tmp_path)
    with pytest.raises(NotFound, match="no index"):
        ann.open_index(tmp_path / "elsewhere")


def test_a_source_is_never_its_own_neighbour_and_ranks_follow_distance(shelf: OpenShelf) -> None:
    for encoder in ("photometry", "vit"):
        answer = neighbours(shelf, "s0007", encoder=encoder, k=20)
        ids = [n.source_id for n in answer.neighbours]
        assert len(ids) == 20 and "s0007" not in ids and len(set(ids)) == 20
        assert [n.rank for n in answer.neighbours] == list(range(1, 21))
        assert (np.diff([n.distance for n in answer.neighbours]) >= 0).all()
        assert answer.n_matching == len(shelf) - 1 and answer.exact


def test_search_by_a_stored_vector_finds_its_source_first(shelf: OpenShelf) -> None:
    row = shelf.row("s0011")
    vector = shelf.encoder("vit").vectors(np.array([row]))[0]
    found = neighbours_of_vector(shelf, vector, encoder="vit", k=3)
    assert found.neighbours[0].source_id == "s0011" and found.neighbours[0].distance == 0 and found.query is None
    assert [n.source_id for n in found.neighbours[1:]] == [
        n.source_id for n in neighbours(shelf, "s0011", encoder="vit", k=2).neighbours
    ]


@pytest.mark.parametrize("value", [1e25, 1e300])
def test_a_vector_whose_squared_distances_overflow_is_refused(shelf: OpenShelf, value: float) -> None:
    vector = np.zeros(shelf.encoder("vit").index.dim)
    vector[3] = -value
    with pytest.raises(
        BadInput, match=r"length 1e\+\d+: expected at most 1e\+19, since squared distances overflow float32"
    ):
        neighbours_of_vector(shelf, vector, encoder="vit")
    vector[3] = 0.99e19
    assert len(neighbours_of_vector(shelf, vector, encoder="vit").neighbours) == 10


@pytest.mark.parametrize("k", [0, -1, 1001])
def test_k_out_of_range_is_refused(shelf: OpenShelf, k: int) -> None:
    with pytest.raises(BadInput, match=f"k={k}: expected 1 <= k <= 1000"):
        neighbours(shelf, "s0007", k=k)


def test_unknown_names_are_answered_with_those_there_are(shelf: OpenShelf) -> None:
    with pytest.raises(NotFound, match=r"no source 's00070'.*s0007"):
        neighbours(shelf, "s00070")
    with pytest.raises(NotFound, match=r"no encoder 'vitt'.*nearest: vit"):
        neighbours(shelf, "s0007", encoder="vitt")


def test_filters_keep_what_they_say(shelf: OpenShelf) -> None:
    columns, bands = shelf.columns, shelf.info.band_names
    cases = {
        "mag": (Filters(mag_band="i", mag_max=20.0), columns["magnitudes"][:, 2] <= 20.0),
        "labelled": (Filters(labelled_only=True), np.isfinite(columns["z_spec"])),
        "class": (Filters(object_class="star"), columns["object_class"] == 2),
        "observed": (Filters(observed_band="g"), columns["states"][:, 0] > 0),
        "z": (Filters(z_spec_min=0.2, z_spec_max=0.5), (columns["z_spec"] >= 0.2) & (columns["z_spec"] <= 0.5)),
        "cone": (
            Filters(ra=150.1, dec=2.2, radius_arcsec=30.0),
            separation_arcsec(columns["ra"], columns["dec"], 150.1, 2.2) <= 30,
        ),
    }
    for name, (filters, expected) in cases.items():
        found = row_mask(columns, filters, bands=bands)
        assert found is not None and (found == expected).all(), name
        answer = neighbours(shelf, "s0007", k=5, filters=filters)
        passing = expected.copy()
        passing[shelf.row("s0007")] = False
        assert answer.n_matching == passing.sum(), name
        assert all(passing[shelf.row(n.source_id)] for n in answer.neighbours), name
    assert row_mask(columns, Filters(), bands=bands) is None


def test_a_filter_that_nothing_passes_gives_an_empty_answer(shelf: OpenShelf) -> None:
    answer = neighbours(shelf, "s0007", filters=Filters(mag_band="i", mag_max=1.0))
    assert answer.neighbours == [] and answer.n_matching == 0


def test_the_exclusion_radius_drops_sources_near_the_query(shelf: OpenShelf) -> None:
    answer = neighbours(shelf, "s0007", k=299, filters=Filters(exclude_radius_arcsec=20.0))
    row = shelf.row("s0007")
    distance = separation_arcsec(
        shelf.columns["ra"], shelf.columns["dec"], shelf.columns["ra"][row], shelf.columns["dec"][row]
    )
    assert answer.n_matching == (distance > 20).sum() == len(answer.neighbours)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"mag_min": 1.0}, "need mag_band"),
        ({"ra": 1.0, "dec": 1.0}, "together"),
        ({"ra": 360.0, "dec": 1.0, "radius_arcsec": 1.0}, "ra=360"),
        ({"z_min": float("nan")}, "z_min=nan"),
        ({"object_class": "galxy"}, "nearest: galaxy"),
        ({"z_spec_min": 0.7, "z_spec_max": 0.5}, "z_spec_min=0.7 is above z_spec_max=0.5"),
    ],
)
def test_a_filter_that_makes_no_sense_is_refused(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Filters(**wrong)  # type: ignore[arg-type]


def test_separations_agree_with_astropy_everywhere_and_at_the_seams() -> None:
    from astropy.coordinates import SkyCoord

    rng = np.random.default_rng(0)
    ra = np.concatenate([rng.uniform(0, 360, 200), [0.0, 359.9999, 10.0]])
    dec = np.concatenate([np.degrees(np.arcsin(rng.uniform(-1, 1, 200))), [0.0, 0.0, 90.0]])
    for ra0, dec0 in ((0.0, 0.0), (359.99999, 0.00001), (123.0, -89.999), (10.0, 90.0)):
        expected = SkyCoord(ra, dec, unit="deg").separation(SkyCoord(ra0, dec0, unit="deg")).arcsec
        assert separation_arcsec(ra, dec, ra0, dec0) == pytest.approx(expected, abs=1e-6, rel=1e-9)


def test_the_nearest_source_to_a_position_is_found_or_said_to_be_far(shelf: OpenShelf) -> None:
    row = shelf.row("s0042")
    ra, dec = float(shelf.columns["ra"][row]), float(shelf.columns["dec"][row])
    assert nearest_source(shelf, ra, dec + 0.5 / 3600) == "s0042"
    with pytest.raises(NotFound, match=r"no source within 5\.0 arcsec"):
        nearest_source(shelf, 10.0, -45.0)
    with pytest.raises(BadInput, match="expected 0 <= ra < 360"):
        nearest_source(shelf, 400.0, 0.0)


def test_iau_names_are_truncated_never_rounded() -> None:
    assert iau_name((19 + 57 / 60 + 40.558 / 3600) * 15, 33 + 38 / 60 + 27.96 / 3600) == "J195740.55+333827.9"
    assert iau_name(0.0, -0.0001) == "J000000.00-000000.3"
    assert iau_name(359.9999999, -89.99999999) == "J235959.99-895959.9"


def _distances(shelf: OpenShelf, encoder: str) -> np.ndarray:
    """Between any two sources, (N, N), infinite to itself."""
    vectors = shelf.encoder(encoder).index.take(slice(None)).astype(np.float64)
    distance = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return distance


def test_a_largest_distance_gives_what_lies_within_and_says_whether_that_is_all(shelf: OpenShelf) -> None:
    row = shelf.row("s0007")
    distance = np.sort(_distances(shelf, "vit")[row])
    limit = float(distance[11:13].mean())
    answer = neighbours(shelf, "s0007", encoder="vit", k=20, max_distance=limit)
    assert len(answer.neighbours) == 12 and answer.complete and answer.n_matching == 299
    assert all(n.distance <= limit for n in answer.neighbours)
    for k, complete in ((11, False), (12, True)):
        fewer = neighbours(shelf, "s0007", encoder="vit", k=k, max_distance=limit)
        assert fewer.neighbours == answer.neighbours[:k] and fewer.complete is complete
    none = neighbours(shelf, "s0007", encoder="vit", max_distance=float(distance[0]) * 0.9)
    assert none.neighbours == [] and none.complete
    assert [neighbours(shelf, "s0007", k=k).complete for k in (298, 299)] == [False, True]


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf")])
def test_a_distance_that_is_none_is_refused(shelf: OpenShelf, wrong: float) -> None:
    with pytest.raises(BadInput, match=f"max_distance={wrong}: expected a number"):
        neighbours(shelf, "s0007", max_distance=wrong)


@pytest.mark.parametrize("encoder", ["photometry", "vit"])
def test_mutual_neighbours_have_each_other_among_their_nearest(shelf: OpenShelf, encoder: str) -> None:
    distance = _distances(shelf, encoder)
    rank = distance.argsort(axis=1, kind="stable").argsort(axis=1)
    kept = 0
    for source in ("s0007", "s0050", "s0123", "s0200"):
        row = shelf.row(source)
        expected = {shelf.source_id(r) for r in np.flatnonzero((rank[row] < 6) & (rank[:, row] < 6))}
        answer = neighbours(shelf, source, encoder=encoder, k=6, mutual=True)
        assert {n.source_id for n in answer.neighbours} == expected
        assert [n.rank for n in answer.neighbours] == list(range(1, len(expected) + 1))
        kept += len(expected)
    assert 0 < kept < 24


def test_mutual_neighbours_under_a_filter_are_those_among_what_passes_it(shelf: OpenShelf) -> None:
    labelled, row = np.isfinite(shelf.columns["z_spec"]), shelf.row("s0007")
    distance = np.where(labelled | (np.arange(len(shelf)) == row), _distances(shelf, "vit"), np.inf)
    rank = distance.argsort(axis=1, kind="stable").argsort(axis=1)
    expected = {shelf.source_id(r) for r in np.flatnonzero((rank[row] < 6) & (rank[:, row] < 6) & labelled)}
    answer = neighbours(shelf, "s0007", encoder="vit", k=6, mutual=True, filters=Filters(labelled_only=True))
    assert {n.source_id for n in answer.neighbours} == expected


def test_mutual_needs_a_source_and_few_neighbours(shelf: OpenShelf) -> None:
    vector = shelf.encoder("vit").vectors(np.array([3]))[0]
    with pytest.raises(BadInput, match="mutual needs a query that is a source of this survey"):
        neighbours_of_vector(shelf, vector, encoder="vit", mutual=True)
    with pytest.raises(BadInput, match="k=201: with mutual, which asks about each of them, expected at most 200"):
        neighbours(shelf, "s0007", k=201, mutual=True)


def test_near_duplicates_are_found_by_a_small_distance_that_is_mutual_or_in_a_cone(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 8)).astype(np.float16)
    vectors[7] = vectors[300] + np.float16(0.01)
    vectors[8] = vectors[300] - np.float16(0.01)
    ra, dec = np.random.default_rng(1).uniform(150, 151, 500), np.full(500, 2.0)
    ra[7] = ra[300] + 0.5 / 3600
    shelf = open_known(tmp_path, {"e": vectors}, ra_deg=ra, dec_deg=dec)
    twins = neighbours(shelf, "s300", k=10, max_distance=0.1, mutual=True)
    assert {n.source_id for n in twins.neighbours} == {"s7", "s8"} and twins.complete
    cone = Filters(ra=float(ra[300]), dec=2.0, radius_arcsec=2.0)
    again = neighbours(shelf, "s300", k=10, max_distance=0.1, filters=cone)
    assert [n.source_id for n in again.neighbours] == ["s7"] and again.complete

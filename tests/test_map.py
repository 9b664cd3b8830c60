"""`redshelf map`: where it puts every source, what it keeps, and what `check`, `status` and a server say of it."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from known_shelf import open_known

from redshelf.api.cli import main
from redshelf.indexing import morton, pyramid, sample
from redshelf.indexing.layout import Layout
from redshelf.models import plane
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import mapping, maps, onmap
from redshelf.service.check import check
from redshelf.service.delete import delete
from redshelf.service.index import build_index
from redshelf.service.mapping import make
from redshelf.service.maps import OpenMap
from redshelf.service.publish import publish
from redshelf.service.redshift import redshifts
from redshelf.service.shelf import OpenShelf, open_shelf
from redshelf.service.status import status

HALF = 2.0**-25  # what a position may be off by


@pytest.fixture(scope="module")
def shelf(mapped_shelf: Path) -> OpenShelf:
    return open_shelf(mapped_shelf)


def test_a_map_that_is_removed_while_they_are_listed_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout, usual = Layout(tmp_path), Path.glob
    old, new = (layout.maps / "1" / f"vit.{digest}" for digest in ("a" * 12, "b" * 12))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / maps.MANIFEST).write_text("{}")

    def listed(folder: Path, pattern: str) -> list[Path]:
        found = list(usual(folder, pattern))
        shutil.rmtree(old)  # as `redshelf map` does once the new one is there
        return found

    monkeypatch.setattr(Path, "glob", listed)
    assert maps.stored(layout, number=1) == [new]


def places(opened: OpenMap, n: int) -> npt.NDArray[np.float64]:
    """The position of each row, NaN of those without."""
    found = np.full((n, 2), np.nan)
    found[np.asarray(opened.pyramid.rows)] = morton.positions_of(opened.pyramid.keys)
    return found


def test_every_source_with_a_vector_lies_at_its_principal_components(shelf: OpenShelf) -> None:
    index = shelf.encoder("vit").index
    rows = np.flatnonzero(index.known)
    vectors = index.take(rows).astype(np.float64)
    centred = vectors - vectors.mean(axis=0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes[:2].T
    points *= np.where(axes[[0, 1], np.abs(axes[:2]).argmax(axis=1)] < 0, -1, 1)
    expected = (points - (points.max(axis=0) + points.min(axis=0)) / 2) / (np.ptp(points, axis=0) * 1.04) + 0.5
    opened = maps.find(shelf, "vit")
    assert np.abs(places(opened, len(shelf))[rows] - expected).max() < 1e-4
    np.testing.assert_allclose(opened.manifest.shares, singular[:2] ** 2 / (singular**2).sum(), rtol=1e-4)
    assert opened.manifest.method == "pca" and opened.manifest.sample == len(rows)


def test_the_sky_has_east_on_the_left_north_on_top_and_degrees_that_are_alike(shelf: OpenShelf) -> None:
    opened = maps.find(shelf, "sky")
    found, sky = places(opened, len(shelf)), opened.manifest.sky
    assert sky is not None
    ra, dec = np.asarray(shelf.columns["ra"]), np.asarray(shelf.columns["dec"])
    assert abs(sky.dec_deg - (dec.min() + dec.max()) / 2) < 1e-9
    x = 0.5 - (ra - sky.ra_deg) * np.cos(np.radians(sky.dec_deg)) / sky.side_deg
    y = 0.5 - (dec - sky.dec_deg) / sky.side_deg
    assert np.abs(found - np.column_stack([x, y])).max() <= HALF
    assert np.isclose(max(np.ptp(x), np.ptp(y)), 1 / 1.04)


def test_a_survey_over_right_ascension_zero_stays_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    ra, dec = (rng.uniform(-2, 2, 50)) % 360, rng.uniform(58, 62, 50)
    known = open_known(tmp_path, {"a": rng.normal(0, 1, (50, 4)).astype(np.float16)}, ra_deg=ra, dec_deg=dec)
    placed = mapping.on_sky(known)
    x = morton.positions_of(placed.keys)[:, 0]
    east = (ra + 180) % 360 - 180
    assert (np.argsort(x) == np.argsort(-east)).all() and placed.sky is not None and placed.sky.side_deg < 4.5


def test_a_source_is_where_it_is_said_to_be_and_one_without_a_vector_nowhere(mapped_shelf: Path) -> None:
    shelf = open_shelf(mapped_shelf)
    opened = maps.find(shelf, "vit")
    for row in (0, 7, 299):
        assert onmap.locate(shelf, opened, shelf.source_id(row)) == tuple(places(opened, len(shelf))[row])
    blank = maps.OpenMap(opened.manifest, opened.digest, opened.pyramid, np.full(300, -1), opened.support)
    with pytest.raises(NotFound, match="'s0003' is not on the map of vit, which has no vector of it"):
        onmap.locate(shelf, blank, "s0003")


def test_a_colouring_says_of_each_source_what_the_shelf_does(shelf: OpenShelf) -> None:
    opened, rows = maps.find(shelf, "vit"), np.asarray(maps.find(shelf, "vit").pyramid.rows)
    z_spec, z_phot = (np.asarray(shelf.columns[name])[rows] for name in ("z_spec", "z_phot"))
    told = {name: maps.values_of(shelf, name, rows, opened.support) for name in maps.COLOURS}
    np.testing.assert_array_equal(told["z_spec"], z_spec)
    np.testing.assert_array_equal(told["z_phot"], z_phot)
    np.testing.assert_array_equal(told["labelled"], np.isfinite(z_spec))
    np.testing.assert_allclose(told["error"], abs(z_phot - z_spec) / (1 + z_spec))
    np.testing.assert_array_equal(told["magnitude"], np.asarray(shelf.columns["magnitudes"])[rows, 2])  # i, of g r i
    for place in range(0, len(rows), 37):
        answer = redshifts(shelf, [shelf.source_id(rows[place])])[0]
        expected = np.nan if answer.z_median is None else float(answer.support.in_support)
        np.testing.assert_array_equal(told["support"][place], expected)


def test_a_new_map_takes_the_place_of_the_old_one_and_an_open_one_stays_readable(own_shelf: Path) -> None:
    first = make(own_shelf, "vit")
    shelf = open_shelf(own_shelf)
    opened = maps.find(shelf, "vit")
    again = make(own_shelf, "vit")
    assert not first.kept and again.kept and again.folder != first.folder and not first.folder.exists()
    assert [path for path in (own_shelf / "maps").glob("*/*")] == [again.folder]
    assert len(np.unique(opened.pyramid.keys)) > 1
    newer = maps.find(shelf, "vit")
    assert newer.digest == again.folder.name.split(".")[1] != opened.digest
    np.testing.assert_array_equal(newer.pyramid.keys, opened.pyramid.keys)


def test_a_map_is_of_one_generation_and_the_next_keeps_its_places(own_shelf: Path) -> None:
    make(own_shelf, "vit")
    before = places(maps.find(open_shelf(own_shelf), "vit"), 300)
    gone = int(
        np.flatnonzero(np.isnan(open_shelf(own_shelf).columns["z_spec"]))[0]
    )  # else the fits are to be made anew
    delete(own_shelf, [open_shelf(own_shelf).source_id(gone)])
    publish(own_shelf)
    shelf = open_shelf(own_shelf)
    with pytest.raises(Conflict, match="map of vit is of generation 1, and 2 is served: run `redshelf map --encoder"):
        maps.find(shelf, "vit")
    with pytest.raises(NotFound, match="there is no map of sky yet: run `redshelf map --encoder sky`"):
        maps.find(shelf, "sky")
    assert "the map of vit for generation 2: run `redshelf map --encoder vit`" in status(own_shelf).missing
    found = check(own_shelf)
    assert found.faults == [] and any("generation 2 is the newest: run `redshelf map" in note for note in found.notes)
    assert make(own_shelf, "vit").kept
    after = places(maps.find(open_shelf(own_shelf), "vit"), 300)
    assert np.isnan(after[gone]).all() and np.array_equal(np.delete(after, gone, 0), np.delete(before, gone, 0))
    assert status(own_shelf).missing == []


def test_an_unknown_name_or_method_is_told_with_the_known_ones(mapped_shelf: Path) -> None:
    with pytest.raises(NotFound, match="no encoder 'vti' is published here; nearest: vit"):
        make(mapped_shelf, "vti")
    with pytest.raises(NotFound, match="no encoder 'skye' is published here; nearest: sky"):
        maps.find(open_shelf(mapped_shelf), "skye")
    with pytest.raises(BadInput, match="method 'tsne' is unknown; known: pca, umap"):
        make(mapped_shelf, "vit", method="tsne")
    with pytest.raises(BadInput, match="the sky has its own two dimensions"):
        make(mapped_shelf, "sky", method="pca")


def test_umap_without_its_extra_says_how_to_get_it(mapped_shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plane, "has_umap", lambda: False)
    with pytest.raises(BadInput, match=r"needs the `map` extra: pip install 'redshelf\[map\]'"):
        make(mapped_shelf, "vit", method="umap", seed=9)
    assert mapping.method_of(None, 1000) == "pca"


@pytest.fixture
def flat_umap(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    """In the place of umap-learn: the first two numbers of each vector, and what it was asked for."""
    asked: list[dict[str, object]] = []

    class Umap:
        def __init__(self, **told: object) -> None:
            asked.append(told)

        def fit_transform(self, sample: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
            return sample[:, :2]

    module = types.ModuleType("umap")
    module.UMAP = Umap  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    monkeypatch.setattr(plane, "has_umap", lambda: True)
    return asked


def test_with_umap_the_sample_lies_where_it_was_put_and_others_among_their_neighbours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat_umap: list[dict[str, object]]
) -> None:
    monkeypatch.setattr(mapping, "SAMPLE", 300)
    vectors = np.random.default_rng(0).random((1000, 2)).astype(np.float16)
    known = open_known(tmp_path, {"a": vectors})
    placed = mapping.in_space(known, "a", mapping.method_of(None, 1000), 3, lambda n: None)
    assert (placed.method, placed.sample) == ("umap", 300)
    assert flat_umap == [{"n_components": 2, "n_neighbors": 15, "random_state": 3, "n_jobs": 1}]
    found, own = morton.positions_of(placed.keys), vectors.astype(np.float64)
    chosen = sample.spread(np.ones(1000, dtype=bool), 300, seed=3)
    lines = [np.polyfit(own[chosen, axis], found[chosen, axis], 1) for axis in (0, 1)]
    off = np.abs(np.column_stack([np.polyval(line, own[:, axis]) for axis, line in enumerate(lines)]) - found)
    assert off[chosen].max() < 1e-6 and 1e-3 < np.median(off.max(axis=1)) < 0.05
    assert abs(lines[0][0] - lines[1][0]) < 1e-5  # alike along both axes


def test_long_vectors_are_compared_by_their_first_components(flat_umap: list[dict[str, object]]) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(0, 1, (200, 100)).astype(np.float32) * np.linspace(9, 0.1, 100, dtype=np.float32)
    found = plane.by_umap(vectors)
    fewer = plane.components(vectors, 64)
    assert found.places.shape == (200, 2) and found.index.d == 64
    np.testing.assert_allclose(found.places, fewer.place(vectors)[:, :2], rtol=1e-5)
    np.testing.assert_allclose(found.place(vectors), found.places, atol=1e-3)
    assert 0.9 < fewer.shares.sum() < 1


def test_real_umap_puts_two_heaps_apart(tmp_path: Path) -> None:
    if not plane.has_umap():
        pytest.skip("the `map` extra is not installed")
    rng = np.random.default_rng(0)
    heaps = np.repeat([[0.0] * 8, [20.0] * 8], 100, axis=0)
    known = open_known(tmp_path, {"a": (heaps + rng.normal(0, 1, heaps.shape)).astype(np.float16)})
    found = morton.positions_of(mapping.in_space(known, "a", "umap", 0, lambda n: None).keys)
    near, far = found[:100], found[100:]
    apart = np.hypot(*(near.mean(axis=0) - far.mean(axis=0)))
    assert apart > 2 * max(near.std(axis=0).max(), far.std(axis=0).max())


def test_vectors_of_one_number_and_a_single_source_have_a_map(tmp_path: Path) -> None:
    line = open_known(tmp_path / "a", {"a": np.arange(20, dtype=np.float16)[:, None]})
    found = morton.positions_of(mapping.in_space(line, "a", "pca", 0, lambda n: None).keys)
    assert (np.diff(found[:, 0]) > 0).all() and np.allclose(found[:, 1], 0.5)
    one = open_known(tmp_path / "b", {"a": np.ones((1, 3), dtype=np.float16)})
    assert np.allclose(morton.positions_of(mapping.in_space(one, "a", "pca", 0, lambda n: None).keys), 0.5)


def test_a_shelf_without_images_labels_or_redshifts_has_a_map_by_density_and_magnitude(own_bare: Path) -> None:
    report = make(own_bare, None)
    assert report.encoder == "photometry" and report.colours == ["magnitude"]
    opened = maps.find(open_shelf(own_bare), "photometry")
    assert opened.manifest.known == {"magnitude": 60}


def test_what_was_worked_out_beforehand_is_what_is_found_when_asked(
    own_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pyramid, "LIGHT", 40)
    make(own_shelf, "vit")
    shelf = open_shelf(own_shelf)
    heavy = maps.find(shelf, "vit")
    assert heavy.manifest.zooms >= 2
    light = maps.OpenMap(
        heavy.manifest,
        heavy.digest,
        pyramid.Pyramid(heavy.pyramid.keys, heavy.pyramid.rows, {}),
        heavy.place,
        heavy.support,
    )

    def values_of(name: str, at: slice) -> npt.NDArray[np.float32]:
        return maps.values_of(shelf, name, heavy.pyramid.rows[at], heavy.support[at])

    for name in heavy.manifest.colours:
        one = heavy.pyramid.tile(0, 0, 0, values_of, colour=name, how=maps.COLOURS[name])
        monkeypatch.setattr(pyramid, "LIGHT", 1000)
        other = light.pyramid.tile(0, 0, 0, values_of, colour=name, how=maps.COLOURS[name])
        monkeypatch.setattr(pyramid, "LIGHT", 40)
        for key in ("at", "counts", "values"):
            np.testing.assert_array_equal(getattr(one, key), getattr(other, key))


@pytest.mark.parametrize("name", ["keys.npy", "manifest.json", "place.npy"])
def test_a_flipped_bit_is_a_fault_and_is_not_served(own_shelf: Path, name: str) -> None:
    folder = make(own_shelf, "vit").folder
    assert check(own_shelf).faults == []
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    (fault,) = check(own_shelf).faults
    assert fault.startswith(f"maps/1/{folder.name}") and "run `redshelf map --encoder vit`" in fault
    with pytest.raises(Conflict, match="run `redshelf map --encoder vit`"):
        maps.find(open_shelf(own_shelf), "vit")
    shutil.rmtree(folder)
    make(own_shelf, "vit")
    assert check(own_shelf).faults == []


def test_the_files_of_maps_are_counted_by_check_and_told_by_status(mapped_shelf: Path, tiny_shelf: Path) -> None:
    files = len(list((mapped_shelf / "maps").rglob("*.npy")))
    assert check(mapped_shelf).files == check(tiny_shelf).files + files > 0
    told = {one.name: (one.generation, one.method, one.sources) for one in status(mapped_shelf).maps}
    assert told == {"sky": (1, "sky", 300), "vit": (1, "pca", 300)}


def test_the_command_makes_a_map_and_says_how(
    own_shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane, "has_umap", lambda: False)
    assert main(["map", "--shelf", str(own_shelf), "--encoder", "vit", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["encoder"], told["method"], told["sources"], told["kept"]) == ("vit", "pca", 300, False)
    assert main(["map", "--shelf", str(own_shelf), "--encoder", "nope"]) == 1
    assert "no encoder 'nope' is published here" in capsys.readouterr().err
    assert main(["status", "--shelf", str(own_shelf)]) == 0
    assert "maps       vit (pca, generation 1, 300 sources)" in capsys.readouterr().out


def test_nothing_is_mapped_before_anything_is_published(own_bare: Path) -> None:
    shutil.rmtree(own_bare / "generations")
    with pytest.raises(NotFound, match="nothing is published"):
        make(own_bare)


def test_an_index_that_is_built_anew_does_not_matter_to_a_map(own_bare: Path) -> None:
    make(own_bare)
    build_index(own_bare, encoder="photometry")
    assert maps.find(open_shelf(own_bare), "photometry").manifest.sources == 60


def test_no_encoder_is_called_sky() -> None:
    from redshelf.models import checkpoint

    with pytest.raises(BadInput, match="'sky' is taken by the map of where the sources are"):
        checkpoint.check_new_name("sky")


def test_what_was_being_made_when_it_was_killed_is_a_note_and_the_next_one_is_whole(
    own_shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path, data: bytes) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mapping, "write_bytes", killed)  # of the manifest, which is written last
        with pytest.raises(KeyboardInterrupt):
            make(own_shelf, "sky")
    assert maps.stored(open_shelf(own_shelf).layout) == []
    found = check(own_shelf)
    assert found.faults == [] and any(note.startswith("work/map.sky: ") for note in found.notes)
    make(own_shelf, "sky")
    assert check(own_shelf).notes == []


def test_one_map_is_made_at_a_time(own_shelf: Path) -> None:
    from redshelf.indexing.files import alone
    from redshelf.indexing.layout import Layout

    with (
        alone(Layout(own_shelf).work("map.lock"), "busy"),
        pytest.raises(Conflict, match="another process makes a map"),
    ):
        make(own_shelf, "sky")

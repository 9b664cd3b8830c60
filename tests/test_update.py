"""A shelf whose survey changes: after an update its live rows are those of a new shelf, whatever was killed between."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import Table
from shelves import assert_same_rows, columns_of, kill_ingest
from tiled_survey import SHAPE, tile_wcs, write_survey

from redshelf.indexing import cutting, deletions, partition, store
from redshelf.indexing.export import export_hats
from redshelf.indexing.filters import Filters
from redshelf.indexing.layout import Layout, ShelfInfo
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service import bulk, intake
from redshelf.service import ingest as service
from redshelf.service.check import check
from redshelf.service.delete import delete, read_ids
from redshelf.service.embedding import embed
from redshelf.service.fit import fit, read_labels
from redshelf.service.index import build_index
from redshelf.service.ingest import IngestReport, ingest
from redshelf.service.publish import publish
from redshelf.service.redshift import redshifts
from redshelf.service.search import nearest_source, neighbours
from redshelf.service.shelf import open_shelf
from redshelf.service.status import status
from redshelf.service.training import Run, pretrain

N = 60
Edit = Callable[[Path], None]


def catalogue(folder: Path, change: Callable[[Table], Table]) -> None:
    table = change(Table.read(folder / "catalogue.fits"))
    table.write(folder / "catalogue.fits", overwrite=True)


def brighter(folder: Path) -> None:
    """Five sources have other fluxes, one of them in a band that had none."""

    def change(table: Table) -> Table:
        table["f_g"][10:14] *= 2
        table["f_r"][20] = 3.5
        return table

    catalogue(folder, change)


def fewer(folder: Path) -> None:
    catalogue(folder, lambda table: table[np.arange(len(table)) % 7 != 3])


def more(folder: Path) -> None:
    """Nine sources are new, one on no tile, two with a label."""

    def change(table: Table) -> Table:
        added = table[:9].copy()
        added["id"] = [f"n{len(table)}.{n}" for n in range(9)]
        added["dec"] += 0.0003
        added["dec"][8] = -33
        for row in added:
            table.add_row(row)
        return table

    catalogue(folder, change)


def moved(folder: Path) -> None:
    """A source lies on the other tile now, another in the same pixel of the sky and of the mosaic."""

    def change(table: Table) -> Table:
        table["ra"][4], table["dec"][4] = table["ra"][5], table["dec"][5]
        table["ra"][6] += 1e-7
        return table

    catalogue(folder, change)


def recalibrated(folder: Path) -> None:
    """The image of one tile and band is 1.5 times as bright."""
    with fits.open(folder / "mosaics" / "g" / "t1.fits", mode="update") as units:
        units[0].data *= 1.5


def another_tile(folder: Path) -> None:
    """A tile over the sources that lay on none at declination -40, and one that covers t0 better in r."""
    rng = np.random.default_rng(8)
    for name, change in (("t7", {"CRVAL1": 10.0, "CRVAL2": -40.0}), ("t8", {})):
        image = rng.normal(0, 0.1, SHAPE).astype(np.float32)
        header = tile_wcs(0).to_header()
        header.update(change)
        for band in ("g", "r"):
            fits.PrimaryHDU(image, header).writeto(folder / "mosaics" / band / f"{name}.fits")


def lost_tile(folder: Path) -> None:
    (folder / "mosaics" / "r" / "t1.fits").unlink()


def relabelled(folder: Path) -> None:
    def change(table: Table) -> Table:
        table["z"][1] = 0.77
        return table

    catalogue(folder, change)


def zero_point(folder: Path) -> None:
    text = (folder / "survey.toml").read_text()
    (folder / "survey.toml").write_text(text.replace('name = "r"', 'name = "r"\nimage_zero_point = 25.0'))


EDITS: tuple[Edit, ...] = (
    brighter, fewer, more, moved, recalibrated, another_tile, lost_tile, relabelled, zero_point,
)  # fmt: skip


def live(shelf: Path) -> dict[str, npt.NDArray[Any]]:
    """Everything on a shelf about the sources that are not deleted, by increasing id; without `row`."""
    layout = Layout(shelf)
    rows = np.flatnonzero(deletions.live(layout))
    sources, cutouts, labels = (columns_of(layout.table(name)) for name in ("sources", "cutouts", "labels"))
    assert len(np.unique(sources["source_id"][rows].astype(str))) == len(rows), "an id is live twice"
    rows = rows[np.argsort(sources["source_id"][rows].astype(str))]
    out = {f"sources.{name}": values[rows] for name, values in sources.items() if name != "row"}
    out |= {f"cutouts.{name}": values[rows] for name, values in cutouts.items() if name != "row"}
    place = np.full(len(sources["row"]), -1)
    place[rows] = np.arange(len(rows))
    where = place[labels["row"]]
    assert (where >= 0).all(), "a label of a deleted row"
    order = np.argsort(where)
    out |= {f"labels.{name}": values[order] for name, values in labels.items() if name != "row"}
    return out | {"labelled": where[order]}


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    return write_survey(tmp_path / "d")


@pytest.fixture
def shelf(survey: Path, tmp_path: Path) -> Path:
    ingest(survey, tmp_path / "s", part_rows=8)
    return tmp_path / "s"


@pytest.fixture
def assert_up_to_date(survey: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Compares the live rows of a shelf with those of a new shelf of the survey as it is now. Cutouts are in units of
    the noise of the first ingest, and so the new shelf is given that."""
    real = intake.describe

    def compare(shelf: Path) -> None:
        info = Layout(shelf).read_info()

        def with_its_noise(*args: Any, fingerprint: str) -> ShelfInfo:
            bands = zip(real(*args, fingerprint=fingerprint).bands, info.bands, strict=True)
            return replace(
                info, fingerprint=fingerprint, bands=tuple(replace(a, noise_ujy=b.noise_ujy) for a, b in bands)
            )

        shutil.rmtree(tmp_path / "new", ignore_errors=True)
        with monkeypatch.context() as patch:
            patch.setattr(intake, "describe", with_its_noise)
            ingest(survey, tmp_path / "new", part_rows=8)
        found, expected = live(shelf), live(tmp_path / "new")
        assert found.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert not check(shelf).faults
        assert not check(shelf).notes[1:]  # the first: nothing is published
        assert not Layout(shelf).work("ingest").exists()

    return compare


def test_the_first_ingest_is_its_own_update(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None]
) -> None:
    before = shelf.with_name("before")
    shutil.copytree(shelf, before)
    report = ingest(survey, shelf, update=True)
    assert report.labels_only and (report.new, report.changed, report.removed) == (0, 0, 0)
    assert_up_to_date(shelf)
    assert_same_rows(shelf, before)


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_updated_shelf_has_the_live_rows_of_a_new_one_and_every_old_row(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None], edit: Edit
) -> None:
    old = {name: columns_of(Layout(shelf).table(name)) for name in ("sources", "cutouts")}
    info = Layout(shelf).info_file.read_bytes()
    edit(survey.parent)
    with pytest.raises(Conflict, match="with --update it takes over what has changed"):
        ingest(survey, shelf)
    report = ingest(survey, shelf, update=True, part_rows=8)
    assert not report.labels_only
    assert_up_to_date(shelf)
    for name, columns in old.items():
        now = columns_of(Layout(shelf).table(name))
        for column, values in columns.items():
            np.testing.assert_array_equal(now[column][:N], values, err_msg=f"{name}.{column}")
    assert Layout(shelf).info_file.read_bytes() == info, "published generations name this file"
    again = ingest(survey, shelf)
    assert again.labels_only and again.sources == report.sources


@pytest.mark.parametrize(
    ("edit", "counts"),
    [
        (brighter, (0, 5, 0)), (fewer, (0, 0, 9)), (more, (9, 0, 0)), (moved, (0, 2, 0)), (relabelled, (0, 0, 0)),
    ],
)  # fmt: skip
def test_only_what_has_changed_gets_a_row(survey: Path, shelf: Path, edit: Edit, counts: tuple[int, int, int]) -> None:
    edit(survey.parent)
    report = ingest(survey, shelf, update=True)
    new, changed, removed = counts
    assert (report.new, report.changed, report.removed) == counts
    assert report.sources == N + new - removed
    assert store.count_rows(Layout(shelf).sources) == store.count_rows(Layout(shelf).cutouts) == N + new + changed
    why = deletions.read(Layout(shelf))["why"].to_pylist()
    assert sorted(why) == ["changed"] * changed + ["removed"] * removed


def test_a_tile_whose_images_have_changed_is_cut_again_and_no_other(survey: Path, shelf: Path) -> None:
    tiles = columns_of(Layout(shelf).sources)["tile"]
    recalibrated(survey.parent)
    report = ingest(survey, shelf, update=True)
    assert report.changed == (tiles == "t1").sum() > 10
    assert set(tiles[deletions.read(Layout(shelf))["row"].to_numpy()]) == {"t1"}


class Killed(Exception):
    """Stands for a kill at one place."""


PLACES = [(cutting, "write_part", 0), (cutting, "write_part", 1), (cutting, "write_part", 3), (cutting, "write", 0),
          (cutting, "commit_parts", 0), (cutting, "commit_parts", 1), (deletions, "add", 0), (deletions, "read", 1),
          (service, "_write_labels", 0), (service.origin, "write", 0), (service.origin, "write", 1),
          (service.shutil, "rmtree", 0), (service.shutil, "rmtree", 2)]  # fmt: skip


def run_until(survey: Path, shelf: Path, place: tuple[Any, str, int], *, after: bool) -> bool:
    """An update that ends at a call of a function, before it or `after` it; whether it came so far."""
    module, name, calls = place
    with pytest.MonkeyPatch.context() as patch:
        real, left = getattr(module, name), [calls]

        def counting(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                if after:
                    real(*args, **kwargs)
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(module, name, counting)
        try:
            ingest(survey, shelf, update=True, part_rows=8)
        except Killed:
            return True
    return False


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[1]}-{place[2]}")
def test_a_killed_update_goes_on_to_the_same_shelf(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None], place: tuple[Any, str, int], after: bool
) -> None:
    for edit in (brighter, fewer, more, recalibrated):
        edit(survey.parent)
    whole = shelf.with_name("whole")
    shutil.copytree(shelf, whole)
    assert run_until(survey, shelf, place, after=after)
    ingest(survey, shelf, update=True, part_rows=8)
    assert_up_to_date(shelf)
    ingest(survey, whole, update=True, part_rows=8)
    assert store.count_rows(Layout(shelf).sources) == store.count_rows(Layout(whole).sources), "a row was made twice"


@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[1]}-{place[2]}")
def test_an_update_after_one_that_was_killed_takes_the_shelf_to_the_state_of_now(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None], place: tuple[Any, str, int]
) -> None:
    original = shelf.with_name("original")
    shutil.copytree(survey.parent, original)
    for edit in (more, recalibrated):
        edit(survey.parent)
    assert run_until(survey, shelf, place, after=True)
    shutil.rmtree(survey.parent)  # back to the first images, and another catalogue
    shutil.copytree(original, survey.parent)
    brighter(survey.parent)
    ingest(survey, shelf, update=True, part_rows=8)
    assert_up_to_date(shelf)


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_and_kills_ends_at_the_state_of_now(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    edits = [edit for edit in EDITS if edit not in (another_tile, lost_tile)]
    for number in rng.permutation(len(edits))[:5]:
        edits[number](survey.parent)
        run_until(survey, shelf, PLACES[rng.integers(len(PLACES))], after=bool(rng.integers(2)))
    ingest(survey, shelf, update=True, part_rows=8)
    assert_up_to_date(shelf)


@pytest.mark.parametrize("done", [0, 2])
def test_an_update_that_is_really_killed_goes_on(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None], done: int
) -> None:
    for edit in (more, recalibrated):
        edit(survey.parent)
    kill_ingest(survey, shelf, done=done, update=True)
    with pytest.raises(Conflict, match=r"an update of .* was interrupted: --update goes on with it"):
        ingest(survey, shelf)
    ingest(survey, shelf, update=True, part_rows=8)
    assert_up_to_date(shelf)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('name = "toy"', 'name = "other"', "has survey toy, and the survey file other"),
        ("cutout_px = 16", "cutout_px = 32", "has cutout_px 16, and the survey file 32"),
        ('name = "z"', 'name = "y"', "has bands .*, and the survey file .*"),
        ("psf_fwhm_arcsec = 0.7", "psf_fwhm_arcsec = 1.3", "has bands .*, and the survey file .*"),
        ('id = "id"', 'id = "id"\nz_references = {other = "z"}', "has columns of the sources .*"),
    ],
)
def test_another_survey_is_refused_and_changes_nothing(
    survey: Path, shelf: Path, old: str, new: str, words: str
) -> None:
    before = live(shelf)
    text = survey.read_text()
    assert old in text
    survey.write_text(text.replace(old, new))
    shutil.copytree(survey.parent / "mosaics" / "z", survey.parent / "mosaics" / "y")
    with pytest.raises(Conflict, match=words):
        ingest(survey, shelf, update=True)
    after = live(shelf)
    assert all(np.array_equal(after[name].astype(str), values.astype(str)) for name, values in before.items())
    assert not Layout(shelf).update_file.exists()


def test_a_band_whose_first_images_come_later_is_refused(survey: Path, shelf: Path) -> None:
    image = np.random.default_rng(2).normal(0, 0.1, SHAPE).astype(np.float32)
    fits.PrimaryHDU(image, tile_wcs(1).to_header()).writeto(survey.parent / "mosaics" / "z" / "t1.fits")
    with pytest.raises(Conflict, match="band z has images now, and had none when the shelf was made"):
        ingest(survey, shelf, update=True)
    assert not Layout(shelf).update_file.exists()


def test_rows_that_fit_again_after_a_killed_update_are_not_made_anew(survey: Path, shelf: Path) -> None:
    kept = survey.parent.with_name("kept")
    shutil.copytree(survey.parent, kept)
    recalibrated(survey.parent)
    assert run_until(survey, shelf, (cutting, "commit_parts", 1), after=True)
    shutil.rmtree(survey.parent)
    shutil.copytree(kept, survey.parent)
    rows = store.count_rows(Layout(shelf).sources)
    assert rows > N
    ingest(survey, shelf, update=True)
    assert store.count_rows(Layout(shelf).sources) == rows
    assert deletions.live(Layout(shelf))[:N].all() and not deletions.live(Layout(shelf))[N:].any()


def test_receipts_of_a_first_ingest_that_was_killed_twice_do_not_count(
    survey: Path, shelf: Path, assert_up_to_date: Callable[[Path], None]
) -> None:
    shutil.copytree(shelf, shelf.with_name("first"))
    brighter(survey.parent)
    assert run_until(survey, shelf, (cutting, "commit_parts", 0), after=False)
    (receipts,) = Layout(shelf).work("ingest").glob("cutouts-*")
    shutil.copytree(receipts, shelf.with_name("first") / "work" / "ingest" / receipts.name)
    shutil.rmtree(shelf)
    shelf.with_name("first").rename(shelf)
    ingest(survey, shelf, update=True, part_rows=8)
    assert_up_to_date(shelf)


def test_a_source_that_was_removed_and_then_deleted_by_hand_stays_deleted(survey: Path, shelf: Path) -> None:
    whole = (survey.parent / "catalogue.fits").read_bytes()
    catalogue(survey.parent, lambda table: table[1:])
    assert ingest(survey, shelf, update=True).removed == 1
    assert delete(shelf, ["s0"]).before == 1
    (survey.parent / "catalogue.fits").write_bytes(whole)
    report = ingest(survey, shelf, update=True)
    assert (report.new, report.kept_out, report.sources) == (0, 1, N - 1)
    assert not check(shelf).faults


def test_stamps_in_the_order_of_the_catalogue_are_taken_again_when_it_is_another(survey: Path, tmp_path: Path) -> None:
    rng, folder = np.random.default_rng(3), survey.parent
    np.savez(folder / "stamps.npz", images=rng.normal(0, 1, (N, 16, 16, 3)).astype(np.float32))
    text = "\n".join(line for line in survey.read_text().splitlines() if not line.startswith("image = "))
    stamps = 'path = "stamps.npz"\narray = "images"\nbands = ["g", "r", "z"]\nunit = "uJy"'
    survey.write_text(f"{text}\n[stamps]\n{stamps}\n")
    ingest(survey, tmp_path / "s")
    catalogue(folder, lambda table: table[np.array([1, 0, *range(2, N)])])
    ingest(survey, tmp_path / "s", update=True)
    ingest(survey, tmp_path / "other")
    found, expected = live(tmp_path / "s"), live(tmp_path / "other")
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_deleted_source_stays_deleted(survey: Path, shelf: Path, tmp_path: Path) -> None:
    labelled = store.count_rows(Layout(shelf).labels)
    (tmp_path / "ids.txt").write_text("# two of them\ns0\n\n  s4  # a satellite trail\n")
    report = delete(shelf, read_ids(tmp_path / "ids.txt"))
    assert (report.deleted, report.before, report.sources, report.labelled) == (2, 0, N - 2, labelled - 1)
    again = delete(shelf, ["s0"])
    assert (again.deleted, again.before, again.sources) == (0, 1, N - 2)
    assert ingest(survey, shelf).sources == N - 2
    for edit in (brighter, more, recalibrated):
        edit(survey.parent)
    updated = ingest(survey, shelf, update=True)
    assert (updated.sources, updated.kept_out, updated.new) == (N + 9 - 2, 2, 9)
    assert not {"s0", "s4"} & set(live(shelf)["sources.source_id"])
    assert not check(shelf).faults


@pytest.mark.parametrize(
    ("ids", "words"),
    [(["s0", "nobody"], "1 of 2 ids are not on the shelf, the first is 'nobody'"), ([], "no source ids")],
)
def test_ids_that_cannot_be_deleted_are_named_and_nothing_is(shelf: Path, ids: list[str], words: str) -> None:
    with pytest.raises(BadInput, match=words):
        delete(shelf, ids)
    assert deletions.live(Layout(shelf)).all()


def test_the_report_of_an_update_counts_what_is_on_the_shelf(survey: Path, shelf: Path) -> None:
    for edit in (fewer, more):
        edit(survey.parent)
    report: IngestReport = ingest(survey, shelf, update=True)
    found = live(shelf)
    assert report.sources == len(found["sources.source_id"]) == N - 9 + 9
    assert report.labelled == len(found["labelled"])
    assert report.sources_on_no_tile == (found["sources.tile"] == "").sum()
    assert sum(report.states["g"].values()) == report.sources


@pytest.fixture
def served(tiny_shelf: Path, small_survey_file: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A copy of the published shelf of 300 blobs, and its survey file."""
    shutil.copytree(tiny_shelf, tmp_path / "shelf")
    shutil.copytree(small_survey_file.parent, tmp_path / "survey", ignore=shutil.ignore_patterns("shelf"))
    return tmp_path / "shelf", tmp_path / "survey" / "survey.toml"


def bring_up(root: Path) -> None:
    for encoder in ("photometry", "vit"):
        embed(root, encoder=encoder)
        build_index(root, encoder=encoder)
        fit(root, encoder=encoder)


def test_answers_leave_deleted_rows_out_and_the_earlier_generation_stays(served: tuple[Path, Path]) -> None:
    root, survey = served
    first = open_shelf(root)
    twin = neighbours(first, "s0010", k=1).neighbours[0].source_id

    def change(table: Table) -> Table:
        table["F_i"][20] *= 1.3
        return table[np.array([i != twin for i in table["ID"].astype(str)])]

    catalogue(survey.parent, change)
    report = ingest(survey, root, update=True)
    assert (report.new, report.changed, report.removed, report.sources) == (0, 1, 1, 299)
    delete(root, ["s0030"])
    assert any("vectors of vit" in line for line in status(root).missing)
    with pytest.raises(Conflict, match="no index of photometry has 301 rows"):
        publish(root)
    encoded: list[int] = []
    layout = Layout(root)
    for encoder in ("photometry", "vit"):
        embed(root, encoder=encoder)
        build_index(root, encoder=encoder)
        encoded.append(store.count_rows(layout.embeddings(encoder, layout.newest(encoder))))
    assert encoded == [301, 301]
    with pytest.raises(Conflict, match="the labels have changed since the redshifts were fitted"):
        publish(root)
    bring_up(root)
    publish(root)
    assert not check(root, every=True).faults
    shelf, before = open_shelf(root), open_shelf(root, 1)
    assert (shelf.n_sources, before.n_sources, len(shelf)) == (298, 300, 301)
    assert status(root).n_sources == 298 and status(root).n_deleted == 3
    assert shelf.row("s0020") == 300 and before.row("s0020") == first.row("s0020") != 300
    for gone in (twin, "s0030"):
        with pytest.raises(NotFound, match=f"no source '{gone}'"):
            shelf.row(gone)
        ra, dec = (float(before.columns[name][before.row(gone)]) for name in ("ra", "dec"))
        with pytest.raises(NotFound, match=r"no source within 0\.5 arcsec"):
            nearest_source(shelf, ra, dec, radius_arcsec=0.5)
        assert nearest_source(before, ra, dec, radius_arcsec=0.5) == gone
    assert neighbours(before, "s0010", k=1).neighbours[0].source_id == twin
    for encoder in ("photometry", "vit"):
        for filters in (Filters(), Filters(labelled_only=True)):
            answer = neighbours(shelf, "s0010", encoder=encoder, k=400, filters=filters)
            found = [n.source_id for n in answer.neighbours]
            assert not {twin, "s0030", "s0010"} & set(found) and len(set(found)) == len(found) == answer.n_matching
        assert len(neighbours(shelf, "s0010", encoder=encoder, k=400).neighbours) == 297
    for fitted in shelf.redshifts.values():
        assert not shelf.columns["deleted"][fitted.label_rows].any()
    assert np.isnan(shelf.columns["z_phot"][shelf.columns["deleted"]]).all()
    (answer,) = redshifts(shelf, ["s0020"])
    assert answer.generation == 2 and answer.z_median is not None
    exported = root.parent / "hats"
    assert export_hats(layout, exported) == 298


def test_an_interrupted_update_cannot_be_published(served: tuple[Path, Path]) -> None:
    root, survey = served
    catalogue(survey.parent, lambda table: table[5:])
    assert run_until(survey, root, (deletions, "add", 0), after=True)
    with pytest.raises(Conflict, match=r"an update of .* was interrupted"):
        publish(root)
    with pytest.raises(Conflict, match=r"an update of .* was interrupted"):
        delete(root, ["s0100"])
    with pytest.raises(Conflict, match=r"an update of .* was interrupted"):
        export_hats(Layout(root), root.parent / "hats")
    for command in (embed, fit):
        with pytest.raises(Conflict, match=r"an update of .* was interrupted"):
            command(root, encoder="vit")
    with pytest.raises(Conflict, match=r"an update of .* was interrupted"):
        pretrain(root, name="other", run=Run(steps=1))
    assert "an update that was interrupted" in status(root).missing[0]
    ingest(survey, root, update=True)
    assert status(root).n_sources == 295


def test_a_plan_that_is_open_is_gone_on_with_after_an_update(served: tuple[Path, Path]) -> None:
    root, survey = served
    layout = Layout(root)
    table = layout.embeddings("photometry", layout.newest("photometry"))
    expected = columns_of(table)["vector"]
    shutil.rmtree(table)
    plan = bulk.make_plan(root, encoder="photometry", part_rows=50)
    assert plan is not None and plan.parts == 6
    for part in (0, 3):
        bulk.do(root, encoder="photometry", part=part)

    def change(table: Table) -> Table:
        table["F_i"][20:30] *= 1.3
        return table

    catalogue(survey.parent, change)
    ingest(survey, root, update=True)
    bulk.do(root, encoder="photometry", part=1)
    assert embed(root, encoder="photometry") == (layout.newest("photometry"), 310)
    np.testing.assert_array_equal(columns_of(table)["vector"][:300], expected)
    assert columns_of(table)["row"].tolist() == list(range(310))
    assert not partition.open_plans(layout)


def test_a_label_that_a_killed_delete_has_left_is_not_used(served: tuple[Path, Path]) -> None:
    root, _ = served
    row = store.open_table(Layout(root).labels).to_table(columns=["row"])["row"][0].as_py()
    deletions.add(Layout(root), {deletions.ASKED: np.array([row])})
    assert row not in read_labels(Layout(root)).rows
    fit(root, encoder="photometry")
    publish(root)
    shelf = open_shelf(root)
    assert np.isnan(shelf.columns["z_spec"][row]) and row not in shelf.redshift().label_rows


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("row", 400, "deletion outside the 300 sources: row 400"),
        ("why", "boredom", "why is none of asked, changed, removed: row 7"),
        ("when", float("nan"), "when is no time: row 7"),
    ],
)
def test_a_list_of_deleted_rows_that_is_wrong_is_found(
    served: tuple[Path, Path], column: str, value: Any, words: str
) -> None:
    root, _ = served
    layout = Layout(root)
    table = pa.table({"row": [7], "when": [1.0], "why": ["asked"]}, schema=deletions.SCHEMA)
    at = table.schema.get_field_index(column)
    wrong = table.set_column(at, table.schema.field(column), pa.array([value], table.schema.field(column).type))
    store.replace_table(layout.deleted, wrong)
    assert [line for line in check(root).faults if line.startswith("deleted")] == [f"deleted: {words}"]


def test_a_label_of_a_deleted_row_is_found(served: tuple[Path, Path]) -> None:
    root, _ = served
    layout = Layout(root)
    row = store.open_table(layout.labels).to_table(columns=["row"])["row"][0].as_py()
    deletions.add(layout, {deletions.ASKED: np.array([row])})
    assert check(root).faults == [f"labels: label of a row that is deleted: row {row}"]

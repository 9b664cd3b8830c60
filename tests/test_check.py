"""`redshelf check`: every kind of fault, planted on a copy of a small published shelf, is told and named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torture

from redshelf.api.cli import main
from redshelf.indexing import faults, generation, store
from redshelf.indexing.files import manifest, write_json
from redshelf.indexing.generation import FileFacts
from redshelf.indexing.layout import Layout
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service.check import check
from redshelf.service.publish import publish
from redshelf.service.shelf import open_shelf

Change = Callable[[npt.NDArray[Any]], None]


def unpublish(root: Path) -> Layout:
    """Take the generations away: what is planted next is not hidden behind a checksum."""
    shutil.rmtree(root / "generations")
    return Layout(root)


def sign(root: Path, **changes: Any) -> None:
    """Hash the files of generation 1 anew, as if they had been published like this."""
    layout = Layout(root)
    old = generation.read(layout, 1)
    files = {name: FileFacts(**facts) for name, facts in manifest(root, [root / name for name in old.files]).items()}
    generation.write(layout, old.model_copy(update={"files": files, **changes}))


def rewrite(path: Path, table: pa.Table) -> None:
    """Another content for a table, as its only version."""
    import lance

    shutil.rmtree(path)
    lance.write_dataset(table, str(path))


def plant(path: Path, column: str, change: Change) -> None:
    """Rewrite a table with one column changed in place; a column of vectors as (N, dim)."""
    table = store.open_table(path).to_table()
    kind = table.schema.field(column).type
    listed = pa.types.is_fixed_size_list(kind)
    values = store.list_values(table[column]).copy() if listed else np.array(table[column].to_numpy())
    change(values)
    new = store.fixed_list(values) if listed else pa.array(values, kind)
    rewrite(path, table.set_column(table.schema.get_field_index(column), table.schema.field(column), new))


def put(row: int, value: Any) -> Change:
    """A change of one row."""

    def change(values: npt.NDArray[Any]) -> None:
        values[row] = value

    return change


def swap(values: npt.NDArray[Any]) -> None:
    values[[3, 4]] = values[[4, 3]]


def vectors(layout: Layout, encoder: str) -> Path:
    return layout.embeddings(encoder, layout.newest(encoder))


def test_a_clean_shelf_has_no_fault_and_is_counted(tiny_shelf: Path) -> None:
    layout, found = Layout(tiny_shelf), check(tiny_shelf)
    assert (found.faults, found.notes, found.generations, found.models) == ([], [], [1], 2)
    assert found.files == len(generation.read(layout).files)
    counts = dict(sources=300, cutouts=300, labels=240)
    counts |= {vectors(layout, name).stem: 300 for name in ("photometry", "vit")}
    assert found.tables == counts


def test_batches_of_a_few_rows_find_no_fault_either(tiny_shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "BATCH_ROWS", 7)
    assert check(tiny_shelf).faults == []


def test_every_file_that_the_published_versions_need_has_a_checksum(tiny_shelf: Path) -> None:
    named = set(generation.read(Layout(tiny_shelf)).files)
    stored = {path.relative_to(tiny_shelf).as_posix() for path in tiny_shelf.rglob("*") if path.is_file()}
    left = {name for name in stored - named if not name.endswith("latest_version_hint.json")}
    beside = {name for name in stored if name.startswith(("work/", "receipts/")) or "/_refs/tags/plan-" in name}
    assert left == {"generations/1.json", "origin.json", *beside}


def test_a_bit_flipped_before_anything_is_published_is_found_too_and_cannot_be_published(
    bare_shelf: Path, tmp_path: Path
) -> None:
    root = tmp_path / "shelf"
    shutil.copytree(bare_shelf, root)
    shutil.rmtree(root / "generations")
    (file,) = (vectors(Layout(root), "photometry") / "data").iterdir()
    data = bytearray(file.read_bytes())
    data[50] ^= 1
    file.write_bytes(data)
    name = file.relative_to(root).as_posix()
    assert f"{name}: sha256 differs from the manifest" in check(root).faults
    with pytest.raises(Conflict, match=f"{name} has changed since it was written: its sha256 differs"):
        publish(root)
    assert not generation.numbers(Layout(root))


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as handle:
        handle.seek(byte)
        value = handle.read(1)[0]
        handle.seek(byte)
        handle.write(bytes([value ^ (1 << bit)]))


def test_each_of_many_planted_single_bit_flips_is_found(own_shelf: Path) -> None:
    rng = np.random.default_rng(20261122)
    names = [*generation.read(Layout(own_shelf)).files, "generations/1.json"]
    for _ in range(torture.count(20, 100)):
        path = own_shelf / names[rng.integers(len(names))]
        byte, bit = int(rng.integers(path.stat().st_size)), int(rng.integers(8))
        flip(path, byte, bit)
        told = check(own_shelf).faults
        name = path.relative_to(own_shelf).as_posix()
        assert any(line.startswith(f"{name}: ") for line in told), f"bit {bit} of byte {byte} of {name}: {told}"
        assert len(told) == 1
        flip(path, byte, bit)
    assert check(own_shelf).faults == []


@pytest.mark.parametrize(
    "pattern",
    ["sources.lance/data/*", "sources.lance/_versions/*.manifest", "sources.lance/_transactions/*",
     "sources.lance/_refs/tags/*", "columns/1/ra.npy", "index/*/*/vectors.faiss", "models/*/config.json", "shelf.toml"],
)  # fmt: skip
def test_a_flipped_bit_a_cut_and_a_missing_file_are_told_apart(own_bare: Path, pattern: str) -> None:
    path = next(path for path in own_bare.glob(pattern) if path.is_file())
    name, blob = path.relative_to(own_bare).as_posix(), path.read_bytes()
    flip(path, len(blob) // 2, 3)
    assert check(own_bare).faults == [f"{name}: sha256 differs from the manifest"]
    path.write_bytes(blob[:-1])
    assert check(own_bare).faults == [f"{name}: {len(blob) - 1} bytes, expected {len(blob)}"]
    path.unlink()
    assert check(own_bare).faults == [f"{name}: missing"]


@pytest.mark.parametrize(
    ("column", "change", "line"),
    [
        ("row", swap, "sources: row != position: row 3 and 1 more"),
        ("source_id", put(7, "s0003"), "sources: source id 's0003' stands more than once"),
        ("source_id", put(7, "a b"), "sources: source_id is no valid id: row 7"),
        ("source_id", put(7, "é" * 40), "sources: source_id is no valid id: row 7"),
        ("source_id", put(7, None), "sources: source_id is no valid id: row 7"),
        ("ra_deg", put(5, np.nan), "sources: ra_deg or dec_deg is no position: row 5"),
        ("dec_deg", put(5, -90.5), "sources: ra_deg or dec_deg is no position: row 5"),
        ("healpix29", put(59, 17), "sources: healpix29 is not that of ra_deg and dec_deg: row 59"),
        ("healpix29", put(59, -1), "sources: healpix29 is not that of ra_deg and dec_deg: row 59"),
    ],
)
def test_a_fault_of_the_catalogue_is_found(own_bare: Path, column: str, change: Change, line: str) -> None:
    plant(unpublish(own_bare).sources, column, change)
    assert check(own_bare).faults == [line]


@pytest.mark.parametrize(
    ("column", "change", "line"),
    [
        ("row", put(3, 300), "labels: label outside the 300 sources: row 300"),
        ("row", put(3, -1), "labels: label outside the 300 sources: row -1"),
        ("row", lambda rows: put(3, rows[2])(rows), "labels: more than one label: row 2"),
        ("row", lambda rows: put(200, rows[2])(rows), "labels: more than one label: row 2"),
        ("z_spec", put(0, np.inf), "labels: z_spec is not finite: row 0"),
        ("z_kind", put(0, "guess"), "labels: z_kind is none of spec, grism, photoz_many_band: row 0"),
    ],
)
def test_a_fault_of_the_labels_is_found(
    own_shelf: Path, column: str, change: Change, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "BATCH_ROWS", 50)
    plant(unpublish(own_shelf).labels, column, change)
    assert check(own_shelf).faults == [line]


def test_a_cutout_in_the_wrong_place_is_found(own_shelf: Path) -> None:
    plant(unpublish(own_shelf).cutouts, "row", swap)
    assert check(own_shelf).faults == ["cutouts: row != position: row 3 and 1 more"]


@pytest.mark.parametrize(
    ("encoder", "change", "what"),
    [
        ("photometry", put(9, np.nan), "vector is not finite: row 9"),
        ("vit", lambda v: put((9, 1), -np.inf)(v), "vector is not finite: row 9"),
        ("photometry", put(9, 0), "vector is zero, and a band was observed: row 9"),
        ("vit", put(slice(9, 12), -0.0), "vector is zero, and a band was observed: row 9 and 2 more"),
    ],
)
def test_a_vector_that_is_not_finite_or_wrongly_zero_is_found(
    own_shelf: Path, encoder: str, change: Change, what: str
) -> None:
    layout = unpublish(own_shelf)
    path = vectors(layout, encoder)
    shutil.rmtree(own_shelf / "index")
    plant(path, "vector", change)
    assert check(own_shelf).faults == [f"{path.stem}: {what}"]


@pytest.mark.parametrize(("encoder", "blinding"), [("photometry", "state_"), ("vit", "state"), ("vit", "mask")])
def test_a_source_without_any_band_may_have_a_vector_of_zero(own_shelf: Path, encoder: str, blinding: str) -> None:
    layout = unpublish(own_shelf)
    shutil.rmtree(own_shelf / "index")
    plant(vectors(layout, encoder), "vector", put(9, 0))
    if encoder == "photometry":
        for band in layout.read_info().band_names:
            plant(layout.sources, f"{blinding}{band}", put(9, 0))
    else:
        plant(layout.cutouts, blinding, put(9, 255 if blinding == "mask" else 0))
    assert check(own_shelf).faults == []


def test_tables_that_are_shorter_than_the_sources_name_the_command_that_mends_them(own_shelf: Path) -> None:
    layout = unpublish(own_shelf)
    shutil.rmtree(own_shelf / "index")
    path = vectors(layout, "vit")
    for table in (layout.cutouts, path):
        rewrite(table, store.open_table(table).to_table().slice(0, 290))
    assert check(own_shelf).faults == [
        "cutouts: 290 rows, the sources 300: run `redshelf ingest SURVEY.toml`",
        f"{path.stem}: 290 rows, the sources 300: run `redshelf embed --encoder vit`",
    ]


def test_a_shorter_embedding_that_a_newer_revision_has_replaced_is_only_noted(own_shelf: Path) -> None:
    layout = unpublish(own_shelf)
    shutil.rmtree(own_shelf / "index")
    old = vectors(layout, "vit")
    rewrite(old, store.open_table(old).to_table().slice(0, 290))
    shutil.copytree(layout.model("vit", old.stem.rpartition(".")[2]), layout.model("vit", "0123456789ab"))
    provenance = layout.model("vit", "0123456789ab") / "provenance.json"
    write_json(provenance, {**json.loads(provenance.read_text()), "created": 1e10})
    found = check(own_shelf)
    assert f"{old.stem}: 290 rows, the sources 300: vit has a newer revision" in found.notes
    assert len(found.faults) == 1 and found.faults[0].endswith("the folder was renamed"), "the copy is no encoder"


def test_an_embedding_with_a_row_too_many_is_found(own_bare: Path) -> None:
    path = vectors(unpublish(own_bare), "photometry")
    shutil.rmtree(own_bare / "index")
    table = store.open_table(path).to_table()
    rewrite(path, pa.concat_tables([table, table.slice(0, 1)]))
    told = check(own_bare).faults
    assert told[0] == f"{path.stem}: 61 rows, the sources 60"
    assert told[1].startswith(f"{path.stem}: ") and len(told) == 2  # its last row is 0, or lies beyond the sources


def test_an_index_of_other_vectors_rows_or_revision_is_found(own_bare: Path) -> None:
    layout = unpublish(own_bare)
    folder = layout.index("photometry", layout.newest("photometry"), 60)
    name, path = f"index/{folder.parent.name}", vectors(layout, "photometry")
    kept = json.loads((folder / "manifest.json").read_text())
    whole = store.open_table(path).to_table()
    for key, value, line in (
        ("revision", "0" * 12, f"its manifest says revision {'0' * 12}, the embedding {kept['revision']}"),
        ("dim", 7, f"its manifest says dim 7, the embedding {kept['dim']}"),
        ("rows", 59, "its manifest says rows 59, the embedding 60: run `redshelf index --encoder photometry`"),
        ("vectors", 59, "holds 59 vectors, and 60 of the embedding are not zero"),
    ):
        write_json(folder / "manifest.json", {**kept, key: value})
        assert check(own_bare).faults == [f"{name}: {line}"]
    write_json(folder / "manifest.json", kept)
    plant(path, "vector", put((5, 0), 77))
    assert check(own_bare).faults == [f"{name}: vector is not that of the embedding: row 5"]
    rewrite(path, whole)
    flip(folder / "vectors.faiss", 100, 0)
    assert check(own_bare).faults == [f"{name}/60/vectors.faiss: sha256 differs from the manifest"]


def test_an_encoder_that_is_not_its_revision_or_not_there_is_found(own_bare: Path) -> None:
    layout = unpublish(own_bare)
    folder = layout.model("photometry", layout.newest("photometry"))
    config = json.loads((folder / "config.json").read_text())
    write_json(folder / "config.json", {**config, "config": {**config["config"], "more": 1}})
    told = check(own_bare).faults
    assert len(told) == 1 and told[0].startswith(f"models/{folder.name}: weights and config hash to revision ")
    write_json(folder / "config.json", config)
    folder.rename(layout.models / "photometry.0123456789ab")
    assert check(own_bare).faults == [
        f"embeddings.{folder.name}: no model {folder.name} on this shelf has made it",
        f"models/photometry.0123456789ab: holds encoder {folder.name}: the folder was renamed",
    ]


@pytest.mark.parametrize(
    ("array", "change", "what"),
    [
        ("ra", put(8, 1.5), "columns/1: ra is not that of the sources: row 8"),
        ("flux", put((8, 1), 1.5), "columns/1: flux is not that of the sources: row 8"),
        ("tile", put(8, b"elsewhere"), "columns/1: tile is not that of the sources: row 8"),
        ("ids_order", swap, "columns/1: ids_order is not where the id stands: row 3 and 1 more"),
        ("ids_order", put(8, 300), "columns/1: ids_order lies outside the table: row 8"),
        ("ids_sorted", put(8, b"zzz"), "columns/1: ids_sorted does not ascend: row 8"),
        ("z_spec", put(0, 0.5), "columns/1: z_spec is not that of the labels: row 0"),
    ],
)
def test_columns_that_contradict_the_tables_are_found(own_shelf: Path, array: str, change: Change, what: str) -> None:
    path = own_shelf / "columns" / "1" / f"{array}.npy"
    values = np.load(path)
    change(values)
    np.save(path, values)
    sign(own_shelf)
    told = check(own_shelf).faults
    assert what in told
    assert all(line.startswith("columns/1: ") for line in told)


def test_columns_of_another_length_or_missing_ones_are_found(own_shelf: Path) -> None:
    folder = own_shelf / "columns" / "1"
    np.save(folder / "flags.npy", np.load(folder / "flags.npy")[:-1])
    (folder / "dec.npy").unlink()
    sign(own_shelf)
    assert check(own_shelf).faults == [
        "columns/1/dec.npy: missing",
        "columns/1/flags.npy: 299 rows, expected 300",
    ]


def test_a_version_without_its_tag_checksum_or_rows_is_found(own_bare: Path) -> None:
    published = generation.read(Layout(own_bare))
    tag = own_bare / "sources.lance" / "_refs" / "tags" / "generation-1.json"
    data = next(name for name in published.files if name.startswith("sources.lance/data/"))
    tables = {**published.tables, "sources": published.tables["sources"].model_copy(update={"rows": 61})}
    tag.unlink()
    sign(own_bare, tables=tables)
    files = {k: v for k, v in generation.read(Layout(own_bare)).files.items() if k != data}
    generation.write(Layout(own_bare), published.model_copy(update={"tables": tables, "files": files}))
    assert check(own_bare).faults == [
        "sources: 60 rows in version 1, generation 1 has 61",
        f"{data}: generation 1 has no checksum of it",
        "sources: tag generation-1 is at version None, expected 1: a clean-up may remove it",
        f"{vectors(Layout(own_bare), 'photometry').stem}: 60 rows in generation 1, its sources 61",
    ]


def test_a_flipped_bit_in_the_generation_itself_is_found_and_never_served(own_bare: Path) -> None:
    path, rng = own_bare / "generations" / "1.json", np.random.default_rng(1)
    blob = path.read_bytes()
    for byte in rng.integers(len(blob), size=200):
        flip(path, int(byte), int(rng.integers(8)))
        with pytest.raises(BadInput):
            generation.read(Layout(own_bare))
        path.write_bytes(blob)
    flip(path, len(blob) // 2, 0)
    found = check(own_bare)
    assert len(found.faults) == 1 and found.faults[0].startswith("generations/1.json: ")
    with pytest.raises(BadInput):
        open_shelf(own_bare)


def test_an_older_generation_is_checked_where_all_are_asked_for(own_bare: Path) -> None:
    assert publish(own_bare).number == 2
    path = own_bare / "columns" / "1" / "ra.npy"
    flip(path, 200, 0)
    assert check(own_bare).faults == []
    found = check(own_bare, every=True)
    assert found.faults == ["generation 1: columns/1/ra.npy: sha256 differs from the manifest"]
    assert found.generations == [1, 2]
    flip(path, 200, 0)
    assert check(own_bare, every=True).faults == []


def test_a_version_that_is_published_and_no_longer_the_newest_is_checked_too(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    whole = store.open_table(layout.labels).to_table()
    store.replace_table(layout.labels, whole.set_column(0, whole.schema.field(0), pa.array([300, *range(239)])))
    assert check(own_shelf).faults == ["labels: label outside the 300 sources: row 300"]
    store.replace_table(layout.labels, whole.slice(0, 10))
    assert check(own_shelf).faults == [], "the labels of the generation are as they were"


def test_a_shelf_where_nothing_is_published_is_checked_in_structure_and_says_so(own_bare: Path) -> None:
    unpublish(own_bare)
    found = check(own_bare)
    assert found.faults == []
    assert found.notes == [
        "nothing is published: only the files of large tables have checksums, the rest was checked in structure"
    ]
    assert found.files == 2 and found.tables["sources"] == 60


def test_a_folder_that_is_no_shelf_is_refused_and_an_empty_shelf_is_a_fault(own_bare: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is not a shelf"):
        check(tmp_path)
    for path in [*unpublish(own_bare).root.glob("*.lance"), own_bare / "index"]:
        shutil.rmtree(path)
    assert check(own_bare).faults == ["sources: there is no such table: run `redshelf ingest SURVEY.toml`"]


@pytest.mark.parametrize("where", ["data", "manifest", "panic", "column"])
def test_a_table_that_lance_cannot_read_is_a_fault_that_names_it(own_bare: Path, where: str) -> None:
    layout = unpublish(own_bare)
    path = vectors(layout, "photometry")
    if where == "column":
        rewrite(path, store.open_table(path).to_table().drop_columns(["row"]))
    else:
        target = next(path.glob("data/*" if where == "data" else "_versions/*.manifest"))
        blob = bytearray(target.read_bytes())
        if where == "panic":  # the place of the manifest in the file, which ends in it, two versions and a word
            blob[-16:-8] = (7).to_bytes(8, "little")
            blob[4:12] = b"\xff" * 8
        target.write_bytes(blob if where == "panic" else blob[: len(blob) // 2])
    told = check(own_bare).faults
    assert len(told) == 1 and told[0].startswith(f"{path.stem}{'.lance/data/' if where == 'data' else ': '}"), told


@pytest.mark.parametrize(
    "name", ["shelf.toml", "generations/1.json", "models/{}/config.json", "index/{}/60/manifest.json"]
)
@pytest.mark.parametrize("content", [b"", b"[1]", b"\xff\xfe{"])
def test_a_document_that_cannot_be_read_is_a_fault_that_names_it(own_bare: Path, name: str, content: bytes) -> None:
    layout = Layout(own_bare)
    folder = f"photometry.{layout.newest('photometry')}"
    if not name.startswith("generations"):
        unpublish(own_bare)
    (own_bare / name.format(folder)).write_bytes(content)
    told = check(own_bare).faults
    assert len(told) == 1 and told[0].startswith(
        name.format(folder).removesuffix("/config.json").removesuffix("/60/manifest.json")
    ), told


@pytest.mark.parametrize("table", ["sources", "cutouts"])
def test_wherever_a_manifest_is_damaged_a_table_that_lance_cannot_read_is_named(own_shelf: Path, table: str) -> None:
    path = unpublish(own_shelf).table(table)
    shutil.rmtree(own_shelf / "index")
    target = next(path.glob("_versions/*.manifest"))
    blob, unread = target.read_bytes(), 0
    for byte in range(0, len(blob), len(blob) // 40):
        flip(target, byte, 6)
        try:
            store.open_table(path).to_table()
        except BaseException:  # Lance's panics are no Exception
            unread += 1
            told = check(own_shelf).faults
            assert len(told) == 1 and told[0].startswith(f"{table}: "), told
        target.write_bytes(blob)
    assert unread > 3


def test_leftovers_of_killed_runs_are_notes(own_bare: Path) -> None:
    layout = Layout(own_bare)
    receipts = layout.work("embed.vit.0123456789ab.0-60.16")
    for part in (0, 1):
        write_json(receipts / f"part-{part:06d}.json", {"part": part})
    (layout.sources / "data" / "orphan.lance").write_bytes(b"x" * 1234)
    (layout.table("embeddings.vit.0123456789ab") / "data").mkdir(parents=True)
    (layout.table("embeddings.vit.0123456789ab") / "data" / "part.lance").write_bytes(b"x" * 10)
    (layout.models / ".vit.abc").mkdir()
    (layout.models / ".vit.abc" / "weights.safetensors").write_bytes(b"12345")
    size = sum(path.stat().st_size for path in receipts.iterdir())
    found = check(own_bare)
    assert found.faults == []
    assert found.notes == [
        f"work/{receipts.name}: 2 files, {size} bytes, 2 of them receipts of parts, of a run that has not ended",
        "1 file, 5 bytes with temporary names, the first is models/.vit.abc/weights.safetensors",
        "embeddings.vit.0123456789ab: 1 file, 10 bytes of data that no version refers to",
        "sources: 1 file, 1,234 bytes of data that no version refers to",
    ]


def test_equal_hashes_of_different_ids_are_no_fault(bare_shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_hashes", lambda ids: np.zeros(len(ids), dtype=np.uint64))
    assert check(bare_shelf).faults == []


def test_a_position_at_the_edge_of_its_pixel_may_be_rounded_either_way() -> None:
    from redshelf.indexing.catalogue import healpix29

    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    arcsec = 1 / 3600
    near = faults._misplaced(ra, dec, healpix29(ra, np.clip(dec + 0.0003 * arcsec, -90, 90)))
    far = faults._misplaced(ra, dec, healpix29(ra, np.clip(dec - 0.01 * arcsec, -90, 90)))
    assert not near.any() and far.all()


def test_progress_is_shown_where_asked_for_and_only_when_it_lasts(
    bare_shelf: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(bare_shelf, progress=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("redshelf.service.check.QUIET_S", 0.0)
    check(bare_shelf)
    assert capsys.readouterr().err == ""
    check(bare_shelf, progress=True)
    shown = capsys.readouterr().err
    assert "check files" in shown and "check sources" in shown


def test_the_command_prints_a_line_a_fault_and_exits_with_1(own_bare: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--shelf", str(own_bare)]) == 0
    assert capsys.readouterr().out.endswith("60 rows of sources, 1 models: no fault\n")
    flip(own_bare / "columns" / "1" / "ra.npy", 200, 0)
    (own_bare / "columns" / "1" / "dec.npy").unlink()
    layout = Layout(own_bare)
    write_json(layout.work("job") / "part-000000.json", {})
    assert main(["check", "--all", "--shelf", str(own_bare)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "columns/1/dec.npy: missing",
        "columns/1/ra.npy: sha256 differs from the manifest",
        "note: work/job: 1 file, 3 bytes, 1 of them receipts of parts, of a run that has not ended",
    ]
    assert main(["check", "--json", "--shelf", str(own_bare)]) == 1
    told = json.loads(capsys.readouterr().out)
    assert len(told["faults"]) == 2 and len(told["notes"]) == 1 and told["generations"] == [1]

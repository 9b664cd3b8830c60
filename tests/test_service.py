"""The use cases on a small real shelf: redshifts, publishing, checking, embedding that survives a kill."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from redshelf.indexing import ann, generation, store
from redshelf.indexing import embed as bulk
from redshelf.indexing.files import alone
from redshelf.indexing.layout import Layout
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.service.check import check
from redshelf.service.embedding import embed, find_encoder
from redshelf.service.fit import fit, read_labels
from redshelf.service.index import build_index
from redshelf.service.publish import publish
from redshelf.service.redshift import estimate, redshift_of_vector, redshifts
from redshelf.service.shelf import OpenShelf, open_shelf
from redshelf.service.sources import source


def test_a_redshift_answer_is_consistent(shelf: OpenShelf) -> None:
    for estimator in ("knn", "lightgbm"):
        answer = redshifts(shelf, ["s0004"], encoder="photometry", estimator=estimator)[0]
        assert answer.pdf is not None and answer.interval_95 is not None
        width = np.diff(answer.pdf.z)
        assert np.sum(width * answer.pdf.density) == pytest.approx(1)
        ordered = [answer.interval_95[0], answer.z_q16, answer.z_median, answer.z_q84, answer.interval_95[1]]
        assert ordered == sorted(ordered)  # type: ignore[type-var]
        assert (answer.estimator, answer.encoder, answer.generation) == (estimator, "photometry", 1)


def test_a_labelled_source_is_not_its_own_neighbour(shelf: OpenShelf) -> None:
    opened = shelf.redshift("photometry")
    rows = opened.label_rows[:50]
    prediction = estimate(opened, rows, estimator="knn")
    assert not (opened.label_rows[prediction.neighbours] == rows[:, None]).any()
    vector = opened.features(rows[:1])
    seen = opened.model.predict(vector, estimator="knn")
    assert (opened.label_rows[seen.neighbours] == rows[0]).any(), "a foreign vector at that place does see it"


def test_a_star_and_a_masked_source_get_no_redshift_and_the_reason(shelf: OpenShelf) -> None:
    star, galaxy = redshifts(shelf, ["s0049", "s0048"])
    assert star.z_median is None and star.pdf is None and not star.support.in_support
    assert "star" in star.support.reasons[0]
    assert galaxy.z_median is not None
    assert np.isnan(shelf.columns["z_phot"][shelf.row("s0049")])
    assert not np.isin(shelf.row("s0049"), shelf.redshift().label_rows), "stars are no labels for galaxies"


def test_the_redshift_of_a_stored_vector_needs_its_own_encoder(shelf: OpenShelf) -> None:
    vector = shelf.encoder("vit").vectors(np.array([shelf.row("s0004")]))[0]
    by_vector = redshift_of_vector(shelf, vector, encoder="vit", estimator="knn")
    assert by_vector.source_id is None
    assert by_vector.z_median == pytest.approx(redshifts(shelf, ["s0004"], encoder="vit", estimator="knn")[0].z_median)
    with pytest.raises(BadInput, match="does not fit estimator 'photometry'"):
        redshift_of_vector(shelf, vector, encoder="photometry")


def test_wrong_names_and_too_many_ids_are_refused(shelf: OpenShelf) -> None:
    with pytest.raises(NotFound, match="no estimator 'kn' on encoder photometry; nearest: knn"):
        redshifts(shelf, ["s0001"], encoder="photometry", estimator="kn")
    with pytest.raises(NotFound, match="no redshift estimator on encoder 'clip'"):
        redshifts(shelf, ["s0001"], encoder="clip")
    with pytest.raises(BadInput, match="1001 ids: expected 1 to 1000"):
        redshifts(shelf, ["s0001"] * 1001)


def test_a_band_that_was_not_observed_is_told_apart(shelf: OpenShelf) -> None:
    states = {p.band: p.state for p in source(shelf, "s0000").photometry}
    assert states["g"] == "not_observed" and states["i"] == "measured"
    assert source(shelf, "s0000").photometry[0].flux_ujy is None


def test_publish_writes_a_new_generation_and_leaves_the_old_one_readable(own_shelf: Path) -> None:
    second = publish(own_shelf, default_encoder="photometry", default_estimator="knn")
    assert (second.number, second.default_encoder, second.default_estimator) == (2, "photometry", "knn")
    assert open_shelf(own_shelf).generation == second
    assert open_shelf(own_shelf, 1).generation.number == 1
    assert check(own_shelf).faults == []
    with pytest.raises(NotFound, match="no indexed encoder 'clip'"):
        publish(own_shelf, default_encoder="clip")
    assert generation.numbers(Layout(own_shelf)) == [1, 2]


def test_the_default_encoder_is_the_first_fitted_one_that_needs_pixels(shelf: OpenShelf) -> None:
    assert shelf.generation.default_encoder == "vit"
    assert shelf.generation.default_redshift in ("photometry", "vit")


def test_z_phot_of_every_source_is_what_the_default_estimator_answers(shelf: OpenShelf) -> None:
    ids = [shelf.source_id(row) for row in range(40)]
    answers = redshifts(shelf, ids)
    expected = [np.nan if a.z_median is None else a.z_median for a in answers]
    assert np.allclose(shelf.columns["z_phot"][:40], expected, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("part", ["model.npz", "vectors.faiss", "weights.safetensors", "z_phot.npy", "shelf.toml"])
def test_a_flipped_bit_is_found_by_check_and_never_served(own_shelf: Path, part: str) -> None:
    names = generation.read(Layout(own_shelf)).files
    path = own_shelf / next(name for name in names if name.endswith(part))
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 1
    path.write_bytes(bytes(blob))
    assert len(check(own_shelf).faults) == 1 and part in check(own_shelf).faults[0]
    with pytest.raises((Conflict, BadInput), match="damaged"):
        open_shelf(own_shelf)


def test_a_flipped_bit_in_a_lance_file_is_found_by_check(own_shelf: Path) -> None:
    names = generation.read(Layout(own_shelf)).files
    for name in (n for n in names if "/data/" in n):
        blob = bytearray((own_shelf / name).read_bytes())
        blob[len(blob) // 2] ^= 4
        (own_shelf / name).write_bytes(bytes(blob))
        assert any(name in line for line in check(own_shelf).faults)
        blob[len(blob) // 2] ^= 4
        (own_shelf / name).write_bytes(bytes(blob))
    assert check(own_shelf).faults == []


def test_embedding_again_changes_nothing_and_an_unknown_encoder_is_named(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    before = store.open_table(layout.embeddings("vit", layout.newest("vit"))).version
    assert embed(own_shelf, encoder="vit") == (layout.newest("vit"), 300)
    assert store.open_table(layout.embeddings("vit", layout.newest("vit"))).version == before
    with pytest.raises(NotFound, match="no encoder 'vitt' on this shelf; nearest: vit"):
        embed(own_shelf, encoder="vitt")
    with pytest.raises(NotFound, match="no encoder 'clip'"):
        fit(own_shelf, encoder="clip")


def test_an_encoder_whose_weights_were_altered_is_refused(own_shelf: Path) -> None:
    folder = next(Layout(own_shelf).models.glob("vit.*"))
    config = json.loads((folder / "config.json").read_text())
    config["config"]["cutout_px"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(BadInput, match="altered or damaged"):
        find_encoder(Layout(own_shelf), "vit")


def test_an_embedding_killed_between_parts_resumes_without_losing_or_doubling_a_row(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    revision = layout.newest("vit")
    whole = store.open_table(layout.embeddings("vit", revision)).to_table()
    shutil.rmtree(layout.embeddings("vit", revision))
    killed = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from redshelf.indexing import embed as bulk
        from redshelf.indexing.layout import Layout
        from redshelf.service.embedding import find_encoder
        layout = Layout(Path(sys.argv[1]))
        write, seen = bulk.write_part, []
        def write_part(*args, **kwargs):
            rows = write(*args, **kwargs)
            seen.append(rows)
            if len(seen) == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return rows
        bulk.write_part = write_part
        bulk.embed_all(layout, find_encoder(layout, "vit"), part_rows=40)
        """
    )
    links = str(Path(__file__).parent / "links")
    environment = {**os.environ, "PYTHONPATH": links}
    process = subprocess.run([sys.executable, "-c", killed, str(own_shelf)], env=environment, check=False)
    assert process.returncode == -9
    assert store.count_rows(layout.embeddings("vit", revision)) == 0, "nothing is visible before the commit"
    assert len(list(layout.work(f"embed.vit.{revision}").glob("*/part-*.json"))) == 4
    assert bulk.embed_all(layout, find_encoder(layout, "vit"), part_rows=40) == 300
    again = store.open_table(layout.embeddings("vit", revision)).to_table()
    assert again["row"].to_pylist() == list(range(300))
    # another batch size means another order of sums in bfloat16: equal to its precision
    assert np.allclose(store.list_values(again["vector"]), store.list_values(whole["vector"]), atol=0.05, rtol=0.02)


def test_a_second_embedding_at_the_same_time_says_so(own_shelf: Path) -> None:
    from filelock import FileLock

    layout = Layout(own_shelf)
    encoder = find_encoder(layout, "vit")
    with (
        FileLock(str(layout.work(f"embed.vit.{encoder.revision}.lock"))),
        pytest.raises(Conflict, match="another run is embedding vit"),
    ):
        bulk.embed_all(layout, encoder)


def test_a_shelf_without_labels_says_what_to_do(bare_shelf: Path) -> None:
    with pytest.raises(NotFound, match=r"has no labels: add a \[\[labels\]\] section"):
        read_labels(Layout(bare_shelf))
    opened = open_shelf(bare_shelf)
    assert opened.generation.default_redshift is None
    with pytest.raises(NotFound, match="run `redshelf fit`"):
        redshifts(opened, [opened.source_id(0)])


def test_an_index_older_than_the_shelf_is_not_built(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    store.replace_table(
        layout.embeddings("vit", layout.newest("vit")),
        store.open_table(layout.sources).to_table(columns=["row"]).slice(0, 5),
    )
    with pytest.raises(Conflict, match="has 5 rows, the shelf 300"):
        build_index(own_shelf, encoder="vit")


def test_a_source_on_no_tile_is_kept_but_never_found_by_its_pixels(tmp_path: Path) -> None:
    import small_survey
    from astropy.table import Table

    from redshelf.service.ingest import ingest
    from redshelf.service.search import neighbours
    from redshelf.service.training import Run, pretrain

    survey = small_survey.write(tmp_path, sources=150)
    table = Table.read(tmp_path / "catalogue.fits")
    table["DEC"][7] += 3.0
    table.write(tmp_path / "catalogue.fits", overwrite=True)
    root = tmp_path / "shelf"
    assert ingest(survey, root).sources_on_no_tile == 1
    pretrain(root, name="vit", run=Run(steps=1))
    for encoder in ("photometry", "vit"):
        embed(root, encoder=encoder)
        build_index(root, encoder=encoder)
        fit(root, encoder=encoder)
    publish(root, default_encoder="vit")
    opened = open_shelf(root)
    assert opened.encoder("vit").index.known.sum() == 149
    answer = neighbours(opened, "s0008", encoder="vit", k=149)
    assert answer.n_matching == 148 == len(answer.neighbours)
    assert "s0007" not in {n.source_id for n in answer.neighbours}
    with pytest.raises(BadInput, match="'s0007' has no vector by vit"):
        neighbours(opened, "s0007", encoder="vit")
    unseen = redshifts(opened, ["s0007"], encoder="vit")[0]
    assert unseen.z_median is None and "no band of it was observed" in unseen.support.reasons[0]
    assert redshifts(opened, ["s0007"], encoder="photometry")[0].z_median is not None
    assert check(root).faults == []


def test_the_same_fit_again_leaves_what_is_published_as_it_is(own_shelf: Path) -> None:
    fit(own_shelf, encoder="photometry")
    assert check(own_shelf).faults == []
    assert open_shelf(own_shelf).generation.number == 1


def test_an_encoder_alone_is_opened_without_the_others(own_shelf: Path) -> None:
    whole = open_shelf(own_shelf)
    assert set(whole.encoders) == set(whole.redshifts) == {"photometry", "vit"}
    (file,) = own_shelf.glob(f"index/vit.*/*/{ann.VECTORS}")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    for encoders in (None, ["vit"]):
        with pytest.raises(Conflict, match=r"is damaged: index/vit\."):
            open_shelf(own_shelf, encoders=encoders)
    alone = open_shelf(own_shelf, encoders=["photometry"])
    assert set(alone.encoders) == set(alone.redshifts) == {"photometry"}
    assert redshifts(alone, ["s0004"], encoder="photometry") == redshifts(whole, ["s0004"], encoder="photometry")
    assert set(open_shelf(own_shelf, encoders=["vit"], hashes=False).encoders) == {"vit"}, "sizes are as published"


def test_a_fit_on_labels_that_have_changed_since_is_not_published(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    labels = store.open_table(layout.labels).to_table()
    store.replace_table(layout.labels, labels.slice(1))
    with pytest.raises(
        Conflict, match=r"labels have changed .* run `redshelf fit --encoder photometry`, `redshelf fit"
    ):
        publish(own_shelf)
    fit(own_shelf, encoder="photometry")
    assert [f.encoder for f in publish(own_shelf).redshifts] == ["photometry"]


def test_an_agn_gets_no_photo_z_and_its_redshift_says_why(own_shelf: Path) -> None:
    import pyarrow as pa

    layout = Layout(own_shelf)
    labels = store.open_table(layout.labels).to_table()
    row = labels["row"][0].as_py()
    classes = ["agn", *labels["object_class"].to_pylist()[1:]]
    at = labels.schema.get_field_index("object_class")
    store.replace_table(layout.labels, labels.set_column(at, "object_class", pa.array(classes)))
    fit(own_shelf, encoder="photometry")
    publish(own_shelf)
    opened = open_shelf(own_shelf)
    assert np.isnan(opened.columns["z_phot"][row]) and row not in opened.redshift().label_rows
    answer = redshifts(opened, [opened.source_id(row)])[0]
    assert not answer.support.in_support and "AGN" in answer.support.reasons[0]


def test_an_encoder_of_another_version_of_its_code_is_refused(own_shelf: Path) -> None:
    from redshelf.models import checkpoint

    folder = next(Layout(own_shelf).models.glob("vit.*"))
    document = json.loads((folder / "config.json").read_text())
    document["config"]["centre"] = 0.5
    blob = (folder / "weights.safetensors").read_bytes()
    document["revision"] = checkpoint.revision_of(document["kind"], document["config"], blob)
    (folder / "config.json").write_text(json.dumps(document))
    with pytest.raises(BadInput, match="made by another version of redshelf"):
        checkpoint.load(folder)


def test_a_half_written_encoder_of_a_killed_run_is_not_listed(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    before = layout.encoders()
    shutil.copytree(next(layout.models.glob("vit.*")), layout.models / ".vit.killed")
    assert layout.encoders() == before


def test_a_tag_left_by_a_killed_publish_moves_to_what_is_published(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    store.tag(store.open_table(layout.labels), "generation-2")
    store.replace_table(layout.labels, store.open_table(layout.labels).to_table())
    fit(own_shelf, encoder="photometry")
    written = publish(own_shelf)
    tags = store.open_table(layout.labels).tags.list()
    assert tags["generation-2"]["version"] == written.tables["labels"].version


def test_a_band_absent_for_half_the_sources_and_cutouts_of_nan_are_embedded_or_left_out(tmp_path: Path) -> None:
    import small_survey
    from astropy.io import fits

    from redshelf.service.ingest import ingest
    from redshelf.service.training import Run, pretrain

    survey = small_survey.write(tmp_path, sources=150)
    for band in small_survey.BANDS:
        with fits.open(tmp_path / "mosaics" / band / "t0.fits", mode="update") as units:
            units[0].data[:100] = np.nan  # two rows of sources have no pixel in any band
            if band == "g":
                units[0].data[:, : units[0].data.shape[1] // 2] = np.nan
    root = tmp_path / "shelf"
    ingest(survey, root)
    pretrain(root, name="vit", run=Run(steps=20, batch_size=2))  # some batches would hold none that can be seen
    embed(root, encoder="vit")
    build_index(root, encoder="vit")
    publish(root)
    opened = open_shelf(root)
    states = store.list_values(store.open_table(Layout(root).cutouts).to_table()["state"])
    unseen = (states == 0).all(axis=1)
    assert 10 <= unseen.sum() <= 30 and 0.4 < (states[:, 0] == 0).mean() < 0.7
    assert (opened.encoder("vit").index.known[~unseen]).all()
    assert np.isfinite(opened.encoder("vit").index.take(slice(None))).all()


def test_a_second_build_at_the_same_time_is_refused(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    revision = layout.newest("vit")
    before = json.dumps(ann.read_manifest(layout.index("vit", revision, 300)))
    with (
        alone(layout.work(f"index.vit.{revision}.lock"), "held by this test"),
        pytest.raises(Conflict, match="another process builds the index of vit"),
    ):
        build_index(own_shelf, encoder="vit")
    assert json.dumps(ann.read_manifest(layout.index("vit", revision, 300))) == before


def test_an_index_that_is_served_is_left_as_it_is(own_shelf: Path) -> None:
    layout = Layout(own_shelf)
    revision = layout.newest("vit")
    folder = layout.index("vit", revision, 300)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert build_index(own_shelf, encoder="vit") == (revision, ann.read_manifest(folder))
    with pytest.raises(Conflict, match=r"generation 1 serves the index in .* remove .*1\.json first"):
        build_index(own_shelf, encoder="vit", recall=0.9)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    (folder / ann.VECTORS).write_bytes(before[ann.VECTORS][:-4])  # damaged: made anew, to the bit
    build_index(own_shelf, encoder="vit")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    open_shelf(own_shelf)

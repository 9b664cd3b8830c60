"""Every encoder through the command line on one small shelf: trained, embedded, indexed, published, asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_survey
import tiny_foundation

from redshelf.api.cli import main
from redshelf.indexing import store
from redshelf.indexing.layout import Layout
from redshelf.models import checkpoint, specialise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # the shelf of all encoders is made once
FEW = ("--steps", "2", "--batch-size", "32")
TRAININGS: dict[str, tuple[str, ...]] = {
    "masked": ("pretrain", *FEW),
    "contrastive": ("pretrain", "--objective", "contrastive", "--patch-px", "16", *FEW),
    "semi": ("pretrain", "--with-redshifts", *FEW),
    "network": ("train", "--model", "network", "--steps", "20"),
    "direct": ("train", "--model", "vit", *FEW),
    "cnn": ("train", "--model", "cnn", "--width", "0.125", "--imbalance", "logit", *FEW),
    "multi": ("train", "--model", "multimodal-cnn", "--width", "0.125", *FEW),
    "both": ("train", "--model", "vit", "--photometry", "--loss", "regression", "--imbalance", "density", *FEW),
    "probe": ("train", "--from", "masked", "--mode", "probe", "--steps", "20"),
    "tuned": ("train", "--from", "masked", "--mode", "finetune", *FEW),
    "clap": ("train", "--from", "contrastive", "--mode", "contrastive", *FEW),
}
HUB = {
    "dino": (),
    "dinov2": ("--pca", "8"),
    "dinov3": ("--with-photometry",),
    "clip": ("--space", "projected", "--input-px", "64"),
}


def run(shelf: Path, command: str, *options: str) -> int:
    return main([command, "--shelf", str(shelf), *options])


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shelf with every encoder there is."""
    folder = tmp_path_factory.mktemp("encoders")
    root = folder / "shelf"
    survey = small_survey.write(folder / "survey", sources=150)
    assert main(["ingest", str(survey), "--shelf", str(root)]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(specialise, "FIRST_STEPS", 50)  # a few, as of the stage after it
        for name, (command, *options) in TRAININGS.items():
            assert run(root, command, "--name", name, *options) == 0, name
            assert run(root, "embed", "--encoder", name) == 0, name
    for name, hub_options in HUB.items():
        getattr(tiny_foundation, name)(folder / "hub" / name)
        assert run(root, "embed", "--encoder", name, "--weights", str(folder / "hub" / name), *hub_options) == 0, name
    return root


def vectors(shelf: Path, name: str) -> Any:
    layout = Layout(shelf)
    table = store.open_table(layout.embeddings(name, layout.newest(name))).to_table()
    return store.list_values(table["vector"])


@pytest.mark.parametrize("name", [*TRAININGS, *HUB])
def test_every_source_with_a_band_has_a_vector_and_each_its_own(shelf: Path, name: str) -> None:
    found = vectors(shelf, name).astype(np.float64)
    assert len(found) == 150
    assert np.isfinite(found).all()
    assert (found != 0).any(axis=1).all()
    assert len(np.unique(found, axis=0)) > 140


@pytest.mark.parametrize("name", list(TRAININGS))
def test_a_training_leaves_its_log_its_curves_and_where_the_weights_come_from(shelf: Path, name: str) -> None:
    layout = Layout(shelf)
    folder = layout.model(name, layout.newest(name))
    rows = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    assert rows[-1]["progress"] == 1
    assert (folder / "training.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    provenance = checkpoint.provenance(folder)
    assert provenance["steps"] >= rows[-1]["step"] == provenance["run"]["steps"]
    assert provenance["made_by"]["torch"]
    assert not layout.work(f"train.{name}").exists()


def test_where_the_weights_come_from_is_told_by_the_served_shelf(shelf: Path) -> None:
    from redshelf.models.whole import sha256
    from redshelf.service.settings import load
    from redshelf.service.shelf import open_shelf
    from redshelf.service.sources import describe

    for name in ("network", "tuned", "dinov2"):
        assert run(shelf, "index", "--encoder", name) == 0
    assert run(shelf, "publish", "--default-encoder", "tuned") == 0
    told = {encoder.name: encoder for encoder in describe(open_shelf(shelf), load(environ={}, shelf=shelf)).encoders}
    digest = sha256(shelf.parent / "hub" / "dinov2" / "model.safetensors")
    assert told["dinov2"].weights == f"dinov2 dinov2, sha256 {digest}"
    assert told["dinov2"].dim == 8
    assert told["network"].needs == ["fluxes"]
    assert told["tuned"].needs == ["pixels"]
    assert "finetune on " in told["tuned"].weights
    assert "masked pretraining on 150 sources" in told["tuned"].weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pretrain", "--name", "Bad Name"), "encoder name 'Bad Name'"),
        (("pretrain", "--name", "x", "--size", "huge"), "size 'huge' of a vit"),
        (("train", "--name", "x", "--from", "network"), "cannot be specialised"),
        (("train", "--name", "x", "--from", "nothing"), "no encoder 'nothing'"),
        (("train", "--name", "x", "--model", "vit", "--mode", "probe"), "is for an encoder to start from"),
        (("train", "--name", "x", "--model", "vit", "--imbalance", "density"), "density"),
        (("embed", "--encoder", "dinov9", "--weights", "/nowhere/dino"), "/nowhere/dino"),
        (("embed", "--encoder", "masked", "--pca", "8"), "go with the folder of its weights"),
        (("pretrain", "--name", "x", "--steps", "1", "--batch-size", "32", "--micro-batches", "5"), "micro_batches=5"),
        (("pretrain", "--name", "x", "--steps", "0"), "steps=0"),
        (("pretrain", "--name", "x", "--seed", "-1"), "seed=-1"),
        (("pretrain", "--name", "x", "--device", "gpu"), "device 'gpu' cannot be used here"),
        (("pretrain", "--name", "photometry"), "'photometry' is taken"),
        (("train", "--name", "x", "--from", "masked", "--size", "tiny"), "size=tiny means nothing for a start"),
        (("train", "--name", "x", "--model", "vit", "--width", "0.5"), "width=0.5 means nothing for model 'vit'"),
        (("train", "--name", "x", "--model", "network", "--photometry"), "photometry=True means nothing"),
        (("embed", "--encoder", "masked", "--batch-size", "0"), "batch_size=0"),
        (("embed", "--encoder", "masked", "--weights", __file__), "is a file"),
        (("embed", "--encoder", "photometry", "--weights", "{hub}/dinov2"), "'photometry' is taken"),
        (("embed", "--encoder", "masked", "--weights", "{hub}/dinov2"), "of kind vit, and this one is foundation"),
        (("embed", "--encoder", "x", "--weights", "{hub}/clip", "--space", "projected", "--pca", "4"), "--pca"),
        (("train", "--name", "x", "--model", "vit", "--steps", "3", "--micro-batches", "53"), "micro_batches=53"),
        (("train", "--name", "x", "--from", "masked", "--micro-batches", "53"), "micro_batches=53"),
    ],
)
def test_bad_input_is_one_clear_line_and_stores_nothing(
    shelf: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in Layout(shelf).models.iterdir())
    assert run(shelf, *(argument.replace("{hub}", str(shelf.parent / "hub")) for argument in arguments)) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in Layout(shelf).models.iterdir()) == before
    assert not Layout(shelf).work("train.x").exists()


def test_an_encoder_of_bands_that_are_not_here_leaves_nothing(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "shelf"
    survey = small_survey.write(tmp_path / "survey", sources=60)
    survey.write_text(survey.read_text().replace('name = "g"', 'name = "v"'))
    for folder in (tmp_path / "survey" / "mosaics").glob("g"):
        folder.rename(folder.with_name("v"))
    assert main(["ingest", str(survey), "--shelf", str(root)]) == 0
    layout = Layout(shelf)
    assert (
        run(root, "embed", "--encoder", "masked", "--weights", str(layout.model("masked", layout.newest("masked"))))
        == 1
    )
    assert "the encoder needs band 'g'; survey" in capsys.readouterr().err
    assert not Layout(root).encoders() and not list(root.glob("work/embed*/plan.json"))


def test_a_training_that_was_killed_is_told_by_status(shelf: Path, tmp_path: Path) -> None:
    from redshelf.service.status import status

    path = Layout(shelf).work("train.broken") / "checkpoint.safetensors"
    path.parent.mkdir()
    path.write_bytes(b"")
    assert "the end of training broken: it goes on, or goes on with the same command" in status(shelf).missing
    path.unlink()
    path.parent.rmdir()


@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -9), ("SIGTERM", 85), ("SIGUSR1", 85)])
def test_a_training_ended_by_a_signal_goes_on_and_ends_in_the_same_weights(shelf: Path, name: str, status: int) -> None:
    options = ["--name", f"kept-{name.lower()}", "--steps", "40", "--batch-size", "32", "--seed", "3"]
    options += ["--checkpoint-seconds", "0.2"]
    command = [sys.executable, "-m", "redshelf.api.cli", "pretrain", "--shelf", str(shelf), *options]
    layout = Layout(shelf)
    path = layout.work(f"train.kept-{name.lower()}") / "checkpoint.safetensors"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "links")}
    killed = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
    for _ in range(1200):
        if path.exists() or killed.poll() is not None:
            break
        time.sleep(0.05)
    killed.send_signal(getattr(signal, name))
    killed.communicate(timeout=60)
    assert killed.returncode == status
    assert path.exists()
    assert f"kept-{name.lower()}" not in layout.encoders()
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    whole = [*options[:1], f"whole-{name.lower()}", *options[2:]]
    assert run(shelf, "pretrain", *whole) == 0
    kept, uninterrupted = (
        checkpoint.load(layout.model(n, layout.newest(n))).weights()
        for n in (f"kept-{name.lower()}", f"whole-{name.lower()}")
    )
    for key, value in uninterrupted.items():
        np.testing.assert_allclose(kept[key].numpy(), value.numpy(), atol=1e-6, err_msg=key)


def test_two_processes_under_torchrun_train_what_one_does_with_as_many_micro_batches(shelf: Path) -> None:
    options = ["--steps", "3", "--batch-size", "32", "--micro-batches", "2", "--precision", "float32"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "links")}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    command += ["-m", "redshelf.api.cli", "pretrain", "--shelf", str(shelf), "--name", "two", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert run(shelf, "pretrain", "--name", "one", *options) == 0
    layout = Layout(shelf)
    two, one = (checkpoint.load(layout.model(n, layout.newest(n))).weights() for n in ("two", "one"))
    for key, value in one.items():
        np.testing.assert_allclose(two[key].numpy(), value.numpy(), atol=1e-4, err_msg=key)


def test_a_published_network_with_photometry_beside_is_specialised_on_what_it_embeds(shelf: Path) -> None:
    assert run(shelf, "train", "--name", "on-dinov3", "--from", "dinov3", "--mode", "probe", "--steps", "20") == 0
    layout = Layout(shelf)
    assert checkpoint.load(layout.model("on-dinov3", layout.newest("on-dinov3"))).needs == {"pixels", "fluxes"}


def test_two_trainings_of_one_name_do_not_share_a_checkpoint(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from redshelf.indexing.files import alone

    with alone(Layout(shelf).work("train.twice.lock"), "held by this test"):
        assert run(shelf, "pretrain", "--name", "twice", *FEW) == 1
    assert "another run is training 'twice'" in capsys.readouterr().err
    assert run(shelf, "pretrain", "--name", "twice", *FEW) == 0


def test_a_training_that_ends_in_an_older_encoder_says_so(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for steps, status in (("1", 0), ("2", 0), ("1", 1)):
        assert run(shelf, "pretrain", "--name", "again", "--batch-size", "32", "--steps", steps) == status
    assert "was on this shelf already" in capsys.readouterr().err


def test_an_encoder_whose_folder_was_renamed_is_refused(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    layout = Layout(shelf)
    shutil.copytree(layout.model("cnn", layout.newest("cnn")), layout.models / f"other.{layout.newest('cnn')}")
    assert run(shelf, "embed", "--encoder", "other") == 1
    assert "holds encoder 'cnn': its folder was renamed" in capsys.readouterr().err
    shutil.rmtree(layout.models / f"other.{layout.newest('cnn')}")

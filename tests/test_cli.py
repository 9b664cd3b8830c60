"""The command line: usage, exit status, and the same answers as over HTTP."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.dataset
import pytest

from redshelf.api.cli import main
from redshelf.api.parser import build_parser

if TYPE_CHECKING:
    from fastapi import FastAPI


@pytest.mark.parametrize(
    "command",
    ["simulate", "ingest", "delete", "pretrain", "train", "embed", "index", "fit", "publish", "serve", "keys", "search",
     "neighbours", "redshift", "targets", "map", "export", "check", "status", "demo"],
)  # fmt: skip
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert f"redshelf {command}" in capsys.readouterr().out


def test_every_command_of_the_parser_can_be_run() -> None:
    from redshelf.api.commands import RUN

    actions = [a for a in build_parser()._actions if a.choices]
    assert set(RUN) == set(actions[0].choices or ())


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["nothing"],
        ["search", "--id", "a", "--ra", "1", "--dec", "2"],
        ["search"],
        ["search", "--ra", "1"],
        ["search", "--id", "a", "--like", "b"],
        ["search", "--id", "a", "--unlike", "b"],
        ["search", "--like", "a", "--estimator", "knn"],
        ["search", "--text", "a", "--like", "b"],
        ["embed"],
        ["search", "--id", "a", "-k", "ten"],
        ["search", "--id", "a", "--json", "--estimator", "knn"],
        ["redshift", "--id", "a"],
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert "usage: redshelf" in capsys.readouterr().err


@pytest.mark.parametrize("question", [["--id", "a"], ["--ra", "1", "--dec", "2"], ["--text", "a"], ["--like", "a"]])
@pytest.mark.parametrize(
    "words", [["--bands", "g,r"], ["--unit", "noise"], ["--pixel-scale-arcsec", "0.2"], ["--ebv", "0"]]
)
def test_what_is_said_of_a_cutout_is_refused_without_one(
    question: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["search", *question, *words])
    assert stop.value.code == 2
    assert f"{words[0]} goes with --cutout" in capsys.readouterr().err


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("redshelf")


def test_a_known_fault_is_one_line_on_stderr_and_exit_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--shelf", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("redshelf status: ") and "is not a shelf" in err and err.count("\n") == 1


def test_search_prints_what_the_route_answers(tiny_shelf: Path, url: str, capsys: pytest.CaptureFixture[str]) -> None:
    import httpx

    route = httpx.get(f"{url}/v1/sources/s0007/neighbours", params={"k": 5}).json()
    assert main(["search", "--shelf", str(tiny_shelf), "--id", "s0007", "-k", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == route
    assert main(["search", "--url", url, "--id", "s0007", "-k", "5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == route


def test_search_prints_the_redshift_by_the_estimator_asked_for(
    tiny_shelf: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for where in (["--shelf", str(tiny_shelf)], ["--url", url]):
        for estimator in ("knn", "lightgbm"):
            assert main(["search", "--id", "s0007", "--estimator", estimator, *where]) == 0
            assert f"({estimator} on " in capsys.readouterr().out
        assert main(["search", "--id", "s0007", "--estimator", "crystal", *where]) == 1
        assert "no estimator 'crystal'" in capsys.readouterr().err


def test_a_redshift_by_position_needs_no_vector_of_the_default_encoder(
    tiny_shelf: Path, app: FastAPI, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redshelf.api.ask import OnDisk, OverHttp, Question

    disk = OnDisk(tiny_shelf)
    row, name = disk.shelf.row("s0021"), disk.shelf.generation.default_encoder
    for shelf in (disk.shelf, app.state.serving.current):
        encoder = shelf.encoders[name]
        known = encoder.index.known.copy()
        known[row] = False
        monkeypatch.setitem(shelf.encoders, name, replace(encoder, index=replace(encoder.index, known=known)))
    question = Question(position=(float(disk.shelf.columns["ra"][row]), float(disk.shelf.columns["dec"][row])))
    found = [asked.redshift(question, estimator=None) for asked in (disk, OverHttp(url))]
    assert found[0] == found[1] and found[0].source_id == "s0021"


def test_position_and_cutout_ask_the_same_of_disk_and_server(
    tiny_shelf: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from redshelf.service import pictures
    from redshelf.service.shelf import open_shelf

    shelf = open_shelf(tiny_shelf)
    row = shelf.row("s0007")
    cutout = tmp_path / "s0007.fits"
    cutout.write_bytes(pictures.fits(shelf, row))
    at = ["--ra", repr(float(shelf.columns["ra"][row])), "--dec", repr(float(shelf.columns["dec"][row]))]
    for question in (at, ["--cutout", str(cutout)], ["--cutout", str(cutout), "--ebv", "3"]):
        answers, printed = [], []
        for where in (["--shelf", str(tiny_shelf)], ["--url", url]):
            assert main(["search", *question, *where, "--json"]) == 0
            answers.append(json.loads(capsys.readouterr().out))
            assert main(["search", *question, *where]) == 0
            printed.append(capsys.readouterr().out)
        assert answers[0] == answers[1] and printed[0] == printed[1]
        assert answers[0]["query"] == ("s0007" if question is at else None)
        assert (answers[0]["neighbours"][0]["distance"] < 0.01) == ("--cutout" in question and "--ebv" not in question)
    assert main(["search", "--cutout", str(cutout), "--ebv", "11", "--shelf", str(tiny_shelf)]) == 1
    assert "ebv=11.0: expected 0 to 10 mag" in capsys.readouterr().err


def test_examples_and_text_ask_the_same_of_disk_and_server(
    tiny_shelf: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    for where in (["--shelf", str(tiny_shelf)], ["--url", url]):
        words = ["--like", "s0001", "--like", "s0002", "--unlike", "s0003", "--encoder", "photometry", "-k", "4"]
        assert main(["search", *words, *where, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out))
        assert main(["search", "--text", "a red galaxy", *where]) == 1
        assert "no encoder here has texts in its space" in capsys.readouterr().err
    assert answers[0] == answers[1] and len(answers[0]["neighbours"]) == 4 and answers[0]["encoder"] == "photometry"


def test_search_for_people_is_a_table_and_a_redshift(tiny_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--shelf", str(tiny_shelf), "--id", "s0007", "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("like s0007, by ")
    assert lines[1].split() == ["source", "distance", "z_spec", "z_phot", "class", "ra", "dec"]
    assert len({len(line) for line in lines[1:5]}) == 1
    assert lines[6].startswith("z = ") and "68% [" in lines[6]
    assert "support" in lines[7]


def test_errors_of_a_server_exit_with_1(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--url", url, "--id", "nope"]) == 1
    assert "no source 'nope'" in capsys.readouterr().err
    assert main(["search", "--url", "http://127.0.0.1:9", "--id", "nope"]) == 1
    assert "cannot ask http://127.0.0.1:9" in capsys.readouterr().err


def test_search_still_answers_where_there_is_no_redshift(bare_shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--shelf", str(bare_shelf), "--id", "s0003"]) == 0
    assert "no redshift: " in capsys.readouterr().out


def test_check_finds_a_flipped_bit(bare_shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = tmp_path / "shelf"
    shutil.copytree(bare_shelf, damaged)
    assert main(["check", "--shelf", str(damaged)]) == 0
    assert capsys.readouterr().out.endswith(": no fault\n")
    target = next((damaged / "index").glob("*/*/vectors.faiss"))
    blob = bytearray(target.read_bytes())
    blob[11] ^= 4
    target.write_bytes(blob)
    assert main(["check", "--shelf", str(damaged), "--json"]) == 1
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert len(faults) == 1 and "vectors.faiss: sha256 differs" in faults[0]


def test_status_tells_what_there_is_and_what_is_missing(
    tiny_shelf: Path, bare_shelf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--shelf", str(tiny_shelf), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_sources"], found["n_cutouts"], found["n_labels"]) == (300, 300, 240)
    assert [(e["name"], e["embedded"], e["recall"], e["fits"]) for e in found["encoders"]] == [
        ("photometry", 300, 1.0, ["photometry"]),
        ("vit", 300, 1.0, ["vit"]),
    ]
    assert found["missing"] == []
    assert main(["status", "--shelf", str(bare_shelf)]) == 0
    assert "missing: redshift labels" in capsys.readouterr().out


def test_a_shelf_is_exported_once_and_as_hats(
    bare_shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "--shelf", str(bare_shelf), "-o", str(tmp_path / "hats"), "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "hats"), "sources": 60}
    assert pyarrow.dataset.dataset(tmp_path / "hats" / "dataset", exclude_invalid_files=True).count_rows() == 60
    assert main(command) == 1
    assert "exists already" in capsys.readouterr().err


def test_the_commands_of_the_readme_make_a_shelf_that_answers(
    small_survey_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    at = ["--shelf", str(tmp_path / "s")]
    assert main(["ingest", str(small_survey_file), *at]) == 0
    for command in ("embed", "index", "fit"):
        assert main([command, "--encoder", "photometry", *at, "--json"]) == 0
    assert main(["publish", *at]) == 0
    capsys.readouterr()
    assert main(["search", "--id", "s0042", *at, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["neighbours"]) == 10

"""`redshelf study`: planned, killed, resumed, reported; what fails or was not measured is said."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_foundation

from redshelf.indexing.files import read_json, write_json
from redshelf.models.errors import BadInput, Conflict
from redshelf.service import study, study_plan
from redshelf.service.study_cells import _same
from redshelf.service.study_plan import FULL, QUICK, TINY, Cell
from redshelf.service.study_results import Key, Results

ROOT = Path(__file__).resolve().parents[1]
SURVEYS = ("zCOSMOS to VVDS-Deep",)
pytestmark = pytest.mark.timeout(900)  # the quick study is made by the first test that reads it


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quick study by the command, killed once it has answers and given again; no real catalogues."""
    pytest.importorskip("galsim", reason="the `sim` extra is not installed")
    folder = tmp_path_factory.mktemp("study") / "report"
    command = [sys.executable, "-m", "redshelf.api.cli", "study", "-o", str(folder), "--quick"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "links")}
    environment.pop("REDSHELF_DATA", None)
    log = folder.with_suffix(".log")
    with log.open("w") as told:
        first = subprocess.Popen(command, env=environment, start_new_session=True, stderr=told)
    while len(list(folder.glob("cells/*.json"))) < 5:
        assert first.poll() is None, log.read_text()
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = {path: path.stat().st_mtime_ns for path in folder.glob("*/*.json")}
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    kept = {path for path, when in done.items() if path.stat().st_mtime_ns == when}
    assert kept == set(done), "a job that was done was done again"
    return folder


def run(folder: Path, **options: object) -> study.StudyReport:
    return study.study(folder, size="quick", processes=1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("budget", [QUICK, TINY, FULL])
def test_every_job_has_one_name_and_what_it_stands_on_is_planned(budget: study_plan.Budget) -> None:
    published = frozenset(study_plan.PUBLISHED)
    plan = study_plan.make(budget, quick=budget is QUICK, published=published, surveys=SURVEYS)
    jobs = [*plan.weights, *plan.spaces, *plan.cells]
    assert len({job.name for job in jobs}) == len(jobs)
    spaces = set(plan.spaces)
    trained = {job.name for job in plan.weights}
    for cell in plan.cells:
        if isinstance(cell, Cell):
            assert {cell.space, cell.space.plain} <= spaces
    for space in spaces:
        assert space.start in {"", "vit", "cnn", "multimodal-cnn", *published, *trained}
        assert space.sky in {sky.name for sky in plan.skies}


def test_without_weights_every_foundation_model_is_named_as_not_measured() -> None:
    assert set(study_plan.make(TINY).unmeasured) == {"dino", "dinov2", "clip"}
    assert set(study_plan.make(TINY, published=frozenset({"clip"})).unmeasured) == {"dino", "dinov2"}


def test_the_full_study_crosses_every_correction_with_every_estimator_and_balance() -> None:
    plan = study_plan.make(FULL)
    space = next(space for space in plan.spaces if space.approach == "photometry" and space.scenario == "s1")
    asked = {(c.estimator, c.correction, c.balance) for c in plan.cells if isinstance(c, Cell) and c.space == space}
    wanted = {
        (estimator, correction, balance)
        for estimator in ("knn", "lightgbm", "network")
        for correction in study_plan.CORRECTIONS
        for balance in (False, True)
    }
    assert wanted <= asked


def test_rows_of_one_source_are_hidden_together() -> None:
    same = _same(np.array([7, 3, 7, 5, 7, 3]))
    sets = [set(row.tolist()) for row in same]
    assert sets == [{0, 2, 4}, {1, 5}, {0, 2, 4}, {3}, {0, 2, 4}, {1, 5}]


@pytest.mark.parametrize("text", ["2/2", "-1/2", "1", "a/b", "1/0"])
def test_a_part_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected I/N"):
        study.share(text)


def test_weights_are_a_name_a_folder_and_perhaps_a_sha256(tmp_path: Path) -> None:
    digest = "0" * 64
    found = study.published([f"dino={tmp_path}", f"clip={tmp_path}:{digest}"])
    assert (found["dino"].sha256, found["clip"].sha256) == (None, digest)
    for text, said in (
        ("dino", "expected NAME=FOLDER"),
        (f"dinov={tmp_path}", "dinov2"),
        ("clip=/no/where", "no folder"),
    ):
        with pytest.raises(BadInput, match=said):
            study.published([text])


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(Conflict, match="holds something else"):
        run(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_unknown_sizes_stages_and_skies_are_named(tmp_path: Path) -> None:
    for options, said in (
        ({"size": "huge"}, "huge"),
        ({"stages": ("stars",)}, "stars"),
        ({"skies": ("blue",)}, "blue"),
    ):
        with pytest.raises(BadInput, match=said):
            study.study(tmp_path / "new", **{"size": "quick", **options})  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_page_opens_alone_and_says_what_was_not_measured(quick: Path) -> None:
    page = (quick / "index.html").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:)""", page)
    assert "Not answered here" in page
    for name in ("dino", "dinov2", "clip"):
        assert f"<td>{name}, frozen</td><td>not measured: no published weights" in page
    assert page.count("<figure>") == 5
    assert "What failed" not in page


@pytest.mark.slow
def test_every_line_of_the_csv_tells_where_it_comes_from(quick: Path) -> None:
    with (quick / "study.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) > 1000
    for line in lines:
        assert float(line["n"]) >= 100
        assert line["seed"] in "01"
        assert all(line[name] for name in ("weights", "data", "revision", "when", "bias_error", "slice"))
    assert {line["scenario"] for line in lines} == {"s0", "s1", "s2"}


@pytest.mark.slow
def test_a_number_is_the_mean_over_seeds_with_errors_of_seeds_and_objects(quick: Path) -> None:
    results, key = Results(quick), Key("photometry", "s1")
    scores = [d["found"]["slices"]["all"] for d in results.by_key[key]]
    found = results.number(key, "bias")
    assert found is not None
    values = [s["bias"] for s in scores]
    assert found.value == pytest.approx(np.mean(values))
    objects = np.mean([s["bias_error"] for s in scores])
    assert found.error == pytest.approx(np.sqrt(np.std(values, ddof=1) ** 2 / 2 + objects**2))
    results.by_key[key].pop()
    assert results.number(key, "bias") is None, "one seed is nothing to publish"


@pytest.mark.slow
def test_a_cell_says_its_code_data_seed_and_weights(quick: Path) -> None:
    document = read_json(quick / "cells" / "images.s1.1.0.vit.direct.knn.none.json")
    assert document["made"]["revision"] == study.revision()
    assert document["made"]["seed"] == 0
    assert document["made"]["weights"].startswith("random, seed 0; trained on ")
    assert document["made"]["data"].startswith("images ")


@pytest.mark.slow
def test_a_finished_study_does_nothing_again(quick: Path) -> None:
    found = run(quick)
    assert (found.done, found.missing, found.failed) == (0, 0, ())


@pytest.mark.slow
def test_a_study_of_another_revision_is_refused_unless_told(quick: Path) -> None:
    path = quick / "study.json"
    before = read_json(path)
    write_json(path, {**before, "revision": "000000000000"})
    with pytest.raises(Conflict, match="made by revision 000000000000"):
        run(quick)
    run(quick, any_revision=True)
    assert read_json(path)["revision"] == study.revision()


@pytest.mark.slow
def test_a_study_of_other_sizes_is_refused(quick: Path) -> None:
    with pytest.raises(Conflict, match="other sizes or seeds"):
        run(quick, seeds=1)


@pytest.mark.slow
def test_a_cell_that_fails_is_listed_and_the_others_go_on(
    quick: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from redshelf.api.cli import main

    monkeypatch.delenv("REDSHELF_DATA", raising=False)

    vectors = quick / "spaces" / "images.s0.1.0.vit.direct.npz"
    held = vectors.read_bytes()
    cells = sorted((quick / "cells").glob("images.s0.1.[01].vit.direct.knn.none.json"))
    for path in cells:
        path.unlink()
    vectors.unlink()
    try:
        assert main(["study", "-o", str(quick), "--quick", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert found["failed"] == ["images.s0.1.0.vit.direct.knn.none"]
        assert (found["done"], found["missing"]) == (1, 1)
        assert "is not there: the job of that space has not been done" in (quick / "index.html").read_text()
    finally:
        vectors.write_bytes(held)
    assert run(quick).failed == ()


@pytest.mark.slow
def test_parts_of_a_stage_share_its_jobs(quick: Path) -> None:
    cells = sorted((quick / "cells").glob("*.frozen.knn.none.json"))
    for path in cells:
        path.unlink()
    for part in ((0, 2), (1, 2)):
        run(quick, stages=("cells",), part=part)
    assert sorted((quick / "cells").glob("*.frozen.knn.none.json")) == cells


@pytest.mark.slow
def test_verified_weights_are_what_the_sentence_takes(quick: Path, tmp_path: Path) -> None:
    """A tiny random network stands for the published one: the machinery is what is tested, the number means nothing."""
    from redshelf.models.whole import sha256

    tiny_foundation.dinov2(tmp_path / "weights")
    file = next((tmp_path / "weights").glob("*.safetensors"))
    for digest, answered in ((None, False), (sha256(file), True)):
        for path in quick.glob("*/*dinov2*"):
            path.unlink()
        given = study.published([f"dinov2={tmp_path / 'weights'}" + (f":{digest}" if digest else "")])
        found = run(quick, weights=given)
        assert found.failed == () and set(found.unmeasured) == {"dino", "clip"}
        page = (quick / "index.html").read_text()
        assert ("Not answered here" not in page) == answered
        assert ("dinov2 alone has a bias of" in page) == answered
    for path in quick.glob("*/*dinov2*"):
        path.unlink()


@pytest.mark.data
def test_one_survey_is_asked_from_another_and_stars_apart() -> None:
    from redshelf.service import study_real

    data = os.environ.get("REDSHELF_DATA")
    if not data:
        pytest.skip("REDSHELF_DATA is not set: the real catalogues are not here")
    job = study_plan.Survey("VVDS-Wide to VVDS-Deep", 0)
    found = study_real.survey(job, Path(data), most=1000, quick=True)
    assert (found["labels"], found["asked"]) == (1000, 2476)  # as data/README.md counts them
    assert found["stars"]["stars"] > 3000
    assert 0.9 < found["stars"]["auc"] < 1
    bias = found["answers"]["knn, none"]["slices"]["all"]["bias"]
    assert -0.1 < bias < -0.01


def test_a_catalogue_that_is_not_there_is_named(tmp_path: Path) -> None:
    from redshelf.service import study_real

    with pytest.raises(BadInput, match="vvds_wide_veryreliable"):
        study_real.survey(study_plan.Survey("VVDS-Wide to VVDS-Deep", 0), tmp_path, most=100, quick=True)


def test_the_scripts_for_slurm_send_every_stage_after_the_one_before(tmp_path: Path) -> None:
    """A pretended `sbatch` takes the jobs: stages, dependencies and weights are what the real one would get."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "sbatch"
    fake.write_text(
        '#!/bin/bash\necho "$@" >> "$JOBS"; cat >> "$JOBS"; echo "$(( 100 + $(grep -c job-name "$JOBS") ));x"\n'
    )
    fake.chmod(0o755)
    models = tmp_path / "models" / "facebook" / "dinov2-base"
    models.mkdir(parents=True)
    jobs = tmp_path / "jobs"
    environment = {
        **os.environ,
        "PATH": f"{fake.parent}:{os.environ['PATH']}",
        "JOBS": str(jobs),
        "OUT": str(tmp_path / "out"),
        "WORK": str(tmp_path),
        "MODELS": str(tmp_path / "models"),
        "DINOV2_SHA256": "ab" * 32,
        "TASKS": "4",
    }
    script = ROOT / "deploy" / "slurm" / "study.sh"
    done = subprocess.run([script], env=environment, capture_output=True, text=True, check=True)
    assert 'dino-vitb16 is not there: its row will read "not measured"' in done.stderr
    text = jobs.read_text()
    assert re.findall(r"--job-name=study-(\w+)", text) == ["skies", "weights", "spaces", "cells", "report"]
    assert re.findall(r"--dependency=(\S+)", text) == [f"afterany:{n}" for n in (101, 102, 103, 104)]
    assert text.count(f"--weights dinov2={models}:{'ab' * 32}") == 5
    assert re.findall(r"--stage (\w+) --part \$\{SLURM_ARRAY_TASK_ID:-0\}/(\d)", text) == [
        ("skies", "1"), ("weights", "4"), ("spaces", "4"), ("cells", "4"), ("report", "1"),
    ]  # fmt: skip


def test_budgets_of_one_seed_publish_nothing() -> None:
    with pytest.raises(BadInput, match="0 seeds"):
        study_plan.make(replace(QUICK, seeds=()))

"""An ingest step by step, by several processes, on Ray and on SLURM: what is disturbed ends as what is not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from shelves import assert_same_rows, cut_parts
from tiled_survey import write_survey

from redshelf.api.cli import main
from redshelf.indexing import cutouts, cutting, store
from redshelf.indexing.jobs import PLAN_FILE
from redshelf.indexing.layout import Layout
from redshelf.models.errors import BadInput, Conflict, Interrupted, NotFound
from redshelf.service import ingest as service
from redshelf.service.check import check
from redshelf.service.ingest import ingest
from redshelf.service.status import status

LINKS = str(Path(__file__).parent / "links")
SIZES = {"part_rows": 8, "task_parts": 3}


@pytest.fixture
def survey(tmp_path: Path) -> Path:
    return write_survey(tmp_path / "d")


@pytest.fixture
def undisturbed(survey: Path, tmp_path: Path) -> Path:
    ingest(survey, tmp_path / "undisturbed")
    return tmp_path / "undisturbed"


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return tmp_path / "s"


def plan(survey: Path, shelf: Path) -> cutting.IngestPlan:
    found = service.make_plan(survey, shelf, **SIZES)
    assert found is not None
    return found


def end(survey: Path, shelf: Path, undisturbed: Path) -> None:
    for part in cutting.missing(Layout(shelf), cutting.read(Layout(shelf))):
        service.do(survey, shelf, part=part)
    service.commit(survey, shelf)
    assert_same_rows(shelf, undisturbed)
    assert not check(shelf).faults and not cutting.folder(Layout(shelf)).exists()


def test_tasks_in_any_order_and_twice_give_what_one_run_gives(survey: Path, shelf: Path, undisturbed: Path) -> None:
    planned = plan(survey, shelf)
    assert planned.tasks == -(-planned.parts // 3) and planned.rows_of(range(planned.parts)) == 60
    assert store.count_rows(Layout(shelf).sources) == 0
    for task in [*reversed(range(planned.tasks)), 0]:
        said = service.do(survey, shelf, task=task)
        assert said["rows"] == planned.rows_of(planned.parts_of(task))
    assert said["done_before"] == said["parts"] == 3
    report = service.commit(survey, shelf)
    assert (report.sources, report.new, report.labelled) == (60, 60, 20) and not report.labels_only
    assert report.empty_tiles == ("t2",)
    assert_same_rows(shelf, undisturbed)
    assert service.commit(survey, shelf).labels_only  # somebody else has ended it
    assert service.make_plan(survey, shelf) is None


def test_the_command_line_takes_the_same_steps(
    survey: Path, shelf: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = ["ingest", str(survey), "--shelf", str(shelf), "--json"]
    assert main([*to, "--plan", "--part-rows", "8", "--task-parts", "3"]) == 0
    told = json.loads(capsys.readouterr().out)
    for task in range(told["tasks"]):
        assert main([*to, "--task", str(task)]) == 0
    assert main([*to, "--part", "0"]) == 0
    assert main(["status", "--shelf", str(shelf)]) == 0
    assert f"cutouts    ingest: {told['parts']} of {told['parts']} parts, 60 of 60 sources" in capsys.readouterr().out
    assert main([*to, "--commit"]) == 0
    assert json.loads(capsys.readouterr().out)["sources"] == 60
    assert_same_rows(shelf, undisturbed)


def test_a_single_run_goes_on_with_what_tasks_have_done_and_another_part_size_begins_anew(
    survey: Path, shelf: Path, undisturbed: Path
) -> None:
    plan(survey, shelf)
    service.do(survey, shelf, task=0)
    assert len(cut_parts(shelf)) == 3
    assert cutting.read(Layout(shelf)).facts == plan(survey, shelf).facts  # the same plan, and its receipts stay
    assert len(cut_parts(shelf)) == 3
    service.make_plan(survey, shelf, part_rows=5)
    assert not cut_parts(shelf)
    service.do(survey, shelf, task=0)
    ingest(survey, shelf)
    assert_same_rows(shelf, undisturbed)


def test_an_update_goes_by_the_same_steps(survey: Path, shelf: Path, tmp_path: Path) -> None:
    ingest(survey, shelf)
    whole = tmp_path / "whole"
    shutil.copytree(shelf, whole)
    for path in survey.parent.glob("mosaics/r/t1.fits"):
        image, header = fits.getdata(path, header=True)
        fits.PrimaryHDU(image * np.float32(1.1), header).writeto(path, overwrite=True)
    ingest(survey, whole, update=True)
    with pytest.raises(Conflict, match="with --update it takes over"):
        service.make_plan(survey, shelf)
    planned = service.make_plan(survey, shelf, update=True, **SIZES)
    assert planned is not None and (planned.facts.first_row, planned.facts.new) == (60, 0)
    for task in range(planned.tasks):
        service.do(survey, shelf, task=task)
    report = service.commit(survey, shelf)
    assert report.changed == len(planned.changed) > 0 and report.sources == 60
    assert_same_rows(shelf, whole)
    assert not check(shelf).faults


def test_groups_share_no_strip_and_hold_every_part_once(
    survey: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutouts, "HELD_BYTES", 220 * cutouts.HELD_BYTES_A_PIXEL * 3 * 40)  # strips of 40 rows
    planned = plan(survey, shelf)
    groups = cutting.together(planned, range(planned.parts))
    assert [part for group in groups for part in group] == list(range(planned.parts)) and len(groups) > 3
    strips = [{(p.tile, p.strip) for part in group for p in planned.pieces[part].pieces} for group in groups]
    assert sum(map(len, strips)) == len(set.union(*strips))


@pytest.mark.slow
def test_processes_give_what_one_gives(survey: Path, shelf: Path, undisturbed: Path) -> None:
    ingest(survey, shelf, part_rows=8, processes=2)
    assert_same_rows(shelf, undisturbed)


def test_what_is_missing_is_named_and_what_is_damaged_is_cut_again(
    survey: Path, shelf: Path, undisturbed: Path
) -> None:
    planned = plan(survey, shelf)
    service.do(survey, shelf, task=0)
    with pytest.raises(Conflict, match=rf"{planned.parts - 3} of {planned.parts} parts have no receipt: 3-"):
        service.commit(survey, shelf)
    for task in range(1, planned.tasks):
        service.do(survey, shelf, task=task)
    receipt = json.loads((cutting.receipts(Layout(shelf), planned.facts, "cutouts") / "part-000001.json").read_text())
    file = Layout(shelf).cutouts / next(iter(receipt["files"]))
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(Conflict, match=r"1 of .* parts are damaged and set aside, run them again: part 1"):
        service.commit(survey, shelf)
    assert store.count_rows(Layout(shelf).sources) == store.count_rows(Layout(shelf).cutouts) == 0
    end(survey, shelf, undisturbed)


def test_images_that_change_after_the_plan_are_refused(survey: Path, shelf: Path) -> None:
    planned = plan(survey, shelf)
    path = survey.parent / "mosaics" / "g" / "t1.fits"
    image, header = fits.getdata(path, header=True)
    fits.PrimaryHDU(image + np.float32(1), header).writeto(path, overwrite=True)
    of_t1 = [n for n, part in enumerate(planned.pieces) if planned.facts.tiles[part.pieces[-1].tile] == "t1"]
    with pytest.raises(Conflict, match="tile t1: its images have changed since the ingest was planned"):
        service.do(survey, shelf, part=of_t1[0])
    survey.write_text(survey.read_text().replace("cutout_px = 16", "cutout_px = 18"))
    with pytest.raises(Conflict, match="tile t0: its images have changed"):
        service.do(survey, shelf, part=0)
    assert not cut_parts(shelf)


def alter(document: dict[str, object]) -> None:
    document["first_row"] = 1


def cut(document: dict[str, object]) -> None:
    del document["tiles"]


@pytest.mark.parametrize(("damage", "says"), [(alter, "was altered"), (cut, "is no plan of this redshelf")])
def test_a_plan_that_was_altered_is_refused_and_made_anew(
    survey: Path, shelf: Path, undisturbed: Path, damage: object, says: str
) -> None:
    plan(survey, shelf)
    path = cutting.folder(Layout(shelf)) / PLAN_FILE
    document = json.loads(path.read_text())
    damage(document)  # type: ignore[operator]
    path.write_text(json.dumps(document))
    with pytest.raises(BadInput, match=says):
        service.do(survey, shelf, task=0)
    ingest(survey, shelf)
    assert_same_rows(shelf, undisturbed)


def test_wrong_steps_are_refused(survey: Path, shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no ingest is planned on .*--plan"):
        service.do(survey, shelf, task=0)
    with pytest.raises(BadInput, match="part_rows=0: expected at least 1"):
        service.make_plan(survey, shelf, part_rows=0)
    with pytest.raises(BadInput, match="processes=0"):
        ingest(survey, shelf, processes=0)
    planned = plan(survey, shelf)
    for wrong, says in (
        ({"part": planned.parts}, "the plan has parts 0 to"),
        ({"task": -1}, "the plan has tasks"),
        ({}, "a part or a task"),
    ):
        with pytest.raises(BadInput, match=says):
            service.do(survey, shelf, **wrong)
    other = write_survey(tmp_path / "other")
    with pytest.raises(Conflict, match=r"the ingest that is planned on .* is of .*d/survey\.toml, not"):
        service.do(other, shelf, task=0)


def test_a_plan_whose_source_rows_are_lost_or_whose_survey_was_moved_is_made_anew(
    survey: Path, shelf: Path, undisturbed: Path
) -> None:
    planned = plan(survey, shelf)
    service.do(survey, shelf, task=0)
    shutil.rmtree(cutting.receipts(Layout(shelf), planned.facts, "sources"))
    ingest(survey, shelf)
    assert_same_rows(shelf, undisturbed)
    other = shelf.with_name("other")
    plan(survey, other)
    moved = survey.parent.with_name("moved")
    survey.parent.rename(moved)
    service.make_plan(moved / survey.name, other, **SIZES)
    end(moved / survey.name, other, undisturbed)


def test_a_signal_ends_a_task_after_the_part_at_hand(
    survey: Path, shelf: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(survey, shelf)
    write = cutting.write_part

    def told(*args: object, **kwargs: object) -> int:
        os.kill(os.getpid(), signal.SIGUSR1)
        return write(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(cutting, "write_part", told)
        with pytest.raises(Interrupted, match="ingest stopped by SIGUSR1 before part 1: 2 are left"):
            service.do(survey, shelf, task=0)
    assert cut_parts(shelf) == {0}
    end(survey, shelf, undisturbed)


def test_a_worker_stops_when_the_survey_is_planned_anew(
    survey: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = plan(survey, shelf)
    write = cutting.write_part

    def planned_anew(*args: object, **kwargs: object) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(cutting, "write_part", write)
            service.make_plan(survey, shelf, part_rows=5)
        return write(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(cutting, "write_part", planned_anew)
    with pytest.raises(Conflict, match="was committed or removed while it was written"):
        service.do(survey, shelf, task=0)
    assert not cut_parts(shelf) and not cutting.is_open(Layout(shelf), old)


SLOW = textwrap.dedent(
    """
    # redshelf, and some seconds before every part is written
    import sys, time
    sys.path.insert(0, {links!r})
    from redshelf.indexing import cutting
    write = cutting.write_part
    def slow(*args, **kwargs):
        time.sleep({seconds})
        return write(*args, **kwargs)
    cutting.write_part = slow
    from redshelf.api.cli import main
    sys.exit(main())
    """
)


@pytest.mark.slow
def test_a_task_that_is_killed_costs_at_most_the_part_at_hand(
    survey: Path, shelf: Path, undisturbed: Path, tmp_path: Path
) -> None:
    plan(survey, shelf)
    slow = tmp_path / "slow.py"
    slow.write_text(SLOW.format(links=LINKS, seconds=0.5))
    command = [sys.executable, str(slow), "ingest", str(survey), "--shelf", str(shelf), "--task", "0"]
    with subprocess.Popen(command) as child:
        deadline = time.monotonic() + 60
        while len(cut_parts(shelf)) < 2:
            assert time.monotonic() < deadline and child.poll() is None
            time.sleep(0.02)
        child.kill()
    assert cut_parts(shelf) == {0, 1}
    end(survey, shelf, undisturbed)


@pytest.mark.ray
@pytest.mark.slow
def test_ray_gives_what_one_machine_gives(survey: Path, shelf: Path, undisturbed: Path) -> None:
    pytest.importorskip("ray", reason="needs the `ray` extra")
    environment = {**os.environ, "PYTHONPATH": LINKS, "RAY_ADDRESS": ""}
    command = ["ingest", str(survey), "--runner", "ray", "--part-rows", "8", "--shelf", str(shelf)]
    told = subprocess.run(
        [sys.executable, "-m", "redshelf.api.cli", *command],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stderr
    assert_same_rows(shelf, undisturbed)


def test_a_plan_of_no_cutouts_is_nothing_to_cut(tmp_path: Path) -> None:
    survey = write_survey(tmp_path / "d")
    text = survey.read_text()
    survey.write_text("\n".join(line for line in text.splitlines() if "mosaics" not in line and "_px" not in line))
    planned = service.make_plan(survey, tmp_path / "s")
    assert planned is not None and planned.parts == planned.tasks == 0
    assert status(tmp_path / "s").ingest is None
    assert service.commit(survey, tmp_path / "s").sources == 60


@pytest.mark.parametrize(
    "options",
    ["--part 0 --update", "--task 0 --runner ray", "--plan --processes 2", "--commit --part-rows 3", "--slurm f",
     "--runner ray --processes 2", "--task-parts 3", "--commit --runner ray", "--runner slurm"],
)  # fmt: skip
def test_an_option_that_would_be_ignored_is_refused(
    survey: Path, options: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["ingest", str(survey), *options.split()])
    assert "does not use --" in (said := capsys.readouterr().err) or "needs --slurm FILE" in said

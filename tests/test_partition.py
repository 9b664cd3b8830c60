"""The plan of a bulk embedding: arithmetic that loses and doubles nothing, and a file that says when it was altered."""

from __future__ import annotations

import json
import shutil
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import small_shelf
from filelock import FileLock

from redshelf.indexing import partition
from redshelf.indexing.files import sha256, write_json
from redshelf.indexing.partition import Plan
from redshelf.indexing.parts import ranges
from redshelf.models.errors import BadInput, Conflict, NotFound
from redshelf.models.photometry import Photometry
from redshelf.models.vit import SIZES, MultiBandViT

PLAN = Plan(
    encoder="e", revision="r", weights_sha256="", dim=3, fingerprint="f", inputs={"sources": "a"},
    first_row=0, rows=60, part_rows=25, task_parts=2,
)  # fmt: skip


def _vit() -> MultiBandViT:
    return MultiBandViT(small_shelf.NAMES, groups=[small_shelf.NAMES], cutout_px=8, size=SIZES["tiny"], name="e")


def test_parts_and_tasks_cover_every_row_once_in_order() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        first, part_rows, task_parts = int(rng.integers(0, 50)), int(rng.integers(1, 40)), int(rng.integers(1, 9))
        rows = first + int(rng.integers(0, 300))
        plan = replace(PLAN, first_row=first, rows=rows, part_rows=part_rows, task_parts=task_parts)
        spans = [plan.span(part) for part in range(plan.parts)]
        assert [row for a, b in spans for row in range(a, b)] == list(range(first, rows))
        assert all(0 < b - a <= part_rows for a, b in spans)
        assert [part for task in range(plan.tasks) for part in plan.parts_of(task)] == list(range(plan.parts))
        chosen = {int(part) for part in rng.integers(0, max(1, plan.parts), 5) if part < plan.parts}
        assert plan.tasks_of(chosen) == sorted({t for t in range(plan.tasks) if chosen & set(plan.parts_of(t))})


def test_every_field_changes_the_id() -> None:
    for name, value in asdict(PLAN).items():
        other = {"sources": "b"} if name == "inputs" else value + 1 if isinstance(value, int) else value + "x"
        assert replace(PLAN, **{name: other}).id != PLAN.id
    assert replace(PLAN).id == PLAN.id


@pytest.mark.parametrize(
    ("name", "value", "least"), [("part_rows", 0, 1), ("task_parts", -1, 1), ("first_row", -1, 0), ("rows", -3, 0)]
)
def test_sizes_that_make_no_plan_are_named(name: str, value: int, least: int) -> None:
    with pytest.raises(BadInput, match=f"{name}={value}: expected at least {least}"):
        replace(PLAN, **{name: value})


def test_parts_and_tasks_that_are_not_in_the_plan_are_named() -> None:
    with pytest.raises(BadInput, match="part 3: the plan has parts 0 to 2"):
        PLAN.span(3)
    with pytest.raises(BadInput, match="task 2: the plan has tasks 0 to 1"):
        PLAN.parts_of(2)


def test_numbers_are_written_as_ranges() -> None:
    assert ranges([]) == ""
    assert ranges({7, 0, 1, 2, 3, 9, 10}) == "0-3,7,9-10"


def test_a_plan_is_read_as_it_was_written_and_an_altered_one_is_refused(tmp_path: Path) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    path = partition.write(layout, PLAN)
    assert partition.read(path.parent) == PLAN
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "rows": 59}))
    with pytest.raises(BadInput, match=r"plan\.json was altered"):
        partition.read(path.parent)
    path.write_text(json.dumps({**document, "colour": "red"}))
    with pytest.raises(BadInput, match=r"plan\.json is no plan of this redshelf: .*colour"):
        partition.read(path.parent)


def test_a_plan_of_another_shelf_is_refused(tmp_path: Path) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    with pytest.raises(NotFound, match="no open plan for encoder 'e'"):
        partition.find(layout, "e")
    fingerprint = layout.read_info().fingerprint
    partition.write(layout, replace(PLAN, fingerprint=fingerprint + "x"))
    with pytest.raises(Conflict, match="was made for another shelf: its fingerprint differs"):
        partition.find(layout, "e")
    shutil.rmtree(partition.folder(layout, "e", "r"))
    partition.write(layout, replace(PLAN, fingerprint=fingerprint))
    with pytest.raises(Conflict) as raised:
        partition.find(layout, "e")
    assert str(raised.value) == (
        f"the plan in {partition.folder(layout, 'e', 'r')} was made for another shelf: sources.lance has no version "
        "that it names; remove that folder to begin anew"
    )


def test_a_plan_goes_with_its_receipts_unless_another_has_taken_its_place(tmp_path: Path) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    home = partition.write(layout, PLAN).parent
    receipt = partition.receipts(layout, PLAN) / "part-000000.json"
    write_json(receipt, {"part": 0})
    partition.close(layout, replace(PLAN, task_parts=3))
    assert partition.is_open(layout, PLAN) and receipt.is_file()
    partition.close(layout, PLAN)
    assert not home.exists()
    partition.close(layout, PLAN)
    assert [path.name for path in home.parent.iterdir()] == [f"{home.name}.plan.lock"]


def test_plans_are_found_by_their_encoder_and_two_of_one_are_named(tmp_path: Path) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    plan = replace(PLAN, fingerprint=layout.read_info().fingerprint, inputs={})
    other = replace(plan, encoder="f")
    first, third = (partition.write(layout, one).parent for one in (plan, other))
    assert partition.find(layout, "e") == (plan, first) and partition.find(layout, "f") == (other, third)
    second = partition.write(layout, replace(plan, revision="s")).parent
    assert partition.homes(layout, "e") == [first, second] and partition.homes(layout) == [first, second, third]
    assert partition.open_plans(layout, "e") == {first: plan, second: replace(plan, revision="s")}
    with pytest.raises(Conflict) as raised:
        partition.find(layout, "e")
    assert str(raised.value) == f"2 plans are open for encoder 'e': remove all but one of {first}, {second}"
    with pytest.raises(NotFound) as none:
        partition.find(layout, "g")
    assert str(none.value).startswith(f"no open plan for encoder 'g' on {layout.root}: ")


@pytest.mark.parametrize(("name", "value"), [("revision", "s"), ("weights_sha256", "w"), ("dim", 4), ("first_row", 1)])
def test_a_plan_with_other_weights_or_rows_is_refused_with_both_values(
    name: str, value: object, tmp_path: Path
) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    found = replace(PLAN, fingerprint=layout.read_info().fingerprint, inputs={})
    partition._same(layout, found, replace(found, rows=70, part_rows=3), tmp_path)
    with pytest.raises(Conflict) as raised:
        partition._same(layout, found, replace(found, **{name: value}), tmp_path)  # type: ignore[arg-type]
    assert str(raised.value) == (
        f"the plan in {tmp_path} was made for another {name} ({getattr(found, name)}, now {value}): "
        "remove that folder to begin anew"
    )


def test_a_plan_that_is_not_agreed_to_is_not_left(tmp_path: Path) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    encoder = _vit()

    def no(plan: Plan) -> None:
        raise Conflict(f"not {plan.rows}")

    with pytest.raises(Conflict, match="not "):
        partition.make(layout, encoder, agreed=no)
    assert partition.homes(layout) == []
    plan = partition.make(layout, encoder, part_rows=25, task_parts=2)
    assert plan is not None and partition.open_plans(layout) == {partition.homes(layout, "e")[0]: plan}
    assert (plan.first_row, plan.rows, plan.part_rows, plan.task_parts, plan.dim) == (0, 60, 25, 2, encoder.dim)
    assert set(plan.inputs) == {"sources", "cutouts"} and plan.weights_sha256 == ""
    assert partition.make(layout, encoder) == plan
    for asked, said in (({"part_rows": 26}, "part_rows=25, not 26"), ({"task_parts": 3}, "task_parts=2, not 3")):
        with pytest.raises(Conflict, match=f"an open plan has {said}: finish it, or remove "):
            partition.propose(layout, encoder, **asked)


def test_a_plan_names_the_tables_that_it_reads_and_its_parts_are_as_large_as_those_allow(tmp_path: Path) -> None:
    shelf = small_shelf.write(tmp_path / "shelf")
    layout, fluxes = shelf.layout, (shelf.flux, shelf.error, shelf.flux_state)
    of_pixels, of_fluxes = _vit(), Photometry.fit(*fluxes, bands=small_shelf.BANDS, name="e")
    plans = [partition.propose(layout, encoder) for encoder in (of_pixels, of_fluxes)]
    assert [plan and (set(plan.inputs), plan.part_rows, plan.task_parts) for plan in plans] == [
        ({"sources", "cutouts"}, partition.PART_ROWS, partition.TASK_PARTS),
        ({"sources"}, partition.PART_ROWS_FLUXES, partition.TASK_PARTS),
    ]


def test_a_plan_holds_the_digest_of_the_weights_and_is_refused_with_others(tmp_path: Path) -> None:
    layout, encoder = small_shelf.write(tmp_path / "shelf").layout, _vit()
    weights = layout.model(encoder.name, encoder.revision) / "weights.safetensors"
    write_json(weights, "first")
    plan = partition.make(layout, encoder)
    assert plan is not None and plan.weights_sha256 == sha256(weights)
    write_json(weights, "second")
    with pytest.raises(Conflict) as raised:
        partition.propose(layout, encoder)
    home = partition.folder(layout, encoder.name, encoder.revision)
    assert str(raised.value) == (
        f"the plan in {home} was made for another weights_sha256 ({plan.weights_sha256}, now {sha256(weights)}): "
        "remove that folder to begin anew"
    )


def test_a_plan_of_another_revision_is_in_the_way_and_one_of_another_encoder_is_not(tmp_path: Path) -> None:
    layout, encoder = small_shelf.write(tmp_path / "shelf").layout, _vit()
    partition.write(layout, replace(PLAN, encoder="other"))
    assert partition.propose(layout, encoder) is not None
    home = partition.write(layout, replace(PLAN, encoder=encoder.name)).parent
    with pytest.raises(Conflict) as raised:
        partition.propose(layout, encoder)
    assert str(raised.value) == (
        f"a plan of e.r is open, and this is e.{encoder.revision}: end it first (without --weights it is gone on "
        f"with), or remove {home}"
    )


def test_whoever_makes_a_plan_or_closes_one_waits_for_the_other(tmp_path: Path) -> None:
    layout, encoder = small_shelf.write(tmp_path / "shelf").layout, _vit()
    home = partition.folder(layout, encoder.name, encoder.revision)
    plan: Plan | None = None

    def make() -> None:
        nonlocal plan
        plan = partition.make(layout, encoder)

    def close() -> None:
        assert plan is not None
        partition.close(layout, plan)

    for change, there in ((make, True), (close, False)):
        with FileLock(f"{home}.plan.lock"):
            thread = threading.Thread(target=change)
            thread.start()
            thread.join(timeout=0.3)
            assert thread.is_alive() and (home / "plan.json").is_file() is not there
        thread.join(timeout=10)
        assert not thread.is_alive() and (home / "plan.json").is_file() is there


def test_a_scheduler_is_told_what_to_run_where_and_what_is_missing(tmp_path: Path) -> None:
    layout = small_shelf.write(tmp_path / "shelf").layout
    job = partition.job(layout, PLAN)
    home = partition.folder(layout, "e", "r")
    told = (job.name, job.words, job.id, job.home, job.split, job.batch_size)
    assert told == ("embed-e", ("embed", "--encoder", "e"), PLAN.id, home, PLAN, True)
    assert job.missing() == {0, 1, 2}
    write_json(partition.receipts(layout, PLAN) / "part-000001.json", {"part": 1})
    assert job.missing() == {0, 2}

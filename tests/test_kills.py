"""kill -9 at random moments of ingest and embedding: no row is lost, doubled or wrong."""

import os
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import small_survey
import torture

from redshelf.indexing import store
from redshelf.indexing.layout import Layout
from redshelf.service.embedding import embed
from redshelf.service.ingest import ingest

CHILD = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from redshelf.indexing import embed as bulk
    from redshelf.indexing.layout import Layout
    from redshelf.service.embedding import find_encoder
    from redshelf.service.ingest import ingest
    import torch
    print("ready", flush=True)
    survey, root = Path(sys.argv[1]), Path(sys.argv[2])
    ingest(survey, root, part_rows=16)
    layout = Layout(root)
    bulk.embed_all(layout, find_encoder(layout, "photometry"), part_rows=16)
    """
)


def _run(survey: Path, root: Path, kill_after_s: float | None) -> int:
    """Run ingest and embedding in a child, killed so long after its imports; the exit status."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "links")}
    command = [sys.executable, "-c", CHILD, str(survey), str(root)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None and child.stdout.readline() == b"ready\n"
        if kill_after_s is not None:
            time.sleep(kill_after_s)
            child.kill()
        return child.wait()


def _assert_same(found: Path, wanted: Path) -> None:
    """Every column of two tables alike, NaN for NaN."""
    first, second = (store.open_table(path).to_table() for path in (found, wanted))
    assert first.schema == second.schema
    for name in first.column_names:
        pair = [table[name] for table in (first, second)]
        listed = pair[0].type.num_fields > 0
        values = [store.list_values(c) if listed else c.to_numpy() for c in pair]
        np.testing.assert_array_equal(*values, err_msg=f"{found.name}: {name}")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_kills_at_random_moments_lose_and_double_nothing(tmp_path: Path) -> None:
    survey = small_survey.write(tmp_path, sources=200)
    expected = tmp_path / "undisturbed"
    ingest(survey, expected)
    embed(expected, encoder="photometry")
    rng, kills, shelves = np.random.default_rng(0), 0, 0
    while kills < torture.count(4, 200):
        root = tmp_path / f"shelf{shelves}"
        shelves += 1
        for _ in range(8):  # then let it end, so that the early parts are not all that is ever killed
            if _run(survey, root, float(rng.uniform(0, 0.8))) == 0:
                break
            kills += 1
        assert _run(survey, root, None) == 0
        ours, theirs = Layout(root), Layout(expected)
        for name in ("sources", "cutouts", "labels"):
            _assert_same(ours.table(name), theirs.table(name))
        revision = theirs.newest("photometry")
        _assert_same(ours.embeddings("photometry", revision), theirs.embeddings("photometry", revision))


STEPS = textwrap.dedent(
    """
    import sys
    from pathlib import Path
    from redshelf.models.errors import Conflict, NotFound
    from redshelf.service import bulk
    import torch
    print("ready", flush=True)
    root, tasks = Path(sys.argv[1]), sys.argv[2]
    try:
        plan = bulk.make_plan(root, encoder="photometry", part_rows=8, task_parts=3)
        for task in map(int, tasks) if plan is not None else ():
            bulk.do(root, encoder="photometry", task=task)
        bulk.commit(root, encoder="photometry")
    except (Conflict, NotFound) as error:  # parts are missing; the other process was first
        print(error)
        sys.exit(3)
    """
)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_two_workers_killed_at_random_moments_lose_and_double_nothing(tmp_path: Path) -> None:
    survey = small_survey.write(tmp_path, sources=200, images=False, labels=False)
    expected = tmp_path / "undisturbed"
    ingest(survey, expected)
    shutil.copytree(expected, tmp_path / "ingested")
    revision, _ = embed(expected, encoder="photometry")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent / "links")}
    rng, kills, shelves = np.random.default_rng(1), 0, 0

    def start(root: Path, tasks: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", STEPS, str(root), tasks]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)

    while kills < torture.count(4, 200):
        root = tmp_path / f"steps{shelves}"
        shelves += 1
        shutil.copytree(tmp_path / "ingested", root)
        for _ in range(4):
            pair = [start(root, "012345678"), start(root, "876543210")]  # 25 parts, 9 tasks
            for child in pair:
                assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            for child in pair:
                time.sleep(float(rng.uniform(0, 0.15)))
                child.kill()
            kills += sum(child.communicate() is not None and child.returncode == -9 for child in pair)
        last = start(root, "012345678")
        said, _ = last.communicate()
        assert last.returncode == 0, said
        _assert_same(*(Layout(r).embeddings("photometry", revision) for r in (root, expected)))
        assert not list(root.glob("work/embed*/plan.json"))

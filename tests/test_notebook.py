"""The notebook of the documentation, run against a server as a reader runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from astropy.table import Table

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "client.ipynb"


def printed(cells: list[dict[str, Any]]) -> str:
    """All that the cells have written."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join(output.get("text", "") for output in outputs if output["output_type"] == "stream")


@pytest.mark.slow
def test_the_notebook_runs_and_finds_what_it_says(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    links = os.pathsep.join([str(NOTEBOOK.parents[1] / "tests" / "links"), os.environ.get("PYTHONPATH", "")])
    for name, value in {"SHELF_URL": url, "PYTHONPATH": links, "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel has its own, which draws into the notebook
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(tmp_path)}}).execute()
    told = printed(notebook.cells)
    assert "small: 300 sources, encoders photometry, vit" in told and "generation 1" in told
    assert "are supported by labelled galaxies" in told
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
    table = Table.read(tmp_path / "redshifts.ecsv")
    assert len(table) > 5 and table.meta["survey"] == "small" and "z_median" in table.colnames
    assert f"{3 * len(table)} neighbours of {len(table)} sources" in told


def test_the_notebook_is_kept_without_what_it_has_shown() -> None:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []

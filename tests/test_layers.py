"""The house has one way through it: api -> service -> indexing -> models. An import that points left fails here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("api", "service", "indexing", "models")  # each may import what stands to its right, and itself
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).glob("*.py"))


def imported(source: str) -> Iterator[str]:
    """Every module that a source imports by an absolute name, wherever the statement stands, relative ones as '.'."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." if node.level else node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def faults(source: str, layer: str) -> list[str]:
    """Imports that a module of `layer` may not have."""
    allowed = LAYERS[LAYERS.index(layer) :]
    ours = [name for name in imported(source) if name.split(".")[0] in ("redshelf", "", *LAYERS)]
    return [name for name in ours if name.split(".")[0] != "redshelf" or name.split(".")[1] not in allowed]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_import_points_left(path: Path) -> None:
    assert faults(path.read_text(), path.parent.name) == []


def test_a_left_import_is_found_even_inside_a_function() -> None:
    assert faults("def f():\n    from redshelf.api import app", "service") == ["redshelf.api.app"]
    assert faults("import models.vit", "models") == ["models.vit"]
    assert faults("from . import shelf", "service") == ["..shelf"]
    assert faults("from redshelf.models import pdf\nimport numpy", "indexing") == []


def test_the_folders_are_flat() -> None:
    inner = [path for layer in LAYERS for path in (ROOT / layer).glob("*/*.py")]
    assert inner == []


def test_no_text_of_a_user_reaches_a_where_clause() -> None:
    """LanceDB's `.where` and Lance's `filter=` take SQL text; no module of ours calls either."""
    found = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on_arrays = isinstance(node.func.value, ast.Name) and node.func.value.id in ("np", "numpy", "torch")
                if node.func.attr in ("where", "prefilter") and not on_arrays:
                    found.append(f"{path.name}:{node.lineno}")
                reads = node.func.attr in ("to_table", "to_batches", "scanner", "count_rows", "delete")
                if reads and any(keyword.arg == "filter" for keyword in node.keywords):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []

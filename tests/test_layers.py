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


def takes_sql(source: str) -> list[str]:
    """Calls that hand text to a query language: LanceDB's `.where`, Lance's `filter=`, predicates of rows."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        name, on = node.func.attr, node.func.value.id if isinstance(node.func.value, ast.Name) else ""
        if name in ("where", "prefilter") and on not in ("np", "numpy", "torch"):
            found.append(f"{node.lineno}: .{name}")
        if name in ("sql", "execute", "executescript", "merge_insert", "add_columns"):
            found.append(f"{node.lineno}: .{name}")
        reads = name in ("to_table", "to_batches", "scanner", "count_rows", "delete", "dataset", "head", "sample")
        if reads and any(keyword.arg == "filter" for keyword in node.keywords):
            found.append(f"{node.lineno}: filter=")
        if name in ("count_rows", "delete") and node.args and on not in ("store", "np", "router"):
            found.append(f"{node.lineno}: .{name}")
        if name in ("filter", "query") and any(isinstance(a, ast.JoinedStr | ast.Constant) for a in node.args):
            found.append(f"{node.lineno}: .{name}")
    return found


@pytest.mark.security
def test_no_text_of_a_user_reaches_a_where_clause() -> None:
    """There is no such call at all: filters are masks over columns, whatever was asked."""
    assert {path.name: found for path in MODULES if (found := takes_sql(path.read_text()))} == {}


@pytest.mark.security
@pytest.mark.parametrize(
    "call",
    [
        'table.search(v).where(f"id = {text}")',
        "table.search(v).where(text, prefilter=True)",
        "dataset.to_table(filter=text)",
        "dataset.scanner(columns=names, filter=f'{text}')",
        "dataset.count_rows(text)",
        "dataset.delete(text)",
        'table.filter(f"a = {text}")',
        "connection.execute(text)",
        "dataset.merge_insert('id')",
    ],
)
def test_a_call_that_takes_sql_is_found(call: str) -> None:
    assert len(takes_sql(call)) >= 1
    assert (
        takes_sql("np.where(mask, 1, 0); store.count_rows(path); table.filter(mask); table.to_table(columns=c)") == []
    )

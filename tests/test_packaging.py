"""Folders, package list, links and package data say the same thing."""

import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import time
import tomllib
from importlib.metadata import Distribution
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LAYERS = ("api", "indexing", "models", "service")
LINKS = ROOT / "tests" / "links" / "redshelf"
HEAVY = ("torch", "numpy", "fastapi", "lance", "lancedb", "pydantic", "faiss", "astropy", "lightgbm", "pyarrow")


def _setuptools() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_layer_is_a_package_under_its_import_name() -> None:
    assert sorted(_setuptools()["packages"]) == [f"redshelf.{layer}" for layer in LAYERS]
    assert _setuptools()["package-dir"] == {f"redshelf.{layer}": layer for layer in LAYERS}


def test_every_folder_with_code_is_a_layer_and_is_typed() -> None:
    beside = {"tests", "benchmarks", "docs", "deploy", "build"}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")} - beside
    assert folders == set(LAYERS)
    for layer in LAYERS:
        assert (ROOT / layer / "py.typed").is_file()


def test_the_links_lead_to_the_folders() -> None:
    assert sorted(path.name for path in LINKS.iterdir()) == sorted(LAYERS)
    for layer in LAYERS:
        assert (LINKS / layer).readlink() == Path(f"../../../{layer}")
        assert (LINKS / layer).resolve() == ROOT / layer


def test_the_import_name_is_this_checkout() -> None:
    import redshelf.models.errors

    assert Path(redshelf.models.errors.__file__).resolve() == ROOT / "models" / "errors.py"


@pytest.mark.parametrize("folder", ["templates", "static"])
def test_the_page_files_are_package_data(folder: str) -> None:
    patterns = _setuptools()["package-data"]["*"]
    for path in (ROOT / "api" / folder).iterdir():
        assert any(path.relative_to(ROOT / "api").match(pattern) for pattern in patterns), path


def test_the_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, redshelf.api.cli as c; c.build_parser(); print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"


def test_help_answers_within_a_third_of_a_second() -> None:
    def seconds() -> float:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "redshelf.api.cli", "--help"], capture_output=True, check=True)
        return time.perf_counter() - start

    assert min(seconds() for _ in range(5)) < 0.3


def test_nothing_that_redshelf_asks_for_has_a_licence_that_would_bind_it_or_who_sells() -> None:
    spec = importlib.util.spec_from_file_location("link", ROOT / ".ci" / "link.py")
    assert spec is not None and spec.loader is not None
    link = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(link)
    here = link.by_name(sysconfig.get_paths()["purelib"])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for name in ("cpu", "sim", "ray", "map") if name in project["optional-dependencies"]]
    asked = [*project["dependencies"], *(one for name in extras for one in project["optional-dependencies"][name])]
    names = {name for one in asked for name in _lent(link, Requirement(one), here)}
    assert {"torch", "lancedb", "starlette"} <= names
    for name in sorted(names):
        told = here[name].metadata
        classified = [one for one in told.get_all("Classifier") or [] if one.startswith("License")]
        licence = " ".join([told.get("License-Expression") or (told.get("License") or "")[:200], *classified])
        assert not re.search(r"\bA?GPL|(?<!Lesser )General Public|non.?commercial|\bNC\b", licence, re.I), (
            name,
            licence,
        )


def _lent(link: ModuleType, one: Requirement, here: dict[str, Distribution]) -> set[str]:
    """The packages behind one requirement; none where an extra is not installed here."""
    return set(link.required(one, {}, here)) if canonicalize_name(one.name) in here else set()

"""The README: the newcomer's page. Its commands and links are there; what it leads to is held by test_docs."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    text = README + CONTRIBUTING
    targets = set(re.findall(r"^make ([a-z]+)", text, re.MULTILINE)) | set(re.findall(r"`make ([a-z]+)", text))
    assert {"demo", "test", "check", "docs"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, target


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_every_link_of_the_readme_leads_somewhere(name: str) -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / name).read_text(encoding="utf-8"))
    assert links
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_readme_is_one_that_a_newcomer_reads_to_its_end() -> None:
    assert len(README.splitlines()) <= 120 and len(README) < 8000


def test_every_page_can_be_reached_from_the_readme() -> None:
    """By the README itself, or by the nav of the site."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*.md"):
        name = path.relative_to(ROOT / "docs").as_posix()
        assert f" {name}\n" in nav or f"docs/{name}" in README, name


def test_every_module_of_tests_that_the_map_names_is_there() -> None:
    for name in set(re.findall(r"`(test_[a-z_]+)`", CONTRIBUTING)):
        assert (ROOT / "tests" / f"{name}.py").is_file(), name

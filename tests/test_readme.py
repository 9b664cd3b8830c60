"""The README's commands, run as they stand, and its routes, compared with the application's."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEPS = re.findall(r"<!-- steps: run by tests/test_readme\.py -->\n```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process: forty starts of Python and as many imports of torch would take longer than the commands."""
    from redshelf.api.cli import main

    pytest.importorskip("galsim", reason="the `sim` extra is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "tests" / "links"))  # of processes that commands start
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert len(STEPS) == 11
    for line in "".join(STEPS).strip().splitlines():
        if line.startswith("echo "):
            subprocess.run(line, shell=True, check=True)
        elif line:
            program, *words = shlex.split(line)
            assert program == "redshelf"
            status, told = main(words), capsys.readouterr()
            assert status == 0, f"{line}\n{told.out}\n{told.err}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z]+)", README, re.MULTILINE)) | set(re.findall(r"`make ([a-z]+)", README))
    assert {"demo", "test"} <= targets
    for target in targets:
        assert f"\n{target}:" in makefile, target


def test_every_route_and_setting_stands_in_the_readme(tiny_shelf: Path) -> None:
    from redshelf.api.app import create_app
    from redshelf.service.settings import Settings

    for path in create_app(Settings(shelf=tiny_shelf)).openapi()["paths"]:
        assert path in README, path
    for name in Settings.model_fields:
        assert f"`{name}`" in README, name

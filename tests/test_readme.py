"""The README's commands, run as they stand, and its routes, compared with the application's."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STEPS = re.findall(r"<!-- steps: run by tests/test_readme\.py -->\n```sh\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_every_command_of_the_readme_runs_in_order(tmp_path: Path) -> None:
    pytest.importorskip("galsim", reason="the `sim` extra is not installed")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "links"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment["XDG_STATE_HOME"] = str(tmp_path / "state")
    assert len(STEPS) == 10
    for line in "".join(STEPS).strip().splitlines():
        command = line
        if not line.startswith("echo "):
            words = shlex.split(line)
            assert words[0] == "redshelf"
            command = shlex.join([sys.executable, "-m", "redshelf.api.cli", *words[1:]])
        done = subprocess.run(
            command, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


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

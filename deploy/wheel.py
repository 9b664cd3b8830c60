"""How a wheel is told the git revision that it was made of, which `redshelf --version` prints."""

import os
import subprocess
from pathlib import Path

from setuptools.command.build_py import build_py


class Build(build_py):
    """Writes `models/revision.txt` into the wheel: of $REDSHELF_REVISION, or of git; none where neither knows."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        revision = os.environ.get("REDSHELF_REVISION", "")
        if not revision:
            command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
            try:
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                revision = done.stdout.strip() if done.returncode == 0 else ""
            except OSError:
                revision = ""
        if revision:
            Path(self.build_lib, "redshelf", "models", "revision.txt").write_text(revision + "\n")

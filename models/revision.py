"""Which redshelf this is: its version, and the git revision of the checkout or of what its wheel was made of."""

from __future__ import annotations

import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent


def version() -> str | None:
    """As pyproject.toml says, the one place; None of a checkout that is not installed."""
    try:
        return metadata.version("redshelf")
    except metadata.PackageNotFoundError:
        return None


@cache
def revision(folder: Path = HERE) -> str | None:
    """The git revision of `folder`, with `-dirty` where it was changed, or the one that a wheel was made of; None where
    nothing tells."""

    def git(*arguments: str) -> str | None:
        command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    told = folder / "revision.txt"
    if told.is_file():
        return told.read_text(encoding="utf-8").strip()
    # an installed copy may lie inside somebody else's repository
    tracked = git("ls-files", "--error-unmatch", ".") is not None
    return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") if tracked else None

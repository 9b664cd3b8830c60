"""Settings of a running service: defaults, then `redshelf.toml`, then `REDSHELF_*`, then the command line.

The TOML file is named by `--settings` or `$REDSHELF_SETTINGS`. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from redshelf.models.errors import BadInput, nearest

PREFIX = "REDSHELF_"
# where the settings are; a client's key; where tests find the real files; how often they repeat themselves
NOT_SETTINGS = {"REDSHELF_SETTINGS", "REDSHELF_KEY", "REDSHELF_DATA", "REDSHELF_TORTURE"}


class Settings(BaseModel):
    """Every setting, with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shelf: Path = Path("shelf")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256)  # processes that serve on one port
    refresh_seconds: float = Field(default=5.0, ge=0.01, allow_inf_nan=False)  # between looks for a newer generation
    max_k: int = Field(default=1000, ge=1, le=1000)
    max_batch: int = Field(default=1000, ge=1, le=1000)  # ids in one POST /v1/redshifts
    max_upload_bytes: int = Field(default=32 << 20, ge=1024)
    threads: int = Field(default_factory=lambda: min(4, os.cpu_count() or 1), ge=1)  # of torch and FAISS, in a worker


def environment(settings: Settings) -> dict[str, str]:
    """The variables by which `load` gives the same settings in another process."""
    given = {f"{PREFIX}{name.upper()}": str(value) for name, value in settings.model_dump().items()}
    return {**given, "REDSHELF_SETTINGS": ""}


def _checked(values: dict[str, Any], source: str) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                lines.append(f"unknown setting {key!r}; {nearest(key, Settings.model_fields)}")
            else:
                lines.append(f"{key}={fault['input']!r}: {fault['msg']}")
        raise BadInput(f"{source}: {'; '.join(lines)}") from error


def load(path: Path | None = None, *, environ: dict[str, str] | None = None, **given: Any) -> Settings:
    """The settings in force. `given` (the command line) wins over the environment, which wins over the file."""
    environment = dict(os.environ) if environ is None else environ
    named = path or (Path(environment["REDSHELF_SETTINGS"]) if environment.get("REDSHELF_SETTINGS") else None)
    values: dict[str, Any] = {}
    if named is not None:
        if not named.is_file():
            raise BadInput(f"settings file {named} does not exist")
        try:
            values = tomllib.loads(named.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise BadInput(f"{named}: not valid TOML: {error}") from error
    settings = _checked(values, str(named))
    overlay = {
        key.removeprefix(PREFIX).lower(): value
        for key, value in environment.items()
        if key.startswith(PREFIX) and key not in NOT_SETTINGS
    }
    if overlay:
        settings = _checked({**settings.model_dump(), **overlay}, "environment")
    chosen = {key: value for key, value in given.items() if value is not None}
    return _checked({**settings.model_dump(), **chosen}, "command line") if chosen else settings

"""Settings of a running service: defaults, then `redshelf.toml`, then `REDSHELF_*`, then the command line.

The TOML file is named by `--settings` or `$REDSHELF_SETTINGS`. Unknown keys are refused with the nearest known one.
"""

from __future__ import annotations

import ipaddress
import os
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, FilePath, ValidationError, model_validator

from redshelf.models.errors import BadInput, nearest
from redshelf.models.threads import cores

PREFIX = "REDSHELF_"
# where the settings are; where tests find the real files; how often they repeat themselves; the key of `search --url`
NOT_SETTINGS = {"REDSHELF_SETTINGS", "REDSHELF_DATA", "REDSHELF_TORTURE", "REDSHELF_KEY", "REDSHELF_REVISION"}
ENDPOINT = r"^(https?://[A-Za-z0-9.\[\]:-]+(/[A-Za-z0-9._~/-]*)?)?$"  # as OpenTelemetry has it: without /v1/traces
RATE = r"^([1-9]\d{0,6}/(second|minute|hour|day))?$"  # "" for none


def _state_dir() -> Path:
    """The user's state folder, as the XDG base directories say."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state") / "redshelf"


def _none_if_empty(value: Any) -> Any:
    """An empty text as None, which environment variables cannot hold."""
    return None if value == "" else value


def _listed(value: Any) -> Any:
    """A comma-separated text as a list, which environment variables cannot hold."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+$")]
Origin = Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9.\[\]:-]+$")]
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed)]
Origins = Annotated[tuple[Origin, ...], BeforeValidator(_listed)]


class Settings(BaseModel):
    """Every setting, with its default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shelf: Path = Path("shelf")  # the folder that is served; it may be read-only
    host: str = "127.0.0.1"  # to listen on; another than loopback wants a key
    port: int = Field(default=8000, ge=0, le=65535)  # to listen on
    workers: int = Field(default=1, ge=1, le=256)  # processes that serve on one port
    refresh_seconds: float = Field(default=5.0, ge=0.01, allow_inf_nan=False)  # between looks for a newer generation
    max_k: int = Field(default=1000, ge=1, le=1000)  # neighbours in one answer
    max_batch: int = Field(default=1000, ge=1, le=1000)  # ids in one POST /v1/redshifts
    max_upload_bytes: int = Field(default=32 << 20, ge=1024)  # of an uploaded cutout
    decode_seconds: float = Field(default=0.8, ge=0.05, le=60)  # of CPU, to decode an upload
    decode_bytes: int = Field(default=1 << 30, ge=1 << 29)  # of address space of the process that decodes it
    max_encode_batch: int = Field(default=16, ge=1, le=1024)  # uploads that are encoded together
    encode_wait_seconds: float = Field(default=0.002, ge=0, le=1)  # that the first of them waits for others
    max_encode_queue: int = Field(default=64, ge=1, le=10_000)  # uploads that wait to be encoded
    max_jobs: int = Field(default=16, ge=1, le=10_000)  # of one key that have not ended
    max_kept_jobs: int = Field(default=100, ge=1, le=10_000)  # of one key, with those that have ended
    max_job_ids: int = Field(default=100_000, ge=1, le=1_000_000)  # in the list of one
    max_job_bytes: int = Field(default=256 << 20, ge=1024)  # of the result of one, in memory and as a file
    job_seconds: float = Field(default=7 * 86_400.0, ge=1, le=366 * 86_400.0)  # after which a job is destroyed
    max_concurrent: int = Field(default=64, ge=1, le=10_000)  # requests that a worker answers at the same time
    max_connections: int = Field(default=1000, ge=1, le=100_000)  # open to a worker, idle ones counted
    deadline_seconds: float = Field(default=30.0, ge=0.05, le=86_400)  # of a request, and of a client that is silent
    rate_per_key: str = Field(default="6000/minute", pattern=RATE)  # requests to a worker with the same key
    rate_per_address: str = Field(default="6000/minute", pattern=RATE)  # and from the same address, but for loopback
    require_key: bool = False  # also to read on loopback
    site_names: Names = ()  # of a proxy here: asked by one of them, as by localhost, reading needs no key
    cors_origins: Origins = ()  # whose pages may ask
    state_dir: Path = Field(default_factory=_state_dir)  # keys, jobs; never in the shelf, which may be read-only
    study_dir: Annotated[Path | None, BeforeValidator(_none_if_empty)] = None  # `-o` of the study that /study shows
    aladin: Annotated[FilePath | None, BeforeValidator(_none_if_empty)] = None  # Aladin Lite's file; GPL-3, not shipped
    log_format: Literal["auto", "json", "text"] = "auto"  # auto: text on a terminal
    otlp_endpoint: str = Field(default="", pattern=ENDPOINT)  # the collector that traces go to; "" for none
    threads: int = Field(default_factory=lambda: min(4, cores()), ge=1)  # of torch and FAISS, in a worker

    @model_validator(mode="after")
    def _state_outside_the_shelf(self) -> Self:
        if self.state_dir.resolve().is_relative_to(self.shelf.resolve()):
            raise ValueError(
                f"state_dir {self.state_dir} is in the shelf {self.shelf}: expected a folder outside of it"
            )
        return self

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:  # a name, which may mean any address
            return False


def environment(settings: Settings) -> dict[str, str]:
    """The variables by which `load` gives the same settings in another process."""

    def text(value: Any) -> str:
        return ",".join(value) if isinstance(value, tuple) else "" if value is None else str(value)

    given = {f"{PREFIX}{name.upper()}": text(value) for name, value in settings.model_dump().items()}
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
            elif key:
                lines.append(f"{key}={fault['input']!r}: {fault['msg']}")
            else:  # of settings that do not go together
                lines.append(fault["msg"].removeprefix("Value error, "))
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

"""API keys: made, listed, revoked, and found again, in one file of `state_dir` that its owner alone can read.

A key is 256 random bits, shown once. The file holds its sha256 and no salt: a slow, salted hash protects what people
choose, which can be guessed; of 2^256 keys none can, however fast the hash. Every worker reads the file by itself, and
again once it has changed, so that a revoked key is refused within `refresh_seconds`.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from redshelf.indexing.files import alone, read_json, write_json
from redshelf.models.errors import BadInput, Conflict, NotFound, nearest

log = logging.getLogger("redshelf")

Scope = Literal["read", "write", "admin"]  # each may do what those before it may
SCOPES: tuple[Scope, ...] = get_args(Scope)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BITS = 256
MAX_LENGTH = 256  # characters of what is looked up; more is no key, and not hashed
OWNER_ONLY = 0o600


@dataclass(frozen=True)
class Key:
    """What is kept of a key: never the key itself. `created`: ISO 8601, UTC."""

    name: str
    scope: Scope
    sha256: str
    created: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise BadInput(f"name of a key {self.name!r}: expected 1 to 64 letters, digits, '.', '_' or '-'")
        if self.scope not in SCOPES:
            raise BadInput(f"scope {self.scope!r} of key {self.name}: expected one of {', '.join(SCOPES)}")
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise BadInput(f"sha256 of key {self.name}: expected 64 hexadecimal digits")

    def may(self, scope: Scope) -> bool:
        """Whether it opens what asks for `scope`."""
        return SCOPES.index(self.scope) >= SCOPES.index(scope)


def path_of(state_dir: Path) -> Path:
    """The file of the keys."""
    return state_dir / "keys.json"


def digest(key: str) -> str:
    """What is kept of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read(state_dir: Path) -> tuple[Key, ...]:
    """The keys there are, by name. `Conflict` where others than its owner may read the file, `BadInput` where it is
    damaged."""
    path = path_of(state_dir)
    try:
        mode = path.stat().st_mode & 0o777
    except FileNotFoundError:
        return ()
    if mode & ~OWNER_ONLY:
        raise Conflict(f"{path} has mode {mode:o}, and others can read it: chmod 600 it, or make new keys")
    try:
        return tuple(Key(**entry) for entry in read_json(path)["keys"])
    except (TypeError, KeyError) as error:
        raise BadInput(f"{path} is damaged: {error}") from error


def _write(state_dir: Path, keys: tuple[Key, ...]) -> None:
    ordered = sorted(keys, key=lambda key: key.name)
    write_json(path_of(state_dir), {"keys": [asdict(key) for key in ordered]}, mode=OWNER_ONLY)


def _changing(state_dir: Path) -> Path:
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return state_dir / ".keys.lock"


def add(state_dir: Path, name: str, scope: Scope) -> str:
    """Make a key and return it: it cannot be had again. `Conflict` where there is one of this name."""
    key = secrets.token_urlsafe(BITS // 8)
    made = Key(name, scope, digest(key), datetime.now(UTC).isoformat(timespec="seconds"))
    with alone(_changing(state_dir), f"another command is changing the keys in {state_dir}"):
        keys = read(state_dir)
        if any(known.name == name for known in keys):
            raise Conflict(f"there is a key named {name!r}: revoke it first, or take another name")
        _write(state_dir, (*keys, made))
    return key


def revoke(state_dir: Path, name: str) -> None:
    """Forget a key, which opens nothing from then on. `NotFound` where there is none of this name."""
    with alone(_changing(state_dir), f"another command is changing the keys in {state_dir}"):
        keys = read(state_dir)
        left = tuple(key for key in keys if key.name != name)
        if len(left) == len(keys):
            raise NotFound(f"no key {name!r}; {nearest(name, [key.name for key in keys])}")
        _write(state_dir, left)


class Keyring:
    """The keys of a running server, read again at most every `refresh_seconds`, once the file has changed.

    A file that cannot be read holds no key and still counts as one with keys: nobody gets in by damaging it.
    """

    def __init__(self, state_dir: Path, *, refresh_seconds: float) -> None:
        self.state_dir, self.refresh_seconds = state_dir, refresh_seconds
        self._keys: tuple[Key, ...] = ()
        self._exist, self._seen, self._until = False, (-1, -1, -1, -1), 0.0
        self._look()

    def _look(self) -> None:
        now = time.monotonic()
        if now < self._until:
            return
        self._until = now + self.refresh_seconds
        try:
            facts = path_of(self.state_dir).stat()
            seen = (facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)  # ctime: of a chmod, too
        except FileNotFoundError:
            seen = (0, 0, 0, 0)
        except OSError:
            seen = (0, 0, 0, 1)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._keys = read(self.state_dir)
            self._exist = bool(self._keys)
        except (BadInput, Conflict, OSError) as error:
            self._keys, self._exist = (), True
            log.error("no key opens anything: %s", error)

    @property
    def exist(self) -> bool:
        """Whether there are keys."""
        self._look()
        return self._exist

    def find(self, given: str) -> Key | None:
        """The key that was given, None where it is none or was revoked. Takes as long whichever it is."""
        self._look()
        if len(given) > MAX_LENGTH:
            return None
        wanted, found = digest(given), None
        for key in self._keys:  # all of them, and each whole
            if hmac.compare_digest(key.sha256, wanted):
                found = key
        return found

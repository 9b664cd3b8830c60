"""What every command reads of its arguments, and how it reports."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from redshelf.service.settings import Settings


def settings_of(arguments: Namespace) -> Settings:
    from redshelf.service import settings

    given = {name: getattr(arguments, name, None) for name in ("shelf", "host", "port", "workers")}
    return settings.load(getattr(arguments, "settings", None), **given)


def shelf_of(arguments: Namespace) -> Path:
    return settings_of(arguments).shelf


def progress() -> bool:
    return sys.stderr.isatty()


def tell(values: Any, arguments: Namespace) -> int:
    from redshelf.api import show

    print(show.facts(values, as_json=arguments.json))
    return 0

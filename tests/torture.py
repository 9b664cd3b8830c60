"""How often the tests that repeat themselves do so: few times in `make test`, many in `make torture`."""

import os


def count(small: int, full: int) -> int:
    """`full` where REDSHELF_TORTURE is set, else `small`."""
    return full if os.environ.get("REDSHELF_TORTURE") else small

"""The errors a user can cause. Every message names what was wrong, the value, and what was expected.

`api/problems.py` turns each class into one HTTP status, `api/cli.py` into exit status 1 (85 for `Interrupted`). In
between they are caught only where there is something to do about them: to name the file, to pass over what is damaged,
to say it in a report.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class RedshelfError(Exception):
    """Base of every error whose message is meant for the user."""


class BadInput(RedshelfError, ValueError):
    """The input is malformed or out of range."""


class NotFound(RedshelfError, LookupError):
    """What was named does not exist."""


class Conflict(RedshelfError):
    """The request is sound but contradicts what is stored or running."""


class Busy(RedshelfError):
    """There is more to do than is taken on; asked again a little later it may be done."""


class Interrupted(RedshelfError):
    """A signal asked a long job to stop; what it had is saved, and the same command goes on from there."""

    exit_status = 85  # what a SLURM job script requeues on


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence part naming the known names nearest to `name`, for error messages."""
    names = sorted(known)
    close = get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return f"nearest: {', '.join(close)}"
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"known: {shown}" if names else "there are none"

"""The command line: `redshelf COMMAND ...`. `parser.py` has its options, `usage.py` which of them go
together, `commands.py` what each command does.

Nothing heavy is imported before a command runs, so that `redshelf --help` answers at once. Exit status: 0 done,
1 failed (one line on stderr), 2 wrong usage, 85 stopped by a signal with its work saved.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence

from redshelf.api.parser import build_parser
from redshelf.api.usage import check
from redshelf.models.errors import Interrupted, RedshelfError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check(parser, arguments)
    # OpenMP threads that spin while they wait slow down everybody on a shared machine, themselves included; alone on 2
    # cores, sleeping ones cost a training 7%
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    return _leave(_run(arguments))


def _told(number: int, _: object) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}; the same command goes on from what is done")


def _run(arguments: argparse.Namespace) -> int:
    from redshelf.api import commands

    # SLURM's warning, which may come before a loop that finishes its step is reached
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGUSR1, _told)
    try:
        status = commands.RUN[arguments.command](arguments)
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has seen enough, as in `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (RedshelfError, OSError) as error:
        print(f"redshelf {arguments.command}: {error}", file=sys.stderr)
        return error.exit_status if isinstance(error, Interrupted) else 1
    except KeyboardInterrupt:
        print(f"redshelf {arguments.command}: interrupted", file=sys.stderr)
        return 130


def _leave(status: int) -> int:
    """The exit status. A process that trained with others ends at once: at a regular exit the threads of gloo and of
    Lance may meet and abort it."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return status
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())

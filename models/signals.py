"""The signals that ask a long job to stop between two of its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)  # a job's time is nearly up; somebody wants the machine


@contextmanager
def stop_signals() -> Iterator[list[str]]:
    """SIGUSR1 and SIGTERM are only noted inside, as names in the list given; outside they do what they did before.

    Python lets the main thread alone handle signals: in another one the list stays empty.
    """
    caught: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return
    previous = {
        number: signal.signal(number, lambda got, _: caught.append(signal.Signals(got).name)) for number in STOP_SIGNALS
    }
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

"""Ctrl-C and SIGTERM end a command where they arrive, or else before its next item.

Libraries catch what is raised in the middle of their work, now and then also an interrupt (while a run is recorded, for
one), and go on as if nothing had been asked.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_arrived = threading.Event()


@contextmanager
def heeded() -> Iterator[None]:
    """Within, an interrupt raises KeyboardInterrupt, and so does `check` after it."""
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    try:
        yield
    finally:
        _arrived.clear()


def check() -> None:
    """Raise KeyboardInterrupt if an interrupt has arrived."""
    if _arrived.is_set():
        raise KeyboardInterrupt


def end_at_once() -> None:
    """All is said and stored: a signal while Python clears up (Prefect sends its last logs) needs no traceback."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _arrived.set()
    raise KeyboardInterrupt

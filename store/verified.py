"""Reading what can be checked: a torn transfer is read again, a bad file is moved out of the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress

from store.folder import Folder
from store.retry import FIRST_PAUSE, LONGEST_PAUSE, TRIES

REREADS = 3
"""So many bodies of full length must fail the check before a remote file itself is called bad."""


def read_verified(folder: Folder, path: str, good: Callable[[bytes], bool]) -> bytes | None:
    """A file's content that passes the check; None if the stored bytes themselves fail it. FileNotFoundError if absent.

    A body that a network cut short says nothing about what is stored, so it is fetched again.
    """
    bad = 0
    for number in range(TRIES):
        data = folder.read(path)
        if good(data):
            return data
        if folder.root:
            return None
        entry = folder.info(path)
        bad += entry is None or entry.size == len(data)
        if bad == REREADS:
            return None
        time.sleep(min(FIRST_PAUSE * 2**number, LONGEST_PAUSE))
    return None


def quarantine(folder: Folder, path: str) -> str:
    """Move a bad file below `quarantine/`, where its bytes are kept for whoever asks what happened. Returns where."""
    to = f"quarantine/{path}.{time.time_ns()}"
    with suppress(FileNotFoundError):  # another process was faster
        folder.move(path, to)
    return to

"""Leases: at most one live process does a named piece of work at a time, and the work of the dead is taken over.

A lease saves work; it guards nothing. Results are content-addressed, so two holders could only waste time.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from schemas.errors import InputError
from store.errors import guard
from store.expiring import TTL, ExpiringLeases
from store.folder import Folder
from store.locks import FileLocks

T = TypeVar("T")

POLL = 0.2
"""Seconds between looks at a lease that someone else has; grows to ten times as much."""

_NAME = re.compile(r"[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)?")


class Leases:
    """Kernel locks on a local disk, expiring objects elsewhere."""

    def __init__(self, folder: Folder, ttl: float = TTL, poll: float = POLL) -> None:
        self._folder, self._poll = folder, poll
        self._kind = FileLocks(folder.root / "leases") if folder.root else ExpiringLeases(folder, ttl)

    def acquire(self, name: str, **facts: Any) -> bool:
        """Take a lease unless someone, this process included, has it. Never waits.

        Look for the result again once it is yours: its last holder may just have finished.
        """
        if not _NAME.fullmatch(name):
            raise ValueError(f"not a name for a lease: {name!r}")
        own = {"host": socket.gethostname(), "pid": os.getpid(), "since": time.time()}
        with guard(self._folder.url):
            return self._kind.acquire(name, own | facts)

    def release(self, name: str) -> None:
        """Give a lease back; no error if this process does not hold it."""
        self._kind.release(name)

    def holders(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Live leases below a prefix, by name: host, pid, since (seconds since 1970), and the holder's own facts."""
        return dict(self._kind.holders(prefix))

    def tidy(self, older_than: float) -> None:
        """Delete what leases of the dead, and released ones, have left behind, if it is older than that time."""
        self._kind.forget(older_than)

    @contextmanager
    def hold(self, name: str, timeout: float | None = None) -> Iterator[None]:
        """Wait for a lease and keep it for the duration. InputError, naming the holder, after `timeout` seconds."""
        with self.turn(name, lambda: None, timeout):
            yield

    @contextmanager
    def turn(self, name: str, done: Callable[[], T | None], timeout: float | None = None) -> Iterator[T | None]:
        """Wait until `done()` says something (yielded; no lease is held) or the lease is ours (yields None).

        The pattern for "compute it unless someone else does": ask `done` for the trace, compute if None was yielded.
        """
        begun, pause = time.monotonic(), self._poll
        while (result := done()) is None and not self.acquire(name):
            if timeout is not None and time.monotonic() - begun > timeout:
                holder = self.holders(name.split("/")[0]).get(name, "") if "/" in name else self.holders().get(name, "")
                raise InputError("Someone else is at work on this", where=name, got=holder, fix="wait, or end it")
            time.sleep(pause)
            pause = min(pause * 1.5, self._poll * 10)
        if result is not None:
            yield result
            return
        try:
            yield done()
        finally:
            self.release(name)

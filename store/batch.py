"""Batch: staged files of one process that get durable and visible together, objects before what refers to them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from store.disk import give_name, make_folder, sync
from store.folder import Staged

FILES, BYTES, SECONDS = 64, 256 << 20, 2.0
"""An open batch commits by itself when it holds this much, or when something is placed while its oldest is this old."""


class Waiting(NamedTuple):
    """A file without its name yet. `late` ones refer to others and are named after them."""

    temporary: Path
    size: int
    late: bool


class Batch:
    """What a LocalFolder has written but not yet named. Safe for threads; a forked child starts with an empty one."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._reset()

    def _reset(self) -> None:
        self._process, self._since, self._bytes = os.getpid(), 0.0, 0
        self._lock, self._open = threading.RLock(), threading.local()
        self._waiting: dict[str, Waiting] = {}
        self._actions: list[Callable[[], None]] = []

    def _in_this_process(self) -> None:
        if self._process != os.getpid():
            self._reset()

    def find(self, path: str) -> Path | None:
        """The temporary name of a file that waits."""
        self._in_this_process()
        waiting = self._waiting.get(path)
        return waiting.temporary if waiting else None

    def add(self, staged: Staged, path: str, late: bool) -> bool:
        """Take a staged file, and name it at once unless this thread has a batch open. False: the name is taken."""
        self._in_this_process()
        assert isinstance(staged.content, Path)
        waiting = Waiting(staged.content, staged.size, late)
        with self._lock:
            if path in self._waiting or _taken(waiting, self.root / path):
                staged.content.unlink(missing_ok=True)
                return False
            self._since = self._since if self._waiting else time.monotonic()
            self._waiting[path] = waiting
            self._bytes += staged.size
            if not getattr(self._open, "depth", 0) or self._is_due():
                return self.commit().get(path, False)
        return True

    def _is_due(self) -> bool:
        old = time.monotonic() - self._since > SECONDS
        return old or len(self._waiting) >= FILES or self._bytes >= BYTES

    @contextmanager
    def open(self) -> Iterator[None]:
        """Gather until the end. What was gathered is committed even when an exception passes: it is complete."""
        self._in_this_process()
        self._open.depth = getattr(self._open, "depth", 0) + 1
        try:
            yield
        finally:
            self._open.depth -= 1
            if not self._open.depth:
                self.commit()

    def commit(self) -> dict[str, bool]:
        """Sync and name all that waits, then run the actions that waited for it. Says which got their names."""
        self._in_this_process()
        with self._lock:
            try:
                return self._commit()
            finally:
                self._waiting, self._bytes = {}, 0
                actions, self._actions = self._actions, []
                for action in actions:
                    action()

    def after(self, action: Callable[[], None]) -> None:
        """Run an action after the next commit, or now if nothing waits."""
        self._in_this_process()
        with self._lock:
            if self._waiting:
                self._actions.append(action)
                return
        action()

    def _commit(self) -> dict[str, bool]:
        """Sync the early ones, name them, sync their folders; only then name the late ones.

        Late ones are not synced: they check themselves, and one that a power cut takes is only computed again.
        """
        named: dict[str, bool] = {}
        try:
            sync([each.temporary for each in self._waiting.values() if not each.late])
            sync(self._name_all(False, named))
            self._name_all(True, named)
        finally:
            for each in self._waiting.values():
                each.temporary.unlink(missing_ok=True)
        return named

    def _name_all(self, late: bool, named: dict[str, bool]) -> set[Path]:
        """Name the early or the late ones; returns the folders whose listing changed."""
        touched: set[Path] = set()
        for path, each in self._waiting.items():
            if each.late is late:
                final = self.root / path
                touched |= make_folder(final.parent) | {final.parent}
                named[path] = _name(each, final)
        return touched


def _taken(waiting: Waiting, final: Path) -> bool:
    """Whether a name is taken; the object that has it is now young, so a running prune spares it.

    An object of that name but another length was torn by a power cut, and does not count.
    """
    try:
        if waiting.late or final.stat().st_size == waiting.size:
            with suppress(PermissionError):  # someone else's object in a shared store
                os.utime(final)
            return True
    except FileNotFoundError:
        pass
    return False


def _name(waiting: Waiting, final: Path) -> bool:
    if give_name(waiting.temporary, final):
        return True
    if _taken(waiting, final):
        return False
    waiting.temporary.replace(final)
    return True

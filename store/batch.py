"""Batch: files that have their names and are made durable in groups.

What a process has written outlives it in the kernel's memory, so a killed process loses nothing here. A power cut may
tear what is not synced yet; every read is verified, so that is found and made again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from store.disk import sync
from store.errors import guard

FILES, BYTES, SECONDS = 64, 256 << 20, 2.0
"""An open batch syncs by itself when it holds this much, or when a file is added while its oldest is this old."""


class Batch:
    """What a LocalFolder has named but not yet synced. Safe for threads; a forked child starts with an empty one."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._reset()

    def _reset(self) -> None:
        self._process, self._since, self._bytes = os.getpid(), 0.0, 0
        self._lock, self._open = threading.RLock(), threading.local()
        self._files: list[Path] = []
        self._folders: set[Path] = set()

    def _in_this_process(self) -> None:
        if self._process != os.getpid():
            self._reset()

    def add(self, file: Path, size: int, folders: Iterable[Path]) -> None:
        """Take note of a new file and the folders that changed for it; sync at once unless this thread has it open."""
        self._in_this_process()
        with self._lock:
            self._since = self._since if self._files else time.monotonic()
            self._files.append(file)
            self._folders.update(folders)
            self._bytes += size
            if not getattr(self._open, "depth", 0) or self._is_due():
                self.commit()

    def _is_due(self) -> bool:
        old = time.monotonic() - self._since > SECONDS
        return old or len(self._files) >= FILES or self._bytes >= BYTES

    @contextmanager
    def open(self) -> Iterator[None]:
        """Gather until the end, even of an exception."""
        self._in_this_process()
        self._open.depth = getattr(self._open, "depth", 0) + 1
        try:
            yield
        finally:
            self._in_this_process()
            self._open.depth = getattr(self._open, "depth", 1) - 1
            if not self._open.depth:
                self.commit()

    def commit(self) -> None:
        """Sync files, then folders. What a disk then refuses to keep loses its name: it never was a result."""
        self._in_this_process()
        with self._lock:
            files, folders = self._files, self._folders
            self._files, self._folders, self._bytes = [], set(), 0
            with guard(self._url):
                try:
                    sync(files)
                    sync(folders)
                except OSError:
                    for file in files:
                        file.unlink(missing_ok=True)
                    raise

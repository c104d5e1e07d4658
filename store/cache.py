"""Cache: local copies of remote objects, by digest, verified, bounded in bytes, least recently used go first."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from store.digest import Bytes, sha256, sha256_file
from store.disk import give_name, write_temporary

GRACE = 600.0
"""Seconds for which a copy is kept after its last use, whatever the limit: someone may be about to open it."""

LIMIT = 64 << 30


class Cache:
    """Copies are found again by any process of this user. Nothing here is ever the only copy."""

    def __init__(self, root: Path, limit: int = LIMIT, grace: float = GRACE) -> None:
        self.root, self.limit, self.grace = root, limit, grace
        self._verified: set[str] = set()
        self._added = limit  # so that the first addition looks at what is there

    def _at(self, digest: str) -> Path:
        return self.root / digest[:2] / digest[2:]

    def get(self, digest: str) -> bytes | None:
        """The copy's bytes, verified now; None if there is none or it went bad."""
        path = self._at(digest)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        if sha256(data) == digest:
            return data
        path.unlink(missing_ok=True)
        return None

    def path(self, digest: str) -> Path | None:
        """The copy's file, verified once by this process; None if there is none or it went bad."""
        path = self._at(digest)
        try:
            os.utime(path)
            if digest not in self._verified and sha256_file(path) != digest:
                path.unlink(missing_ok=True)
                return None
        except FileNotFoundError:
            return None
        self._verified.add(digest)
        return path

    def put(self, digest: str, content: Bytes | Iterator[bytes]) -> bool:
        """Keep a copy; False, and nothing kept, if the content is not what its name says."""
        staged = write_temporary(self.root / "tmp", content)
        assert isinstance(staged.content, Path)
        try:
            if staged.digest != digest:
                return False
            self._at(digest).parent.mkdir(parents=True, exist_ok=True)
            give_name(staged.content, self._at(digest))
        finally:
            staged.content.unlink(missing_ok=True)
        self._added += staged.size
        if self._added > self.limit // 20:
            self.trim()
        return True

    def drop(self, digest: str) -> None:
        """Forget a copy."""
        self._verified.discard(digest)
        self._at(digest).unlink(missing_ok=True)

    def trim(self) -> None:
        """Drop the least recently used copies until nine tenths of the limit are left."""
        self._added = 0
        copies = sorted(self._copies())
        total = sum(size for _, size, _ in copies)
        for used, size, path in copies:
            if total <= self.limit * 0.9 or time.time() - used < self.grace:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _copies(self) -> Iterator[tuple[float, int, Path]]:
        for folder in self.root.glob("*"):
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    yield stat.st_mtime, stat.st_size, path

"""FileLocks: leases on a local disk. The kernel holds them (flock), so they end with their holder, however it ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from schemas.errors import InputError

_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_inherited: set[int] = set()


def _close_in_child() -> None:
    """A forked child must not keep its parent's leases alive."""
    for file in _inherited:
        with suppress(OSError):
            os.close(file)
    _inherited.clear()


os.register_at_fork(after_in_child=_close_in_child)


class FileLocks:
    """One locked file per lease, deleted on release; a file that nobody locks is no lease."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._files: dict[str, int] = {}

    def acquire(self, name: str, facts: dict[str, Any]) -> bool:
        """Take a lease unless someone has it; never waits."""
        path = self._root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            kept = False
            try:
                if not self._lock(file, path):
                    return False
                kept = _is(path, file)  # else its holder deleted it between our open and our lock
            finally:
                if not kept:
                    os.close(file)
            if kept:
                break
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(facts).encode(), 0)
        self._files[name] = file
        _inherited.add(file)
        return True

    def _lock(self, file: int, path: Path) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
            raise InputError(
                "The store's disk cannot lock files", where=str(path), got=error, fix="mount it with locking (flock)"
            ) from error
        return True

    def release(self, name: str) -> None:
        """Give a lease back; no error if this process does not hold it."""
        file = self._files.pop(name, None)
        if file is None or file not in _inherited:
            return
        _inherited.discard(file)
        (self._root / name).unlink(missing_ok=True)
        os.close(file)

    def holders(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Live leases below a prefix with the facts their holders left. Files of the dead are deleted on the way."""
        for path in sorted((self._root / prefix).rglob("*")):
            with suppress(FileNotFoundError, IsADirectoryError):
                file = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    if not self._lock(file, path):
                        yield str(path.relative_to(self._root)), _facts(os.pread(file, 4096, 0))
                    elif _is(path, file):
                        path.unlink(missing_ok=True)
                finally:
                    os.close(file)

    def forget(self, older_than: float) -> None:
        """Delete the files of the dead."""
        for _ in self.holders(""):
            pass


def _is(path: Path, file: int) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file))
    except FileNotFoundError:
        return False


def _facts(data: bytes) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads(data)
    except ValueError:
        return {}
    return facts

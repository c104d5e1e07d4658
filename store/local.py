"""LocalFolder: a Folder on a disk of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from io import BufferedReader
from pathlib import Path

from store.batch import Batch
from store.digest import Bytes
from store.disk import give_name, make_folder, sync, write_temporary
from store.errors import guard
from store.folder import Entry, Staged

TEMPORARY = "tmp"
"""Where files are written before they have their names: the same file system as their final places."""


class LocalFolder:
    """See Folder. Outside a batch every `place` that is not late is durable when it returns: file, name, and folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._batch = Batch(str(root))

    @property
    def url(self) -> str:
        return str(self._root)

    @property
    def root(self) -> Path | None:
        return self._root

    def _open(self, path: str) -> BufferedReader:
        return open(f"{self._root}/{path}", "rb")

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        with guard(self.url), self._open(path) as file:
            size = os.fstat(file.fileno()).st_size
            stop = size if end is None else end
            if not 0 <= start <= stop <= size:
                raise ValueError(f"bytes {start} to {stop} of {size} in {path}")
            file.seek(start)
            return file.read(stop - start)

    def read_into(self, path: str, buffer: memoryview) -> int:
        with guard(self.url), self._open(path) as file:
            size = os.fstat(file.fileno()).st_size
            file.readinto(buffer[:size])
            return size

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with guard(self.url):
            for path in paths:
                with suppress(FileNotFoundError), self._open(path) as file:
                    found[path] = file.read()
        return found

    def info(self, path: str) -> Entry | None:
        with guard(self.url), suppress(FileNotFoundError), self._open(path) as file:
            stat = os.fstat(file.fileno())
            return Entry(path, stat.st_size, stat.st_mtime)
        return None

    def sizes(self, paths: list[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        root = str(self._root)
        with guard(self.url):
            for path in paths:
                with suppress(FileNotFoundError):
                    found[path] = os.stat(f"{root}/{path}").st_size
        return found

    def scan(self, prefix: str) -> Iterator[Entry]:
        with guard(self.url), suppress(FileNotFoundError), os.scandir(self._root / prefix) as entries:
            for entry in entries:
                path = f"{prefix}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self.scan(path)
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    yield Entry(path, stat.st_size, stat.st_mtime)

    def stage(self, source: Bytes | Path, *, move: bool = False) -> Staged:
        with guard(self.url):
            return write_temporary(self._root / TEMPORARY, source, move)

    def place(self, staged: Staged, path: str, *, late: bool = False) -> bool:
        assert isinstance(staged.content, Path)
        final = self._root / path
        try:
            with guard(self.url):
                touched = make_folder(final.parent) | {final.parent}
                named = give_name(staged.content, final) or self._heal(staged, path, late)
                # Late ones are not synced: they check themselves, and one that a power cut takes is only made again.
                if named and not late:
                    self._batch.add(final, staged.size, touched)
                return named
        finally:
            staged.content.unlink(missing_ok=True)

    def _heal(self, staged: Staged, path: str, late: bool) -> bool:
        """Put whole content in the place of an object that a power cut has torn; False if it is whole, or late."""
        if late or self.touch(path, staged.size):
            return False
        assert isinstance(staged.content, Path)
        staged.content.replace(self._root / path)
        return True

    def replace(self, path: str, data: Bytes) -> None:
        final = self._root / path
        with guard(self.url):
            temporary = self.stage(data).content
            assert isinstance(temporary, Path)
            sync([temporary])
            touched = make_folder(final.parent) | {final.parent}
            temporary.replace(final)
            sync(touched)

    def claim(self, path: str, data: Bytes) -> bool:
        final = self._root / path
        with guard(self.url):
            temporary = self.stage(data).content
            assert isinstance(temporary, Path)
            make_folder(final.parent)
            claimed = give_name(temporary, final)
            temporary.unlink(missing_ok=True)
            return claimed

    def touch(self, path: str, size: int) -> bool:
        final = self._root / path
        try:
            if final.stat().st_size != size:
                return False
            os.utime(final)
        except FileNotFoundError:
            return False
        except PermissionError:
            return True  # someone else's object in a shared store
        return True

    def remove(self, path: str) -> None:
        with guard(self.url):
            (self._root / path).unlink(missing_ok=True)

    def move(self, path: str, to: str) -> None:
        final = self._root / to
        with guard(self.url):
            make_folder(final.parent)
            (self._root / path).replace(final)

    def batch(self) -> AbstractContextManager[None]:
        return self._batch.open()

    def sweep(self, older_than: float) -> int:
        stale = [entry for entry in self.scan(TEMPORARY) if entry.modified < min(older_than, time.time())]
        for entry in stale:
            self.remove(entry.path)
        return len(stale)

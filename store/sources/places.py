"""Places that somebody else owns, read and never written: what a folder of files can be asked, and local folders."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from schemas.errors import InputError


class Place(Protocol):
    """Files by name relative to the folder, `/` between the parts of a name."""

    @property
    def where(self) -> str:
        """The folder's place, for people; without credentials."""

    @property
    def name(self) -> str:
        """Last part of the place, for people."""

    def names(self, deep: bool = False) -> tuple[str, ...]:
        """Names of the regular files, sorted; with those of subfolders when `deep`."""

    def size(self, name: str) -> int:
        """Bytes of a file."""

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        """Exactly the bytes [start, stop) of a file; InputError when they are not there."""

    def identity(self, name: str) -> dict[str, Any] | None:
        """Facts that change whenever the file's content does, or None where nothing vouches for that."""

    def local(self, name: str) -> Path | None:
        """The file's own local path, or None when it is not local."""


def unreadable(where: str, error: object) -> InputError:
    """The error for a file or folder that cannot be read."""
    return InputError(
        "cannot read", where=where, got=error, fix="check the address, the permissions and that it is reachable"
    )


@dataclass(frozen=True)
class LocalPlace:
    """A folder on this machine."""

    path: Path

    @property
    def where(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.resolve().name

    def names(self, deep: bool = False) -> tuple[str, ...]:
        found = []
        try:
            for top, folders, files in os.walk(self.path, onerror=_raise):
                folders[:] = folders if deep else []
                paths = (Path(top, file) for file in files)
                found += [p.relative_to(self.path).as_posix() for p in paths if p.is_file()]
        except OSError as error:
            raise unreadable(self.where, error.strerror) from error
        return tuple(sorted(found))

    def size(self, name: str) -> int:
        return self._stat(name).st_size

    def _stat(self, name: str) -> os.stat_result:
        try:
            return os.stat(self.path / name)
        except OSError as error:
            raise unreadable(str(self.path / name), error.strerror) from error

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        path = self.path / name
        length = (self.size(name) if stop is None else stop) - start
        try:
            with open(path, "rb", buffering=0) as file:
                file.seek(start)
                return _fill(file, length, str(path))
        except OSError as error:
            raise unreadable(str(path), error.strerror) from error

    def identity(self, name: str) -> dict[str, Any] | None:
        found = self._stat(name)
        return {
            "path": os.path.realpath(self.path / name),
            "size": found.st_size,
            "mtime_ns": found.st_mtime_ns,
            "ctime_ns": found.st_ctime_ns,
            "inode": found.st_ino,
        }

    def local(self, name: str) -> Path | None:
        return self.path / name


def _raise(error: OSError) -> None:
    raise error


def _fill(file: Any, length: int, where: str) -> bytearray:
    """Read until full: one raw read returns 2 GiB at most on Linux."""
    buffer = bytearray(length)
    view, done = memoryview(buffer), 0
    while done < length:
        count = file.readinto(view[done:])
        if not count:
            raise short(where, done, length)
        done += count
    return buffer


def short(where: str, got: int, wanted: int) -> InputError:
    return InputError(
        "file is shorter than it was",
        where=where,
        got=f"{got} bytes",
        wanted=f"{wanted} bytes",
        fix="something changed the file while it was read; restore it and run again",
    )


def error_text(error: BaseException) -> str:
    """Type and first line of a foreign exception."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__

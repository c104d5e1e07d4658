"""Folder: the few file operations that the store needs, the same over a local disk and anything that fsspec writes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

from store.digest import Bytes


class Entry(NamedTuple):
    """One file: its path below the folder, bytes, and time of last change (seconds since 1970)."""

    path: str
    size: int
    modified: float


class Staged(NamedTuple):
    """Content that waits for its name: its digest and size, and where it is until then."""

    digest: str
    size: int
    content: Bytes | Path


class Folder(Protocol):
    """Paths are relative, with `/`. Absent files raise FileNotFoundError. Nothing is ever visible half written."""

    @property
    def url(self) -> str:
        """For messages."""

    @property
    def root(self) -> Path | None:
        """Where the files are on this machine; None if they are elsewhere."""

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        """Bytes [start, end) of a file, of exactly that length; unverified."""

    def read_into(self, path: str, buffer: memoryview) -> int:
        """Fill a buffer from the start of a file; returns the file's whole length."""

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        """Whole contents of those of the files that exist."""

    def info(self, path: str) -> Entry | None:
        """Size and age of a file; None if there is none."""

    def sizes(self, paths: list[str]) -> dict[str, int]:
        """Sizes of those of the files that exist."""

    def scan(self, prefix: str) -> Iterator[Entry]:
        """All files below `prefix`, in no order."""

    def stage(self, source: Bytes | Path, *, move: bool = False) -> Staged:
        """Take content in and hash it. `move`: the file is ours to take away."""

    def place(self, staged: Staged, path: str, *, late: bool = False) -> bool:
        """Give staged content its name unless the name is taken (then False). `late`: a record that checks itself."""

    def replace(self, path: str, data: Bytes) -> None:
        """Write a file atomically, over an older one if there is one."""

    def claim(self, path: str, data: Bytes) -> bool:
        """Create a file if there is none; of any number of racers exactly one is told True."""

    def touch(self, path: str, size: int) -> bool:
        """Make a file young, so that a running prune spares it; False if it is absent, torn, or must be rewritten."""

    def remove(self, path: str) -> None:
        """Delete a file; no error if it is gone."""

    def move(self, path: str, to: str) -> None:
        """Rename a file."""

    def batch(self) -> AbstractContextManager[None]:
        """Within it, `place` may postpone durability until enough has gathered, or the end."""

    def sweep(self, older_than: float) -> int:
        """Delete what interrupted writers left behind before that time; how many."""

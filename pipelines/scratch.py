"""This machine's cache folder: scratch of steps, which ends with its step, and copies, which may always go."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from schemas.errors import InputError
from store.errors import FULL

DAY = 86400.0
UNUSED = {"tensors": DAY, "files": DAY, "resume": 30 * DAY}
"""Seconds since its last use after which prune takes a copy of a remote model's tensor or file, and what an interrupted
step has left to go on from."""

_PREFIX = "step-"


class Tidied(NamedTuple):
    """Files and bytes that went, or would go."""

    files: int
    bytes: int


@contextmanager
def scratch(cache: Path) -> Iterator[Path]:
    """An empty folder of one step's own, removed at the end. That of a killed process goes when the next one begins."""
    cache.mkdir(parents=True, exist_ok=True)
    bury(cache)
    folder, lock = _locked(cache)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def room(cache: Path) -> Iterator[None]:
    """InputError where a step finds no room for its scratch, or for what it leaves to go on from."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise InputError(
            "no room for a step's scratch",
            where=str(cache),
            got=error,
            fix="free some space there, or set BITSMITH_HOME to a folder with more",
        ) from error


def _locked(cache: Path) -> tuple[Path, int]:
    """A fresh folder that this process holds; the kernel lets it go when the process ends, however it ends."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=cache))
        lock = _lock(folder)
        if lock is not None and folder.exists():
            return folder, lock
        if lock is not None:  # someone took it for a dead one's before it was held
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the folder; None if a living process does, or if the folder is gone."""
    try:
        file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(file)
        return None
    return file


def bury(cache: Path, dry_run: bool = False) -> Tidied:
    """Remove the scratch of processes that were killed."""
    gone = Tidied(0, 0)
    for folder in cache.glob(f"{_PREFIX}*"):
        lock = _lock(folder)
        if lock is not None:
            gone = _sum(gone, _size(folder))
            if not dry_run:
                shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
    return gone


def tidy(cache: Path, dry_run: bool = False) -> Tidied:
    """Remove scratch of the dead, and copies that nobody has used for a while."""
    gone, now = bury(cache, dry_run), time.time()
    for name, age in UNUSED.items():
        for path in sorted((cache / name).rglob("*")):
            with suppress(FileNotFoundError):
                if path.is_file() and path.stat().st_mtime < now - age:
                    gone = _sum(gone, Tidied(1, path.stat().st_size))
                    if not dry_run:
                        path.unlink()
    return gone


def _size(folder: Path) -> Tidied:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return Tidied(len(files), sum(path.stat().st_size for path in files))


def _sum(one: Tidied, other: Tidied) -> Tidied:
    return Tidied(one.files + other.files, one.bytes + other.bytes)

"""Files on a local disk: written under a temporary name, and given their own only when they are whole."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from store.digest import Bytes, read_chunks, sha256_file, slices, write_hashed
from store.folder import Staged

SYNC_THREADS = 16
"""A journalling file system merges fsyncs that arrive together: 32 of them took 11 ms from 16 threads, 130 in a row."""

_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV}


def write_temporary(folder: Path, source: Bytes | Path | Iterator[bytes], move: bool = False) -> Staged:
    """Put content under a fresh temporary name in `folder`; nothing stays there if that fails."""
    make_folder(folder)
    temporary = folder / f"{os.getpid()}-{uuid.uuid4().hex}"
    try:
        if isinstance(source, Path) and move and _moved(source, temporary):
            temporary.chmod(0o444)
            return Staged(sha256_file(temporary), temporary.stat().st_size, temporary)
        file = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o444)
        try:
            digest, size = write_hashed(_chunks(source), file)
        finally:
            os.close(file)
        return Staged(digest, size, temporary)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _chunks(source: Bytes | Path | Iterator[bytes]) -> Iterator[Bytes]:
    if isinstance(source, Path):
        return read_chunks(source)
    return source if isinstance(source, Iterator) else slices(source)


def _moved(source: Path, to: Path) -> bool:
    """Rename a plain file that has no other name; False if it must be copied after all."""
    if source.is_symlink() or source.stat().st_nlink != 1:
        return False
    try:
        source.rename(to)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        return False
    return True


def sync(paths: Iterable[Path]) -> None:
    """Make files or folders durable."""
    todo = list(paths)
    if len(todo) < 2:
        for path in todo:
            _sync_one(path)
        return
    with ThreadPoolExecutor(min(SYNC_THREADS, len(todo))) as pool:
        list(pool.map(_sync_one, todo))


def _sync_one(path: Path) -> None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # it was deleted meanwhile
        return
    try:
        os.fsync(file)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync a folder
            raise
    finally:
        os.close(file)


def give_name(temporary: Path, final: Path) -> bool:
    """Link a temporary file to its final name and drop the temporary one; False if the name was taken."""
    try:
        os.link(temporary, final)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if final.exists():
            return False
        temporary.rename(final)
        return True
    temporary.unlink(missing_ok=True)
    return True


def make_folder(folder: Path) -> set[Path]:
    """Create a folder with its parents; returns the folders whose listing changed."""
    changed: set[Path] = set()
    missing = folder
    while not missing.is_dir():
        changed.add(missing.parent)
        missing = missing.parent
    if changed:  # mkdir of what exists waits for the journal of a busy disk
        folder.mkdir(parents=True, exist_ok=True)
    return changed


def link_or_copy(source: Path, to: Path) -> None:
    """A second name for the same bytes where the file system allows it, else a copy."""
    try:
        os.link(source, to)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with suppress(BaseException):
            shutil.copyfile(source, to)
            return
        to.unlink(missing_ok=True)
        raise

"""RemoteFolder: a Folder on any fsspec file system, in one of two ways.

Object stores (S3, GCS, Azure, memory) show an object only when it is whole and can refuse to replace one, so a plain
conditional put is atomic. Everything else gets a temporary file and a rename.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from store import orphans
from store.digest import Bytes, sha256, sha256_file
from store.folder import Entry, Staged
from store.retry import TRIES, attempt

OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "az", "memory"}
THREADS = 16
FIRST_TRIES = 4
"""A store that has never answered is given up sooner: its address is probably wrong."""

LIST_FROM = 200
"""Asking for so many sizes is slower than listing the whole prefix, a thousand names per request."""

PART = 16 << 20
"""Bytes per part of an upload to S3; from twice as much on, content travels in parts, several at once."""

YOUNG = 600.0
"""Seconds. An object that is stored again when older is written again, so that a running prune finds it young."""

_memory_lock = threading.RLock()


class RemoteFolder:
    """See Folder. Safe for threads; after a fork a process opens its own."""

    def __init__(self, filesystem: Any, root: str, url: str, tries: int = TRIES) -> None:
        self._fs, self._root, self._url, self._tries = filesystem, root.rstrip("/"), url, tries
        self._answered = False
        protocol = filesystem.protocol
        names = {protocol} if isinstance(protocol, str) else set(protocol)
        self._is_object_store = bool(names & OBJECT_STORES)
        self._is_memory, self._is_s3 = "memory" in names, "s3" in names
        self._exclusive: AbstractContextManager[Any] = _memory_lock if self._is_memory else nullcontext()

    @property
    def url(self) -> str:
        return self._url

    @property
    def root(self) -> Path | None:
        return None

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _try(self, operation: Callable[[], Any]) -> Any:
        tries = self._tries if self._answered else min(self._tries, FIRST_TRIES)
        try:
            result = attempt(operation, self._url, tries)
        except (FileNotFoundError, FileExistsError):
            self._answered = True
            raise
        self._answered = True
        return result

    def read(self, path: str, start: int = 0, end: int | None = None) -> bytes:
        def get() -> bytes:
            # By keyword only: the second positional argument of s3fs is a version.
            whole = not start and end is None
            data: bytes = self._fs.cat_file(self._at(path), **({} if whole else {"start": start, "end": end}))
            if end is not None and len(data) != end - start:
                raise ConnectionError(f"{len(data)} of {end - start} bytes arrived of {path}")
            return data

        if end == start:
            return b""
        data: bytes = self._try(get)
        return data

    def read_into(self, path: str, buffer: memoryview) -> int:
        data = self.read(path)
        buffer[: len(data)] = data[: len(buffer)]
        return len(data)

    def read_many(self, paths: Iterable[str]) -> dict[str, bytes]:
        wanted = {self._at(path).lstrip("/"): path for path in paths}
        found: dict[str, bytes] = {}
        answers = self._try(lambda: self._fs.cat([*wanted], on_error="return")) if len(wanted) > 1 else {}
        for at, path in wanted.items():
            data = answers.get(at, answers.get(f"/{at}"))
            with suppress(FileNotFoundError):
                found[path] = data if isinstance(data, bytes) else self._again(path, data)
        return found

    def _again(self, path: str, error: object) -> bytes:
        if isinstance(error, FileNotFoundError):
            raise error
        return self.read(path)

    def info(self, path: str) -> Entry | None:
        try:
            found = self._try(lambda: self._fs.info(self._at(path)))
        except FileNotFoundError:
            return None
        return None if found["type"] == "directory" else Entry(path, int(found["size"]), _modified(found))

    def sizes(self, paths: list[str]) -> dict[str, int]:
        if len(paths) < LIST_FROM:
            with ThreadPoolExecutor(THREADS) as pool:
                return {entry.path: entry.size for entry in pool.map(self.info, paths) if entry}
        wanted = set(paths)
        prefixes = {path.split("/")[0] for path in paths}
        return {each.path: each.size for prefix in prefixes for each in self.scan(prefix) if each.path in wanted}

    def scan(self, prefix: str) -> Iterator[Entry]:
        try:
            found = self._try(lambda: self._fs.find(self._at(prefix), detail=True))
        except FileNotFoundError:
            return
        for at, info in found.items():
            if info["type"] == "directory":  # s3fs asks twice; something was written between its two questions
                continue
            path = at.lstrip("/").removeprefix(self._root.lstrip("/")).lstrip("/")
            yield Entry(path, int(info["size"]), _modified(info))

    def stage(self, source: Bytes | Path, *, move: bool = False) -> Staged:
        if isinstance(source, Path):
            return Staged(sha256_file(source), source.stat().st_size, source)
        content = source if isinstance(source, bytes) else bytes(source)
        return Staged(sha256(content), len(content), content)

    def place(self, staged: Staged, path: str, *, late: bool = False) -> bool:
        try:
            self._try(lambda: self._write(staged.content, path, create=True))
            return True
        except FileExistsError:
            if not late and not self.touch(path, staged.size):
                self._try(lambda: self._write(staged.content, path, create=False))
            return False

    def _write(self, content: Bytes | Path, path: str, create: bool) -> None:
        if self._is_object_store:
            with self._exclusive:
                self._put(content, self._at(path), "create" if create else "overwrite")
            return
        if create and self._fs.exists(self._at(path)):
            raise FileExistsError(path)
        temporary = self._at(f"tmp/{uuid.uuid4().hex}")
        self._make_parent(temporary)
        self._make_parent(self._at(path))
        try:
            self._put(content, temporary, "overwrite")
            self._fs.mv(temporary, self._at(path))
        except BaseException:
            with suppress(Exception):
                self._fs.rm_file(temporary)
            raise

    def _put(self, content: Bytes | Path, at: str, mode: str) -> None:
        parts = {"chunksize": PART} if self._is_s3 else {}
        if isinstance(content, Path) and not self._is_memory:
            self._fs.put_file(str(content), at, mode=mode, **parts)
        else:
            self._fs.pipe_file(at, content.read_bytes() if isinstance(content, Path) else content, mode=mode, **parts)

    def _make_parent(self, at: str) -> None:
        if not self._is_object_store:
            self._fs.makedirs(at.rsplit("/", 1)[0], exist_ok=True)

    def replace(self, path: str, data: Bytes) -> None:
        self._try(lambda: self._write(bytes(data), path, create=False))

    def claim(self, path: str, data: Bytes) -> bool:
        content, tries = bytes(data), 0

        def create() -> None:
            nonlocal tries
            tries += 1
            if self._is_object_store:
                return self._write(content, path, create=True)
            self._make_parent(self._at(path))
            with self._fs.open(self._at(path), "xb") as file:
                file.write(content)

        try:
            self._try(create)
        except FileExistsError:
            # An earlier try may have succeeded and its answer been lost.
            entry = self.info(path) if tries > 1 else None
            return entry is not None and entry.size == len(content) and self.read(path, 0, entry.size) == content
        return True

    def touch(self, path: str, size: int) -> bool:
        entry = self.info(path)
        return entry is not None and entry.size == size and time.time() - entry.modified < YOUNG

    def remove(self, path: str) -> None:
        with suppress(FileNotFoundError):
            self._try(lambda: self._fs.rm_file(self._at(path)))

    def move(self, path: str, to: str) -> None:
        self._make_parent(self._at(to))
        self._try(lambda: self._fs.mv(self._at(path), self._at(to)))

    def batch(self) -> AbstractContextManager[None]:
        return nullcontext()

    def sweep(self, older_than: float) -> int:
        stale = [entry for entry in self.scan("tmp") if entry.modified < older_than]
        for entry in stale:
            self.remove(entry.path)
        return len(stale) + orphans.abort_uploads(self._fs, self._root, older_than)


def open_remote(url: str, options: Mapping[str, Any]) -> RemoteFolder:
    """Any address that fsspec knows. Listings are never cached: they would hide what other clients wrote."""
    import fsspec

    scheme = url.split(":", 1)[0]
    fresh: dict[str, Any] = {"use_listings_cache": False} if scheme in OBJECT_STORES - {"memory"} else {}
    if scheme in {"s3", "s3a"}:
        fresh["config_kwargs"] = {"retries": {"max_attempts": 1}}  # we try again ourselves
    try:
        filesystem, root = fsspec.url_to_fs(url, **(fresh | dict(options)))
    except (ValueError, ImportError) as error:
        raise InputError(
            "The store's address cannot be opened",
            where=url,
            got=error,
            wanted="a path, s3://bucket/folder, memory://name or another fsspec address",
            fix="install what it names",
        ) from error
    return RemoteFolder(filesystem, root, url)


def _modified(info: dict[str, Any]) -> float:
    """Seconds since 1970 of the last change, under whichever name the file system gives it."""
    for name in ("LastModified", "last_modified", "mtime", "modified", "updated", "created"):
        value = info.get(name)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
    return 0.0

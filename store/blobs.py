"""Blobs: content under the sha256 of itself, `ab/cdef...` below a prefix of a folder, verified whenever it is read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from store.cache import Cache
from store.digest import Bytes, hash_chunks, is_digest, sha256, sha256_file
from store.errors import Corrupt, Missing, guard
from store.folder import Entry, Folder
from store.verified import REREADS, quarantine, read_verified

SMALL = 1 << 20
"""Below this, content is hashed before it is written, so that what is already there costs no write."""

PIECE = 32 << 20
"""Bytes per request when a large remote object is copied."""


class Blobs:
    """Immutable objects. Reading raises Missing, or Corrupt once the object has been moved to `quarantine/`."""

    def __init__(self, folder: Folder, prefix: str = "objects", cache: Cache | None = None) -> None:
        self.folder, self.prefix, self.cache = folder, prefix, cache
        self._verified: set[str] = set()

    @property
    def url(self) -> str:
        """For messages."""
        return self.folder.url

    def path(self, digest: str) -> str:
        """Where an object is below the folder."""
        if not is_digest(digest):
            raise ValueError(f"not a digest: {digest!r}")
        return f"{self.prefix}/{digest[:2]}/{digest[2:]}"

    def put(self, data: Bytes) -> str:
        """Store a buffer; durable when this returns, unless the folder's batch is open. Returns its digest."""
        view = memoryview(data).cast("B")
        if len(view) <= SMALL:
            digest = sha256(view)
            if self.folder.touch(self.path(digest), len(view)):
                return digest
        return self._put(view, move=False)

    def put_file(self, path: Path, *, move: bool = False) -> str:
        """Store a file's content. `move`: the file is ours to take away, so it need not be copied."""
        return self._put(path, move=move)

    def _put(self, source: Bytes | Path, move: bool) -> str:
        staged = self.folder.stage(source, move=move)
        self.folder.place(staged, self.path(staged.digest))
        return staged.digest

    def get(self, digest: str) -> bytes:
        """The whole object, verified."""
        cached = self.cache.get(digest) if self.cache else None
        if cached is not None:
            return cached
        data = self._fetch(digest)
        if self.cache:
            with suppress(OSError):  # a full cache disk costs speed, nothing else
                self.cache.put(digest, data)
        return data

    def _fetch(self, digest: str) -> bytes:
        try:
            data = read_verified(self.folder, self.path(digest), lambda data: sha256(data) == digest)
        except FileNotFoundError:
            raise Missing(digest, self.url) from None
        if data is None:
            raise self._corrupt(digest)
        return data

    def _corrupt(self, digest: str) -> Corrupt:
        self._verified.discard(digest)
        quarantine(self.folder, self.path(digest))
        return Corrupt(digest, self.url)

    def read_into(self, digest: str, buffer: memoryview) -> None:
        """Fill a buffer of the object's exact size with the object, verified, without another copy in memory."""
        if not self.folder.root:
            buffer[:] = self.get(digest)
            return
        try:
            length = self.folder.read_into(self.path(digest), buffer)
        except FileNotFoundError:
            raise Missing(digest, self.url) from None
        if length != len(buffer) or sha256(buffer) != digest:
            raise self._corrupt(digest)

    def get_range(self, digest: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object. Not verified: a part has no digest of its own."""
        try:
            return self.folder.read(self.path(digest), start, end)
        except FileNotFoundError:
            raise Missing(digest, self.url) from None

    def local_path(self, digest: str) -> Path:
        """A local, read-only file with the object's content, verified once by this process."""
        if not self.folder.root:
            return self._cached_path(digest)
        path = self.folder.root / self.path(digest)
        if digest in self._verified and path.is_file():
            return path
        if not self.check(digest):
            raise self._corrupt(digest)
        self._verified.add(digest)
        return path

    def check(self, digest: str) -> bool:
        """Whether the stored bytes are the named ones. Reads all of them from the store itself; moves nothing."""
        try:
            if self.folder.root:
                return sha256_file(self.folder.root / self.path(digest)) == digest
            return hash_chunks(self._chunks(digest)) == digest
        except FileNotFoundError:
            raise Missing(digest, self.url) from None

    def verify(self, digest: str) -> None:
        """Read an object; move it to quarantine if its bytes are not the named ones."""
        with suppress(Missing):
            if not self.check(digest):
                self._corrupt(digest)

    def _chunks(self, digest: str) -> Iterator[bytes]:
        """A remote object in pieces that fit in memory."""
        path, size = self.path(digest), self.size(digest)
        return (self.folder.read(path, start, min(start + PIECE, size)) for start in range(0, size, PIECE))

    def _cached_path(self, digest: str) -> Path:
        if not self.cache:
            raise RuntimeError(f"a remote store needs a cache folder to give local paths: {self.url}")
        with guard(str(self.cache.root)):
            for _ in range(REREADS):
                path = self.cache.path(digest)
                if path:
                    return path
                self.cache.put(digest, self._chunks(digest))
        raise self._corrupt(digest)

    def has(self, digest: str) -> bool:
        """Whether the object is there; its content is not looked at."""
        return self.folder.info(self.path(digest)) is not None

    def sizes(self, digests: Iterable[str]) -> dict[str, int]:
        """Bytes of those of the objects that are there."""
        paths = {self.path(digest): digest for digest in digests}
        return {paths[path]: size for path, size in self.folder.sizes(list(paths)).items()}

    def size(self, digest: str) -> int:
        """Bytes of an object."""
        entry = self.folder.info(self.path(digest))
        if entry is None:
            raise Missing(digest, self.url)
        return entry.size

    def delete(self, digest: str) -> None:
        """Remove an object, and its copy in the cache of this machine; no error if it is gone."""
        self._verified.discard(digest)
        if self.cache:
            self.cache.drop(digest)
        self.folder.remove(self.path(digest))

    def list(self) -> Iterator[tuple[str, Entry]]:
        """All objects with size and age, in no order."""
        for entry in self.folder.scan(self.prefix):
            digest = entry.path.removeprefix(self.prefix).replace("/", "")
            if is_digest(digest):
                yield digest, entry

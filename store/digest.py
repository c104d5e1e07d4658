"""sha256 of bytes, of files, and of what streams past on its way to a disk."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

Bytes = bytes | bytearray | memoryview
CHUNK = 16 << 20
"""Bytes per step when something large is written: few hand-overs between the threads that write and that hash."""

OVERLAP_FROM = 1 << 20
"""Bytes from which a second thread is worth it."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def is_digest(text: object) -> bool:
    """Whether this is 64 lower-case hex digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def sha256(data: Bytes) -> str:
    """Digest of a buffer, in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Digest of a file, read in chunks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_chunks(chunks: Iterable[Bytes]) -> str:
    """Digest of what arrives in pieces."""
    hasher = hashlib.sha256()
    for chunk in chunks:
        hasher.update(chunk)
    return hasher.hexdigest()


def slices(data: Bytes) -> Iterator[memoryview]:
    """The chunks of a buffer, without copying."""
    view = memoryview(data).cast("B")
    return (view[start : start + CHUNK] for start in range(0, len(view), CHUNK))


def read_chunks(path: Path) -> Iterator[bytes]:
    """The chunks of a file."""
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK):
            yield chunk


def write_hashed(chunks: Iterable[Bytes], file: int) -> tuple[str, int]:
    """Write chunks to a file descriptor and hash them meanwhile (hashing releases the GIL). Returns digest, size."""
    hasher, size = hashlib.sha256(), 0
    hashing: Future[None] | None = None
    with ExitStack() as threads:
        pool: ThreadPoolExecutor | None = None
        for chunk in chunks:
            size += len(chunk)
            if hashing:
                hashing.result()
            if len(chunk) < OVERLAP_FROM:
                hasher.update(chunk)
            else:
                pool = pool or threads.enter_context(ThreadPoolExecutor(1))
                hashing = pool.submit(hasher.update, chunk)
            _write_all(file, chunk)
    return hasher.hexdigest(), size


def _write_all(file: int, chunk: Bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(file, rest) :]

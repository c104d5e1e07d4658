"""Records: small JSON documents that carry the digest of their own text, so that a flipped bit is noticed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any

from schemas.base import canonical_json
from store.digest import sha256
from store.folder import Folder
from store.verified import quarantine, read_verified

_HEAD, _MIDDLE, _TAIL = b'{"sha256":"', b'","record":', b"}\n"
READ_AT_ONCE = 1000
_BODY = len(_HEAD) + 64 + len(_MIDDLE)


def encode(document: dict[str, Any]) -> bytes:
    """`{"sha256": digest of the record's canonical JSON, "record": {...}}`, itself JSON."""
    body = canonical_json(document).encode()
    return _HEAD + sha256(body).encode() + _MIDDLE + body + _TAIL


def is_sound(data: bytes) -> bool:
    """Whether these are the bytes that `encode` wrote, all of them."""
    body = data[_BODY : -len(_TAIL)]
    return data == _HEAD + sha256(body).encode() + _MIDDLE + body + _TAIL


def decode(data: bytes) -> dict[str, Any] | None:
    """The record, or None if its bytes are not what was written."""
    if not is_sound(data):
        return None
    document: dict[str, Any] = json.loads(data[_BODY : -len(_TAIL)])
    return document


def read_record(folder: Folder, path: str) -> dict[str, Any] | None:
    """The record in a file. A bad one is quarantined, and then as absent: None."""
    with suppress(FileNotFoundError):
        data = read_verified(folder, path, is_sound)
        if data is not None:
            return decode(data)
        quarantine(folder, path)
    return None


def read_files(folder: Folder, paths: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Paths and contents of those of the files that exist, some hundreds per batch of requests."""
    rest = iter(paths)
    while batch := list(islice(rest, READ_AT_ONCE)):
        yield from folder.read_many(batch).items()


def read_records(folder: Folder, paths: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Paths and records of those of the files that exist and are sound. Bad ones are quarantined."""
    for path, data in read_files(folder, paths):
        record = decode(data) or read_record(folder, path)
        if record is not None:
            yield path, record

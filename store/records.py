"""Records: small JSON documents that carry the digest of their own text, so that a flipped bit is noticed."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

from schemas.base import canonical_json
from store.digest import sha256
from store.folder import Folder
from store.verified import quarantine, read_verified

_HEAD, _MIDDLE, _TAIL = b'{"sha256":"', b'","record":', b"}\n"
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


def read_records(folder: Folder, paths: list[str]) -> dict[str, dict[str, Any]]:
    """The records in those of the files that exist and are sound, fetched together."""
    found: dict[str, dict[str, Any]] = {}
    for path, data in folder.read_many(paths).items():
        record = decode(data) or read_record(folder, path)
        if record is not None:
            found[path] = record
    return found

"""Bytes copied from one file to another, never more of them in memory than a chunk."""

from __future__ import annotations

from typing import BinaryIO

from schemas.errors import InputError

CHUNK = 1 << 24


def copy(source: BinaryIO, start: int, size: int, out: BinaryIO) -> None:
    """Append `size` bytes from `start` on; InputError when the source ends before that."""
    source.seek(start)
    while size:
        data = source.read(min(size, CHUNK))
        if not data:
            raise InputError("a weights file is cut short", where=out.name, fix="copy the folder again")
        out.write(data)
        size -= len(data)

"""Digests of tensors in files that are too big to hash at every run, remembered by the files' versions.

Any doubt means hashing again: a changed size, time or inode, a changed header, a record that is not exactly what was
written, a file so fresh that a later write might not show in its times. Records are never more than a saving.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.base import canonical_json, digest_of
from schemas.errors import InputError
from store.sources.json_object import json_object

SETTLED_SECONDS = 2.0  # coarsest common file time (FAT) and wider than a kernel tick; as git's "racily clean" rule
_DIGEST = re.compile(r"[0-9a-f]{64}")


def write_whole(path: Path, data: bytes | bytearray) -> None:
    """Put a file of ours in place at once, never half; folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".part-")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise InputError(
            "cannot write into the cache",
            where=str(path),
            got=error.strerror,
            fix="free space, or another cache folder",
        ) from error


def is_settled(version: Mapping[str, Any], began: float) -> bool:
    """Whether any write after `began` (seconds since the epoch) must show in the file's identity."""
    file = version["file"] or {}
    if "mtime_ns" not in file:
        return "tag" in file
    changed = max(int(file["mtime_ns"]), int(file["ctime_ns"])) / 1e9
    return began - changed >= SETTLED_SECONDS


@dataclass(frozen=True)
class Remembered:
    """Records in `folder`, one file per version of a shard; None remembers nothing."""

    folder: Path | None

    def load(self, version: Mapping[str, Any]) -> dict[str, str]:
        """Tensor name -> digest as saved for exactly this version; empty at any doubt."""
        if self.folder is None:
            return {}
        try:
            path = self._path(version)
            record = json_object(path.read_bytes(), str(path))
            check = record.pop("check")
            digests: dict[str, str] = record["digests"]
            sound = record["version"] == version and check == digest_of(record)
            return digests if sound and all(_DIGEST.fullmatch(d) for d in digests.values()) else {}
        except (OSError, InputError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def save(self, version: Mapping[str, Any], digests: Mapping[str, str]) -> None:
        """Add digests to the record of a version; of two writers at once the last wins, which costs a rehash."""
        if self.folder is None:
            return
        record: dict[str, Any] = {"version": dict(version), "digests": {**self.load(version), **digests}}
        record["check"] = digest_of(record)
        write_whole(self._path(version), canonical_json(record).encode())

    def _path(self, version: Mapping[str, Any]) -> Path:
        assert self.folder is not None
        return self.folder / f"{digest_of(version)[:32]}.json"

"""Places behind an fsspec URL, and how a path or URL becomes a place. Nothing is read but what is asked for."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from schemas.errors import InputError
from store.sources.places import LocalPlace, Place, error_text, short, unreadable

# S3: never answer from an old listing, and give up on a silent endpoint after seconds, not minutes.
_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        "config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 3}},
    }
}
_STRONG_TAGS = ("ETag", "etag", "md5Hash")
_CREDENTIALS = re.compile(r"(?<=://)[^/@]*@")


@dataclass(frozen=True)
class RemotePlace:
    """A folder of an fsspec filesystem; `entries` is its listing, with names relative to `root`, as of opening."""

    filesystem: Any
    root: str
    where: str
    entries: dict[str, dict[str, Any]]

    @property
    def name(self) -> str:
        return PurePosixPath(self.root).name or self.where

    def names(self, deep: bool = False) -> tuple[str, ...]:
        return tuple(sorted(name for name in self.entries if deep or "/" not in name))

    def size(self, name: str) -> int:
        return int(self.entries[name]["size"])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        where, stop = f"{self.where}/{name}", self.size(name) if stop is None else stop
        if stop == start:
            return bytearray()
        try:
            # By keyword: s3fs takes a version id as its second positional argument.
            raw = bytearray(self.filesystem.cat_file(f"{self.root}/{name}", start=start, end=stop))
        except Exception as error:  # every backend has its own exceptions
            raise unreadable(where, error_text(error)) from error
        if len(raw) != stop - start:
            raise short(where, len(raw), stop - start)
        return raw

    def identity(self, name: str) -> dict[str, Any] | None:
        try:
            entry = self.filesystem.info(f"{self.root}/{name}")
        except Exception as error:  # every backend has its own exceptions
            raise unreadable(f"{self.where}/{name}", error_text(error)) from error
        tag = next((str(entry[t]) for t in _STRONG_TAGS if entry.get(t)), None)
        if tag is None or tag.startswith("W/"):
            return None
        return {
            "url": f"{self.where}/{name}",
            "size": entry["size"],
            "tag": tag,
            "time": str(entry.get("LastModified")),
        }

    def local(self, name: str) -> Path | None:
        return None


def locate(source: str, deep: bool = False) -> tuple[Place, str | None]:
    """The folder at a path or URL; when a file is there, the folder that holds it and the file's name.

    `deep` lists a remote folder with its subfolders.
    """
    if "://" in source and not source.startswith("file://"):
        return _locate_remote(source.rstrip("/"), deep)
    path = Path(os.path.expanduser(source.removeprefix("file://")))
    if path.is_dir():
        return LocalPlace(path), None
    if path.is_file():
        return LocalPlace(path.parent), path.name
    raise InputError("no such file or folder", where=str(path), fix="check the path; it is relative to where you are")


def _locate_remote(url: str, deep: bool) -> tuple[Place, str | None]:
    where, protocol = _CREDENTIALS.sub("", url), url.split("://")[0]
    if "::" in protocol or protocol in ("http", "https"):
        raise InputError(
            "unsupported kind of address",
            where=where,
            got=f"{protocol}://",
            wanted="a local path, or a URL of storage that lists its files, such as s3://bucket/folder",
            fix="for a model of the Hub give its id, such as org/name; anything else: download it first",
        )
    try:
        filesystem, root = fsspec.core.url_to_fs(url, **_OPTIONS.get(protocol, {}))
        filesystem.invalidate_cache()
        if filesystem.isfile(root):
            parent, name = root.rsplit("/", 1)
            entries = {name: filesystem.info(root)}
            return RemotePlace(filesystem, parent, where.rsplit("/", 1)[0], entries), name
        found = filesystem.find(root, maxdepth=None if deep else 1, detail=True)
    except Exception as error:  # every backend has its own exceptions
        raise unreadable(where, error_text(error)) from error
    if not found:
        raise InputError("no such file or folder", where=where, fix="check the address")
    prefix = len(root.rstrip("/")) + 1
    entries = {path[prefix:]: entry for path, entry in found.items() if entry["type"] == "file"}
    entries.pop("", None)  # the marker object of a folder made in an S3 console
    return RemotePlace(filesystem, root.rstrip("/"), where, entries), None

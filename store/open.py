"""Store: everything that is kept under one address, on a disk or on anything that fsspec writes."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from store.artifacts import Artifacts
from store.builds import Builds
from store.cache import LIMIT, Cache
from store.folder import Folder
from store.leases import Leases
from store.local import LocalFolder
from store.records import encode, read_record
from store.running import UnderWay
from store.traces import Traces

VERSION = 1
"""Of the layout below the address."""

MARKER = "bitsmith.json"

OWN = {
    *("artifacts", "builds", "champions", "conflicts", "leases", "objects", "pins", "promoted", "quarantine"),
    *("running", "tmp", "traces"),
}
"""All names that this package makes directly below a store's address."""


class Store:
    """Cheap to open, imports fsspec only for remote addresses and torch only when a tensor is touched.

    Threads may share one; other processes open their own (it pickles as its address).
    """

    def __init__(
        self,
        url: str | Path,
        *,
        options: Mapping[str, Any] | None = None,
        cache: Path | None = None,
        cache_bytes: int = LIMIT,
    ) -> None:
        self._arguments = (str(url), dict(options or {}), cache, cache_bytes)
        self.folder = open_folder(str(url), options)
        self.cache = None if self.folder.root else Cache(cache or default_cache(), cache_bytes)
        self.artifacts = Artifacts(self.folder, self.cache)
        self.blobs = self.artifacts.blobs
        self.traces = Traces(self.folder, self._is_whole)
        self.leases = Leases(self.folder)
        self.builds = Builds(self.folder)
        self.under_way = UnderWay(self.folder, self.leases)

    @property
    def url(self) -> str:
        """For messages."""
        return self.folder.url

    def __reduce__(self) -> tuple[Any, ...]:
        return (_reopen, self._arguments)

    def _is_whole(self, outputs: Mapping[str, str]) -> bool:
        """Whether one of a trace's outputs is complete; others may be scratch that was discarded."""
        return not outputs or any(not self.artifacts.missing(digest) for digest in outputs.values())

    def batch(self) -> AbstractContextManager[None]:
        """Within it, local writes are synced in groups (64 files or 2 s), which costs a fraction per small file.

        Whatever was stored is there for every process at once, and stays when this one is killed. A power cut may cost
        or tear what was not synced: that is found when it is read, and made again.
        """
        return self.folder.batch()

    @contextmanager
    def running(self, name: str = "") -> Iterator[str]:
        """Say that a build runs, so that prune spares what it may need. Waits for a prune that is under way."""
        lease = f"builds/{uuid.uuid4().hex}"
        while not self.leases.acquire(lease, build=name):
            time.sleep(0.01)  # someone looked at it at the wrong moment
        try:
            while "prune/prune" in self.leases.holders("prune"):
                time.sleep(0.2)
            yield lease
        finally:
            self.leases.release(lease)

    def check_writable(self) -> None:
        """Before any work: the address is reachable, writable, ours, and of a layout that we know; else InputError."""
        try:
            self._check_marker()
            probe = f"tmp/probe-{uuid.uuid4().hex}"
            self.folder.replace(probe, b"probe")
            self.folder.remove(probe)
        except (FileNotFoundError, FileExistsError) as error:  # the latter from a link that leads nowhere
            raise InputError("The store's bucket or folder does not exist", where=self.url, got=error) from error

    def _check_marker(self) -> None:
        found = read_record(self.folder, MARKER)
        if found is None:
            self._check_not_someone_elses()
            self.folder.replace(MARKER, encode({"version": VERSION}))
        elif found["version"] != VERSION:
            raise InputError(
                "The store was written by another version of Bitsmith",
                where=self.url,
                got=f"layout {found['version']}",
                wanted=f"layout {VERSION}",
                fix="use that version, or another store",
            )

    def _check_not_someone_elses(self) -> None:
        """A folder on disk without a marker may hold nothing but what we, in another process, have just begun."""
        root = self.folder.root
        if root is None or not root.is_dir():
            return
        foreign = sorted(
            p.name for p in root.iterdir() if p.name not in OWN | {MARKER, "lost+found"} and p.name[0] != "."
        )
        if foreign:
            raise InputError(
                "This folder is not a Bitsmith store, and not empty",
                where=self.url,
                got=", ".join(foreign[:5]),
                wanted="a store, or an empty or new folder",
                fix="choose another place with --store",
            )

    def check_ours(self) -> None:
        """Before deleting or moving anything: this address is a store; else InputError."""
        if read_record(self.folder, MARKER) is None:
            raise InputError("This is not a Bitsmith store", where=self.url, wanted=f"a folder with {MARKER}")


def _reopen(url: str, options: dict[str, Any], cache: Path | None, cache_bytes: int) -> Store:
    return Store(url, options=options, cache=cache, cache_bytes=cache_bytes)


def open_folder(url: str, options: Mapping[str, Any] | None = None) -> Folder:
    """A path or file:// address as LocalFolder, any other address as fsspec understands it."""
    if "://" not in url and "::" not in url:
        return LocalFolder(Path(os.path.abspath(os.path.expanduser(url))))
    if url.startswith("file://"):
        return LocalFolder(Path(os.path.abspath(url.removeprefix("file://"))))
    from store.remote import open_remote

    return open_remote(url, options or {})


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/bitsmith`, or `~/.cache/bitsmith`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "bitsmith"

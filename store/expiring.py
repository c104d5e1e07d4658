"""ExpiringLeases: leases where no kernel can hold them (S3, memory). They end when their holder stops refreshing.

A lease is a folder of numbered generations, `leases/<name>/00000007`. Only the highest counts; who wants an expired or
released one creates the next number, and of any number of racers one can. Nothing is deleted that a slow reader could
mistake for a free lease. Clocks of the machines must agree within a fraction of `ttl`.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from store.folder import Entry, Folder

TTL = 60.0
"""Seconds that a lease outlives its last refresh; refreshed three times as often."""


class _Held(NamedTuple):
    path: str
    facts: dict[str, Any]


class ExpiringLeases:
    """See FileLocks for the contract."""

    def __init__(self, folder: Folder, ttl: float = TTL) -> None:
        self._folder, self._ttl = folder, ttl
        self._held: dict[str, _Held] = {}
        self._lock = threading.Lock()
        self._refresher: threading.Thread | None = None

    def acquire(self, name: str, facts: dict[str, Any]) -> bool:
        """Take a lease unless someone has it; never waits."""
        last = self._last(name)
        number = 0
        if last:
            if self._facts(last) is not None:
                return False
            number = _generation(last) + 1
        held = _Held(f"leases/{name}/{number:08d}", facts)
        if not self._folder.claim(held.path, self._content(held)):
            return False
        with self._lock:
            self._held[name] = held
            self._start()
        return True

    def release(self, name: str) -> None:
        """Give a lease back; no error if this process does not hold it."""
        with self._lock:
            held = self._held.pop(name, None)
        if held is None:
            return
        self._folder.replace(held.path, b'{"expires": 0}')
        for entry in self._folder.scan(f"leases/{name}"):
            if _generation(entry) < _generation(Entry(held.path, 0, 0)):
                self._folder.remove(entry.path)

    def holders(self, prefix: str) -> Iterator[tuple[str, dict[str, Any]]]:
        """Live leases below a prefix with the facts their holders left."""
        newest: dict[str, Entry] = {}
        for entry in sorted(self._folder.scan(f"leases/{prefix}" if prefix else "leases")):
            newest[entry.path.removeprefix("leases/").rsplit("/", 1)[0]] = entry
        for name, entry in newest.items():
            facts = self._facts(entry)
            if facts is not None:
                yield name, facts

    def forget(self, older_than: float) -> None:
        """Delete leases that nobody has touched since that time, which must be long ago."""
        for entry in list(self._folder.scan("leases")):
            if entry.modified < older_than:
                self._folder.remove(entry.path)

    def _last(self, name: str) -> Entry | None:
        return max(self._folder.scan(f"leases/{name}"), key=_generation, default=None)

    def _facts(self, entry: Entry) -> dict[str, Any] | None:
        """What the holder of a generation left; None if it has expired or was released."""
        try:
            content = json.loads(self._folder.read(entry.path))
        except FileNotFoundError:
            return None
        except ValueError:  # half written, where the file system shows that
            return {} if time.time() < entry.modified + self._ttl else None
        return content["facts"] if time.time() < content["expires"] else None

    def _content(self, held: _Held) -> bytes:
        return json.dumps({"expires": time.time() + self._ttl, "facts": held.facts}).encode()

    def _start(self) -> None:
        """Have a thread refresh what is held; it ends when nothing is. Called with the lock held."""
        if self._refresher is None or not self._refresher.is_alive():
            self._refresher = threading.Thread(target=self._refresh, name="leases", daemon=True)
            self._refresher.start()

    def _refresh(self) -> None:
        while True:
            time.sleep(self._ttl / 3)
            with self._lock:
                if not self._held:
                    self._refresher = None
                    return
                held = dict(self._held)
            for name, each in held.items():
                self._refresh_one(name, each)

    def _refresh_one(self, name: str, held: _Held) -> None:
        try:
            self._folder.replace(held.path, self._content(held))
        except Exception:
            return  # the next round tries again; if none succeeds, the lease expires as if we had died
        with self._lock:
            gone = name not in self._held
        if gone:  # released while we wrote
            self._folder.replace(held.path, b'{"expires": 0}')


def _generation(entry: Entry) -> int:
    return int(entry.path.rsplit("/", 1)[1])

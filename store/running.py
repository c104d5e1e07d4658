"""Builds under way: one small file per build that says how far it is, for whoever looks at the store.

A file outlives a build that was killed; whether a build lives is asked of its lease, which ends with its process.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from store.folder import Folder
from store.leases import Leases

_PREFIX, _LEASES = "running", "builds"


@dataclass(frozen=True)
class Running:
    """`done` of `total` pieces of work of `node` in this run, and how fast; cached pieces are not counted.

    For a node that is one long item these are the item's own `what` (steps, blocks). `rate` is per second and `eta`
    the seconds left of the node, None while they cannot be told. Times are seconds since 1970; `updated` is the last
    word, which may be old in a long item: `alive` says whether the process lives.
    """

    id: str
    recipe: str
    nodes_total: int
    started: float
    updated: float
    host: str
    pid: int
    flow_run: str | None = None
    node: str = ""
    what: str = ""
    done: int = 0
    total: int = 0
    rate: float | None = None
    eta: float | None = None
    nodes_done: int = 0
    alive: bool = True


_NAMES = {field.name for field in fields(Running)}


class UnderWay:
    """`running/<id>.json`, where `leases/builds/<id>` is the lease of Store.running."""

    def __init__(self, folder: Folder, leases: Leases) -> None:
        self._folder, self._leases = folder, leases

    def write(self, running: Running) -> None:
        """Say how far a build is, over what it said before."""
        self._folder.replace(_path(running.id), json.dumps(asdict(running)).encode())

    def remove(self, build: str) -> None:
        """Say that a build has ended; no error if it never said anything."""
        self._folder.remove(_path(build))

    def list(self) -> tuple[Running, ...]:
        """All that have not said that they ended, those that died included, newest first."""
        files = self._folder.read_many([entry.path for entry in self._folder.scan(_PREFIX)])
        if not files:
            return ()
        alive = {name.removeprefix(f"{_LEASES}/") for name in self._leases.holders(_LEASES)}
        found = [running for data in files.values() if (running := _read(data, alive)) is not None]
        return tuple(sorted(found, key=lambda each: -each.started))


def _path(build: str) -> str:
    return f"{_PREFIX}/{build}.json"


def _read(data: bytes, alive: set[str]) -> Running | None:
    """None for what another version of Bitsmith, or a power cut, left."""
    try:
        document = json.loads(data)
        return Running(**{**document, "alive": document["id"] in alive}) if document.keys() <= _NAMES else None
    except (ValueError, TypeError, KeyError, AttributeError):
        return None

"""Traces: key -> outputs. What was computed from what, in one small self-checking file per key.

`traces/ab/cdef...`: no database, so the same layout works on a disk and on S3, and a batch of keys is one batch of
reads. Only successes are written, and only after their outputs are durable.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from schemas.base import digest_of
from store import records
from store.digest import is_digest
from store.folder import Entry, Folder
from store.verified import quarantine


@dataclass(frozen=True)
class Trace:
    """`key` is the digest of `document` (step, spec, code, libraries, inputs); `facts` (seconds, created) inform."""

    key: str
    document: dict[str, Any]
    outputs: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)


class Traces:
    """A damaged trace is quarantined and is a miss. A key keeps its first outputs for as long as the store has them."""

    def __init__(self, folder: Folder, whole: Callable[[dict[str, str]], bool] = lambda outputs: True) -> None:
        self.folder, self._whole = folder, whole
        self._known: dict[str, Trace] = {}

    def put(
        self,
        key: str,
        document: dict[str, Any],
        outputs: dict[str, str],
        facts: dict[str, Any] | None = None,
        anew: bool = False,
    ) -> Trace:
        """Record a result whose outputs are stored; returns the trace that is now in force: go on with its outputs.

        If the key already has other outputs (the step is not deterministic), those stay and this result is noted below
        `conflicts/`; unless they are lost, or `anew`: then the old record goes to quarantine and this one takes its
        place.
        """
        trace = _checked(Trace(key, document, outputs, facts or {}))
        path, data = self.path(key), records.encode(_record(trace))
        if self.folder.place(self.folder.stage(data), path, late=True):
            return trace
        old = self.get(key)
        if old and (old.outputs == outputs or (not anew and self._whole(old.outputs))):
            if old.outputs != outputs:
                self.folder.replace(f"conflicts/{key}.{time.time_ns()}", data)
            return old
        if old:
            quarantine(self.folder, path)
        self.folder.place(self.folder.stage(data), path, late=True)
        return trace

    def put_many(self, traces: Iterable[Trace]) -> list[Trace]:
        """The same for several, made durable together."""
        with self.folder.batch():
            return [self.put(each.key, each.document, each.outputs, each.facts) for each in traces]

    def get(self, key: str) -> Trace | None:
        """The trace of a key, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Trace]:
        """Those of the keys that have a sound trace, fetched together."""
        return {trace.key: trace for trace in self._read(self.path(key) for key in keys)}

    def _read(self, paths: Iterable[str]) -> Iterator[Trace]:
        for path, record in records.read_records(self.folder, paths):
            if path == self.path(record["key"]):
                yield Trace(record["key"], record["document"], record["outputs"], record["facts"])

    def path(self, key: str) -> str:
        """Where a trace is below the folder."""
        if not is_digest(key):
            raise ValueError(f"not a key: {key!r}")
        return f"traces/{key[:2]}/{key[2:]}"

    def entries(self) -> dict[str, Entry]:
        """All traces by key: size and age, contents unread."""
        found = {entry.path.removeprefix("traces").replace("/", ""): entry for entry in self.folder.scan("traces")}
        return {key: entry for key, entry in found.items() if is_digest(key)}

    def all(self) -> dict[str, Trace]:
        """All sound traces by key. What was read before is not read again."""
        keys = self.entries().keys()
        fresh = self.get_many(keys - self._known.keys())
        self._known = {key: trace for key, trace in (self._known | fresh).items() if key in keys}
        return dict(self._known)

    def remove(self, key: str) -> None:
        """Forget a result; no error if there is none."""
        self.folder.remove(self.path(key))

    def nearest(self, document: dict[str, Any]) -> Trace | None:
        """The earlier trace of the same step that shares most fields with a key document, the newest among equals."""
        wanted, own = set(_leaves(document)), digest_of(document)
        ages = {key: entry.modified for key, entry in self.entries().items()}
        rivals = [
            trace
            for key, trace in self.all().items()
            if key != own and trace.document.get("step") == document.get("step")
        ]
        return max(
            rivals, key=lambda each: (len(wanted & set(_leaves(each.document))), ages.get(each.key, 0.0)), default=None
        )


def _checked(trace: Trace) -> Trace:
    if digest_of(trace.document) != trace.key:
        raise ValueError(f"key {trace.key} is not the digest of its document")
    if wrong := [digest for digest in trace.outputs.values() if not is_digest(digest)]:
        raise ValueError(f"outputs are digests, got {wrong[0]!r}")
    return trace


def _record(trace: Trace) -> dict[str, Any]:
    return {"key": trace.key, "document": trace.document, "outputs": trace.outputs, "facts": trace.facts}


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every scalar of a document with its path."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from _leaves(each, f"{path}.{name}")
    elif isinstance(value, list | tuple):
        for number, each in enumerate(value):
            yield from _leaves(each, f"{path}[{number}]")
    else:
        yield path, repr(value)

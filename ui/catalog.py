"""The builds of a store, read once each: a line per build for the table, whole reports when a page asks for one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from schemas.report import Report
from store.digest import is_digest
from store.open import Store

REPORTS = 16
"""Whole reports that are kept."""


@dataclass(frozen=True)
class Line:
    """What the table says of a build. Records of other versions of Bitsmith may lack anything but the digest."""

    digest: str
    modified: float
    recipe: str = ""
    model: str = ""
    bytes: int | None = None
    bpw: float | None = None
    kl: float | None = None
    kl_low: float | None = None
    kl_high: float | None = None
    against_uniform: float | None = None
    verdict: str = ""
    predicted: float | None = None
    allocated: float | None = None
    gates: tuple[int, int] = (0, 0)
    passed: bool | None = None
    seconds: float | None = None
    computed: int = 0
    cached: int = 0
    created: str | None = None
    promoted: bool = False
    champion: bool = False


class Catalog:
    """Looks at the store's listing whenever it is asked and reads only records that are new. Threads may share it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._lines: dict[str, Line] = {}
        self._reports: OrderedDict[tuple[str, float], Report | None] = OrderedDict()
        self._lock = threading.Lock()

    def lines(self) -> list[Line]:
        """All sound records, newest first."""
        with self._lock:
            return self._refreshed()

    def line(self, digest: str) -> Line | None:
        """The line of one build."""
        return next((line for line in self.lines() if line.digest == digest), None)

    def find(self, beginning: str) -> Line | None:
        """The one build whose digest begins like this."""
        found = [line for line in self.lines() if line.digest.startswith(beginning)]
        return found[0] if len(found) == 1 else None

    def report(self, line: Line) -> Report | None:
        """The whole report; None if another version of Bitsmith wrote it."""
        with self._lock:
            key = (line.digest, line.modified)
            if key not in self._reports:
                self._reports[key] = _report(self.store.builds.load(line.digest))
                while len(self._reports) > REPORTS:
                    self._reports.popitem(last=False)
            self._reports.move_to_end(key)
            return self._reports[key]

    def _refreshed(self) -> list[Line]:
        folder, builds = self.store.folder, self.store.builds
        found = {digest: e.modified for e in folder.scan("builds") if is_digest(digest := _digest(e.path))}
        for digest, modified in found.items():
            known = self._lines.get(digest)
            if known is None or known.modified != modified:
                record = builds.load(digest)
                if record is not None:
                    self._lines[digest] = line_of(digest, modified, record)
        promoted = {entry.path.removeprefix("promoted/") for entry in folder.scan("promoted")}
        champions = set(builds.champions().values())
        self._lines = {
            d: replace(line, promoted=d in promoted, champion=d in champions)
            for d, line in self._lines.items()
            if d in found
        }
        return sorted(self._lines.values(), key=lambda line: (line.created or "", line.modified), reverse=True)


def _digest(path: str) -> str:
    return path.removeprefix("builds/").removesuffix(".json")


def _report(record: dict[str, Any] | None) -> Report | None:
    try:
        return None if record is None else Report.model_validate(record)
    except ValidationError:
        return None


def _get(record: Any, *path: str) -> Any:
    for part in path:
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _number(record: Any, *path: str) -> float | None:
    value = _get(record, *path)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _rows(record: dict[str, Any], name: str) -> list[dict[str, Any]]:
    rows = record.get(name)
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def line_of(digest: str, modified: float, record: dict[str, Any]) -> Line:
    """The line of a record, whichever version wrote it."""
    gates, nodes = _rows(record, "gates"), _rows(record, "nodes")
    contrast = next(
        (c for c in _rows(record, "contrasts") if (c.get("first"), c.get("second")) == ("mixed", "uniform")), {}
    )
    size, passed = _number(record, "bytes", "actual"), record.get("passed")
    return Line(
        digest=digest,
        modified=modified,
        recipe=str(record.get("recipe", "")),
        model=str(record.get("model", "")),
        bytes=None if size is None else int(size),
        bpw=_number(record, "bpw", "linear"),
        kl=_number(record, "mixed", "kl", "value"),
        kl_low=_number(record, "mixed", "kl", "low"),
        kl_high=_number(record, "mixed", "kl", "high"),
        against_uniform=_number(contrast, "ratio", "value"),
        verdict=str(contrast.get("verdict", "")),
        predicted=_number(record, "predicted_kl"),
        allocated=_number(record, "allocated", "kl", "value"),
        gates=(sum(g.get("passed") is True for g in gates), len(gates)),
        passed=passed if isinstance(passed, bool) else None,
        seconds=_number(record, "seconds"),
        computed=int(sum(_number(n, "units_computed") or 0 for n in nodes)),
        cached=int(sum(_number(n, "units_cached") or 0 for n in nodes)),
        created=_moment(record.get("created")),
    )


def _moment(value: Any) -> str | None:
    try:
        return datetime.fromisoformat(value).isoformat()
    except (TypeError, ValueError):
        return None

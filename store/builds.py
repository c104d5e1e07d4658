"""Builds: one JSON record per build report, which of them are promoted or champions, and pins: what prune must keep."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from schemas.errors import InputError
from store import records
from store.digest import is_digest
from store.folder import Folder

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@+-]{0,127}")


@dataclass(frozen=True)
class Build:
    """One record: its digest, when it was written (seconds since 1970), the report itself.

    `promoted`: a person marked it. `champion`: it is the build of its recipe that is to be used.
    """

    digest: str
    modified: float
    promoted: bool
    report: dict[str, Any]
    champion: bool = False


class Builds:
    """`builds/<digest>.json`, `promoted/<digest>`, `champions/<recipe>`, `pins/<name>`; all self-checking, all replaced
    atomically."""

    def __init__(self, folder: Folder) -> None:
        self.folder = folder

    def save(self, digest: str, report: dict[str, Any]) -> None:
        """Store a report under the build's digest; a repeated build replaces its record."""
        if not is_digest(digest):
            raise ValueError(f"not a digest: {digest!r}")
        self.folder.replace(_path(digest), records.encode(report))

    def load(self, digest: str) -> dict[str, Any] | None:
        """The report of a build; None if there is none, or none that is sound."""
        return records.read_record(self.folder, _path(digest))

    def list(self) -> tuple[Build, ...]:
        """All sound records, newest first."""
        entries = sorted(self.folder.scan("builds"), key=lambda each: -each.modified)
        found = dict(records.read_records(self.folder, [each.path for each in entries]))
        promoted, champions = self._promoted(), set(self.champions().values())
        return tuple(
            Build(name, each.modified, name in promoted, found[each.path], name in champions)
            for each in entries
            if each.path in found and (name := each.path[len("builds/") : -len(".json")])
        )

    def find(self, beginning: str) -> Build:
        """The one build whose digest begins like this; InputError if there is none, or more than one."""
        builds = self.list()
        matches = [build for build in builds if beginning and build.digest.startswith(beginning)]
        if len(matches) == 1:
            return matches[0]
        raise InputError(
            "More than one build begins like this" if matches else "No such build",
            where=self.folder.url,
            got=beginning,
            wanted=f"one of the {len(builds)} recorded builds",
        )

    def promote(self, digest: str, promoted: bool = True) -> None:
        """Set or clear the flag of a build that is good enough to use; prune keeps promoted builds."""
        if promoted:
            self.folder.replace(f"promoted/{digest}", records.encode({"digest": digest, "at": time.time()}))
        else:
            self.folder.remove(f"promoted/{digest}")

    def _promoted(self) -> set[str]:
        return {entry.path.removeprefix("promoted/") for entry in self.folder.scan("promoted")}

    def crown(self, recipe: str, digest: str) -> None:
        """Make a build the champion of a recipe, in place of another one; prune keeps champions."""
        self.folder.replace(self._champion(recipe), records.encode({"digest": digest, "at": time.time()}))

    def depose(self, recipe: str) -> None:
        """Leave a recipe without a champion; no error if it has none."""
        self.folder.remove(self._champion(recipe))

    def champion(self, recipe: str) -> str | None:
        """Digest of a recipe's champion."""
        found = records.read_record(self.folder, self._champion(recipe))
        return str(found["digest"]) if found else None

    def champions(self) -> dict[str, str]:
        """Digests of all champions by the name of their recipe."""
        found = records.read_records(self.folder, [entry.path for entry in self.folder.scan("champions")])
        return {path.removeprefix("champions/"): record["digest"] for path, record in found}

    def remove(self, digest: str) -> None:
        """Forget a build's record and its marks; prune then finds what only this build needed."""
        self.folder.remove(f"promoted/{digest}")
        for recipe in (recipe for recipe, champion in self.champions().items() if champion == digest):
            self.depose(recipe)
        self.folder.remove(_path(digest))

    def pin(self, name: str, digest: str) -> None:
        """Keep an artifact, or all of a build, until `unpin`."""
        if not is_digest(digest):
            raise InputError("Only digests can be pinned", got=digest, wanted="64 hex digits")
        self.folder.replace(self._pin(name), records.encode({"digest": digest}))

    def unpin(self, name: str) -> None:
        """Drop a pin; no error if there is none."""
        self.folder.remove(self._pin(name))

    def pins(self) -> dict[str, str]:
        """Pinned digests by name."""
        found = records.read_records(self.folder, [entry.path for entry in self.folder.scan("pins")])
        return {path.removeprefix("pins/"): record["digest"] for path, record in found}

    def _pin(self, name: str) -> str:
        return f"pins/{_checked(name, 'a pin')}"

    def _champion(self, recipe: str) -> str:
        return f"champions/{_checked(recipe, 'a recipe')}"


def _checked(name: str, of: str) -> str:
    if not _NAME.fullmatch(name):
        raise InputError(f"Not a name for {of}", got=name, wanted="letters, digits, _ . @ + -, at most 128")
    return name


def _path(digest: str) -> str:
    return f"builds/{digest}.json"


def digests_in(value: Any) -> Iterator[str]:
    """Every digest in a JSON document, as value or as key, wherever it stands."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from digests_in(name)
            yield from digests_in(each)
    elif isinstance(value, list):
        for each in value:
            yield from digests_in(each)
    elif is_digest(value):
        yield value

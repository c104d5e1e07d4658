"""What a digest or a packed file is, and which trace made it: the store's traces and builds, read once."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from store.builds import Build
from store.digest import is_digest, sha256_file
from store.errors import Unavailable
from store.open import Store
from store.records import read_files
from store.traces import Trace
from store.walk import parts

MANIFEST = "bitsmith.json"
"""The file that every packed folder has."""
BEGINNING = re.compile(r"[0-9a-f]{6,64}")
PACK = "steps.pack.run"


@dataclass(frozen=True)
class Found:
    """An artifact in the store, and the newest build that packed it, if one did."""

    digest: str
    build: Build | None


class Origins:
    """Reads all traces and build records of a store; InputError when there is no store."""

    def __init__(self, store: Store) -> None:
        store.check_ours()
        self.store = store
        self.builds = store.builds.list()
        self.traces = sorted(store.traces.all().values(), key=lambda each: float(each.facts.get("created", 0.0)))
        self.makers: dict[str, Trace] = {d: trace for trace in self.traces for d in trace.outputs.values()}
        """Output digest -> the newest trace that gave it."""

    @cached_property
    def sources(self) -> dict[str, str]:
        """Digests of original models and texts -> where they were, from the builds' recipes."""
        names: dict[str, str] = {}
        for build in self.builds:
            nodes: Any = build.report.get("recipe_document", {}).get("nodes", {})
            for row in build.report.get("nodes", ()):
                source = nodes.get(row["id"], {}).get("spec", {}).get("source")
                if source is not None:
                    names |= dict.fromkeys(row["outputs"].values(), source)
        return names

    def children(self, digest: str) -> dict[str, str]:
        """Parts of an artifact, name -> digest; none if it is not there."""
        try:
            return dict(self.store.artifacts.load(digest).children.digests)
        except Unavailable:
            return {}

    def meta(self, digest: str) -> dict[str, Any]:
        """Facts of an artifact; none if it is not there."""
        try:
            return dict(self.store.artifacts.load(digest).meta)
        except Unavailable:
            return {}

    def find(self, what: str) -> Found:
        """A packed folder or a file of one, or the beginning of a digest. InputError if it is nothing we know."""
        path = Path(os.path.expanduser(what))
        if path.is_dir():
            return self._found(self._folder(path))
        if path.is_file():
            return self._found(self._file(path))
        if not BEGINNING.fullmatch(what):
            raise InputError(
                "neither a file nor a digest", got=what, wanted="a path, or 6 to 64 hex digits of a digest"
            )
        return self._beginning(what)

    def _found(self, digest: str) -> Found:
        packed = (b for b in self.builds if digest in _packed_digests(b))
        return Found(digest, next(packed, None))

    def _packs(self) -> dict[str, dict[str, str]]:
        """Every packed artifact with its files, name -> digest."""
        found = {}
        for trace in self.traces:
            if trace.document.get("step") == PACK:
                for digest in trace.outputs.values():
                    try:
                        rows = self.store.artifacts.load(digest).files.rows
                    except Unavailable:
                        continue
                    found[digest] = {name: row["digest"] for name, row in rows.items()}
        return found

    def _folder(self, folder: Path) -> str:
        """The packed artifact that a folder is a whole, unaltered copy of. Files beyond it do not count."""
        rivals = self._packed_as(folder)
        names = {name for files in rivals.values() for name in files}
        here = {name: sha256_file(folder / name) for name in names if (folder / name).is_file()}
        altered = {d: sorted(n for n in files if here.get(n) != files[n]) for d, files in rivals.items()}
        best = min(altered, key=lambda d: len(altered[d]))
        if altered[best]:
            raise _altered(folder / altered[best][0], here.get(altered[best][0]), rivals[best][altered[best][0]], best)
        return best

    def _packed_as(self, folder: Path) -> dict[str, dict[str, str]]:
        """The packed artifacts with this folder's manifest."""
        manifest = folder / MANIFEST
        if not manifest.is_file():
            raise InputError("not a packed folder", where=str(folder), wanted=f"a folder with {MANIFEST}")
        digest = sha256_file(manifest)
        rivals = {d: files for d, files in self._packs().items() if files.get(MANIFEST) == digest}
        if not rivals:
            raise InputError(
                "not a folder that this store knows: another store's, pruned, or altered",
                where=str(manifest),
                got=digest,
                fix="name its store with --store",
            )
        return rivals

    def _file(self, path: Path) -> str:
        """The packed artifact that a file is part of, else whatever has this content."""
        digest = sha256_file(path)
        rivals = self._packs()
        if same := [d for d, files in rivals.items() if files.get(path.name) == digest]:
            return same[-1]
        if (path.parent / MANIFEST).is_file():
            beside = self._packed_as(path.parent)
            for packed, files in beside.items():
                if path.name in files:
                    raise _altered(path, digest, files[path.name], packed)
        return self._beginning(digest, str(path)).digest

    def _beginning(self, text: str, where: str = "") -> Found:
        """The build, key, output, artifact or object whose digest begins like this."""
        builds = [b for b in self.builds if b.digest.startswith(text)]
        found = {b.digest: Found(b.report["packed"]["digest"], b) for b in builds}
        for trace in self.traces:
            found |= {d: self._found(d) for d in trace.outputs.values() if d.startswith(text)}
            if trace.key.startswith(text):
                found[trace.key] = self._found(next(iter(trace.outputs.values())))
        if not found:
            stored = (d for d, _ in self.store.artifacts.manifests.list() if d.startswith(text))
            found = {d: Found(d, None) for d in stored} or self._holders(text)
        if len(found) == 1:
            return next(iter(found.values()))
        names = ", ".join(sorted(found)[:4])
        raise InputError(
            "more than one digest begins like this" if found else "nothing in this store has this digest",
            where=where or self.store.url,
            got=f"{text}: {names}" if found else text,
            fix="give more digits" if found else "name its store with --store; it may have been pruned",
        )

    def _holders(self, text: str) -> dict[str, Found]:
        """For an object (a tensor, a file): an artifact that has it."""
        manifests = self.store.artifacts.manifests
        names = {manifests.path(d): d for d, _ in manifests.list()}
        found: dict[str, Found] = {}
        for path, data in read_files(self.store.folder, names):
            for digest in parts(data)[0]:
                if digest.startswith(text):
                    known = found.get(digest)
                    if known is None or known.digest not in self.makers:
                        found[digest] = self._found(names[path])
        return found


def _packed_digests(build: Build) -> list[str]:
    """The packed artifacts of a build, one per file format."""
    also: Any = build.report.get("also", ())
    return [str(each.get("packed", {}).get("digest")) for each in (build.report, *also)]


def _altered(path: Path, got: str | None, wanted: str, packed: str) -> InputError:
    return InputError(
        "this is not what was built",
        where=str(path),
        got=f"sha256 {got}" if got else "no such file",
        wanted=f"sha256 {wanted}",
        fix=f"what was built is artifact {packed[:12]}: ask for that, or run the build again into a new folder",
    )


def open_origins(url: str) -> Origins:
    """The origins of the store at an address."""
    return Origins(Store(url))


def full_digest(origins: Origins, text: str) -> str:
    """A digest that may be pinned: given in full, or the beginning of a build's or an output's."""
    found = [b.digest for b in origins.builds if b.digest.startswith(text)] if text else []
    if len(found) == 1:
        return found[0]
    if is_digest(text) and origins.store.artifacts.has(text):
        return text
    return origins.find(text).digest

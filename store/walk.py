"""Everything that artifacts consist of, found by reading manifests only, one batch of reads per level."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from store.blobs import Blobs
from store.digest import sha256
from store.errors import Unavailable


@dataclass
class Reached:
    """Digests: manifests that were read, those that could not be (`bad`: damaged), and the objects with their sizes."""

    manifests: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    bad: set[str] = field(default_factory=set)
    objects: dict[str, int] = field(default_factory=dict)


def walk(manifests: Blobs, roots: Iterable[str], *, deep: bool = True) -> Reached:
    """Follow children from the roots. Bad manifests are quarantined on the way and counted as absent."""
    reached, level = Reached(), set(roots)
    while level:
        following: set[str] = set()
        for digest, data in _read(manifests, level, reached.bad).items():
            if data is None:
                reached.absent.add(digest)
                continue
            reached.manifests.add(digest)
            objects, children = parts(data)
            reached.objects |= objects
            following |= children
        level = following - reached.manifests - reached.absent if deep else set()
    return reached


def parts(manifest: bytes) -> tuple[dict[str, int], set[str]]:
    """The objects that a manifest names, with their sizes, and its children."""
    document = json.loads(manifest)
    objects = {row["sha256"]: row["length"] for row in document["tensors"].values() if "data" not in row}
    objects |= {row["digest"]: row["size"] for row in document["files"].values()}
    return objects, set(document["children"].values())


def _read(manifests: Blobs, digests: set[str], bad: set[str]) -> dict[str, bytes | None]:
    paths = {manifests.path(digest): digest for digest in sorted(digests)}
    found: dict[str, bytes | None] = {}
    data = manifests.folder.read_many(paths)
    for path, digest in paths.items():
        read = data.pop(path, None)
        if read is not None and sha256(read) != digest:
            read = _again(manifests, digest)
            bad |= {digest} if read is None else set()
        found[digest] = read
    return found


def _again(manifests: Blobs, digest: str) -> bytes | None:
    try:
        return manifests.get(digest)
    except Unavailable:
        return None

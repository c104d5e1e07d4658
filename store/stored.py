"""StoredArtifact: a value in the store; manifest, tensors, parts and files are read, and verified, when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from store.tensors import LazyTensors, TensorRow

if TYPE_CHECKING:
    from store.artifacts import Artifacts


class StoredArtifact:
    """Satisfies the Value protocol of steps. Nothing is read before it is asked for. Equal when the digests are."""

    def __init__(self, digest: str, store: Artifacts) -> None:
        self.digest, self.store = digest, store

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        manifest: dict[str, Any] = json.loads(self.store.manifests.get(self.digest))
        return manifest

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON facts."""
        meta: Mapping[str, Any] = self._manifest["meta"]
        return meta

    @cached_property
    def tensors(self) -> LazyTensors:
        """Tensors by name."""
        rows = {name: TensorRow.parse(row) for name, row in self._manifest["tensors"].items()}
        return LazyTensors(rows, self.store.blobs)

    @cached_property
    def children(self) -> LazyChildren:
        """Parts by name."""
        return LazyChildren(self._manifest["children"], self.store)

    @cached_property
    def files(self) -> LazyFiles:
        """Local paths by relative name."""
        return LazyFiles(self._manifest["files"], self.store)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredArtifact) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"StoredArtifact({self.digest[:12]}, {self.store.blobs.url})"


class LazyChildren(Mapping[str, StoredArtifact]):
    """Parts by name; `digests` names them without loading any."""

    def __init__(self, digests: Mapping[str, str], store: Artifacts) -> None:
        self.digests, self._store = digests, store

    def __getitem__(self, name: str) -> StoredArtifact:
        return self._store.load(self.digests[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self.digests)

    def __len__(self) -> int:
        return len(self.digests)

    def __contains__(self, name: object) -> bool:
        return name in self.digests


class LazyFiles(Mapping[str, Path]):
    """Files by relative name: read-only local copies, not called by that name (see export). `rows`: digest and size."""

    def __init__(self, rows: Mapping[str, Mapping[str, Any]], store: Artifacts) -> None:
        self.rows, self._store = rows, store

    def __getitem__(self, name: str) -> Path:
        return self._store.blobs.local_path(self.rows[name]["digest"])

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.rows

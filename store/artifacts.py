"""Artifacts: JSON facts, tensors, named parts and files under one digest, the sha256 of a canonical manifest.

Each tensor of some size and each file is an object of its own, so that equal ones are stored once, whoever made them,
and one can be read without the others. Saving the same values yields the same digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from schemas.base import canonical_json
from store import tensors as serial
from store.blobs import Blobs
from store.cache import Cache
from store.digest import is_digest
from store.errors import Unavailable
from store.export import export, mend
from store.folder import Folder
from store.stored import StoredArtifact
from store.walk import walk

if TYPE_CHECKING:
    import torch


class ValueLike(Protocol):
    """What can be saved: what a step returns, or what was loaded."""

    @property
    def meta(self) -> Mapping[str, Any]:
        """JSON facts."""

    @property
    def tensors(self) -> Mapping[str, torch.Tensor]:
        """Tensors by name."""

    @property
    def children(self) -> Mapping[str, Any]:
        """Parts by name: each a value, or the digest of a stored one."""

    @property
    def files(self) -> Mapping[str, Path]:
        """Files by relative name."""


class Artifacts:
    """Manifests below `artifacts/`, their contents below `objects/`. Reading raises Missing or Corrupt."""

    def __init__(self, folder: Folder, cache: Cache | None = None) -> None:
        self.manifests = Blobs(folder, "artifacts", cache)
        self.blobs = Blobs(folder, "objects", cache)

    def save(
        self,
        meta: Mapping[str, Any] | None = None,
        tensors: Mapping[str, torch.Tensor] | None = None,
        children: Mapping[str, Any] | None = None,
        files: Mapping[str, Path] | None = None,
        *,
        scratch: Path | None = None,
    ) -> str:
        """Store a value and return its digest. Children are digests, loaded artifacts, or values to be saved as well.

        `scratch`: a folder that is deleted next. Files in it are taken out of it instead of copied, where the disk can.
        """
        manifest = {
            "meta": _plain(meta or {}),
            "tensors": {name: serial.write(each, self.blobs) for name, each in (tensors or {}).items()},
            "children": {name: self._child(each, scratch) for name, each in (children or {}).items()},
            "files": self._files(files or {}, scratch),
        }
        return self.manifests.put(canonical_json(manifest).encode())

    def save_value(self, value: ValueLike, *, scratch: Path | None = None) -> str:
        """Store anything with meta, tensors, children and files. What this store loaded is not stored again."""
        if isinstance(value, StoredArtifact) and value.store is self:
            return value.digest
        return self.save(value.meta, value.tensors, value.children, value.files, scratch=scratch)

    def _child(self, child: Any, scratch: Path | None) -> str:
        if not isinstance(child, str):
            return self.save_value(child, scratch=scratch)
        if not is_digest(child):
            raise ValueError(f"a child is a digest or a value, got {child!r}")
        return child

    def _files(self, files: Mapping[str, Path], scratch: Path | None) -> dict[str, Any]:
        stored = {path: self._file(path, scratch) for path in set(files.values())}
        return {name: stored[path] for name, path in files.items()}

    def _file(self, path: Path, scratch: Path | None) -> dict[str, Any]:
        size = path.stat().st_size
        move = scratch is not None and path.resolve().is_relative_to(scratch.resolve())
        return {"digest": self.blobs.put_file(path, move=move), "size": size}

    def load(self, digest: str) -> StoredArtifact:
        """A view of a stored artifact. Nothing is read, so nothing can be missing, before something is asked of it."""
        return StoredArtifact(digest, self)

    def has(self, digest: str) -> bool:
        """Whether the manifest is there (see `missing` for the rest)."""
        return self.manifests.has(digest)

    def export(self, digest: str, folder: Path) -> Path:
        """The artifact's files as a new folder, see store/export.py."""
        return export(self, digest, folder)

    def mend(self, digest: str, folder: Path) -> list[str]:
        """Put an exported folder's missing and changed files back, see store/export.py."""
        return mend(self, digest, folder)

    def discard(self, digest: str) -> None:
        """Delete an artifact's manifest and tensors: scratch that a later step will never read. Its trace stays.

        Whatever shares a tensor with it would have to be computed again.
        """
        try:
            rows = self.load(digest).tensors.rows
        except Unavailable:
            return
        self.manifests.delete(digest)
        for row in rows.values():
            if row.data is None:
                self.blobs.delete(row.sha256)

    def missing(self, digests: str | Iterable[str], *, deep: bool = True) -> set[str]:
        """Digests of the manifests and objects that these artifacts need and the store lacks; contents are not read.

        An object of another length than it must have was torn by a power cut and counts as lacking.
        `deep`: with all their parts; otherwise only of their own manifests, tensors and files.
        """
        reached = walk(self.manifests, [digests] if isinstance(digests, str) else digests, deep=deep)
        sizes = self.blobs.sizes(reached.objects)
        return reached.absent | {digest for digest, size in reached.objects.items() if sizes.get(digest) != size}

    def verify(self, digests: Iterable[str]) -> None:
        """Read all that these artifacts consist of, as far as it is there; what is damaged goes to quarantine."""
        for digest in self.blobs.sizes(walk(self.manifests, digests).objects):
            self.blobs.verify(digest)


def _plain(value: Any) -> Any:
    """JSON's own types, so that what is loaded equals what was saved. Keys that JSON would turn to text are refused."""
    if isinstance(value, Mapping):
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise TypeError(f"keys of meta must be text: {wrong[0]!r}")
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value

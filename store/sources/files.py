"""The small files of a source model: tokenizer, generation settings, licence."""

from __future__ import annotations

import atexit
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from store.sources.places import Place
from store.sources.remembered import write_whole
from store.sources.tensor_bytes import changed

FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken", "LICENSE*", "NOTICE*")


def file_names(place: Place) -> tuple[str, ...]:
    """Names of the files that belong to a model beside its weights; neither code nor the model card."""
    names = (n for n in place.names() if any(fnmatchcase(n, pattern) for pattern in FILES))
    return tuple(n for n in names if not n.endswith(".index.json"))


@dataclass(frozen=True, eq=False)
class LazyFiles(Mapping[str, Path]):
    """Local paths of a model's files by name, verified whenever one is asked for; fetched when remote."""

    place: Place
    names: tuple[str, ...]
    cache: Path | None
    _read: dict[str, str] = field(default_factory=dict)

    @cached_property
    def digests(self) -> dict[str, str]:
        """sha256 of every file."""
        return {name: self._verified(name)[1] for name in self.names}

    def _verified(self, name: str) -> tuple[bytearray, str]:
        raw = self.place.read(name)
        digest = hashlib.sha256(raw).hexdigest()
        if self._read.setdefault(name, digest) != digest:
            raise changed(f"{self.place.where}/{name}")
        return raw, digest

    def __getitem__(self, name: str) -> Path:
        if name not in self.names:
            raise KeyError(name)
        raw, digest = self._verified(name)
        local = self.place.local(name)
        if local is not None:
            return local
        path = (self.cache or scratch_folder()) / "files" / digest[:32] / name
        write_whole(path, raw)
        return path

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def scratch_folder() -> Path:
    """A folder that is removed when this process ends; stands in where no cache was given."""
    folder = tempfile.mkdtemp(prefix="bitsmith-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)

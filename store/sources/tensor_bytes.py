"""Bytes of a checkpoint's tensors with their digests: hashed once, verified whenever they are read."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from schemas.errors import InputError
from store.sources.places import Place
from store.sources.remembered import Remembered, is_settled, write_whole
from store.sources.shards import Shards, Span, shard_version

if TYPE_CHECKING:
    import torch

DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}  # safetensors name -> torch name
CHUNK_BYTES = 64 * 2**20
THREADS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True, eq=False)
class TensorBytes(Mapping[str, str]):
    """Digest of each tensor's bytes by name, and through `read` the bytes themselves.

    Digests are computed when asked for and remembered in `cache`. Tensors of a remote folder are kept in `cache`
    under their digest, so that every byte is transferred once.
    """

    place: Place
    shards: Shards
    cache: Path | None
    _known: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, name: str) -> str:
        return self.digests([name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shards.spans)

    def __len__(self) -> int:
        return len(self.shards.spans)

    def __contains__(self, name: object) -> bool:
        return name in self.shards.spans

    def digests(self, names: Iterable[str]) -> dict[str, str]:
        """Digests of several tensors; those not known are hashed, shard by shard, on several threads."""
        names = list(names)
        unknown: dict[str, list[str]] = {}
        for name in names:
            if name not in self._known:
                unknown.setdefault(self.shards.spans[name].shard, []).append(name)
        for shard, wanted in sorted(unknown.items()):
            self._known.update(self._of_shard(shard, wanted))
        return {name: self._known[name] for name in names}

    def _of_shard(self, shard: str, wanted: list[str]) -> dict[str, str]:
        """Digests of one shard's tensors, those in `wanted` at least, of the file as it was when it was opened."""
        began, version = time.time(), self.shards.versions[shard]
        self._check_same(shard)
        memory = Remembered(self.cache / "digests" if self.cache and version["file"] else None)
        known = memory.load(version)
        missing = [name for name in wanted if name not in known]
        if not missing:
            return known
        with ThreadPoolExecutor(THREADS) as pool:
            fresh = dict(zip(missing, pool.map(self._hash, missing), strict=True))
        self._check_same(shard)
        if is_settled(version, began):
            memory.save(version, fresh)
        return known | fresh

    def _check_same(self, shard: str) -> None:
        if shard_version(self.place, shard) != self.shards.versions[shard]:
            raise changed(f"{self.place.where}/{shard}")

    def _hash(self, name: str) -> str:
        span = self.shards.spans[name]
        if self._kept is not None:
            raw = self._fetch(span)
            digest = hashlib.sha256(raw).hexdigest()
            self._keep(digest, raw)
            return digest
        hasher = hashlib.sha256()
        for start in range(span.start, span.stop, CHUNK_BYTES):
            hasher.update(self.place.read(span.shard, start, min(start + CHUNK_BYTES, span.stop)))
        return hasher.hexdigest()

    def _fetch(self, span: Span) -> bytearray:
        return self.place.read(span.shard, span.start, span.stop)

    def read(self, name: str) -> bytearray:
        """A tensor's bytes by one range read; InputError when they are no longer those of the recorded digest."""
        span, digest = self.shards.spans[name], self[name]
        kept = self._kept / digest[:2] / digest if self._kept else None
        raw = _copy(kept) if kept is not None else None
        if raw is not None and hashlib.sha256(raw).hexdigest() == digest:
            return raw
        raw = self._fetch(span)
        if hashlib.sha256(raw).hexdigest() != digest:
            raise changed(f"{self.place.where}/{span.shard}: {name}")
        self._keep(digest, raw)
        return raw

    @cached_property
    def _kept(self) -> Path | None:
        """Where tensors of a remote place are kept; None for local places and without a cache."""
        remote = any(self.place.local(shard) is None for shard in self.shards.versions)
        return self.cache / "tensors" if self.cache and remote else None

    def _keep(self, digest: str, raw: bytearray) -> None:
        if self._kept is not None:
            write_whole(self._kept / digest[:2] / digest, raw)


def _copy(path: Path) -> bytearray | None:
    """A kept tensor, which thereby is one in use (prune takes those that are not); None if there is none."""
    try:
        os.utime(path)
        return bytearray(path.read_bytes())
    except OSError:
        return None


def changed(where: str) -> InputError:
    """The error for a checkpoint that is not the one that was opened."""
    return InputError(
        "the model changed during the run",
        where=where,
        wanted="the same bytes as when it was first read",
        fix="leave the model's files alone while a build runs, and run again; what was stored before stays valid",
    )


@dataclass(frozen=True, eq=False)
class LazyTensors(Mapping[str, "torch.Tensor"]):
    """CPU tensors by parameter name, each read, verified and checked for NaN and infinity when asked for."""

    source: TensorBytes
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self:
            raise KeyError(name)
        span = self.source.shards.spans[name]
        return _decode(self.source.read(name), span, f"{self.source.place.where}/{span.shard}: {name}")

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names


def _decode(raw: bytearray, span: Span, where: str) -> torch.Tensor:
    import torch

    assert sys.byteorder == "little", "safetensors data is little-endian"
    tensor = torch.frombuffer(raw, dtype=getattr(torch, DTYPES[span.dtype])).reshape(span.shape)
    low, high = (float(v) for v in torch.aminmax(tensor))  # one pass, no copy; NaN wins both
    if not (low > float("-inf") and high < float("inf")):
        raise InputError(
            "weights that are not finite",
            where=where,
            got="NaN" if low != low else f"values from {low} to {high}",
            wanted="finite numbers",
            fix="use another copy of this model; this one is damaged or was trained to divergence",
        )
    return tensor

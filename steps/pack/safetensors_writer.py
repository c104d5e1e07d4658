"""Write a safetensors file one tensor at a time: header first, then each tensor at its place, then fsync."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType

import torch

from schemas.errors import InputError
from steps.pack.header import SAFETENSORS_NAME, Entry, header_bytes, in_file_order, offsets


def safetensors_dtype(tensor: torch.Tensor) -> str:
    """`BF16` and so on; the torch name when safetensors has none that is written here."""
    name = str(tensor.dtype).removeprefix("torch.")
    return SAFETENSORS_NAME.get(name, name)


class SafetensorsWriter:
    """A file whose tensors are all announced and then written in any order, each exactly once.

    The bytes depend on `entries`, `metadata` and the tensors alone. Memory: one tensor, which the caller holds.
    """

    def __init__(self, path: Path, entries: Iterable[Entry], metadata: Mapping[str, str]) -> None:
        self._entries = {e.name: e for e in in_file_order(entries)}
        header = header_bytes(self._entries.values(), metadata)
        self.header_bytes = len(header)
        self.digests: dict[str, str] = {}
        """sha256 of each tensor's bytes, by name, of those written so far."""
        self._starts = offsets(self._entries.values())
        self._file = path.open("xb")
        self._file.write(header)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def write(self, name: str, tensor: torch.Tensor) -> None:
        """Write one tensor at its place; InputError unless it is announced with this dtype and shape."""
        announced = self._entries.get(name)
        given = Entry(name, safetensors_dtype(tensor), tuple(tensor.shape))
        if announced != given or name in self.digests:
            raise InputError(
                "a tensor is not what the file announces",
                where=name,
                got=f"{given.dtype} {list(given.shape)}" + (", a second time" if name in self.digests else ""),
                wanted="no such tensor" if announced is None else f"{announced.dtype} {list(announced.shape)}",
                fix="the source model or the selection changed while it was packed",
            )
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data
        self._file.seek(self.header_bytes + self._starts[name])
        self._file.write(data)
        self.digests[name] = hashlib.sha256(data).hexdigest()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            missing = [name for name in self._entries if name not in self.digests]
            if error is None and missing:
                raise InputError("announced tensors were not written", where=missing[0], got=f"{len(missing)} missing")
            self._file.flush()
            os.fsync(self._file.fileno())

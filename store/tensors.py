"""Tensors as bytes: C order, little endian, no padding. torch is imported when a tensor is read or written."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from store.blobs import Blobs
from store.digest import sha256
from store.errors import Corrupt

if TYPE_CHECKING:
    import torch

INLINE = 8 << 10
"""Bytes up to which a tensor lives inside its manifest: one file instead of two, and an fsync less."""


class TensorRow(NamedTuple):
    """What a manifest says of a tensor. `data` (base64) if it is inline, else `sha256` names its object."""

    dtype: str
    shape: tuple[int, ...]
    length: int
    sha256: str
    data: str | None

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> TensorRow:
        """From a manifest."""
        return cls(row["dtype"], tuple(row["shape"]), row["length"], row["sha256"], row.get("data"))


def write(tensor: torch.Tensor, blobs: Blobs) -> dict[str, Any]:
    """Store a dense tensor's bytes; returns its row for the manifest."""
    import torch

    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise TypeError(f"only dense tensors are stored, got {tensor.layout} {tensor.dtype}")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = _view(flat.view(torch.uint8)) if flat.numel() else memoryview(b"")
    row = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "length": len(data)}
    if len(data) <= INLINE:
        return row | {"sha256": sha256(data), "data": base64.b64encode(data).decode()}
    return row | {"sha256": blobs.put(data)}


def read(row: TensorRow, blobs: Blobs) -> torch.Tensor:
    """A fresh CPU tensor with its digest checked."""
    import torch

    dtype = getattr(torch, row.dtype)
    if math.prod(row.shape) * dtype.itemsize != row.length:
        raise Corrupt(row.sha256, blobs.url)
    flat = torch.empty(row.length, dtype=torch.uint8)
    buffer = _view(flat)
    if row.data is not None:
        buffer[:] = base64.b64decode(row.data)
    else:
        blobs.read_into(row.sha256, buffer)
    return flat.view(dtype).reshape(row.shape)


def _view(flat: torch.Tensor) -> memoryview:
    """The memory of a byte tensor, shared."""
    array: Any = flat.numpy()
    return memoryview(array)


class LazyTensors(Mapping[str, "torch.Tensor"]):
    """Tensors by name, each read and verified whenever it is asked for; `rows` tells shapes without reading."""

    def __init__(self, rows: Mapping[str, TensorRow], blobs: Blobs) -> None:
        self.rows, self._blobs = rows, blobs

    def __getitem__(self, name: str) -> torch.Tensor:
        return read(self.rows[name], self._blobs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: object) -> bool:
        return name in self.rows

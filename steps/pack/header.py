"""The safetensors header: what a weights file says about itself before the first weight. Torch-free.

Layout (safetensors README, "Format"): 8 bytes little-endian header length, a JSON object padded with spaces so that the
data start is a multiple of 8, then all tensors without gaps. Tensors are ordered by falling element size and then by
name, so that every tensor starts at a multiple of its element size.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from schemas.errors import InputError

ELEMENT_BYTES = {"I64": 8, "I32": 4, "F32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1}

SAFETENSORS_NAME = {
    "int64": "I64",
    "int32": "I32",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int8": "I8",
    "uint8": "U8",
}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: its name, safetensors dtype (`BF16`) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data."""
        return ELEMENT_BYTES[self.dtype] * math.prod(self.shape)


def entry(name: str, dtype: str, shape: Iterable[int]) -> Entry:
    """An Entry from a torch-style dtype name such as `bfloat16`; InputError when the dtype cannot be stored."""
    if dtype not in SAFETENSORS_NAME:
        raise InputError(
            "a tensor has a dtype that is not written",
            where=name,
            got=dtype,
            wanted=", ".join(SAFETENSORS_NAME),
            fix="convert the tensor in the source model",
        )
    return Entry(name, SAFETENSORS_NAME[dtype], tuple(shape))


def in_file_order(entries: Iterable[Entry]) -> list[Entry]:
    """Falling element size, then name."""
    return sorted(entries, key=lambda e: (-ELEMENT_BYTES[e.dtype], e.name))


def offsets(entries: Iterable[Entry]) -> dict[str, int]:
    """First byte of each tensor, counted from the start of the data."""
    found, position = {}, 0
    for e in in_file_order(entries):
        found[e.name] = position
        position += e.nbytes
    return found


def header_bytes(entries: Iterable[Entry], metadata: Mapping[str, str]) -> bytes:
    """The exact first bytes of the file, length field and padding included."""
    ordered = in_file_order(entries)
    start = offsets(ordered)
    document: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    for e in ordered:
        span = [start[e.name], start[e.name] + e.nbytes]
        document[e.name] = {"dtype": e.dtype, "shape": list(e.shape), "data_offsets": span}
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text

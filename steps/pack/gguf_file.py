"""The GGUF container: metadata, descriptions of tensors, data. Torch-free.

Layout (ggml/docs/gguf.md of llama.cpp, version 3, little-endian): magic, version, counts; keys with typed values;
for each tensor its name, dimensions (fastest first), type and offset; padding; the tensors, each at a multiple of 32.
Header and sizes follow from `header_bytes` without writing anything, and reading never trusts a length.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from schemas.format import GGML_BLOCKS, Block

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32
MAX_DIMENSIONS = 4
"""GGML_MAX_DIMS."""

Scalar = bool | int | float | str
Metadata = Mapping[str, Scalar | Sequence[str] | Sequence[int] | Sequence[float]]
"""Written as BOOL, UINT32, FLOAT32, STRING; in a list int is INT32."""

UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

TYPE_NUMBERS: dict[str, int] = {
    "f32": 0,
    "f16": 1,
    "q4_0": 2,
    "q5_0": 6,
    "q8_0": 8,
    "q2_k": 10,
    "q3_k": 11,
    "q4_k": 12,
    "q5_k": 13,
    "q6_k": 14,
    "iq4_nl": 20,
    "bf16": 30,
    "tq1_0": 34,
    "tq2_0": 35,
}
"""`enum ggml_type` of ggml.h, of the types that are written here."""
TYPE_NAMES = {number: name for name, number in TYPE_NUMBERS.items()}

BLOCKS: dict[str, Block] = {"f32": Block(1, 4, 32), "bf16": Block(1, 2, 16)} | {**GGML_BLOCKS}
"""How every type is laid out."""


@dataclass(frozen=True)
class Info:
    """One tensor: its name, type (`q4_k`) and shape, outputs first."""

    name: str
    type: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor's data, without padding."""
        block = BLOCKS[self.type]
        return math.prod(self.shape) // block.weights * block.bytes


@dataclass(frozen=True)
class Header:
    """What stands before the data: metadata, tensors in file order with their places counted from the file's start."""

    metadata: Mapping[str, Any]
    tensors: tuple[Info, ...]
    starts: tuple[int, ...]


def padded(size: int) -> int:
    """Rounded up to a multiple of the alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def offsets(infos: Iterable[Info]) -> list[int]:
    """First byte of each tensor, counted from the start of the data."""
    found, position = [], 0
    for info in infos:
        found.append(position)
        position += padded(info.nbytes)
    return found


def header_bytes(metadata: Metadata, infos: Sequence[Info]) -> bytes:
    """The exact first bytes of a file, padding before the data included."""
    described = [_description(info, offset) for info, offset in zip(infos, offsets(infos), strict=True)]
    counts = struct.pack("<IQQ", VERSION, len(infos), len(metadata))
    text = b"".join([MAGIC, counts, metadata_bytes(metadata), *described])
    return text + bytes(padded(len(text)) - len(text))


def header_size(metadata: int, infos: Iterable[Info]) -> int:
    """Length of `header_bytes`, given that of the metadata."""
    return padded(len(MAGIC) + struct.calcsize("<IQQ") + metadata + sum(len(_description(i, 0)) for i in infos))


def _description(info: Info, offset: int) -> bytes:
    dimensions = struct.pack(f"<I{len(info.shape)}Q", len(info.shape), *reversed(info.shape))
    return _string(info.name) + dimensions + struct.pack("<IQ", TYPE_NUMBERS[info.type], offset)


def metadata_bytes(metadata: Metadata) -> bytes:
    """Keys and values, as they stand in the file."""
    return b"".join(_string(key) + _value(value) for key, value in metadata.items())


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _value(value: Any) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", BOOL, value)
        case int():
            return struct.pack("<II", UINT32, value)
        case float():
            return struct.pack("<If", FLOAT32, value)
        case str():
            return struct.pack("<I", STRING) + _string(value)
        case _:
            return struct.pack("<I", ARRAY) + _array(value)


def _array(values: Sequence[Any]) -> bytes:
    kind = {str: STRING, int: INT32, float: FLOAT32}[type(values[0])]
    start = struct.pack("<IQ", kind, len(values))
    if kind == STRING:
        return start + b"".join(map(_string, values))
    return start + struct.pack(f"<{len(values)}{_NUMBERS[kind]}", *values)


class _Reader:
    """Takes pieces off a file's first bytes; InputError where they end."""

    def __init__(self, data: memoryview, where: str) -> None:
        self._data, self._at, self.where = data, 0, where

    def take(self, size: int) -> memoryview:
        if size > len(self._data) - self._at:
            raise broken(self.where, f"{len(self._data)} bytes; the header goes on after byte {self._at}")
        self._at += size
        return self._data[self._at - size : self._at]

    def numbers(self, layout: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{layout}", self.take(struct.calcsize(f"<{layout}")))

    def string(self) -> str:
        (size,) = self.numbers("Q")
        try:
            return bytes(self.take(size)).decode()
        except UnicodeDecodeError as error:
            raise broken(self.where, f"no text at byte {self._at}: {error}") from error

    def value(self) -> Any:
        (kind,) = self.numbers("I")
        if kind != ARRAY:
            return self._one(kind)
        kind, count = self.numbers("IQ")
        if kind in _NUMBERS:
            data = self.take(count * struct.calcsize(f"<{_NUMBERS[kind]}"))
            return list(struct.unpack(f"<{count}{_NUMBERS[kind]}", data))
        if count > len(self._data):
            raise broken(self.where, f"a list of {count} values")
        return [self._one(kind) for _ in range(count)]

    def _one(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind not in _NUMBERS:
            raise broken(self.where, f"a value of type {kind} at byte {self._at}")
        return self.numbers(_NUMBERS[kind])[0]

    @property
    def at(self) -> int:
        """Bytes taken so far."""
        return self._at


def broken(where: str, got: str) -> InputError:
    """The one error for a file that is cut short or damaged."""
    return InputError("the GGUF file is damaged", where=where, got=got, wanted="a whole file", fix="build it again")


def read_header(data: memoryview, where: str) -> Header:
    """Metadata and tensors of a file, given all its bytes (a memory map will do); InputError when it is not whole."""
    reader = _Reader(data, where)
    if bytes(data[:4]) != MAGIC:
        raise InputError("not a GGUF file", where=where, got=bytes(data[:4]), wanted="GGUF")
    reader.take(4)
    version, tensors, keys = reader.numbers("IQQ")
    if version != VERSION:
        raise InputError("unknown version of GGUF", where=where, got=version, wanted=VERSION)
    if max(tensors, keys) > len(data):
        raise broken(where, f"{tensors} tensors and {keys} keys in {len(data)} bytes")
    metadata = {}
    for _ in range(keys):
        key = reader.string()
        metadata[key] = reader.value()
    listed = [_info(reader) for _ in range(tensors)]
    start = padded(reader.at)
    return Header(metadata, tuple(i for i, _ in listed), tuple(_place(i, start + o, data, where) for i, o in listed))


def _info(reader: _Reader) -> tuple[Info, int]:
    name = reader.string()
    (dimensions,) = reader.numbers("I")
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        raise broken(reader.where, f"tensor {name} of {dimensions} dimensions")
    shape = tuple(reversed(reader.numbers(f"{dimensions}Q")))
    kind, offset = reader.numbers("IQ")
    if kind not in TYPE_NAMES:
        raise InputError(
            "a tensor of an unknown type",
            where=f"{reader.where}, {name}",
            got=f"type {kind}",
            wanted=", ".join(TYPE_NUMBERS),
            fix="build it again with this version",
        )
    info = Info(name, TYPE_NAMES[kind], shape)
    if shape[-1] % BLOCKS[info.type].weights:
        raise broken(reader.where, f"tensor {name}: rows of {shape[-1]} in blocks of {BLOCKS[info.type].weights}")
    return info, offset


def _place(info: Info, start: int, data: memoryview, where: str) -> int:
    if start % ALIGNMENT or start + info.nbytes > len(data):
        end = start + info.nbytes
        raise broken(where, f"{len(data)} bytes; tensor {info.name} stands at {start} to {end}")
    return start


def read_path(path: Path) -> tuple[Header, memoryview]:
    """The header of a file, and a memory map of all its bytes."""
    import mmap

    with path.open("rb") as file:
        size = file.seek(0, 2)
        if not size:
            raise broken(str(path), "an empty file")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return read_header(data, str(path)), data

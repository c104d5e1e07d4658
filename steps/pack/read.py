"""A packed folder opened again, matrix by matrix, with nothing but safetensors and our own decoders.

This is what checks a folder, and what loads it where the engine's own libraries are not installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from schemas.errors import InputError
from schemas.format import Affine, Format, read_format
from schemas.pack import PackFormat
from steps.pack import compressed_tensors, container
from steps.pack.header import Entry
from steps.pack.manifest import read_manifest
from steps.pack.sizes import linear_entries, scale_dtype_name
from steps.quantize.qtensor import QuantizedTensor
from steps.quantize.tensors.affine import AffineTensor


@dataclass(frozen=True)
class WeightsFile:
    """One safetensors file: its size, the digest of everything before the first tensor, and its tensors with the place
    of each one's first byte."""

    path: Path
    size: int
    header: str
    entries: tuple[Entry, ...]
    starts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class PackedFolder:
    """A folder that the pack step wrote. Everything is read when asked for; errors are InputErrors."""

    folder: Path

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """bitsmith.json, of a version that is understood here."""
        return read_manifest(self.folder)

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """config.json."""
        try:
            found: Mapping[str, Any] = json.loads((self.folder / "config.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                "no readable config.json", where=str(self.folder), got=error, fix="copy it again"
            ) from error
        return found

    @property
    def pack(self) -> PackFormat:
        """The file format."""
        found: PackFormat = self.manifest["format"]
        return found

    @cached_property
    def files(self) -> Mapping[str, WeightsFile]:
        """The weights files by name; InputError for one that is missing or cut short."""
        return {name: open_weights(self.folder / name) for name in self.manifest["weights"]}

    @cached_property
    def homes(self) -> Mapping[str, WeightsFile]:
        """The file that each tensor is in."""
        return {e.name: file for file in self.files.values() for e in file.entries}

    @cached_property
    def linears(self) -> Mapping[str, Format]:
        """The format of each quantized matrix, in the file's order of names."""
        return {name: read_format(short) for name, short in self.manifest["formats"].items()}

    def tensor(self, name: str) -> torch.Tensor:
        """One stored tensor; InputError when no file has it."""
        if name not in self.homes:
            raise InputError("a tensor is missing", where=str(self.folder), wanted=name, fix="copy the folder again")
        with safe_open(self.homes[name].path, "pt") as file:
            found: torch.Tensor = file.get_tensor(name)
        return found

    def stored(self, name: str) -> list[Entry]:
        """The tensors of one matrix, as its format and shape want them."""
        return linear_entries(self.pack, name, self.linears[name], self.shape(name), scale_dtype_name(self.config))

    def shape(self, name: str) -> tuple[int, int]:
        """(outputs, inputs) of a matrix."""
        if self.pack == "bitsmith":
            return self._container[name].shape
        rows, columns = self.tensor(f"{name}.weight_shape").tolist()
        return int(rows), int(columns)

    def matrix(self, name: str) -> QuantizedTensor:
        """One quantized matrix; InputError for another form, codes that are illegal, scales that are not finite."""
        fmt, shape = self.linears[name], self.shape(name)
        tensors = {e.name: self.tensor(e.name) for e in self.stored(name)}
        if self.pack == "bitsmith":
            return check_finite(container.check(name, fmt, shape, tensors))
        assert isinstance(fmt, Affine)
        return check_finite(compressed_tensors.from_file_tensors(name, fmt, tensors))

    @property
    def names(self) -> list[str]:
        """Every tensor."""
        return sorted(self.homes)

    def digest(self, name: str) -> str:
        """sha256 of a tensor's bytes."""
        return sha256(self.tensor(name).reshape(-1).view(torch.uint8).numpy().data).hexdigest()

    def stored_bytes(self, name: str) -> int:
        """Bytes of every tensor of one matrix."""
        return sum(e.nbytes for e in self.stored(name))

    @property
    def plain_weights(self) -> int:
        """Numbers in parameters that are not quantized."""
        size = {e.name: prod(e.shape) for file in self.files.values() for e in file.entries}
        return sum(size[name] for name in self.plain)

    @cached_property
    def plain(self) -> list[str]:
        """Parameters that are not quantized."""
        packed = {e.name for name in self.linears for e in self.stored(name)}
        return sorted(self.homes.keys() - packed)

    @cached_property
    def _container(self) -> Mapping[str, container.Matrix]:
        settings = self.config.get("quantization_config", {})
        return {m.name: m for m in container.matrices(settings, str(self.folder / "config.json"))}


def open_weights(path: Path) -> WeightsFile:
    """Header and size of a safetensors file; InputError for one that is missing, cut short or damaged at its head."""
    try:
        with path.open("rb") as file:
            length = file.read(8)
            text = file.read(int.from_bytes(length, "little"))
        with safe_open(path, "np"):
            pass  # checks that the offsets cover the file exactly; "pt" would also map all of it as writable memory
        document = json.loads(text)
    except FileNotFoundError as error:
        raise InputError("a weights file is missing", where=str(path), fix="copy the folder again") from error
    except (OSError, ValueError, OverflowError, MemoryError, SafetensorError) as error:
        raise InputError(
            "a weights file is damaged or cut short", where=str(path), got=error, fix="copy the folder again"
        ) from error
    stored = {name: e for name, e in document.items() if name != "__metadata__"}
    entries = tuple(Entry(name, e["dtype"], tuple(e["shape"])) for name, e in stored.items())
    starts = {name: len(length) + len(text) + e["data_offsets"][0] for name, e in stored.items()}
    return WeightsFile(path, path.stat().st_size, sha256(length + text).hexdigest(), entries, starts)


def check_finite(q: QuantizedTensor) -> QuantizedTensor:
    """The same matrix; InputError when its scales are not finite."""
    told = q.scale_OG if isinstance(q, AffineTensor) else q.dequantize()
    if not bool(torch.isfinite(told).all()):
        raise InputError("scales are not finite", where=q.name, fix="build it again")
    return q

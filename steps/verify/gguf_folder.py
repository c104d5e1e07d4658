"""A packed folder with a GGUF file, for the same checks as one of safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from schemas.format import Format, read_format
from schemas.pack import PackFormat
from steps.pack.gguf import FILE
from steps.pack.gguf_file import Info
from steps.pack.gguf_names import gguf_name, stored_as
from steps.pack.gguf_sizes import ROPE_FACTORS, matrix_bytes
from steps.pack.manifest import read_manifest
from steps.pack.read import WeightsFile, check_finite
from steps.quantize.qtensor import QuantizedTensor
from steps.verify.gguf import GgufFile


@dataclass(frozen=True, eq=False)
class GgufFolder:
    """What `PackedFolder` is for safetensors."""

    folder: Path

    pack: PackFormat = "gguf"

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """bitsmith.json, of a version that is understood here."""
        return read_manifest(self.folder)

    @cached_property
    def _file(self) -> GgufFile:
        path = self.folder / FILE
        if not path.is_file():
            raise InputError("a weights file is missing", where=str(path), fix="copy the folder again")
        return GgufFile(path, json.loads((self.folder / "config.json").read_text("utf-8")))

    @cached_property
    def _infos(self) -> Mapping[str, Info]:
        return {info.name: info for info in self._file.header.tensors}

    @cached_property
    def files(self) -> Mapping[str, WeightsFile]:
        """The one file."""
        path = self._file.path
        with path.open("rb") as file:
            head = file.read(min(self._file.header.starts))
        return {FILE: WeightsFile(path, path.stat().st_size, sha256(head).hexdigest(), ())}

    @cached_property
    def linears(self) -> Mapping[str, Format]:
        """The format of each quantized matrix."""
        return {name: read_format(short) for name, short in self.manifest["formats"].items()}

    @property
    def names(self) -> list[str]:
        """Every tensor, by its name in the file."""
        return sorted(self._infos)

    def digest(self, name: str) -> str:
        """sha256 of a tensor's bytes."""
        return sha256(self._file.data(name)).hexdigest()

    def matrix(self, name: str) -> QuantizedTensor:
        """One quantized matrix in the format it was packed from; InputError for another type."""
        fmt = self.linears[name]
        found = self._infos.get(gguf_name(f"{name}.weight"))
        if found is None or found.type != stored_as(fmt):
            got = "nothing" if found is None else found.type
            raise InputError("a matrix has another type than was built", where=name, got=got, wanted=stored_as(fmt))
        return check_finite(self._file.matrix(name, fmt))

    def stored_bytes(self, name: str) -> int:
        """Bytes of a matrix with the padding behind it."""
        rows, columns = self._infos[gguf_name(f"{name}.weight")].shape
        return matrix_bytes(self.linears[name], (rows, columns))

    @property
    def plain_weights(self) -> int:
        """Numbers in parameters that are not quantized."""
        packed = {gguf_name(f"{name}.weight") for name in self.linears} | {ROPE_FACTORS}
        return sum(prod(info.shape) for name, info in self._infos.items() if name not in packed)

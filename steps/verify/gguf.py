"""A GGUF folder through transformers' own reader, which decodes with the `gguf` package, and our reader of the file.

O outputs, B bytes of a row.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from schemas.errors import InputError
from schemas.format import Format, Ggml
from steps.pack.gguf import FILE, decode
from steps.pack.gguf_file import Header, Info, read_path
from steps.pack.gguf_names import ARCHITECTURES, gguf_name, heads_of
from steps.quantize.qtensor import QuantizedTensor


def load_gguf(folder: Path) -> Any:
    """`from_pretrained(folder, gguf_file=...)` in fp32, with the folder's own config.json.

    The config that transformers reads out of a GGUF knows neither scaled rotary embeddings nor every head size. Its
    reader trusts the file, so ours, which does not, looks first. It has no names for mistral, which is a llama here as
    it is to llama.cpp: both differ from it beyond the sliding window.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    read_path(folder / FILE)
    told = json.loads((folder / "config.json").read_text("utf-8"))
    kind = ARCHITECTURES[told["model_type"]]
    config = CONFIG_MAPPING[kind].from_dict({**told, "model_type": kind})
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, config=config, dtype=torch.float32)


@dataclass(frozen=True, eq=False)
class GgufFile:
    """A file that the pack step wrote; InputError for one that is cut short or damaged."""

    path: Path
    config: Mapping[str, Any]

    @cached_property
    def _read(self) -> tuple[Header, memoryview]:
        return read_path(self.path)

    @property
    def header(self) -> Header:
        """Metadata and tensors."""
        return self._read[0]

    @cached_property
    def _places(self) -> dict[str, tuple[Info, int]]:
        return {info.name: (info, start) for info, start in zip(self.header.tensors, self.header.starts, strict=True)}

    def data(self, name: str) -> memoryview:
        """The bytes of a tensor, by its name in the file."""
        if name not in self._places:
            raise InputError("the GGUF has no such tensor", where=str(self.path), got=name, fix="build it again")
        info, start = self._places[name]
        return self._read[1][start : start + info.nbytes]

    def digests(self) -> dict[str, str]:
        """sha256 of every tensor's bytes, by its name in the file."""
        return {name: hashlib.sha256(self.data(name)).hexdigest() for name in sorted(self._places)}

    def matrix(self, module: str, fmt: Format | None = None) -> QuantizedTensor:
        """A quantized linear by its module path, in the type of the file or, exactly, in an affine format."""
        parameter = f"{module}.weight"
        name = gguf_name(parameter)
        data = self.data(name)
        info = self._places[name][0]
        blocks_OB = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(info.shape[0], -1)
        wanted = Ggml.model_validate({"type": info.type}) if fmt is None else fmt
        return decode(module, wanted, blocks_OB, heads_of(self.config, parameter))

"""Random checkpoints on disk in milliseconds (no transformers), and hand-made safetensors files, hostile ones too."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from models import tiny_config, value_of, write_model
from safetensors.torch import load_file, save_file

from schemas.structure import expected_shapes


def random_tensors(config: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> dict[str, torch.Tensor]:
    """Every parameter of the architecture; each depends on its name and shape alone."""
    tensors = {}
    for name, shape in expected_shapes(config, "test").items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        tensors[name] = torch.randn(shape, generator=generator).to(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    family: str = "llama",
    *,
    shards: int = 1,
    tied: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    **changes: Any,
) -> Path:
    """A Hugging Face folder of a random tiny model with a tokenizer."""
    config = tiny_config(family, tied=tied, **changes)
    return write_model(folder, value_of(config, random_tensors(config, dtype)), shards=shards)


def edit_tensors(path: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Rewrite a safetensors file with some tensors replaced, added, or (None) removed."""
    tensors = load_file(path) | change
    save_file({n: t for n, t in tensors.items() if t is not None}, path, metadata={"format": "pt"})


def edit_json(path: Path, **change: Any) -> None:
    """Set fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def read_header(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header document and data of a safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_raw(path: Path, header: dict[str, Any] | bytes, data: bytes, length: int | None = None) -> None:
    """A safetensors file with exactly this header, data and (perhaps lying) header length."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)

"""Weights as safetensors in a folder, one file or several, with everything around them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from schemas.pack import Packing
from steps.pack.header import header_bytes
from steps.pack.parts import Parts, plain, quantized
from steps.pack.safetensors_writer import SafetensorsWriter
from steps.pack.shards import INDEX, index, shards
from steps.pack.sizes import FILE_METADATA, file_entries
from steps.quantize.qtensor import QuantizedTensor
from steps.step import Env, Value

CONFIG, MANIFEST = "config.json", "bitsmith.json"
Encode = Callable[[QuantizedTensor], Mapping[str, torch.Tensor]]


@dataclass(frozen=True)
class Written:
    """What a packer leaves in the scratch folder.

    `files` by name, of which `weights` are counted as the size of the build; `header` bytes of these that are no
    weights; sha256 of each tensor's bytes and, by file, of everything before the first tensor.
    """

    files: Mapping[str, Path]
    weights: tuple[str, ...]
    header: int
    tensors: Mapping[str, str]
    headers: Mapping[str, str]


def write_weights(packing: Packing, parts: Parts, model: Value, encode: Encode, env: Env) -> Written:
    """Stream every parameter into its file; at most one is held at a time."""
    entries = file_entries(packing.format, parts.config, parts.shapes, parts.dtypes, parts.linears)
    layout = shards(entries, packing.shard_bytes)
    files = {name: env.scratch / name for name in layout}
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(SafetensorsWriter(files[name], found, FILE_METADATA))
            for name, found in layout.items()
        }
        home = {e.name: writers[name] for name, found in layout.items() for e in found}
        for done, name in enumerate(parts.shapes):
            env.progress(done, len(parts.shapes), name)
            for tensor_name, tensor in _tensors(parts, model, encode, name).items():
                home.get(tensor_name, next(iter(writers.values()))).write(tensor_name, tensor)
    if len(layout) > 1:
        files[INDEX] = write_json(env.scratch / INDEX, index(layout))
    return Written(
        files=files,
        weights=tuple(layout),
        header=sum(w.header_bytes for w in writers.values()),
        tensors=dict(sorted((n, d) for w in writers.values() for n, d in w.digests.items())),
        headers={name: sha256(header_bytes(found, FILE_METADATA)).hexdigest() for name, found in layout.items()},
    )


def _tensors(parts: Parts, model: Value, encode: Encode, name: str) -> Mapping[str, torch.Tensor]:
    """What is stored for one parameter."""
    linear = name.removesuffix(".weight")
    return encode(quantized(parts, linear)) if linear in parts.linears else {name: plain(parts, model, name)}


def copy_around(model: Value, folder: Path) -> dict[str, Path]:
    """Copies of the model's other files: tokenizer, chat template, generation settings, licence."""
    kept = {name: path for name, path in model.files.items() if not _replaced(name)}
    return {name: _copy(path, folder / name) for name, path in kept.items()}


def write_json(path: Path, document: Mapping[str, Any]) -> Path:
    """A JSON file for people and programs."""
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def _replaced(name: str) -> bool:
    """Files that describe the source's own weights."""
    return name in (CONFIG, MANIFEST) or name.endswith((".safetensors", ".safetensors.index.json", ".bin"))


def _copy(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(source, target))

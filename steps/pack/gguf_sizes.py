"""Bytes of a GGUF, predicted from shapes and the tokenizer alone. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schemas.errors import InputError
from schemas.format import GGML_BLOCKS, Format, fitting
from steps.pack import gguf_tokenizer
from steps.pack.gguf_file import Info, Metadata, header_size, metadata_bytes, padded
from steps.pack.gguf_metadata import architecture, rope_factors
from steps.pack.gguf_names import infos, matrix_type

ROPE_FACTORS = "rope_freqs.weight"


def metadata(config: Mapping[str, Any], files: Mapping[str, Path]) -> Metadata:
    """Everything a GGUF says beside its tensors: architecture and tokenizer. InputError for what it cannot say."""
    return {**architecture(config), **gguf_tokenizer.metadata(gguf_tokenizer.read(files), config)}


def metadata_size(config: Mapping[str, Any], files: Mapping[str, Path]) -> int:
    """Bytes of the metadata, which no plan changes."""
    return len(metadata_bytes(metadata(config, files)))


def extra(config: Mapping[str, Any]) -> list[Info]:
    """Tensors that are no parameters: the factors of llama3's rotary embedding."""
    factors = rope_factors(config)
    return [] if factors is None else [Info(ROPE_FACTORS, "f32", (len(factors),))]


def matrix_info(fmt: Format, shape: tuple[int, int], where: str = "") -> Info:
    """A quantized matrix as it stands in the file; InputError for a format that it cannot be in."""
    kind = matrix_type(fmt, where)
    if shape[1] % math.lcm(GGML_BLOCKS[kind].weights, fmt.columns(shape[1])):
        raise InputError(
            f"format {fmt.name} does not fit this linear",
            where=where,
            got=f"{shape[1]} weights per row",
            wanted=f"a multiple of {math.lcm(GGML_BLOCKS[kind].weights, fmt.columns(shape[1]))}",
            fix=f"formats that fit: {', '.join(f for f in fitting(shape[1]) if f in GGML_BLOCKS)}",
        )
    return Info(where, kind, shape)


def matrix_bytes(fmt: Format, shape: tuple[int, int]) -> int:
    """Bytes of a quantized matrix, the padding behind it included, so that the bytes of a plan simply add up."""
    return padded(matrix_info(fmt, shape).nbytes)


def file_bytes(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    linears: Mapping[str, Format],
    metadata: int,
) -> int:
    """Exact size of the file, given the bytes of its metadata; other arguments as for `sizes.file_entries`."""
    listed = [*infos(config, shapes, dtypes, linears).values(), *extra(config)]
    return header_size(metadata, listed) + sum(padded(info.nbytes) for info in listed)

"""Bytes on disk, predicted from shapes alone and equal to what is written. Torch-free.

O outputs, I inputs, G groups per row, b bits, B bytes. compressed-tensors `pack-quantized`
(compressors/pack_quantized/base.py, 0.20.0) stores for one linear:

    weight_packed      int32 [O, ceil(I*b/32)]
    weight_scale       [O, G] in the scale dtype
    weight_shape       int64 [2]
    weight_zero_point  int32 [ceil(O*b/32), G], asymmetric only

The container stores what the hub's `to_tensors` gives (steps/quantize/tensors/):

    affine  codes uint8 [O, ceil(I*b/8)], scale [O, G] in the scale dtype, asymmetric also zero_point uint8 [O, G]
    ggml    blocks uint8 [O, B]
    mixed   codes uint8 [O, ceil(bits of a row/8)], scale [O, G], widths uint8 [ceil(pieces of a row/2)]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, assert_never

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Affine, Format, Ggml, Mixed, PerColumn, fitting
from schemas.pack import PackFormat
from steps.pack import gguf_sizes
from steps.pack.header import Entry, entry, header_bytes
from steps.pack.shards import shards

FILE_METADATA = {"format": "pt"}
"""What transformers requires in a PyTorch safetensors file, and nothing that depends on the recipe."""


def model_dtype(config: Mapping[str, Any]) -> str | None:
    """The dtype a config.json asks loaders for (`dtype`, before transformers 5 `torch_dtype`), if it does."""
    name = config.get("dtype") or config.get("torch_dtype")
    return None if name is None else str(name).removeprefix("torch.")


def scale_dtype_name(config: Mapping[str, Any]) -> str:
    """Scales are bf16, except fp16 for fp16 models, so that the cast a plain loader makes is exact."""
    return "float16" if model_dtype(config) == "float16" else "bfloat16"


def groups(fmt: Format, shape: tuple[int, int], where: str = "") -> int:
    """Groups per row; InputError when the group size does not divide the row, with the formats that do fit."""
    columns = fmt.columns(shape[1])
    if shape[1] % columns:
        raise InputError(
            f"format {fmt.name} does not fit this linear",
            where=where,
            got=f"{shape[1]} weights per row",
            wanted=f"a multiple of {columns}",
            fix=f"formats that fit: {', '.join(fitting(shape[1]))}",
        )
    return shape[1] // columns


def words(codes: int, bits: int) -> int:
    """int32 words that hold `codes` dense codes of `bits` bits."""
    return -(-codes * bits // 32)


def affine(fmt: Format, where: str = "") -> Affine:
    """The format, if compressed-tensors can hold it; else InputError."""
    if isinstance(fmt, Affine):
        return fmt
    raise InputError(
        "compressed-tensors holds affine integer formats only",
        where=where,
        got=fmt.name,
        wanted="for example int4-g64",
        fix="change the format, or pack to a file format that has it",
    )


def linear_entries(
    pack: PackFormat, name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str = "bfloat16"
) -> list[Entry]:
    """The tensors that are stored for the linear `name` of shape (O, I)."""
    match pack:
        case "compressed-tensors":
            return _compressed_tensors(name, affine(fmt, name), shape, scale_dtype)
        case "bitsmith":
            return _container(name, fmt, shape, scale_dtype)
        case "gguf":
            return [entry(f"{name}.weight", "uint8", (gguf_sizes.matrix_info(fmt, shape, name).nbytes,))]
        case _:
            assert_never(pack)


def _compressed_tensors(name: str, fmt: Affine, shape: tuple[int, int], scale_dtype: str) -> list[Entry]:
    (rows, columns), group_count = shape, groups(fmt, shape, name)
    found = [
        entry(f"{name}.weight_packed", "int32", (rows, words(columns, fmt.bits))),
        entry(f"{name}.weight_scale", scale_dtype, (rows, group_count)),
        entry(f"{name}.weight_shape", "int64", (2,)),
    ]
    if fmt.symmetry == "asymmetric":
        found.append(entry(f"{name}.weight_zero_point", "int32", (words(rows, fmt.bits), group_count)))
    return found


def _container(name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str) -> list[Entry]:
    (rows, columns), group_count = shape, groups(fmt, shape, name)
    match fmt:
        case Affine():
            found = [
                entry(f"{name}.codes", "uint8", (rows, -(-columns * fmt.bits // 8))),
                entry(f"{name}.scale", scale_dtype, (rows, group_count)),
            ]
            if fmt.symmetry == "asymmetric":
                found.append(entry(f"{name}.zero_point", "uint8", (rows, group_count)))
            return found
        case Ggml():
            return [entry(f"{name}.blocks", "uint8", (rows, group_count * fmt.block.bytes))]
        case Mixed() | PerColumn():
            return [
                entry(f"{name}.codes", "uint8", (rows, -(-fmt.row_bits(columns) // 8))),
                entry(f"{name}.scale", scale_dtype, (rows, group_count)),
                entry(f"{name}.widths", "uint8", (-(-fmt.pieces(columns) // 2),)),
            ]
        case _:
            assert_never(fmt)


@lru_cache(maxsize=1 << 14)
def linear_bytes(pack: PackFormat, fmt: Format, shape: tuple[int, int]) -> int:
    """Bytes of every tensor stored for one linear of shape (O, I), without its share of the header."""
    if pack == "gguf":
        return gguf_sizes.matrix_bytes(fmt, shape)
    return sum(e.nbytes for e in linear_entries(pack, "", fmt, shape))


def unit_bytes(pack: PackFormat, fmt: Format, unit: Unit) -> int:
    """Bytes of every tensor stored for all linears of a unit, without their share of the header."""
    return sum(linear_bytes(pack, fmt, shape) for shape in unit.shapes)


def file_entries(
    pack: PackFormat,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    linears: Mapping[str, Format],
) -> list[list[Entry]]:
    """Every tensor of the weights, parameter by parameter in the order of `shapes`: `linears` maps module paths to
    formats; the rest stays as it is stored."""
    scale_dtype, found = scale_dtype_name(config), []
    for parameter, shape in shapes.items():
        name = parameter.removesuffix(".weight")
        if name in linears:
            found.append(linear_entries(pack, name, linears[name], (shape[0], shape[1]), scale_dtype))
        else:
            found.append([entry(parameter, dtypes[parameter], shape)])
    return found


def plan_linears(plan: Mapping[str, Format], units: Iterable[Unit]) -> dict[str, Format]:
    """Formats by module path, from formats by unit name; units that the plan leaves out stay as they are."""
    return {member: plan[unit.name] for unit in units if unit.name in plan for member in unit.members}


def file_bytes(
    pack: PackFormat,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    linears: Mapping[str, Format],
    shard_bytes: int | None = None,
    metadata: int = 0,
) -> int:
    """Exact size of all weights files, headers included; arguments as for `file_entries` and `Packing`.

    `metadata` is what `metadata_size` gives for the model.
    """
    match pack:
        case "gguf":
            return gguf_sizes.file_bytes(config, shapes, dtypes, linears, metadata)
        case "compressed-tensors" | "bitsmith":
            files = shards(file_entries(pack, config, shapes, dtypes, linears), shard_bytes)
        case _:
            assert_never(pack)
    return sum(len(header_bytes(found, FILE_METADATA)) + sum(e.nbytes for e in found) for found in files.values())


def metadata_size(pack: PackFormat, config: Mapping[str, Any], files: Mapping[str, Path]) -> int:
    """Bytes that a weights file spends on tokenizer and architecture: none, except in a GGUF."""
    return gguf_sizes.metadata_size(config, files) if pack == "gguf" else 0


def weights_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of weights of a model; tied weights appear once in `shapes`."""
    return sum(math.prod(shape) for shape in shapes.values())

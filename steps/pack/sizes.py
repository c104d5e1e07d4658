"""Bytes on disk, predicted from shapes alone and equal to what is written. Torch-free.

O outputs, I inputs, G groups per row, b bits. compressed-tensors `pack-quantized` (compressors/pack_quantized/base.py,
0.20.0) stores for one linear:

    weight_packed      int32 [O, ceil(I*b/32)]
    weight_scale       [O, G] in the scale dtype
    weight_shape       int64 [2]
    weight_zero_point  int32 [ceil(O*b/32), G], asymmetric only
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, assert_never

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.pack import PackFormat
from schemas.quantize import Format
from steps.pack.header import Entry, entry, header_bytes

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
    """Groups per row; InputError when the group size does not divide the row."""
    columns = fmt.columns(shape[1])
    if shape[1] % columns:
        raise InputError(
            f"format {fmt.name} does not fit this linear",
            where=where,
            got=f"{shape[1]} weights per row",
            wanted=f"a multiple of {columns}",
            fix="use a smaller group size or `row` for this unit",
        )
    return shape[1] // columns


def words(codes: int, bits: int) -> int:
    """int32 words that hold `codes` dense codes of `bits` bits."""
    return -(-codes * bits // 32)


def linear_entries(name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str = "bfloat16") -> list[Entry]:
    """The tensors that compressed-tensors stores for the linear `name` of shape (O, I)."""
    rows, columns = shape
    group_count = groups(fmt, shape, name)
    found = [
        entry(f"{name}.weight_packed", "int32", (rows, words(columns, fmt.bits))),
        entry(f"{name}.weight_scale", scale_dtype, (rows, group_count)),
        entry(f"{name}.weight_shape", "int64", (2,)),
    ]
    if fmt.symmetry == "asymmetric":
        found.append(entry(f"{name}.weight_zero_point", "int32", (words(rows, fmt.bits), group_count)))
    return found


def linear_bytes(pack: PackFormat, fmt: Format, shape: tuple[int, int], scale_bytes: int = 2) -> int:
    """Bytes of every tensor stored for one linear of shape (O, I), without its share of the header."""
    rows, columns = shape
    group_count = groups(fmt, shape)
    match pack:
        case "compressed-tensors":
            size = 4 * rows * words(columns, fmt.bits) + scale_bytes * rows * group_count + 8 * len(shape)
            return size + (4 * words(rows, fmt.bits) * group_count if fmt.symmetry == "asymmetric" else 0)
        case _:
            assert_never(pack)


def unit_bytes(pack: PackFormat, fmt: Format, unit: Unit) -> int:
    """Bytes of every tensor stored for all linears of a unit, without their share of the header."""
    return sum(linear_bytes(pack, fmt, shape) for shape in unit.shapes)


def file_entries(
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    dtypes: Mapping[str, str],
    linears: Mapping[str, Format],
) -> list[Entry]:
    """Every tensor of the weights file: `linears` maps module paths to formats; the rest stays as it is stored."""
    scale_dtype = scale_dtype_name(config)
    found = [entry(n, dtypes[n], s) for n, s in shapes.items() if n.removesuffix(".weight") not in linears]
    for name, fmt in linears.items():
        rows, columns = shapes[f"{name}.weight"]
        found += linear_entries(name, fmt, (rows, columns), scale_dtype)
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
) -> int:
    """Exact size of the whole weights file, header included; arguments as for `file_entries`."""
    match pack:
        case "compressed-tensors":
            entries = file_entries(config, shapes, dtypes, linears)
        case _:
            assert_never(pack)
    return len(header_bytes(entries, FILE_METADATA)) + sum(e.nbytes for e in entries)


def weights_of(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Number of weights of a model; tied weights appear once in `shapes`."""
    return sum(math.prod(shape) for shape in shapes.values())

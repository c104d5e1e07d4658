"""Formats a weight may be stored in: families of grids, each with a short name.

A new family is a Spec with `kind`, `name`, `bits` and `columns`, a member of `Format`, and a line in `parse_format`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from itertools import product
from typing import Annotated, Any, Literal, NamedTuple, get_args

from pydantic import BeforeValidator, Field, TypeAdapter, field_validator, model_validator

from schemas.base import Spec

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128, "row"]
Symmetry = Literal["signed", "symmetric", "asymmetric"]

_SUFFIX: dict[str, Symmetry] = {"": "signed", "-sym": "symmetric", "-asym": "asymmetric"}
_AFFINE_NAME = re.compile(r"int([234568])-(g32|g64|g128|row)(|-sym|-asym)")
_MIXED_NAME = re.compile(r"int([234568])\+([234568])-g(32|64|128)@(\d+(?:\.\d+)?)")
_COLUMNS_NAME = re.compile(r"baq(\d+(?:\.\d+)?)-(g32|g64|g128|row)")


class Affine(Spec):
    """An affine integer storage format: w = scale * (code - zero_point), scale shared by `group_size` inputs of a row.

    signed      zero_point 0, codes in [-2^(b-1), 2^(b-1)-1], the scale's sign puts the group's largest weight on the
                longer side of the grid (as llama.cpp's Q4_0 does)
    symmetric   zero_point 0, scale > 0, same codes
    asymmetric  integer zero_point in [0, 2^b-1], codes in [0, 2^b-1]
    """

    kind: Literal["affine"] = "affine"
    bits: Bits
    group_size: GroupSize
    symmetry: Symmetry = "signed"

    @property
    def name(self) -> str:
        """The short form, for example `int3-g64` or `int4-row-asym`."""
        group = "row" if self.group_size == "row" else f"g{self.group_size}"
        suffix = {v: k for k, v in _SUFFIX.items()}[self.symmetry]
        return f"int{self.bits}-{group}{suffix}"

    def columns(self, row_length: int) -> int:
        """Inputs per group, which must divide `row_length`."""
        return row_length if self.group_size == "row" else self.group_size


GgmlType = Literal["q8_0", "q6_k", "q5_k", "q4_k", "q3_k", "q2_k", "q5_0", "q4_0", "iq4_nl", "tq1_0", "tq2_0", "f16"]


class Block(NamedTuple):
    """What a ggml type stores as one piece: `weights` consecutive weights of a row in `bytes`; bits of one code."""

    weights: int
    bytes: int
    bits: float


GGML_BLOCKS: dict[GgmlType, Block] = {
    "q8_0": Block(32, 34, 8),
    "q6_k": Block(256, 210, 6),
    "q5_k": Block(256, 176, 5),
    "q4_k": Block(256, 144, 4),
    "q3_k": Block(256, 110, 3),
    "q2_k": Block(256, 84, 2),
    "q5_0": Block(32, 22, 5),
    "q4_0": Block(32, 18, 4),
    "iq4_nl": Block(32, 18, 4),
    "tq1_0": Block(256, 54, 1.6),
    "tq2_0": Block(256, 66, 2),
    "f16": Block(1, 2, 16),
}
"""ggml/src/ggml-common.h of llama.cpp, structs `block_*` and their static_asserts."""


class Ggml(Spec):
    """A tensor type of llama.cpp: codes, scales and, for K-quants, scales of scales, in blocks along a row."""

    kind: Literal["ggml"] = "ggml"
    type: GgmlType

    @property
    def name(self) -> str:
        """The short form, for example `q4_k`."""
        return self.type

    @property
    def block(self) -> Block:
        """How it is laid out."""
        return GGML_BLOCKS[self.type]

    @property
    def bits(self) -> float:
        """Nominal bits of a code, without scales."""
        return self.block.bits

    def columns(self, row_length: int) -> int:
        """Weights per block, which must divide `row_length`."""
        return self.block.weights


class Mixed(Spec):
    """Two widths in one matrix: some groups of inputs have `high` bits, the others `low`, the same ones in every row.

    Codes and scales are those of the signed affine formats. Of a row's groups, as many are high as keep the mean within
    `mean_bits`; which ones, sensitivity decides (steps/quantize/mixed/layout.py).
    """

    kind: Literal["mixed"] = "mixed"
    low: Bits
    high: Bits
    group_size: Literal[32, 64, 128]
    mean_bits: float

    @model_validator(mode="after")
    def _between(self) -> Mixed:
        if (
            not self.low <= self.mean_bits <= self.high
            or self.low == self.high
            or not (4 * self.mean_bits).is_integer()
        ):
            raise ValueError(f"{self.name}: wanted low < high and a mean between them in steps of 0.25")
        return self

    @property
    def name(self) -> str:
        """The short form, for example `int2+4-g64@2.5`."""
        return f"int{self.low}+{self.high}-g{self.group_size}@{self.mean_bits:g}"

    @property
    def bits(self) -> float:
        """The most bits that a code has in the mean."""
        return self.mean_bits

    def columns(self, row_length: int) -> int:
        """Inputs per group, which must divide `row_length`."""
        return self.group_size

    def high_groups(self, row_length: int) -> int:
        """Groups of a row that have `high` bits."""
        return math.floor(row_length // self.group_size * (self.mean_bits - self.low) / (self.high - self.low))

    def row_bits(self, row_length: int) -> int:
        """Bits of all codes of a row."""
        return self.low * row_length + (self.high - self.low) * self.high_groups(row_length) * self.group_size

    def pieces(self, row_length: int) -> int:
        """Runs of inputs that have a width of their own."""
        return row_length // self.group_size


class PerColumn(Spec):
    """A width for every input (column) of a matrix, shared by all rows; BAQ, arXiv:2506.05664.

    Codes are signed. A column of b bits has the step scale * 2^(reference - b), with one scale per group of inputs and
    row. The widths of a row add up to at most `mean_bits` each.
    """

    kind: Literal["per_column"] = "per_column"
    mean_bits: float = Field(gt=2, lt=8)
    group_size: GroupSize

    @field_validator("mean_bits")
    @classmethod
    def _quarters(cls, mean_bits: float) -> float:
        if not (4 * mean_bits).is_integer():
            raise ValueError("mean bits go in steps of 0.25")
        return mean_bits

    @property
    def name(self) -> str:
        """The short form, for example `baq3-g128` or `baq2.5-row`."""
        return f"baq{self.mean_bits:g}-{'row' if self.group_size == 'row' else f'g{self.group_size}'}"

    @property
    def bits(self) -> float:
        """The most bits that a code has in the mean."""
        return self.mean_bits

    @property
    def reference(self) -> Bits:
        """The width whose step is the stored scale."""
        found: Bits = min(get_args(Bits), key=lambda bits: (abs(bits - self.mean_bits), bits))
        return found

    def columns(self, row_length: int) -> int:
        """Inputs per scale, which must divide `row_length`."""
        return row_length if self.group_size == "row" else self.group_size

    def row_bits(self, row_length: int) -> int:
        """Bits kept for all codes of a row."""
        return math.floor(self.mean_bits * row_length)

    def pieces(self, row_length: int) -> int:
        """Runs of inputs that have a width of their own."""
        return row_length


Format = Affine | Ggml | Mixed | PerColumn


def format_names() -> list[str]:
    """Names that can be said, family by family; of mixed widths, those that are likely."""
    every = product(get_args(Bits), get_args(GroupSize), get_args(Symmetry))
    affine = [Affine(bits=b, group_size=g, symmetry=s).name for b, g, s in every]
    sizes = get_args(GroupSize)
    mixed = [Mixed(low=2, high=4, group_size=g, mean_bits=b).name for b in (2.25, 2.5, 3, 3.5) for g in (32, 64, 128)]
    columns = [PerColumn(mean_bits=b, group_size=g).name for b in (2.25, 2.5, 3, 3.5, 4) for g in sizes]
    return [*affine, *get_args(GgmlType), *mixed, *columns]


def parse_format(value: Any) -> Any:
    """A short name -> the fields of a format; a mapping without `kind` is affine; anything else passes through."""
    if isinstance(value, Mapping) and "kind" not in value:
        return {"kind": "affine", **value}
    if not isinstance(value, str):
        return value
    if match := _AFFINE_NAME.fullmatch(value):
        bits, group, suffix = match.groups()
        size = "row" if group == "row" else int(group[1:])
        return {"kind": "affine", "bits": int(bits), "group_size": size, "symmetry": _SUFFIX[suffix]}
    if value in get_args(GgmlType):
        return {"kind": "ggml", "type": value}
    if match := _MIXED_NAME.fullmatch(value):
        low, high, group, mean = match.groups()
        return {
            "kind": "mixed",
            "low": int(low),
            "high": int(high),
            "group_size": int(group),
            "mean_bits": float(mean),
        }
    if match := _COLUMNS_NAME.fullmatch(value):
        mean, group = match.groups()
        return {
            "kind": "per_column",
            "mean_bits": float(mean),
            "group_size": "row" if group == "row" else int(group[1:]),
        }
    near = difflib.get_close_matches(value.lower(), format_names(), 3, cutoff=0.5)
    hint = f" (did you mean {', '.join(near)}?)" if near else ""
    wanted = (
        "int<2|3|4|5|6|8>-<g32|g64|g128|row>[-sym|-asym], int<low>+<high>-<g32|g64|g128>@<mean bits>, "
        f"baq<mean bits>-<g32|g64|g128|row>, or one of {', '.join(get_args(GgmlType))}"
    )
    raise ValueError(f"unknown format {value!r}{hint}; wanted {wanted}")


FormatField = Annotated[Format, Field(discriminator="kind"), BeforeValidator(parse_format)]

_ADAPTER: TypeAdapter[Format] = TypeAdapter(FormatField)


def read_format(value: Any) -> Format:
    """A format from its short name or its fields (what `model_dump` gives); pydantic's ValidationError otherwise."""
    return _ADAPTER.validate_python(value)


def fitting(row_length: int) -> list[str]:
    """What divides a row, for messages: `int*-g32`, `int*-row`, `q4_k` and so on."""
    sizes = [g for g in get_args(GroupSize) if g == "row" or row_length % g == 0]
    affine = ["int*-row" if g == "row" else f"int*-g{g}" for g in sizes]
    return [*affine, *(name for name, block in GGML_BLOCKS.items() if row_length % block.weights == 0)]

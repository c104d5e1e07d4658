"""Bytes of plans, exact, by the packer's own arithmetic: a predicted size is the size of the file. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.pack import PackFormat
from schemas.quantize import Format
from steps.pack.sizes import file_bytes, plan_linears, unit_bytes, weights_of

GROUP_SIZES = (32, 64, 128)


@dataclass(frozen=True)
class Sizing:
    """What is needed to size any plan for a model: the units that get formats, and everything else in the file."""

    units: tuple[Unit, ...]
    formats: Mapping[str, Format]
    pack: PackFormat
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]

    @property
    def linear_weights(self) -> int:
        """Weights of the linears that are quantized."""
        return sum(rows * columns for unit in self.units for rows, columns in unit.shapes)

    @property
    def all_weights(self) -> int:
        """Weights of the whole model; tied ones count once."""
        return weights_of(self.shapes)

    def unit(self, unit: Unit, format_name: str) -> int:
        """Bytes of one unit in one format."""
        return unit_bytes(self.pack, self.formats[format_name], unit)

    def linears(self, plan: Mapping[str, str]) -> int:
        """Bytes of all quantized linears."""
        return sum(self.unit(unit, plan[unit.name]) for unit in self.units)

    def file(self, plan: Mapping[str, str]) -> int:
        """Bytes of the whole weights file, header included."""
        formats = {name: self.formats[fmt] for name, fmt in plan.items()}
        linears = plan_linears(formats, self.units)
        return file_bytes(self.pack, self.config, self.shapes, self.dtypes, linears)


def check_group_sizes(units: Sequence[Unit], formats: Sequence[Format]) -> None:
    """InputError naming the linears whose rows a format's groups do not divide, and the group sizes that fit them."""
    wrong: dict[str, list[str]] = {}
    common = set(GROUP_SIZES)
    for fmt in formats:
        for unit in units:
            for member, (_, columns) in zip(unit.members, unit.shapes, strict=True):
                if columns % fmt.columns(columns):
                    wrong.setdefault(fmt.name, []).append(f"{member} ({columns} inputs)")
                    common &= {size for size in GROUP_SIZES if columns % size == 0}
    if wrong:
        lines = [f"{name}: {_some(members)}" for name, members in wrong.items()]
        raise InputError(
            "a group size does not divide the rows of a linear",
            where="formats",
            got="; ".join(lines),
            wanted=", ".join([*(f"g{size}" for size in sorted(common)), "row"]) + " for these linears",
            fix="replace these formats, or leave the linears out",
        )


def _some(names: list[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def exact_floor(bits_per_weight: float, weights: int) -> int:
    """Whole bytes that `weights` weights may take at so many bits each, from the number as it was written."""
    return math.floor(Fraction(str(bits_per_weight)) * weights / 8)

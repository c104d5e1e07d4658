"""Bytes of plans, exact, by the packer's own arithmetic: a predicted size is the size of the file. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.format import Format
from schemas.pack import PackFormat
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
    shard_bytes: int | None = None
    offered: Mapping[str, Collection[str]] | None = None
    """Unit name -> the formats it has; None: every unit has all."""
    metadata: int = 0
    """Bytes that the weights file spends on tokenizer and architecture."""

    @property
    def inside(self) -> tuple[Unit, ...]:
        """The units of the decoder blocks: neither embedding nor head."""
        return tuple(unit for unit in self.units if unit.use == "linear")

    @property
    def counted(self) -> str:
        """What the units are, in words."""
        ends = {"embedding": "embedding", "tied": "embedding", "head": "head", "linear": ""}
        names = ["linears", *(ends[unit.use] for unit in self.units if unit.use != "linear")]
        return " and ".join(names)

    @property
    def linear_weights(self) -> int:
        """Weights of the decoder's linears that are quantized."""
        return sum(rows * columns for unit in self.inside for rows, columns in unit.shapes)

    @property
    def all_weights(self) -> int:
        """Weights of the whole model; tied ones count once."""
        return weights_of(self.shapes)

    def has(self, unit: Unit, format_name: str) -> bool:
        """Whether a unit is offered a format."""
        return self.offered is None or format_name in self.offered[unit.name]

    def unit(self, unit: Unit, format_name: str) -> int:
        """Bytes of one unit in one format; 0 in one that it is not offered."""
        return unit_bytes(self.pack, self.formats[format_name], unit) if self.has(unit, format_name) else 0

    def linears(self, plan: Mapping[str, str]) -> int:
        """Bytes of the decoder's quantized linears."""
        return sum(self.unit(unit, plan[unit.name]) for unit in self.inside)

    def all_units(self, plan: Mapping[str, str]) -> int:
        """Bytes of all units, embedding and head included."""
        return sum(self.unit(unit, plan[unit.name]) for unit in self.units)

    def file(self, plan: Mapping[str, str]) -> int:
        """Bytes of the whole weights file, header included."""
        formats = {name: self.formats[fmt] for name, fmt in plan.items()}
        linears = plan_linears(formats, self.units)
        return file_bytes(self.pack, self.config, self.shapes, self.dtypes, linears, self.shard_bytes, self.metadata)


def check_group_sizes(offered: Iterable[tuple[Unit, Sequence[Format]]]) -> None:
    """InputError naming the linears whose rows a format's groups do not divide, and the group sizes that fit them."""
    wrong: dict[str, list[str]] = {}
    common = set(GROUP_SIZES)
    for unit, formats in offered:
        for fmt in formats:
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

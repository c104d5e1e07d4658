"""Formats a weight may be stored in, and how its codes are chosen."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from schemas.base import Spec

Bits = Literal[2, 3, 4, 5, 6, 8]
GroupSize = Literal[32, 64, 128, "row"]
Symmetry = Literal["signed", "symmetric", "asymmetric"]

_SUFFIX: dict[str, Symmetry] = {"": "signed", "-sym": "symmetric", "-asym": "asymmetric"}
_FORMAT_NAME = re.compile(r"int([234568])-(g32|g64|g128|row)(|-sym|-asym)")


class Format(Spec):
    """An affine integer storage format: w = scale * (code - zero_point), scale shared by `group_size` inputs of a row.

    signed      zero_point 0, codes in [-2^(b-1), 2^(b-1)-1], the scale's sign puts the group's largest weight on the
                longer side of the grid (as llama.cpp's Q4_0 does)
    symmetric   zero_point 0, scale > 0, same codes
    asymmetric  integer zero_point in [0, 2^b-1], codes in [0, 2^b-1]
    """

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
        """Inputs per group for rows of `row_length` weights."""
        return row_length if self.group_size == "row" else self.group_size


def parse_format(value: Any) -> Any:
    """`int3-g64[-sym|-asym]` -> the fields of a Format; anything but a string passes through."""
    if not isinstance(value, str):
        return value
    match = _FORMAT_NAME.fullmatch(value)
    if match is None:
        raise ValueError(f"unknown format {value!r}; wanted int<2|3|4|5|6|8>-<g32|g64|g128|row>[-sym|-asym]")
    bits, group, suffix = match.groups()
    size = "row" if group == "row" else int(group[1:])
    return {"bits": int(bits), "group_size": size, "symmetry": _SUFFIX[suffix]}


FormatField = Annotated[Format, BeforeValidator(parse_format)]


class MinMax(Spec):
    """The scale that just covers each group's range."""

    kind: Literal["minmax"]


class ClipSearch(Spec):
    """The clipping ratio (and, for signed grids, the sign) of least squared error per group.

    Ratios run from 1 down to `floor` in `points` steps. Each weight's error is weighted by the Hessian diagonal when
    `weighted` is true.
    """

    kind: Literal["clip"]
    points: int = Field(default=20, ge=2, le=200)
    floor: float = Field(default=0.5, gt=0, lt=1)
    weighted: bool = True


Fit = Annotated[MinMax | ClipSearch, Field(discriminator="kind")]


class Nearest(Spec):
    """Round to nearest (RTN)."""

    kind: Literal["rtn"]


class Feedback(Spec):
    """The GPTQ = LDLQ solver: round columns in order, feed each rounding error forward through the Hessian's factor.

    `damping` is the fraction of the mean Hessian diagonal added to it; when the Cholesky factorisation fails it is
    multiplied by 10, at most `retries` times, and the value used is reported.
    """

    kind: Literal["feedback"]
    damping: float = Field(default=0.01, gt=0, le=1)
    retries: int = Field(default=2, ge=0, le=4)
    act_order: bool = True
    block_size: int = Field(default=128, ge=1)


Solver = Annotated[Nearest | Feedback, Field(discriminator="kind")]


class Rounding(Spec):
    """How codes are chosen on any grid: which scales (fit), then which codes (solver)."""

    fit: Fit = MinMax(kind="minmax")
    solver: Solver = Feedback(kind="feedback")


class QuantizeUnit(Spec):
    """One (unit, format) item of a quantize node; this, not the node's whole format list, enters the item's key."""

    format: FormatField
    rounding: Rounding


class Quantize(Spec):
    """Every candidate format of every unit, each (unit, format) once."""

    step: Literal["quantize"]
    formats: tuple[FormatField, ...] = Field(min_length=1)
    rounding: Rounding = Rounding()

    def item(self, fmt: Format) -> QuantizeUnit:
        """The spec of one item."""
        return QuantizeUnit(format=fmt, rounding=self.rounding)

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if len(set(formats)) != len(formats):
            raise ValueError("a format is listed twice")
        return formats

"""How the codes of a weight are chosen, and in which formats."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from schemas.base import Spec
from schemas.format import Format, FormatField
from schemas.units import Units


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
    refits: int | None = Field(default=None, ge=0, le=8)
    """How often scales are fitted anew to the codes, under the whole Hessian, and codes to them.

    Without a word, twice for llama.cpp's types, whose scales are coarse, and never for others.
    """


class QuantizeUnit(Spec):
    """One (unit, format) item of a quantize node; this, not the node's whole format list, enters the item's key."""

    format: FormatField
    rounding: Rounding


class Quantize(Spec):
    """Every candidate format of every unit, each (unit, format) once."""

    step: Literal["quantize"]
    formats: tuple[FormatField, ...] = Field(min_length=1)
    rounding: Rounding = Rounding()
    units: Units = Units()

    def item(self, fmt: Format) -> QuantizeUnit:
        """The spec of one item."""
        return QuantizeUnit(format=fmt, rounding=self.rounding)

    @field_validator("formats")
    @classmethod
    def _once(cls, formats: tuple[Format, ...]) -> tuple[Format, ...]:
        if len(set(formats)) != len(formats):
            raise ValueError("a format is listed twice")
        return formats

"""What the packed file may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Spec
from schemas.format import FormatField
from schemas.pattern import Pattern


class PartLimit(Spec):
    """Bytes of the quantized linears of all units that match: what one device of a split holds."""

    units: Pattern
    bytes: int = Field(gt=0)


class Timing(Spec):
    """Measured time of one linear of shape (outputs, inputs) in a format."""

    shape: tuple[int, int]
    format: FormatField
    microseconds: float = Field(gt=0)


class Latency(Spec):
    """Limit on the summed time of all quantized linears, from a table measured in the engine that will serve them."""

    microseconds: float = Field(gt=0)
    timings: tuple[Timing, ...] = Field(min_length=1)


class Budget(Spec):
    """Limits on the build; at least one. Bits are true bits: codes with padding, scales, zeros, shapes, all counted.

    bits_per_weight over `linears` counts the quantized linears alone; over `file` it counts the whole packed file
    against all weights of the model.
    """

    bits_per_weight: float | None = Field(default=None, gt=0, le=32)
    over: Literal["linears", "file"] = "linears"
    bytes: int | None = Field(default=None, gt=0)
    """Size of the whole packed weights file."""
    max_predicted_kl: float | None = Field(default=None, gt=0)
    """When given, bytes are minimised under this limit (and the others)."""
    parts: tuple[PartLimit, ...] = ()
    """Limits on parts of the model, beside those on the whole."""
    latency: Latency | None = None

    @model_validator(mode="after")
    def _some_limit(self) -> Budget:
        whole = (self.bits_per_weight, self.bytes, self.max_predicted_kl, self.latency)
        if all(limit is None for limit in whole) and not self.parts:
            raise ValueError("a budget needs at least one of bits_per_weight, bytes, max_predicted_kl, parts, latency")
        return self

"""What the packed file may cost."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from schemas.base import Spec


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

    @model_validator(mode="after")
    def _some_limit(self) -> Budget:
        if self.bits_per_weight is None and self.bytes is None and self.max_predicted_kl is None:
            raise ValueError("a budget needs at least one of bits_per_weight, bytes, max_predicted_kl")
        return self

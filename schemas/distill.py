"""Training against the original after the formats are chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Spec


class Distill(Spec):
    """Train scales and norms, codes fixed, on KL(original || student); keep the best step on a held-out slice.

    `held_out` of the text's windows are never trained on and decide which step is kept; a result no better than the
    input on that slice is the input.
    """

    step: Literal["distill"]
    steps: int = Field(default=50, ge=0)
    batch: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    """Relative to each scale: scales are trained as scale * (1 + delta), norms likewise."""
    warmup: int = Field(default=5, ge=0)
    held_out: float = Field(default=0.2, gt=0, lt=1)
    check_every: int = Field(default=10, ge=1)
    seed: int = 0

"""Metrics that score what one unit in one format does to the model."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Spec


class KLProbe(Spec):
    """Swap one quantized unit into the original and measure KL(original || swapped) of the logits."""

    step: Literal["kl_probe"]
    batch: int = Field(default=16, ge=1)


class Fisher(Spec):
    """Output error weighted by label-free Fisher information: 1/2 sum over tokens of (g . dW x)^2.

    g is the gradient, at the unit's outputs, of the log-likelihood of labels sampled from the model's own predictions
    with `seed`, `samples` times per token.
    """

    step: Literal["fisher"]
    samples: int = Field(default=1, ge=1)
    seed: int = 0
    batch: int = Field(default=8, ge=1)

"""Measuring selections in memory and the packed file through the engine that will load it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.base import Spec

Loading = Literal["auto", "whole", "blocks"]
"""How the packed model is loaded: whole, or one block at a time, which needs no more memory than the largest block but
can time nothing and write nothing. `auto` goes by the model's size: whole up to `whole_bytes` of weights in fp32."""
WholeOrBlocks = Literal["whole", "blocks"]
WHOLE_BYTES = 4 * 2**30
"""A billion weights. Loaded whole they take half as much again, and the loader's own copies."""


class Evaluate(Spec):
    """Per-document KL, negative log-likelihood and top-1 agreement of a selection, dequantized in memory."""

    step: Literal["evaluate"]
    batch: int = Field(default=16, ge=1)


class Measure(Spec):
    """The packed folder on further tokens: one row of the report's table of domains."""

    step: Literal["measure"]
    batch: int = Field(default=16, ge=1)
    bootstrap: int = Field(default=2000, ge=100)
    seed: int = 0
    load: Loading = "auto"
    whole_bytes: int = Field(default=WHOLE_BYTES, gt=0)


class Generate(Spec):
    """What the original and the packed model write, greedily, after the first `prompt` tokens of `samples` windows.

    Every token goes through all blocks, so nothing is written unless the model is loaded whole.
    """

    step: Literal["generate"]
    samples: int = Field(default=2, ge=1)
    prompt: int = Field(default=32, ge=1)
    tokens: int = Field(default=32, ge=1)
    load: Loading = "auto"
    whole_bytes: int = Field(default=WHOLE_BYTES, gt=0)


class Gates(Spec):
    """Conditions a build must meet to be promoted. `beats_uniform`: the allocated plan's KL, before any training, is
    below the best uniform format of no more bytes, and the paired interval of the difference excludes zero."""

    max_kl: float | None = Field(default=None, gt=0)
    max_bytes: int | None = Field(default=None, gt=0)
    beats_uniform: bool = True
    max_damping: float = Field(default=0.1, gt=0)
    """Largest Hessian damping any chosen unit may have needed."""
    min_expert_tokens: int | None = Field(default=None, ge=1)
    """Fewest calibration tokens that any quantized expert of a mixture may have seen."""


class Verify(Spec):
    """Load the packed folder with the third-party loader, compare every weight, measure, and judge."""

    step: Literal["verify"]
    gates: Gates = Gates()
    batch: int = Field(default=16, ge=1)
    bootstrap: int = Field(default=2000, ge=100)
    seed: int = 0
    load: Loading = "auto"
    whole_bytes: int = Field(default=WHOLE_BYTES, gt=0)

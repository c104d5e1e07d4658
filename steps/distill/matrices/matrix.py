"""A quantized matrix while it is trained: its codes, and what holds them.

Every family of formats has a file beside this one: how a stored matrix is read into a start, and how it is stored
again. O outputs, I inputs, G groups per row, J inputs of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from steps.distill.codes.code import Bounds, Code
from steps.distill.codes.spacing import Spacing
from steps.distill.relative import Relative
from steps.quantize.qtensor import QuantizedTensor


class Frame(Protocol):
    """Everything of a stored matrix but its codes, some of it trained."""

    @property
    def quantized(self) -> QuantizedTensor:
        """What it was read from."""

    @property
    def scales(self) -> Sequence[Relative]:
        """What is trained at the rate of scales, where that is trained."""

    def spacing(self) -> Spacing:
        """Where levels lie now, with gradients to `scales`."""

    def stored(self, level_OGJ: torch.Tensor) -> QuantizedTensor:
        """What would be stored now with these whole levels, on the CPU: of the same format, shape and bytes.

        Its `dequantize()` is `spacing().weights(level_OGJ)`, bit for bit.
        """


@dataclass(frozen=True)
class Start:
    """A stored matrix, read: fp32 levels, their bounds (None: plain numbers, there is nothing to choose), the rest."""

    level_OGJ: torch.Tensor
    bounds: Bounds | None
    frame: Frame


@dataclass(frozen=True)
class Matrix:
    """A quantized linear in training."""

    code: Code
    frame: Frame

    def weight(self, hard: bool) -> torch.Tensor:
        """W_OI fp32: as the forward pass of training sees it, or as `dequantize` gives what would be stored now."""
        spacing = self.frame.spacing()
        level_OGJ = self.code.hard(spacing) if hard else self.code.levels(spacing)
        return spacing.weights(level_OGJ).flatten(1)

    @torch.no_grad()
    def stored(self) -> QuantizedTensor:
        """What would be stored now, on the CPU."""
        return self.frame.stored(self.code.hard(self.frame.spacing()))

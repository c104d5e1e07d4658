"""What stands for the codes of a matrix while they are trained.

Levels are codes in whole steps of the grid; spacing says which weights they are. O outputs, G groups per row, J inputs
of a group.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from steps.distill.codes.spacing import Spacing


@dataclass(frozen=True)
class Bounds:
    """The least and greatest level: of each group [O, G, 1], of each column [1, G, J], or one for all."""

    low: torch.Tensor
    high: torch.Tensor

    def clamp(self, level_OGJ: torch.Tensor) -> torch.Tensor:
        """Levels brought inside."""
        return torch.clamp(level_OGJ, self.low, self.high)


@dataclass(frozen=True)
class Grid:
    """Where a matrix starts: its levels, their bounds and spacing, and the original weights; fp32, on the training
    device."""

    level_OGJ: torch.Tensor
    bounds: Bounds
    spacing: Spacing
    weight_OGJ: torch.Tensor

    def wanted(self) -> torch.Tensor:
        """The original weights in steps of the grid, unrounded."""
        return self.spacing.levels(self.weight_OGJ)


class Code(Protocol):
    """A parametrisation of the levels of one matrix."""

    @property
    def variable(self) -> torch.Tensor | None:
        """What is trained, a leaf; None when the codes are fixed."""

    def levels(self, spacing: Spacing) -> torch.Tensor:
        """level_OGJ as the training forward pass sees them, with gradients; `spacing` as it is now."""

    def hard(self, spacing: Spacing) -> torch.Tensor:
        """Whole levels inside the grid: what would be stored now."""

    def shape_gradient(self, progress: float) -> None:
        """Turn the loss's gradient into the update's, after `progress` (0 to 1) of the steps."""

    def project(self) -> None:
        """Bring the variable back to where it may be, after an update."""


class Through(torch.autograd.Function):
    """Rounding whose gradient is that of the identity (straight-through)."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        """round(value), ties to even."""
        return value.round()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Unchanged."""
        return gradient


def round_through(value: torch.Tensor) -> torch.Tensor:
    """round(value) with the gradient of the identity."""
    rounded: torch.Tensor = Through.apply(value)  # type: ignore[no-untyped-call]
    return rounded

"""Codes that stay as they are, while scales or norms are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steps.distill.codes.code import Grid


@dataclass(frozen=True)
class FixedCode:
    """See Code; no variable."""

    level_OGJ: torch.Tensor
    """int16: levels of an 8-bit grid with zero points reach from -255 to 255."""

    @property
    def variable(self) -> None:
        """None."""
        return None

    def levels(self, scale_OG: torch.Tensor) -> torch.Tensor:
        """The levels."""
        return self.level_OGJ.float()

    def hard(self, scale_OG: torch.Tensor) -> torch.Tensor:
        """The levels."""
        return self.level_OGJ.float()

    def shape_gradient(self, progress: float) -> None:
        """Nothing."""

    def project(self) -> None:
        """Nothing."""


def fixed(grid: Grid) -> FixedCode:
    """The codes of a grid's start."""
    return FixedCode(grid.level_OGJ.to(torch.int16))

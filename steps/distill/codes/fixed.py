"""Codes that stay as they are, while scales or norms are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steps.distill.codes.code import Grid
from steps.distill.codes.spacing import Spacing


@dataclass(frozen=True)
class FixedCode:
    """See Code; no variable. Of plain numbers, which have no grid, the levels are the numbers."""

    level_OGJ: torch.Tensor
    """int16 for codes: levels of an 8-bit grid with zero points reach from -255 to 255."""

    @property
    def variable(self) -> None:
        """None."""
        return None

    def levels(self, spacing: Spacing) -> torch.Tensor:
        """The levels."""
        return self.level_OGJ.float()

    def hard(self, spacing: Spacing) -> torch.Tensor:
        """The levels."""
        return self.level_OGJ.float()

    def shape_gradient(self, progress: float) -> None:
        """Nothing."""

    def project(self) -> None:
        """Nothing."""


def fixed(grid: Grid) -> FixedCode:
    """The codes of a grid's start."""
    return FixedCode(grid.level_OGJ.to(torch.int16))

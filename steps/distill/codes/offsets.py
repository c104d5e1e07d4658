"""Offsets added to the weights, in steps of the grid, before they are rounded to nearest.

Source: AutoRound / SignRound (Cheng et al. 2024, arXiv:2309.05516, section 3): v in [-0.5, 0.5], with sign descent.
Differs from the paper: a group's range is trained through its one scale, not as separate minimum and maximum:
zero points stay, and of llama.cpp's types with minima d and dmin are trained.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.distill import Offsets
from steps.distill.codes.code import Bounds, Grid, round_through
from steps.distill.codes.spacing import Spacing


@dataclass(frozen=True)
class OffsetCode:
    """See Code; the variable is v, and the level is clamp(round(w in steps + v)): scales move codes, too."""

    variable: torch.Tensor
    weight_OGJ: torch.Tensor
    bounds: Bounds
    spec: Offsets

    def levels(self, spacing: Spacing) -> torch.Tensor:
        """Rounded to nearest after the offset."""
        return self.bounds.clamp(round_through(spacing.levels(self.weight_OGJ) + self.variable))

    def hard(self, spacing: Spacing) -> torch.Tensor:
        """The same."""
        return self.levels(spacing).detach()

    def shape_gradient(self, progress: float) -> None:
        """Nothing."""

    @torch.no_grad()
    def project(self) -> None:
        """Within `limit` steps of no offset."""
        self.variable.clamp_(-self.spec.limit, self.spec.limit)


def offsets(spec: Offsets, grid: Grid) -> OffsetCode:
    """No offset."""
    return OffsetCode(torch.zeros_like(grid.weight_OGJ).requires_grad_(), grid.weight_OGJ, grid.bounds, spec)

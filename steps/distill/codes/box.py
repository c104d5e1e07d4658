"""A place in [0, 1] between a weight's two neighbours on the grid, pulled to the nearer and pushed by the loss.

Source: DiscQuant (Chee et al. 2025, arXiv:2501.06417, and its code): minimise <1 - 2y, x> + rho * KL, projected.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.distill import Box
from steps.distill.codes.code import Grid
from steps.distill.codes.spacing import Spacing

UNIFORM_ERROR = 12
"""1 / variance of a rounding error spread evenly over one step."""


@dataclass(frozen=True)
class BoxCode:
    """See Code; the variable is x. Where both neighbours are one (at an end of the grid), x changes nothing.

    `error` is 12 times the mean squared error of rounding to nearest, in squared weights: it makes `strength` free of
    units. Differs from the paper: it is taken per matrix, not over the model.
    """

    variable: torch.Tensor
    below_OGJ: torch.Tensor
    above_OGJ: torch.Tensor
    own_OGJ: torch.Tensor
    error: float
    spec: Box

    def levels(self, spacing: Spacing) -> torch.Tensor:
        """Between the neighbours."""
        return torch.lerp(self.below_OGJ, self.above_OGJ, self.variable)

    def hard(self, spacing: Spacing) -> torch.Tensor:
        """The nearer neighbour of x."""
        return torch.where(self.variable.detach() > 0.5, self.above_OGJ, self.below_OGJ)

    @torch.no_grad()
    def shape_gradient(self, progress: float) -> None:
        """(1 - 2y) + clamp(strength * gradient / error)."""
        if self.variable.grad is not None:
            pushed = self.variable.grad.mul_(self.spec.strength / self.error).clamp_(-self.spec.clamp, self.spec.clamp)
            pushed.add_(1 - 2 * self.own_OGJ)

    @torch.no_grad()
    def project(self) -> None:
        """Onto [0, 1]."""
        self.variable.clamp_(0, 1)


def box(spec: Box, grid: Grid) -> BoxCode:
    """x starts at the weight's own place, so that the soft weights are the original's, where the grid reaches."""
    wanted_OGJ = grid.bounds.clamp(grid.wanted())
    below_OGJ = wanted_OGJ.floor()
    above_OGJ = grid.bounds.clamp(below_OGJ + 1)
    gap_OGJ = above_OGJ - below_OGJ
    own_OGJ = torch.where(gap_OGJ == 0, torch.full_like(wanted_OGJ, 0.5), wanted_OGJ - below_OGJ)
    rounding_OGJ = grid.spacing.apart(wanted_OGJ.round(), grid.wanted())
    error = UNIFORM_ERROR * float(rounding_OGJ.square().mean()) or 1.0
    return BoxCode(own_OGJ.clone().requires_grad_(), below_OGJ, above_OGJ, own_OGJ, error, spec)

"""Up or down by a stretched sigmoid that a growing penalty makes binary.

Sources: AdaRound (Nagel et al. 2020, arXiv:2004.10568, equations 22 to 24); PD-Quant (Liu et al. 2023,
arXiv:2212.07048) uses the same variable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.distill import Annealed
from steps.distill.codes.code import Bounds, Grid
from steps.distill.codes.spacing import Spacing

STRETCH = 0.1
"""h = clamp(1.2 sigmoid(a) - 0.1, 0, 1) reaches 0 and 1 at finite a (AdaRound: gamma -0.1, zeta 1.1)."""


def soft(alpha: torch.Tensor) -> torch.Tensor:
    """h in [0, 1]."""
    return (torch.sigmoid(alpha) * (1 + 2 * STRETCH) - STRETCH).clamp(0, 1)


@dataclass(frozen=True)
class AnnealedCode:
    """See Code; the variable is alpha, and the level is clamp(below + h(alpha))."""

    variable: torch.Tensor
    below_OGJ: torch.Tensor
    bounds: Bounds
    spec: Annealed

    def levels(self, spacing: Spacing) -> torch.Tensor:
        """Between the neighbours."""
        return self.bounds.clamp(self.below_OGJ + soft(self.variable))

    def hard(self, spacing: Spacing) -> torch.Tensor:
        """Up where h is at least a half."""
        return self.bounds.clamp(self.below_OGJ + (self.variable.detach() >= 0).float())

    def shape_gradient(self, progress: float) -> None:
        """Add the penalty's gradient, once the free share of the steps is over."""
        share = (progress - self.spec.free) / (1 - self.spec.free)
        if share < 0 or self.variable.grad is None:
            return
        beta = self.spec.first + (self.spec.last - self.spec.first) * min(share, 1)
        penalty = self.spec.penalty * (1 - (2 * soft(self.variable) - 1).abs().pow(beta)).sum()
        (gradient,) = torch.autograd.grad(penalty, self.variable)
        self.variable.grad.add_(gradient)

    def project(self) -> None:
        """Nothing."""


def annealed(spec: Annealed, grid: Grid) -> AnnealedCode:
    """alpha starts where h is the weight's own place, so that the soft weights are the original's within the grid."""
    wanted_OGJ = grid.bounds.clamp(grid.wanted())
    below_OGJ = wanted_OGJ.floor()
    h_OGJ = ((wanted_OGJ - below_OGJ + STRETCH) / (1 + 2 * STRETCH)).clamp_(1e-6, 1 - 1e-6)
    return AnnealedCode(torch.logit(h_OGJ).requires_grad_(), below_OGJ, grid.bounds, spec)

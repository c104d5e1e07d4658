"""Latent levels with straight-through gradients.

Sources: AdaQuant (Hubara et al. 2021, arXiv:2006.10518, a perturbation of the weights that may exceed one step);
PV-Tuning (Malinovskii et al. 2024, arXiv:2405.14852, section 3: this is the variant with a full latent memory).
Differs from both: latents live in steps of the grid, so that one learning rate serves matrices of any scale, and a
scale that moves does not move codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.distill import StraightThrough
from steps.distill.codes.code import Bounds, Grid, round_through
from steps.distill.codes.spacing import Spacing

INSIDE = 0.35
"""Furthest from its code that a latent starts, in steps; nearer to 0.5, noise alone flips codes by the thousand."""


@dataclass(frozen=True)
class LatentCode:
    """See Code; the variable is the latent level, kept inside the grid."""

    variable: torch.Tensor
    bounds: Bounds

    def levels(self, spacing: Spacing) -> torch.Tensor:
        """Rounded latents."""
        return round_through(self.variable)

    def hard(self, spacing: Spacing) -> torch.Tensor:
        """Rounded latents."""
        return self.variable.detach().round()

    def shape_gradient(self, progress: float) -> None:
        """Nothing."""

    @torch.no_grad()
    def project(self) -> None:
        """Clamp: a latent outside the grid would have to walk back before its code could change."""
        self.variable.copy_(self.bounds.clamp(self.variable))


def straight_through(spec: StraightThrough, grid: Grid) -> LatentCode:
    """Latents at their start; see the spec."""
    match spec.start:
        case "codes":
            latent_OGJ = grid.level_OGJ.clone()
        case "cell":
            away_OGJ = (grid.wanted() - grid.level_OGJ).clamp_(-INSIDE, INSIDE)
            latent_OGJ = grid.bounds.clamp(grid.level_OGJ + away_OGJ)
        case "weights":
            latent_OGJ = grid.bounds.clamp(grid.wanted())
    return LatentCode(latent_OGJ.requires_grad_(), grid.bounds)

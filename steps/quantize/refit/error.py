"""The error of a matrix under the whole Hessian, while the numbers that its grid stores are set to their best values.

O outputs, I inputs, C inputs of a group or block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

Snap = Callable[[torch.Tensor], torch.Tensor]
"""Number_O -> the nearest that can be stored."""


@dataclass(frozen=True)
class Error:
    """D = what - w, changed in place together with its product with H."""

    D_OI: torch.Tensor
    product_OI: torch.Tensor
    H_II: torch.Tensor

    def improve(self, number_O: torch.Tensor, at: slice, basis_OC: torch.Tensor, snap: Snap) -> None:
        """Set each row's number to its best storable value; a unit of it adds basis_OC to the row's weights `at`."""
        slope_O = (self.product_OI[:, at] * basis_OC).sum(1)
        curve_O = ((basis_OC @ self.H_II[at, at]) * basis_OC).sum(1)
        before_O = number_O.to(slope_O.dtype)
        best_O = torch.where(curve_O > 0, before_O - slope_O / curve_O, before_O)
        after_O = torch.where(curve_O > 0, snap(best_O).to(slope_O.dtype), before_O)
        change_OC = basis_OC * (after_O - before_O).unsqueeze(1)
        self.D_OI[:, at] += change_OC
        self.product_OI.addmm_(change_OC, self.H_II[at])
        number_O.copy_(after_O.to(number_O.dtype))

    def loss(self) -> torch.Tensor:
        """1/2 d H d^T by row, fp64."""
        return (self.D_OI.double() * self.product_OI).sum(1) / 2

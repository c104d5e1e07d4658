"""What every solver returns.

O outputs, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Solved:
    """Codes and what they cost, per output row, in fp64.

    loss_O         1/2 d H d^T with d = what - w and H as given (undamped)
    solver_loss_O  what the solver minimised: the same with its damped H
    damping        the fraction of the mean Hessian diagonal added to it
    dead           inputs whose Hessian diagonal is 0
    act_order      whether inputs were rounded by falling Hessian diagonal, groups staying where they are
    """

    codes_OI: torch.Tensor
    loss_O: torch.Tensor
    solver_loss_O: torch.Tensor
    damping: float
    dead: int
    act_order: bool = False

    def where(self, mask_O: torch.Tensor, codes_OI: torch.Tensor, loss_O: torch.Tensor) -> Solved:
        """The result in the rows of the mask, else other codes with their loss; the damping's share is as it was."""
        return replace(
            self,
            codes_OI=torch.where(mask_O[:, None], self.codes_OI, codes_OI),
            loss_O=torch.where(mask_O, self.loss_O, loss_O),
            solver_loss_O=torch.where(mask_O, self.solver_loss_O, self.solver_loss_O - self.loss_O + loss_O),
        )

    def rows(self, start: int, stop: int) -> Solved:
        """The result for rows start:stop."""
        cut = slice(start, stop)
        return replace(
            self, codes_OI=self.codes_OI[cut], loss_O=self.loss_O[cut], solver_loss_O=self.solver_loss_O[cut]
        )

    def weighted(self, weight_O: torch.Tensor | None) -> Solved:
        """The result whose rows' losses count as often as their outputs are used; itself when none are given."""
        if weight_O is None:
            return self
        return replace(self, loss_O=self.loss_O * weight_O, solver_loss_O=self.solver_loss_O * weight_O)

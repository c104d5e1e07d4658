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
    """

    codes_OI: torch.Tensor
    loss_O: torch.Tensor
    solver_loss_O: torch.Tensor
    damping: float
    dead: int

    def rows(self, start: int, stop: int) -> Solved:
        """The result for rows start:stop."""
        cut = slice(start, stop)
        return replace(
            self, codes_OI=self.codes_OI[cut], loss_O=self.loss_O[cut], solver_loss_O=self.solver_loss_O[cut]
        )

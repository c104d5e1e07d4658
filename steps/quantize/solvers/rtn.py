"""Round to nearest (RTN), the baseline.

O outputs, I inputs.
"""

from __future__ import annotations

import torch

from steps.ops.proxy import proxy_loss
from steps.quantize.grids.levels import Grid, nearest_levels, represented
from steps.quantize.solvers.solved import Solved
from steps.step import Env


def rtn(W_OI: torch.Tensor, H_II: torch.Tensor, grid: Grid, env: Env) -> Solved:
    """Each weight to its nearest level; H is only used to report the loss."""
    levels = grid.levels(W_OI.dtype)
    level_OI = nearest_levels(W_OI, levels)
    loss_O = proxy_loss(represented(level_OI, levels) - W_OI, H_II)
    return Solved(grid.codes(level_OI), loss_O, loss_O, 0.0, int((H_II.diagonal() == 0).sum()))

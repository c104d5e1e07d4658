"""Round to nearest (RTN), the baseline.

O outputs, I inputs.
"""

from __future__ import annotations

import torch

from steps.ops.proxy import proxy_loss
from steps.quantize.grids.affine import GridParams, decode, nearest
from steps.quantize.solvers.solved import Solved
from steps.step import Env


def rtn(W_OI: torch.Tensor, H_II: torch.Tensor, params: GridParams, env: Env) -> Solved:
    """Each weight to its nearest level; H is only used to report the loss."""
    codes_OI = nearest(W_OI, params)
    D_OI = decode(codes_OI, params.scale_OG, params.zero_point_OG).to(W_OI.dtype) - W_OI
    loss_O = proxy_loss(D_OI, H_II)
    return Solved(codes_OI, loss_O, loss_O, 0.0, int((H_II.diagonal() == 0).sum()))

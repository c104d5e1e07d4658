"""Better scales for chosen codes: coordinate descent on the numbers that a block stores, under the whole Hessian.

O outputs, I inputs, G groups and S blocks per row, C inputs of a group or block.
"""

from __future__ import annotations

import torch

from steps.quantize.ggml.kinds import KINDS
from steps.quantize.grids.ggml import GgmlGrid
from steps.quantize.refit.error import Error, Snap


def refit(
    W_OI: torch.Tensor, H_II: torch.Tensor, codes_OI: torch.Tensor, grid: GgmlGrid
) -> tuple[GgmlGrid, torch.Tensor]:
    """The grid after one pass over each row's numbers (scales and minima of groups, d and dmin of blocks), and its
    loss 1/2 d H d^T by row, fp64.

    The loss is quadratic in each number, so the storable number nearest to its minimum is the best one, and no row
    gets worse. A pass costs O I^2, like the proxy loss. Arithmetic in W's dtype.
    """
    kind, groups = KINDS[grid.type], W_OI.shape[1] // KINDS[grid.type].group
    level_OI, W_OI = grid.values(codes_OI).to(W_OI.dtype), W_OI.contiguous()
    D_OI = grid.decode(codes_OI).to(W_OI.dtype) - W_OI
    error = Error(D_OI, D_OI @ H_II.to(W_OI.dtype), H_II.to(W_OI.dtype))
    found = _copied(grid)
    per_block = groups // found.d_OS.shape[1]
    for g in range(groups if found.scale_OG is not None else 0):
        at, block = slice(g * kind.group, (g + 1) * kind.group), g // per_block
        integer = _integer(2**kind.scale_bits - 1)
        if found.scale_OG is not None:
            error.improve(found.scale_OG[:, g], at, level_OI[:, at] * found.d_OS[:, block, None].float(), integer)
        if found.min_OG is not None and found.dmin_OS is not None:
            basis_OC = -found.dmin_OS[:, block, None].to(W_OI.dtype).expand(-1, kind.group)
            error.improve(found.min_OG[:, g], at, basis_OC, integer)
    for s in range(found.d_OS.shape[1]):
        width = per_block * kind.group
        at, inside = slice(s * width, (s + 1) * width), slice(s * per_block, (s + 1) * per_block)
        scale_OG1 = found.factors().to(W_OI.dtype)[:, inside, None]
        basis_OC = (level_OI[:, at].view(len(W_OI), per_block, -1) * scale_OG1).flatten(1)
        error.improve(found.d_OS[:, s], at, basis_OC, _half)
        if found.min_OG is not None and found.dmin_OS is not None:
            basis_OC = -found.min_OG[:, inside].to(W_OI.dtype).repeat_interleave(kind.group, dim=1)
            error.improve(found.dmin_OS[:, s], at, basis_OC, _half)
    return found, error.loss()


def _copied(grid: GgmlGrid) -> GgmlGrid:
    def clone(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.clone()

    return GgmlGrid(grid.type, grid.d_OS.clone(), clone(grid.scale_OG), clone(grid.min_OG), clone(grid.dmin_OS))


def _integer(top: int) -> Snap:
    return lambda number_O: number_O.round().clamp_(0, top)


def _half(number_O: torch.Tensor) -> torch.Tensor:
    return number_O.clamp(-65504, 65504).half()

"""Better scales for chosen codes: coordinate descent on the numbers that a block stores, under the whole Hessian.

O outputs, I inputs, G groups and S blocks per row, C inputs of a group or block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from steps.quantize.ggml.kinds import KINDS
from steps.quantize.grids.ggml import GgmlGrid

Snap = Callable[[torch.Tensor], torch.Tensor]


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
    error = _Error(D_OI, D_OI @ H_II.to(W_OI.dtype), H_II.to(W_OI.dtype))
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


@dataclass(frozen=True)
class _Error:
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


def _copied(grid: GgmlGrid) -> GgmlGrid:
    def clone(part: torch.Tensor | None) -> torch.Tensor | None:
        return None if part is None else part.clone()

    return GgmlGrid(grid.type, grid.d_OS.clone(), clone(grid.scale_OG), clone(grid.min_OG), clone(grid.dmin_OS))


def _integer(top: int) -> Snap:
    return lambda number_O: number_O.round().clamp_(0, top)


def _half(number_O: torch.Tensor) -> torch.Tensor:
    return number_O.clamp(-65504, 65504).half()

"""The feedback solver: GPTQ = LDLQ = OBQ with a fixed order, in its feedback form.

O outputs, I inputs (in the order they are rounded), G groups per row, B inputs of a block, S of a sub-block.
Matrices are held transposed, one contiguous row per input, so that a step is a few passes over O numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from schemas.quantize import Feedback
from steps.quantize.grids.levels import Grid, Levels, snap_
from steps.quantize.solvers.factor import Factor, factor_of
from steps.quantize.solvers.solved import Solved
from steps.step import Env

SUB_BLOCK = 16


def feedback(spec: Feedback, W_OI: torch.Tensor, H_II: torch.Tensor, grid: Grid, env: Env) -> Solved:
    """Round inputs k in order, on the target t_k = w_k + sum_{j<k} (w_j - what_j) M_jk, where H = M D M^T.

    Gives the codes of GPTQ's update form without inverting H. The loss is free, whatever the grid, by the identity
    1/2 tr((What - W) H (What - W)^T) = 1/2 sum_k D_k ||t_k - what_k||^2 (both statements are tested).

    All grid parameters are fitted before (static groups), so rounding by falling Hessian diagonal needs no stored
    order. Arithmetic in W's dtype on a factor computed in fp64; losses are added up in fp64, block by block. The result
    does not depend on the number of threads (tested): sums over inputs are taken `block_size` at a time, in order, and
    the factorisation has fixed panels. Differs from the paper: a dead input is rounded to nearest, not set to zero.
    """
    factor = factor_of(spec, H_II, W_OI.dtype, env)
    return replace(sweep(W_OI, grid, factor, spec.block_size), act_order=spec.act_order)


def sweep(W_OI: torch.Tensor, grid: Grid, factor: Factor, block_size: int) -> Solved:
    """One pass over the inputs. The targets behind a block are brought up to date once, with one matrix product."""
    given = grid.levels(W_OI.dtype)
    W_IO = given.shifted(W_OI).T.contiguous().index_select(0, factor.order_I)
    levels = _columns(given, factor.order_I)
    target_IO, level_IO = W_IO.clone(), torch.empty_like(W_IO)
    solver_O, added_O = torch.zeros(2, len(W_OI), dtype=torch.float64, device=W_OI.device)
    for start in range(0, len(W_IO), block_size):
        block = slice(start, min(start + block_size, len(W_IO)))
        M_BI = factor.M_II[block]
        error_BO = _round_block(W_IO[block], target_IO[block], level_IO[block], M_BI[:, block], levels.inputs(block))
        target_IO[block.stop :].addmm_(M_BI[:, block.stop :].T, error_BO)
        residual_BO = (target_IO[block] - W_IO[block]).add_(error_BO)
        solver_O += factor.D_I[block].to(W_OI.dtype) @ residual_BO.square_()
        added_O += factor.added_I[block].to(W_OI.dtype) @ error_BO.square_()
    codes_OI = grid.codes(level_IO.index_select(0, factor.inverse_I).T.contiguous())
    return Solved(codes_OI, (solver_O - added_O).clamp_(min=0) / 2, solver_O / 2, factor.damping, factor.dead)


def _round_block(
    W_BO: torch.Tensor, target_BO: torch.Tensor, level_BO: torch.Tensor, M_BB: torch.Tensor, levels: _Columns
) -> torch.Tensor:
    """Round a block's inputs in order; completes target_BO, fills level_BO, returns w - what."""
    error_BO = torch.empty_like(W_BO)
    for start in range(0, len(W_BO), SUB_BLOCK):
        stop = min(start + SUB_BLOCK, len(W_BO))
        sub = slice(start, stop)
        _round_sub_block(W_BO[sub], target_BO[sub], level_BO[sub], error_BO[sub], M_BB[sub, sub], levels.inputs(sub))
        target_BO[stop:].addmm_(M_BB[sub, stop:].T, error_BO[sub])
    return error_BO


def _round_sub_block(
    W_SO: torch.Tensor,
    target_SO: torch.Tensor,
    level_SO: torch.Tensor,
    error_SO: torch.Tensor,
    M_SS: torch.Tensor,
    levels: _Columns,
) -> None:
    """Five passes over an input's O numbers; here the time goes, so nothing else is in the loop.

    Every error is fed to the whole sub-block, with weight 0 where it is already rounded. scale * level is exact, so
    that w - scale * level is what subtracting the decoded weight gives.
    """
    rows = zip(W_SO, target_SO, level_SO, error_SO, M_SS.triu(1), levels.group, strict=True)
    for w_O, target_O, level_O, error_O, M_S, g in rows:
        scale_O = levels.scale_GO[g]
        torch.div(target_O, scale_O, out=level_O)
        snap_(level_O, levels.low_GO[g], levels.high_GO[g], levels.values_L)
        torch.addcmul(w_O, level_O, scale_O, value=-1, out=error_O)
        target_SO.addr_(M_S, error_O)


@dataclass(frozen=True)
class _Columns:
    """Levels laid out for column steps: rows of scale, smallest and largest level by group; each input's group."""

    scale_GO: tuple[torch.Tensor, ...]
    low_GO: tuple[torch.Tensor, ...]
    high_GO: tuple[torch.Tensor, ...]
    values_L: torch.Tensor | None
    group: tuple[int, ...]

    def inputs(self, block: slice) -> _Columns:
        """The same for some inputs."""
        return replace(self, group=self.group[block])


def _columns(levels: Levels, order_I: torch.Tensor) -> _Columns:
    scale_OG, low_OG, high_OG = levels.scale_OG, levels.low_OG, levels.high_OG
    by_group = [tensor.T.contiguous().unbind() for tensor in (scale_OG, low_OG, high_OG)]
    groups_I = order_I // (len(order_I) // scale_OG.shape[1])
    return _Columns(by_group[0], by_group[1], by_group[2], levels.values_L, tuple(groups_I.tolist()))

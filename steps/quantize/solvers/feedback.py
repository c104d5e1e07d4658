"""The feedback solver: GPTQ = LDLQ = OBQ with a fixed order, in its feedback form.

O outputs, I inputs (in the order they are rounded), G groups per row, B inputs of a block, S of a sub-block.
Matrices are held transposed, one contiguous row per input, so that a step is a few passes over O numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from schemas.quantize import Feedback
from steps.quantize.grids.affine import GridParams, code_dtype, code_range
from steps.quantize.solvers.factor import Factor, factor_of
from steps.quantize.solvers.solved import Solved
from steps.step import Env

SUB_BLOCK = 16


def feedback(spec: Feedback, W_OI: torch.Tensor, H_II: torch.Tensor, params: GridParams, env: Env) -> Solved:
    """Round inputs k in order, on the target t_k = w_k + sum_{j<k} (w_j - what_j) M_jk, where H = M D M^T.

    Gives the codes of GPTQ's update form without inverting H. The loss is free, whatever the grid, by the identity
    1/2 tr((What - W) H (What - W)^T) = 1/2 sum_k D_k ||t_k - what_k||^2 (both statements are tested).

    All grid parameters are fitted before (static groups), so rounding by falling Hessian diagonal needs no stored
    order. Arithmetic in W's dtype on a factor computed in fp64; losses are added up in fp64, block by block. The result
    does not depend on the number of threads (tested): sums over inputs are taken `block_size` at a time, in order, and
    the factorisation has fixed panels. Differs from the paper: a dead input is rounded to nearest, not set to zero.
    """
    factor = factor_of(spec, H_II, W_OI.dtype, env)
    return sweep(W_OI, params, factor, spec.block_size)


def sweep(W_OI: torch.Tensor, params: GridParams, factor: Factor, block_size: int) -> Solved:
    """One pass over the inputs. The targets behind a block are brought up to date once, with one matrix product."""
    W_IO = W_OI.T.contiguous().index_select(0, factor.order_I)
    levels = _levels(params, factor.order_I, W_OI.dtype)
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
    codes_OI = _codes(level_IO, params, factor)
    return Solved(codes_OI, (solver_O - added_O).clamp_(min=0) / 2, solver_O / 2, factor.damping, factor.dead)


def _round_block(
    W_BO: torch.Tensor, target_BO: torch.Tensor, level_BO: torch.Tensor, M_BB: torch.Tensor, levels: _Levels
) -> torch.Tensor:
    """Round a block's inputs in order; completes target_BO, fills level_BO (code - zero_point), returns w - what."""
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
    levels: _Levels,
) -> None:
    """Five passes over an input's O numbers; here the time goes, so nothing else is in the loop.

    Every error is fed to the whole sub-block, with weight 0 where it is already rounded. scale * level is exact, so
    that w - scale * level is what subtracting the decoded weight gives.
    """
    rows = zip(W_SO, target_SO, level_SO, error_SO, M_SS.triu(1), levels.group, strict=True)
    for w_O, target_O, level_O, error_O, M_S, g in rows:
        scale_O = levels.scale_GO[g]
        torch.div(target_O, scale_O, out=level_O).round_().clamp_(levels.low_GO[g], levels.high_GO[g])
        torch.addcmul(w_O, level_O, scale_O, value=-1, out=error_O)
        target_SO.addr_(M_S, error_O)


@dataclass(frozen=True)
class _Levels:
    """The grid, laid out for column steps: rows of scale, smallest and largest level by group; each input's group."""

    scale_GO: tuple[torch.Tensor, ...]
    low_GO: tuple[torch.Tensor, ...]
    high_GO: tuple[torch.Tensor, ...]
    group: tuple[int, ...]

    def inputs(self, block: slice) -> _Levels:
        """The same for some inputs."""
        return replace(self, group=self.group[block])


def _levels(params: GridParams, order_I: torch.Tensor, dtype: torch.dtype) -> _Levels:
    """Levels are codes less zero points: clamp(round(t) + z, low, high) - z = clamp(round(t), low - z, high - z)."""
    low, high = code_range(params.format)
    scale_GO = params.scale_OG.to(dtype).T.contiguous()
    zero_GO = torch.zeros_like(scale_GO) if params.zero_point_OG is None else params.zero_point_OG.T.to(dtype)
    groups = order_I // (len(order_I) // len(scale_GO))
    return _Levels(
        scale_GO.unbind(),
        (low - zero_GO).contiguous().unbind(),
        (high - zero_GO).contiguous().unbind(),
        tuple(groups.tolist()),
    )


def _codes(level_IO: torch.Tensor, params: GridParams, factor: Factor) -> torch.Tensor:
    """Levels in rounding order -> codes [O, I]."""
    code_IO = level_IO
    if params.zero_point_OG is not None:
        groups_I = factor.order_I // (len(level_IO) // params.zero_point_OG.shape[1])
        code_IO = level_IO + params.zero_point_OG.T.to(level_IO.dtype).index_select(0, groups_I)
    code_IO = code_IO.to(code_dtype(params.format)).index_select(0, factor.inverse_I)
    return code_IO.T.contiguous()

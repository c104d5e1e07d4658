"""A matrix to one of llama.cpp's types.

O outputs, I inputs.
"""

from __future__ import annotations

import torch

from schemas.format import Ggml
from schemas.quantize import Rounding
from steps.ops.proxy import proxy_loss
from steps.quantize.build import build_solver
from steps.quantize.fits.ggml import fit
from steps.quantize.ggml.blocks import pack
from steps.quantize.refit.ggml import refit
from steps.quantize.solvers.solved import Solved
from steps.quantize.tensors.ggml import GgmlTensor
from steps.step import Env

REFITS = 2


def quantize_ggml(
    fmt: Ggml, rounding: Rounding, W_OI: torch.Tensor, H_II: torch.Tensor, env: Env
) -> tuple[GgmlTensor, Solved]:
    """The blocks, and what they cost.

    Codes are chosen for a grid, the grid is refitted to the codes, and so on, `rounding.refits` times (REFITS unless
    said); each row keeps the best it had. A row's loss never rises by a refit, but may by choosing codes again.
    """
    if fmt.type == "f16":
        return _half(fmt, W_OI, H_II)
    solve, grid = build_solver(rounding.solver), fit(rounding.fit, W_OI, H_II.diagonal(), fmt.type)
    best, kept = solve(W_OI, H_II, grid, env), grid
    latest = best
    for done in range(REFITS if rounding.refits is None else rounding.refits):
        latest = solve(W_OI, H_II, grid, env) if done else latest
        grid, loss_O = refit(W_OI, H_II, latest.codes_OI, grid)
        better_O = loss_O < best.loss_O
        kept = grid.where(better_O, kept)
        best = best.where(~better_O, latest.codes_OI, loss_O)
    return GgmlTensor("", fmt, pack(best.codes_OI, kept)), best


def _half(fmt: Ggml, W_OI: torch.Tensor, H_II: torch.Tensor) -> tuple[GgmlTensor, Solved]:
    """Weights as fp16; there is no grid and nothing to solve."""
    half_OI = W_OI.half()
    loss_O = proxy_loss(half_OI.to(W_OI.dtype) - W_OI, H_II)
    dead = int((H_II.diagonal() == 0).sum())
    return GgmlTensor("", fmt, half_OI.view(torch.uint8)), Solved(half_OI, loss_O, loss_O, 0.0, dead)

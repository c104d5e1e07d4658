"""A matrix with several widths: scales by the recipe's own fit, a layout by sensitivity, codes by its own solver.

O outputs, I inputs, G groups per row, K pieces of a row.
"""

from __future__ import annotations

from typing import get_args

import torch

from schemas.format import Affine, Bits, Mixed, PerColumn
from schemas.quantize import Rounding
from steps.quantize.build import build_fit, build_solver
from steps.quantize.grids.pieces import Pieces
from steps.quantize.mixed.layout import column_losses, fill, input_sensitivity, input_weights, sensitive_groups
from steps.quantize.refit.scales import refitted
from steps.quantize.solvers.solved import Solved
from steps.quantize.tensors.mixed import MixedTensor, steps
from steps.step import Env

WIDTHS: tuple[int, ...] = get_args(Bits)
"""Of a single column. Dropping columns (0 bits), as BAQ does, is not offered: the noise model does not hold there."""


def quantize_mixed(
    fmt: Mixed | PerColumn, rounding: Rounding, W_OI: torch.Tensor, H_II: torch.Tensor, dtype: torch.dtype, env: Env
) -> tuple[MixedTensor, Solved]:
    """The matrix, and what it costs."""
    weight_I = input_weights(rounding.solver, H_II, W_OI.dtype, env)
    if isinstance(fmt, Mixed):
        scale_OG, bits_K = _two_widths(fmt, rounding, W_OI, H_II, weight_I, dtype)
    else:
        scale_OG, bits_K = _per_column(fmt, rounding, W_OI, H_II, weight_I, dtype)
    solve = build_solver(rounding.solver)
    one_OG = torch.ones_like(scale_OG, dtype=W_OI.dtype)
    step_OI = steps(fmt, one_OG, bits_K).repeat_interleave(W_OI.shape[1] // len(bits_K), dim=1)
    solved, scale_OG = refitted(
        rounding.refits or 0,
        W_OI,
        H_II,
        scale_OG,
        lambda scale_OG: solve(W_OI, H_II, Pieces(steps(fmt, scale_OG.to(W_OI.dtype), bits_K), bits_K), env),
        lambda codes_OI: codes_OI.to(W_OI.dtype) * step_OI,
    )
    return MixedTensor("", fmt, solved.codes_OI, scale_OG, bits_K), solved


def _two_widths(
    fmt: Mixed, rounding: Rounding, W_OI: torch.Tensor, H_II: torch.Tensor, weight_I: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale_OG and bits_G: each group's scale is that of the uniform format of its width."""
    fit = build_fit(rounding.fit)
    low_OG, high_OG = (
        fit(W_OI, H_II.diagonal(), Affine(bits=bits, group_size=fmt.group_size), dtype).scale_OG
        for bits in (fmt.low, fmt.high)
    )
    chosen_G = sensitive_groups(weight_I, low_OG, fmt.high_groups(W_OI.shape[1]))
    return torch.where(chosen_G, high_OG, low_OG), torch.where(chosen_G, fmt.high, fmt.low).to(torch.uint8)


def _per_column(
    fmt: PerColumn,
    rounding: Rounding,
    W_OI: torch.Tensor,
    H_II: torch.Tensor,
    weight_I: torch.Tensor,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """scale_OG and bits_I: scales are those of the uniform format of the reference width, halved per further bit.

    Differs from the paper: its losses are measured in a first pass of the solver; here they are what rounding noise
    costs at the weight of each input, which that pass measures. Its levels are fractional, and their bytes are not.
    """
    uniform = Affine(bits=fmt.reference, group_size=fmt.group_size)
    scale_OG = build_fit(rounding.fit)(W_OI, H_II.diagonal(), uniform, dtype).scale_OG
    loss_IC = column_losses(input_sensitivity(weight_I, scale_OG), WIDTHS)
    return scale_OG, fill(loss_IC, WIDTHS, fmt.row_bits(W_OI.shape[1]))

"""A matrix to an affine format: scales and zero points by the recipe's own fit, codes by its own solver.

O outputs, I inputs, G groups per row.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from schemas.format import Affine
from schemas.quantize import Rounding
from steps.quantize.build import build_fit, build_solver
from steps.quantize.refit.scales import refitted
from steps.quantize.solvers.solved import Solved
from steps.quantize.tensors.affine import AffineTensor
from steps.step import Env


def quantize_affine(
    fmt: Affine, rounding: Rounding, W_OI: torch.Tensor, H_II: torch.Tensor, dtype: torch.dtype, env: Env
) -> tuple[AffineTensor, Solved]:
    """The matrix, and what it costs. Scales are stored in `dtype`; refits leave zero points as they are."""
    solve, params = build_solver(rounding.solver), build_fit(rounding.fit)(W_OI, H_II.diagonal(), fmt, dtype)

    def levels(codes_OI: torch.Tensor) -> torch.Tensor:
        """Codes less zero points."""
        level_OI = codes_OI.to(W_OI.dtype)
        if params.zero_point_OG is None:
            return level_OI
        return level_OI - params.zero_point_OG.to(W_OI.dtype).repeat_interleave(fmt.columns(W_OI.shape[1]), dim=1)

    solved, scale_OG = refitted(
        rounding.refits or 0,
        W_OI,
        H_II,
        params.scale_OG,
        lambda scale_OG: solve(W_OI, H_II, replace(params, scale_OG=scale_OG), env),
        levels,
    )
    return AffineTensor("", fmt, solved.codes_OI, scale_OG, params.zero_point_OG), solved

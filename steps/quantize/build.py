"""From spec to part: the one place that knows which function carries out which rounding spec."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import assert_never

import torch

from schemas.format import Affine
from schemas.quantize import ClipSearch, Feedback, Fit, MinMax, Nearest, Solver
from steps.quantize.fits.clip import clip
from steps.quantize.fits.minmax import minmax
from steps.quantize.grids.affine import GridParams
from steps.quantize.grids.levels import Grid
from steps.quantize.solvers.feedback import feedback
from steps.quantize.solvers.rtn import rtn
from steps.quantize.solvers.solved import Solved
from steps.step import Env

FitPart = Callable[[torch.Tensor, torch.Tensor, Affine, torch.dtype], GridParams]
"""(W_OI, Hessian diagonal [I], format, storage dtype of scales) -> grid."""

SolverPart = Callable[[torch.Tensor, torch.Tensor, Grid, Env], Solved]
"""(W_OI, H_II undamped, grid, env) -> codes and losses."""


def build_fit(spec: Fit) -> FitPart:
    """The function of a fit spec."""
    match spec:
        case MinMax():
            return minmax
        case ClipSearch():
            return partial(clip, spec)
        case _:
            assert_never(spec)


def build_solver(spec: Solver) -> SolverPart:
    """The function of a solver spec."""
    match spec:
        case Nearest():
            return rtn
        case Feedback():
            return partial(feedback, spec)
        case _:
            assert_never(spec)

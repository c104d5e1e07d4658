"""Which inputs of a matrix get more bits; one layout for all its rows.

What an error in input j costs is its square times a weight. The feedback solver says which: its loss is
1/2 sum_j D_j ||t_j - what_j||^2, where D_j = 1 / [H_rest^-1]_jj is conditional, over input j and those rounded after
it, which make up for what they can. Rounded to nearest, nothing is made up for, and the weight is H_jj.

On the demo model (tests/benchmarks/mixed.py): loss with D is below that with 1 / [H^-1]_jj, as OBQ's error formula and
"Fast and Efficient 2-bit LLM Inference" have it, and below that with H_jj.

O outputs, I inputs, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

import torch

from schemas.quantize import Feedback, Nearest, Solver
from steps.quantize.solvers.factor import factor_of
from steps.step import Env


def input_weights(solver: Solver, H_II: torch.Tensor, dtype: torch.dtype, env: Env) -> torch.Tensor:
    """weight_I in fp64."""
    match solver:
        case Nearest():
            return H_II.diagonal().double()
        case Feedback():
            factor = factor_of(solver, H_II, dtype, env)
            return factor.D_I[factor.inverse_I]
        case _:
            assert_never(solver)


def sensitive_groups(weight_I: torch.Tensor, step_OG: torch.Tensor, high: int) -> torch.Tensor:
    """Boolean [G], set for the `high` groups of largest weight x range^2, summed over rows and inputs.

    Source: "Fast and Efficient 2-bit LLM Inference" (arXiv:2311.16442), whose sensitivity is the range and, in later
    versions, range and Hessian. The range is the step of the narrower grid, which is proportional to it.
    """
    sensitivity_G = input_sensitivity(weight_I, step_OG).view(step_OG.shape[1], -1).sum(1)
    chosen_G = torch.zeros(len(sensitivity_G), dtype=torch.bool, device=weight_I.device)
    chosen_G[torch.argsort(sensitivity_G, descending=True, stable=True)[:high]] = True
    return chosen_G


def input_sensitivity(weight_I: torch.Tensor, step_OG: torch.Tensor) -> torch.Tensor:
    """weight x sum over rows of step^2, [I] in fp64: what rounding noise costs there, up to a factor."""
    return weight_I * step_OG.double().square().sum(0).repeat_interleave(len(weight_I) // step_OG.shape[1])


def column_losses(sensitivity_I: torch.Tensor, widths: Sequence[int]) -> torch.Tensor:
    """Expected loss of every input at each of the widths, [I, widths], up to a factor: a bit more quarters it."""
    return torch.stack([sensitivity_I * 4.0**-width for width in widths], dim=1)


def fill(loss_IC: torch.Tensor, widths: Sequence[int], budget: int) -> torch.Tensor:
    """uint8 [I]: widths of least total loss that add up to at most `budget`, best gain per bit first.

    `widths` rise from the least. The closed form of BAQ (R_j = mean + 1/2 log2 of c_j over its geometric mean) rounded
    by greedy steps along each input's convex hull, so that the budget holds exactly; the last bits go to whatever still
    fits. Optimal up to that last step.
    """
    steps = sorted(_hull_steps(loss_IC, widths))
    chosen = [0] * len(loss_IC)
    left = budget - widths[0] * len(loss_IC)
    for _, column, before, after in steps:
        bits = widths[after] - widths[before]
        if chosen[column] == before and bits <= left:
            chosen[column], left = after, left - bits
    return torch.tensor([widths[c] for c in chosen], dtype=torch.uint8, device=loss_IC.device)


def _hull_steps(loss_IC: torch.Tensor, widths: Sequence[int]) -> list[tuple[float, int, int, int]]:
    """(minus gain per bit, input, from, to) along the lower convex hull of every input's losses."""
    found = []
    for column, losses in enumerate(loss_IC.tolist()):
        at = 0
        while at + 1 < len(widths):
            gains = [((losses[at] - losses[c]) / (widths[c] - widths[at]), c) for c in range(at + 1, len(widths))]
            gain, to = max(gains, key=lambda pair: (pair[0], pair[1]))
            if gain <= 0:
                break
            found.append((-gain, column, at, to))
            at = to
    return found

"""Better scales for chosen codes, and better codes for these, wherever a group of weights is a scale times what it is.

O outputs, I inputs, G groups per row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from steps.quantize.refit.error import Error
from steps.quantize.solvers.solved import Solved


def refit(
    W_OI: torch.Tensor, H_II: torch.Tensor, base_OI: torch.Tensor, scale_OG: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales after one pass of coordinate descent, in their own dtype, and the loss 1/2 d H d^T by row, fp64.

    What is represented is base_OI times the scale of its group. The loss is quadratic in each scale, so the storable
    one nearest to its minimum is the best, and no row gets worse; one that would be 0 stays. Costs O I^2.
    """
    columns, W_OI, H_II = W_OI.shape[1] // scale_OG.shape[1], W_OI.contiguous(), H_II.to(W_OI.dtype)
    D_OI = base_OI * scale_OG.to(W_OI.dtype).repeat_interleave(columns, dim=1) - W_OI
    error, found_OG = Error(D_OI, D_OI @ H_II, H_II), scale_OG.clone()
    for g in range(scale_OG.shape[1]):
        at = slice(g * columns, (g + 1) * columns)
        error.improve(found_OG[:, g], at, base_OI[:, at], partial(_stored, before_O=scale_OG[:, g]))
    return found_OG, error.loss()


def _stored(number_O: torch.Tensor, before_O: torch.Tensor) -> torch.Tensor:
    rounded_O = number_O.to(before_O.dtype)
    return torch.where(rounded_O == 0, before_O, rounded_O)


def refitted(
    times: int,
    W_OI: torch.Tensor,
    H_II: torch.Tensor,
    scale_OG: torch.Tensor,
    solve: Callable[[torch.Tensor], Solved],
    base: Callable[[torch.Tensor], torch.Tensor],
) -> tuple[Solved, torch.Tensor]:
    """Codes for scales (`solve`), scales for codes, and so on, `times` times; each row keeps the best it had.

    `base` turns codes into what is multiplied by the scales. A row's loss never rises by a refit, but may by choosing
    codes again.
    """
    best = latest = solve(scale_OG)
    kept_OG = scale_OG
    for done in range(times):
        latest = solve(scale_OG) if done else latest
        scale_OG, loss_O = refit(W_OI, H_II, base(latest.codes_OI), scale_OG)
        better_O = loss_O < best.loss_O
        kept_OG = torch.where(better_O[:, None], scale_OG, kept_OG)
        best = best.where(~better_O, latest.codes_OI, loss_O)
    return best, kept_OG

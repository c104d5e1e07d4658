"""The damped Hessian's factor: one per unit, shared by all its members, formats and bits.

I inputs.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch

from schemas.quantize import Feedback
from steps.ops.cholesky import FactorError, unit_upper_factor_
from steps.step import Env


@dataclass(frozen=True)
class Factor:
    """M unit upper triangular and D with M diag(D) M^T = H[order][:, order] + diag(added).

    order_I lists the inputs as they are rounded, inverse_I undoes it. D_I and added_I are fp64, in rounding order.
    """

    M_II: torch.Tensor
    D_I: torch.Tensor
    added_I: torch.Tensor
    order_I: torch.Tensor
    inverse_I: torch.Tensor
    damping: float
    dead: int


def factor_of(spec: Feedback, H_II: torch.Tensor, dtype: torch.dtype, env: Env) -> Factor:
    """`factor`, remembered by the Hessian's content while a unit's formats follow each other."""
    content = hashlib.sha256(H_II.contiguous().cpu().numpy().data).hexdigest()
    key = (content, spec.damping, spec.retries, spec.act_order, dtype, str(H_II.device))
    return env.remember(("feedback_factor", *key), lambda: factor(spec, H_II, dtype))


def factor(spec: Feedback, H_II: torch.Tensor, dtype: torch.dtype) -> Factor:
    """Order, damp and factor H in fp64; M is returned in `dtype`.

    Damping is relative to the mean diagonal over live inputs. A dead input (H_jj = 0, never active in calibration) is
    coupled to nothing: its diagonal becomes that mean, which keeps H definite and leaves the other inputs alone.
    A failed factorisation is retried with 10 times the damping, at most `retries` times; then FactorError.
    """
    diagonal_I = H_II.diagonal().double()
    dead_I = diagonal_I == 0
    live = int((~dead_I).sum())
    mean = float(diagonal_I.sum()) / live if live else 1.0
    order_I = torch.arange(len(H_II), device=H_II.device)
    if spec.act_order:
        order_I = torch.argsort(diagonal_I, descending=True, stable=True)
    flipped_I = order_I.flip(0)
    for attempt in range(spec.retries + 1):
        damping = spec.damping * 10**attempt
        added_I = (damping + dead_I[order_I].double()) * mean
        A_II = H_II.index_select(0, flipped_I).index_select(1, flipped_I).double()
        A_II.diagonal().add_(added_I.flip(0))
        try:
            M_II, D_I = unit_upper_factor_(A_II, dtype)
        except FactorError:
            continue
        return Factor(M_II, D_I, added_I, order_I, torch.argsort(order_I), damping, dead=len(dead_I) - live)
    raise FactorError(f"the Hessian is not positive definite, with damping up to {damping:g} of its mean diagonal")

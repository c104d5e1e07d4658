"""Candidates by plain rounding that record what the quantize step records, given each unit's Hessian."""

from __future__ import annotations

from collections.abc import Callable

import torch
from selections import candidates_of

from steps.model.overlay import dequantized
from steps.ops.proxy import proxy_loss
from steps.step import Output

HessianOf = Callable[[str, int], torch.Tensor]
"""(member, inputs) -> H_II."""


def white(member: str, inputs: int) -> torch.Tensor:
    """The Hessian of inputs that are uncorrelated and of unit variance."""
    return 2 * torch.eye(inputs)


def recorded_candidates(model: Output, *names: str, hessian: HessianOf = white) -> Output:
    """`candidates_of` with loss, row_loss and relative_error of every member."""
    return Output(
        children={n: with_record(model, c, hessian) for n, c in candidates_of(model, *names).children.items()}
    )


def with_record(model: Output, item: Output, hessian: HessianOf = white) -> Output:
    """One candidate with its facts."""
    tensors, members = dict(item.tensors), {}
    for member, facts in item.meta["members"].items():
        W_OI = model.tensors[f"{member}.weight"].float()
        D_OI = dequantized(item, member) - W_OI
        loss_O = proxy_loss(D_OI.double(), hessian(member, W_OI.shape[1]).double())
        tensors[f"{member}.row_loss"] = loss_O.float()
        relative = (D_OI.double().norm() / W_OI.double().norm().clamp(min=1e-30)).item()
        members[member] = {**facts, "loss": loss_O.sum().item(), "relative_error": relative}
    return Output({**item.meta, "members": members}, tensors)

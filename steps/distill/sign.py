"""Descent by the sign of the gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


class SignOptimizer(torch.optim.Optimizer):
    """variable -= lr * sign(gradient); no state. signSGD, Bernstein et al. 2018 (arXiv:1802.04434)."""

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(list(groups), {"lr": 0.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One update of every variable that has a gradient."""
        for group in self.param_groups:
            for variable in group["params"]:
                if variable.grad is not None:
                    variable.sub_(variable.grad.sign(), alpha=group["lr"])

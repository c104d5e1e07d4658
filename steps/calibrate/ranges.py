"""How large each input of a linear gets.

T tokens, I inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class Ranges:
    """Per input, the largest magnitude and the sum of squares (fp64) over the rows it is shown."""

    absmax_I: torch.Tensor
    squares_I: torch.Tensor
    tokens: int = 0

    @classmethod
    def empty(cls, inputs: int, device: torch.device) -> Ranges:
        """Of no tokens yet."""
        zeros_I = torch.zeros(inputs, device=device)
        return cls(zeros_I, zeros_I.double())

    def add(self, x_TI: torch.Tensor) -> None:
        """Count these tokens, fp32."""
        if len(x_TI):
            self.absmax_I = torch.maximum(self.absmax_I, x_TI.abs().amax(dim=0))
            self.squares_I = self.squares_I + x_TI.double().square().sum(dim=0)
            self.tokens += len(x_TI)

    def absmax(self) -> torch.Tensor:
        """absmax_I fp32 on the CPU."""
        return self.absmax_I.cpu()

    def mean_square(self) -> torch.Tensor:
        """mean_square_I fp32 on the CPU; half the diagonal of the Hessian."""
        return (self.squares_I / max(self.tokens, 1)).float().cpu()

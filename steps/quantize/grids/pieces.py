"""Signed grids whose width changes along the row, the same in every row.

O outputs, I inputs, K pieces: runs of consecutive inputs, all as long, that share a step and a width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steps.quantize.grids.levels import Levels


@dataclass(frozen=True)
class Pieces:
    """step_OK (not zero, negative where a grid is turned over) and bits_K."""

    step_OK: torch.Tensor
    bits_K: torch.Tensor

    def levels(self, dtype: torch.dtype) -> Levels:
        """-2^(b-1) to 2^(b-1) - 1."""
        half_OK = torch.exp2(self.bits_K.to(dtype) - 1).expand(self.step_OK.shape)
        return Levels(self.step_OK.to(dtype), -half_OK, half_OK - 1)

    def codes(self, level_OI: torch.Tensor) -> torch.Tensor:
        """Levels are codes."""
        return level_OI.to(torch.int8)

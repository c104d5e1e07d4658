"""What a solver needs of any grid: the representable values of each group are scale * level + offset.

O outputs, I inputs, G groups per row, J inputs of a group, L levels of a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True)
class Levels:
    """A level is any integer in low..high, or one of `values_L` (rising), if given.

    All in the dtype that the solver computes in; scales are not zero.
    """

    scale_OG: torch.Tensor
    low_OG: torch.Tensor
    high_OG: torch.Tensor
    offset_OG: torch.Tensor | None = None
    values_L: torch.Tensor | None = None

    def shifted(self, W_OI: torch.Tensor) -> torch.Tensor:
        """W less its groups' offsets, [O, I]: rounded to scale * level, it is as far off as W is."""
        if self.offset_OG is None:
            return W_OI
        return (W_OI.view(*self.offset_OG.shape, -1) - self.offset_OG.unsqueeze(-1)).flatten(1)


class Grid(Protocol):
    """A fitted grid of a matrix: fits make it, solvers read it."""

    def levels(self, dtype: torch.dtype) -> Levels:
        """Its levels, for arithmetic in `dtype`."""

    def codes(self, level_OI: torch.Tensor) -> torch.Tensor:
        """The codes [O, I] of levels."""


def snap_(ratio: torch.Tensor, low: torch.Tensor, high: torch.Tensor, values_L: torch.Tensor | None) -> torch.Tensor:
    """The level nearest to each ratio, in place; ties to even, in a table to the lower value."""
    if values_L is None:
        return ratio.round_().clamp_(low, high)
    middle_L = (values_L[1:] + values_L[:-1]) / 2
    return torch.take(values_L, torch.bucketize(ratio, middle_L), out=ratio)


def nearest_levels(W_OI: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Each weight's nearest level, [O, I]."""
    W_OGJ = levels.shifted(W_OI).view(*levels.scale_OG.shape, -1)
    ratio_OGJ = W_OGJ / levels.scale_OG.unsqueeze(-1)
    return snap_(ratio_OGJ, levels.low_OG[..., None], levels.high_OG[..., None], levels.values_L).flatten(1)


def represented(level_OI: torch.Tensor, levels: Levels) -> torch.Tensor:
    """scale * level + offset, [O, I]."""
    W_OGJ = level_OI.view(*levels.scale_OG.shape, -1) * levels.scale_OG.unsqueeze(-1)
    return (W_OGJ if levels.offset_OG is None else W_OGJ + levels.offset_OG.unsqueeze(-1)).flatten(1)

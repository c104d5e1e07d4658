"""Where the levels of a matrix lie: w = step * value + offset.

The value of a level is the level itself, or an entry of a table. O outputs, G groups per row, J inputs of a group, L
entries of a table.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steps.quantize.grids.ggml import NOTHING


@dataclass(frozen=True)
class Table:
    """Rising values by level, 0 to L - 1, with straight lines between them and on beyond the ends.

    So a whole level is an entry bit for bit, half-way between two levels is half-way between their values, and rounding
    a level to a whole number takes the nearest entry.
    """

    values_L: torch.Tensor

    def values(self, level_OGJ: torch.Tensor) -> torch.Tensor:
        """Of levels, whole or not, with gradients."""
        below_OGJ = level_OGJ.detach().floor().clamp_(0, len(self.values_L) - 2)
        place_OGJ = below_OGJ.int()
        return self.values_L[place_OGJ] + (level_OGJ - below_OGJ) * self._gaps()[place_OGJ]

    def levels(self, value_OGJ: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        place_OGJ = torch.bucketize(value_OGJ.detach(), self.values_L[1:-1], right=True, out_int32=True)
        return place_OGJ + (value_OGJ - self.values_L[place_OGJ]) / self._gaps()[place_OGJ]

    def _gaps(self) -> torch.Tensor:
        return self.values_L.diff()


@dataclass(frozen=True)
class Spacing:
    """As it is now, fp32, with gradients to what is trained.

    step_OG1 may be negative, and 0 where a group is flat; it is [O, G, J] where inputs of a group differ.
    """

    step_OG1: torch.Tensor
    offset_OG1: torch.Tensor | None = None
    table: Table | None = None

    def weights(self, level_OGJ: torch.Tensor) -> torch.Tensor:
        """W_OGJ of levels."""
        W_OGJ = self._values(level_OGJ) * self.step_OG1
        return W_OGJ if self.offset_OG1 is None else W_OGJ + self.offset_OG1

    def levels(self, W_OGJ: torch.Tensor) -> torch.Tensor:
        """Weights in levels, unrounded."""
        shifted_OGJ = W_OGJ if self.offset_OG1 is None else W_OGJ - self.offset_OG1
        ratio_OGJ = shifted_OGJ / torch.where(self.step_OG1 == 0, NOTHING, self.step_OG1)
        return ratio_OGJ if self.table is None else self.table.levels(ratio_OGJ)

    def apart(self, first_OGJ: torch.Tensor, second_OGJ: torch.Tensor) -> torch.Tensor:
        """Weights of the first levels less those of the second."""
        return (self._values(first_OGJ) - self._values(second_OGJ)) * self.step_OG1

    def _values(self, level_OGJ: torch.Tensor) -> torch.Tensor:
        return level_OGJ if self.table is None else self.table.values(level_OGJ)

"""The grids of llama.cpp's tensor types: scales, scales of scales and minima as they are stored.

O outputs, I inputs, G groups and S blocks per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.format import GgmlType
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.grids.levels import Levels

NOTHING = 2.0**-100
"""Stands for a scale of 0 where a solver divides by it: every level is then as good as the group's offset."""


@dataclass(frozen=True)
class GgmlGrid:
    """w = d * (scale - scale_zero) * level - dmin * min, with the constants of KINDS[type].

    d_OS and dmin_OS fp16; scale_OG and min_OG uint8. scale_OG is None where d is the only scale, min_OG and dmin_OS
    where the type has no minima.
    """

    type: GgmlType
    d_OS: torch.Tensor
    scale_OG: torch.Tensor | None = None
    min_OG: torch.Tensor | None = None
    dmin_OS: torch.Tensor | None = None

    def factors(self) -> torch.Tensor:
        """What d is multiplied with in every group, [O, G] fp32."""
        if self.scale_OG is None:
            return torch.ones_like(self.d_OS, dtype=torch.float32)
        return self.scale_OG.float() - KINDS[self.type].scale_zero

    def scales(self) -> torch.Tensor:
        """d * (scale - scale_zero) of every group, [O, G] fp32; one rounding each."""
        return (self.factors().view(*self.d_OS.shape, -1) * self.d_OS.float().unsqueeze(-1)).flatten(1)

    def minima(self) -> torch.Tensor | None:
        """dmin * min of every group, [O, G] fp32; one rounding each."""
        if self.min_OG is None or self.dmin_OS is None:
            return None
        min_OSG = self.min_OG.float().view(*self.dmin_OS.shape, -1)
        return (min_OSG * self.dmin_OS.float().unsqueeze(-1)).flatten(1)

    def levels(self, dtype: torch.dtype) -> Levels:
        """What a solver may choose from."""
        kind, scale_OG, min_OG = KINDS[self.type], self.scales().to(dtype), self.minima()
        scale_OG = torch.where(scale_OG == 0, torch.full_like(scale_OG, NOTHING), scale_OG)
        low_OG = torch.full_like(scale_OG, -kind.zero)
        values_L = torch.tensor(kind.values, dtype=dtype, device=scale_OG.device) if kind.values else None
        offset_OG = None if min_OG is None else -min_OG.to(dtype)
        return Levels(scale_OG, low_OG, low_OG + (kind.levels - 1), offset_OG, values_L)

    def codes(self, level_OI: torch.Tensor) -> torch.Tensor:
        """uint8 [O, I]: levels counted from the lowest, or places in the table."""
        kind = KINDS[self.type]
        if kind.values:
            values_L = torch.tensor(kind.values, dtype=level_OI.dtype, device=level_OI.device)
            return torch.searchsorted(values_L, level_OI.contiguous()).to(torch.uint8)
        return (level_OI + kind.zero).to(torch.uint8)

    def values(self, codes_OI: torch.Tensor) -> torch.Tensor:
        """The levels [O, I] of codes, fp32: undoes `codes`."""
        kind = KINDS[self.type]
        if kind.values:
            return torch.tensor(kind.values, dtype=torch.float32, device=codes_OI.device)[codes_OI.int()]
        return codes_OI.float().sub_(kind.zero)

    def where(self, mask_O: torch.Tensor, other: GgmlGrid) -> GgmlGrid:
        """This grid in the rows of the mask, else the other one, of the same type."""

        def chosen(mine: torch.Tensor | None, its: torch.Tensor | None) -> torch.Tensor | None:
            return None if mine is None or its is None else torch.where(mask_O[:, None], mine, its)

        d_OS = torch.where(mask_O[:, None], self.d_OS, other.d_OS)
        integers = chosen(self.scale_OG, other.scale_OG), chosen(self.min_OG, other.min_OG)
        return GgmlGrid(self.type, d_OS, *integers, chosen(self.dmin_OS, other.dmin_OS))

    def decode(self, codes_OI: torch.Tensor) -> torch.Tensor:
        """W_OI fp32; products and differences are rounded as in llama.cpp's `dequantize_row_*`."""
        scale_OG, min_OG = self.scales(), self.minima()
        W_OGJ = self.values(codes_OI).view(*scale_OG.shape, -1) * scale_OG.unsqueeze(-1)
        return (W_OGJ if min_OG is None else W_OGJ.sub_(min_OG.unsqueeze(-1))).flatten(1)

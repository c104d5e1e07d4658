"""The affine integer grid: w = scale * (code - zero_point), and which codes a weight may take.

O outputs, I inputs, G groups per row; a group is I / G consecutive inputs of one row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.format import Affine
from steps.quantize.grids.levels import Levels


@dataclass(frozen=True)
class GridParams:
    """Everything that fixes a matrix's grid: the only thing fits make and solvers read.

    scale_OG is already rounded to the dtype it is stored in, never zero, negative where a signed grid is turned over;
    zero_point_OG is uint8, or None where it is 0 everywhere.
    """

    format: Affine
    scale_OG: torch.Tensor
    zero_point_OG: torch.Tensor | None = None

    def rows(self, start: int, stop: int) -> GridParams:
        """The grid of rows start:stop."""
        zero_OG = self.zero_point_OG
        return GridParams(self.format, self.scale_OG[start:stop], None if zero_OG is None else zero_OG[start:stop])

    def levels(self, dtype: torch.dtype) -> Levels:
        """Codes less zero points: clamp(round(t) + z, low, high) - z = clamp(round(t), low - z, high - z)."""
        low, high = code_range(self.format)
        scale_OG = self.scale_OG.to(dtype)
        zero_OG = torch.zeros_like(scale_OG) if self.zero_point_OG is None else self.zero_point_OG.to(dtype)
        return Levels(scale_OG, low - zero_OG, high - zero_OG)

    def codes(self, level_OI: torch.Tensor) -> torch.Tensor:
        """Levels and zero points added up."""
        if self.zero_point_OG is None:
            return level_OI.to(code_dtype(self.format))
        zero_OG1 = self.zero_point_OG.to(level_OI.dtype).unsqueeze(-1)
        level_OGJ = level_OI.view(*self.zero_point_OG.shape, -1)
        return (level_OGJ + zero_OG1).flatten(1).to(code_dtype(self.format))


def code_range(fmt: Affine) -> tuple[int, int]:
    """Smallest and largest code."""
    if fmt.symmetry == "asymmetric":
        return 0, 2**fmt.bits - 1
    return -(2 ** (fmt.bits - 1)), 2 ** (fmt.bits - 1) - 1


def code_dtype(fmt: Affine) -> torch.dtype:
    """int8 for grids around 0, uint8 for those with a zero point."""
    return torch.uint8 if fmt.symmetry == "asymmetric" else torch.int8


def stored_scale(scale_OG: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Round scales to their storage dtype; one that rounds to 0 (a group of zeros) becomes 1, which represents 0."""
    rounded_OG = scale_OG.to(dtype)
    return torch.where(rounded_OG == 0, torch.ones_like(rounded_OG), rounded_OG)


def nearest(W_OI: torch.Tensor, params: GridParams) -> torch.Tensor:
    """Codes [O, I] of the representable values closest to W: clamp(round(w / scale) + zero_point), ties to even.

    Computed in W's dtype. Idempotent: nearest(decode(c)) == c.
    """
    low, high = code_range(params.format)
    W_OGJ = W_OI.reshape(*params.scale_OG.shape, -1)
    codes_OGJ = (W_OGJ / params.scale_OG.to(W_OI.dtype).unsqueeze(-1)).round_()
    if params.zero_point_OG is not None:
        codes_OGJ += params.zero_point_OG.to(W_OI.dtype).unsqueeze(-1)
    return codes_OGJ.clamp_(low, high).flatten(1).to(code_dtype(params.format))


def decode(codes_OI: torch.Tensor, scale_OG: torch.Tensor, zero_point_OG: torch.Tensor | None) -> torch.Tensor:
    """The represented weights in fp32. Exact: 9 bits of code times 11 of scale fit in the 24 of fp32."""
    codes_OGJ = codes_OI.reshape(*scale_OG.shape, -1).float()
    if zero_point_OG is not None:
        codes_OGJ = codes_OGJ - zero_point_OG.float().unsqueeze(-1)
    return (codes_OGJ * scale_OG.float().unsqueeze(-1)).flatten(1)


def bits(params: GridParams, columns: int) -> int:
    """Bits of a matrix on this grid before any padding: codes, scales, zero points."""
    rows = params.scale_OG.shape[0]
    size = rows * columns * params.format.bits + params.scale_OG.numel() * params.scale_OG.element_size() * 8
    return size if params.zero_point_OG is None else size + params.zero_point_OG.numel() * params.format.bits

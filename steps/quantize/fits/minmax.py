"""Scales from each group's range.

O outputs, I inputs, G groups per row, J inputs of a group.
"""

from __future__ import annotations

import torch

from schemas.format import Affine
from steps.quantize.grids.affine import GridParams, stored_scale


def minmax(W_OI: torch.Tensor, importance_I: torch.Tensor, fmt: Affine, dtype: torch.dtype) -> GridParams:
    """The grid that just covers each group's range; `importance_I` is not used (the signature is every fit's)."""
    return cover(*ranges(W_OI, fmt), fmt, dtype)


def ranges(W_OI: torch.Tensor, fmt: Affine) -> tuple[torch.Tensor, torch.Tensor]:
    """min(w, 0) and max(w, 0) of each group, [O, G]."""
    low_OG, high_OG = W_OI.reshape(len(W_OI), -1, fmt.columns(W_OI.shape[1])).aminmax(dim=-1)
    return low_OG.clamp(max=0), high_OG.clamp(min=0)


def cover(low_OG: torch.Tensor, high_OG: torch.Tensor, fmt: Affine, dtype: torch.dtype) -> GridParams:
    """The grid of the range low <= 0 <= high, its scale rounded to `dtype` before anything else depends on it.

    signed      -w_e / 2^(b-1), w_e the end of larger magnitude: w_e is a level. Ties: scale > 0
    symmetric   2 max|w| / (2^b - 1), as GPTQ and compressed-tensors: both ends are within half a step of a level
    asymmetric  (high - low) / (2^b - 1), zero_point = round(-low / scale)
    """
    if fmt.symmetry == "asymmetric":
        top = 2**fmt.bits - 1
        scale_OG = stored_scale((high_OG - low_OG) / top, dtype)
        zero_OG = (-low_OG / scale_OG.to(low_OG.dtype)).round_().clamp_(0, top).to(torch.uint8)
        return GridParams(fmt, scale_OG, zero_OG)
    largest_OG = torch.maximum(high_OG, -low_OG)
    if fmt.symmetry == "symmetric":
        return GridParams(fmt, stored_scale(largest_OG * 2 / (2**fmt.bits - 1), dtype))
    signed_OG = torch.where(high_OG > -low_OG, -largest_OG, largest_OG)
    return GridParams(fmt, stored_scale(signed_OG / 2 ** (fmt.bits - 1), dtype))

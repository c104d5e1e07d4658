"""Scales and minima of llama.cpp's types, and how they are stored.

O outputs, I inputs, G groups per row, J inputs of a group, S blocks per row.
"""

from __future__ import annotations

from typing import assert_never

import torch

from schemas.format import GGML_BLOCKS, GgmlType
from schemas.quantize import ClipSearch, Fit, MinMax
from steps.quantize.ggml.kinds import KINDS, Kind
from steps.quantize.grids.ggml import NOTHING, GgmlGrid
from steps.quantize.grids.levels import Levels, nearest_levels, represented


def fit(spec: Fit, W_OI: torch.Tensor, importance_I: torch.Tensor, kind: GgmlType) -> GgmlGrid:
    """The grid of a fit spec."""
    match spec:
        case MinMax():
            return cover(W_OI, kind)
        case ClipSearch():
            return search(spec, W_OI, importance_I, kind)
        case _:
            assert_never(spec)


def search(spec: ClipSearch, W_OI: torch.Tensor, importance_I: torch.Tensor, kind: GgmlType) -> GgmlGrid:
    """As `cover`, with each group's range clipped where that lowers its squared error, scales not yet stored.

    Weighting and candidates are those of `fits/clip.py`; a grid without minima is also tried turned over.
    """
    facts = KINDS[kind]
    W_OGJ = W_OI.view(len(W_OI), -1, facts.group)
    weight_I = importance_I.to(W_OI.dtype) if spec.weighted else torch.ones_like(W_OI[0])
    scale_OG, min_OG = covering(W_OGJ, facts)
    best, least_OG = (scale_OG, min_OG), torch.full_like(scale_OG, torch.inf)
    for ratio in torch.linspace(1, spec.floor, spec.points).tolist():
        for sign in (1,) if facts.mins else (1, -1):
            tried = scale_OG * (ratio * sign), min_OG * ratio
            error_OG = group_error(W_OGJ, weight_I.view(W_OGJ.shape[1:]), *tried, facts)
            better_OG = error_OG < least_OG
            best = torch.where(better_OG, tried[0], best[0]), torch.where(better_OG, tried[1], best[1])
            least_OG = torch.minimum(error_OG, least_OG)
    return stored(kind, *best)


def group_error(
    W_OGJ: torch.Tensor, weight_GJ: torch.Tensor, scale_OG: torch.Tensor, min_OG: torch.Tensor, kind: Kind
) -> torch.Tensor:
    """Weighted squared rounding error of each group, [O, G]."""
    divisor_OG = torch.where(scale_OG == 0, torch.full_like(scale_OG, NOTHING), scale_OG)
    low_OG = torch.full_like(scale_OG, -kind.zero)
    values_L = torch.tensor(kind.values, dtype=W_OGJ.dtype, device=W_OGJ.device) if kind.values else None
    levels = Levels(divisor_OG, low_OG, low_OG + (kind.levels - 1), -min_OG, values_L)
    what_OI = represented(nearest_levels(W_OGJ.flatten(1), levels), levels)
    return (what_OI.view(W_OGJ.shape) - W_OGJ).square_().mul_(weight_GJ).sum(-1)


def cover(W_OI: torch.Tensor, kind: GgmlType) -> GgmlGrid:
    """The grid that just covers each group's range, as far as its scales can be stored."""
    scale_OG, min_OG = covering(W_OI.view(len(W_OI), -1, KINDS[kind].group), KINDS[kind])
    return stored(kind, scale_OG, min_OG)


def covering(W_OGJ: torch.Tensor, kind: Kind) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and minimum [O, G] of each group; without minima the largest weight is the lowest level."""
    low_OG, high_OG = W_OGJ.aminmax(dim=-1)
    low_OG, high_OG = low_OG.clamp(max=0), high_OG.clamp(min=0)
    if kind.mins:
        return (high_OG - low_OG) / (kind.levels - 1), -low_OG
    lowest = kind.values[0] if kind.values else -kind.zero
    largest_OG = torch.where(high_OG > -low_OG, high_OG, low_OG)
    return largest_OG / lowest, torch.zeros_like(low_OG)


def stored(kind: GgmlType, scale_OG: torch.Tensor, min_OG: torch.Tensor) -> GgmlGrid:
    """The nearest grid that the type can store: fp16 numbers per block, integers per group."""
    facts = KINDS[kind]
    blocks = scale_OG.shape[1] * facts.group // GGML_BLOCKS[kind].weights
    if not facts.scale_bits:
        return GgmlGrid(kind, scale_OG.half())
    d_OS, integer_OG = integers(scale_OG, blocks, facts.scale_bits, facts.scale_zero)
    if not facts.mins:
        return GgmlGrid(kind, d_OS, integer_OG)
    dmin_OS, min_integer_OG = integers(min_OG, blocks, facts.scale_bits, 0)
    return GgmlGrid(kind, d_OS, integer_OG, min_integer_OG, dmin_OS)


def integers(number_OG: torch.Tensor, blocks: int, bits: int, zero: int) -> tuple[torch.Tensor, torch.Tensor]:
    """fp16 unit [O, S] and uint8 [O, G] with number ~ unit * (integer - zero); the largest number sets the unit."""
    top = 2**bits - 1
    number_OSG = number_OG.reshape(len(number_OG), blocks, -1)
    largest_OS = number_OSG.gather(-1, number_OSG.abs().argmax(-1, keepdim=True)).squeeze(-1)
    unit_OS = (largest_OS / (-zero if zero else top)).half()
    divisor_OS1 = torch.where(unit_OS == 0, torch.ones_like(unit_OS), unit_OS).float().unsqueeze(-1)
    integer_OSG = (number_OSG / divisor_OS1).round_().add_(zero).clamp_(0, top)
    return unit_OS, integer_OSG.flatten(1).to(torch.uint8)

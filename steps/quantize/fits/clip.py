"""Scales by search: clip each group's range where that lowers its squared error.

O outputs, I inputs, G groups per row, J inputs of a group.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from schemas.format import Affine
from schemas.quantize import ClipSearch
from steps.quantize.fits.minmax import cover, ranges
from steps.quantize.grids.affine import GridParams, code_range


def clip(
    spec: ClipSearch, W_OI: torch.Tensor, importance_I: torch.Tensor, fmt: Affine, dtype: torch.dtype
) -> GridParams:
    """Of each group's candidate grids, the one of least sum_j importance_j (w_j - nearest(w_j))^2.

    The first candidate is the min-max grid and later ones must be strictly better, so the result is never worse than
    min-max in this error. Source: the `mse` option of GPTQ, with AWQ's weighting. Importance is the Hessian diagonal.
    """
    W_OGJ = W_OI.reshape(len(W_OI), -1, fmt.columns(W_OI.shape[1]))
    weight_I = importance_I.to(W_OI.dtype) if spec.weighted else torch.ones_like(W_OI[0])
    weight_GJ = weight_I.reshape(W_OGJ.shape[1:])
    first, *others = _candidates(spec, W_OI, fmt, dtype)
    best, least_OG = first, weighted_error(W_OGJ, weight_GJ, first)
    for params in others:
        error_OG = weighted_error(W_OGJ, weight_GJ, params)
        best = _choose(error_OG < least_OG, params, best)
        least_OG = torch.minimum(error_OG, least_OG)
    return best


def _candidates(spec: ClipSearch, W_OI: torch.Tensor, fmt: Affine, dtype: torch.dtype) -> Iterator[GridParams]:
    """Min-max first, then narrower ranges; for signed grids each one also turned over."""
    low_OG, high_OG = ranges(W_OI, fmt)
    for point in range(spec.points):
        ratio = 1 - (1 - spec.floor) * point / (spec.points - 1)
        params = cover(low_OG * ratio, high_OG * ratio, fmt, dtype)
        yield params
        if fmt.symmetry == "signed":
            yield GridParams(fmt, -params.scale_OG)


def weighted_error(W_OGJ: torch.Tensor, weight_GJ: torch.Tensor, params: GridParams) -> torch.Tensor:
    """Weighted squared rounding error of each group, [O, G]."""
    low, high = code_range(params.format)
    scale_OG1 = params.scale_OG.to(W_OGJ.dtype).unsqueeze(-1)
    level_OGJ = (W_OGJ / scale_OG1).round_()
    if params.zero_point_OG is None:
        level_OGJ.clamp_(low, high)
    else:
        zero_OG1 = params.zero_point_OG.to(W_OGJ.dtype).unsqueeze(-1)
        level_OGJ.add_(zero_OG1).clamp_(low, high).sub_(zero_OG1)
    error_OGJ = level_OGJ.mul_(scale_OG1).sub_(W_OGJ).square_()
    return error_OGJ.mul_(weight_GJ).sum(-1)


def _choose(mask_OG: torch.Tensor, yes: GridParams, no: GridParams) -> GridParams:
    """`yes` where the mask is set, else `no`."""
    scale_OG = torch.where(mask_OG, yes.scale_OG, no.scale_OG)
    if yes.zero_point_OG is None or no.zero_point_OG is None:
        return GridParams(no.format, scale_OG)
    return GridParams(no.format, scale_OG, torch.where(mask_OG, yes.zero_point_OG, no.zero_point_OG))

"""Packed affine matrices with made-up codes, and the exact weights they stand for. Needs torch alone.

O outputs, I inputs, G groups per row.
"""

from __future__ import annotations

import torch

from steps.ops.bitpack import pack_rows
from steps.pack.kernels.packed import Packed, view


def packed_case(
    bits: int,
    shape: tuple[int, int],
    group: int,
    signed: bool,
    scale: torch.dtype = torch.bfloat16,
    device: str = "cpu",
) -> tuple[torch.Tensor, Packed]:
    """W_OI fp32 and the same matrix packed, with scales of both signs and every code of the grid."""
    generator = torch.Generator().manual_seed(bits)
    low = -(1 << (bits - 1)) if signed else 0
    code_OI = torch.randint(low, low + (1 << bits), shape, generator=generator)
    code_OI[0, : 1 << bits] = torch.arange(low, low + (1 << bits))[: shape[1]]
    scale_OG = (0.02 * torch.randn(shape[0], shape[1] // group, generator=generator)).to(scale)
    zero_OG = None
    level_OI = code_OI.float()
    if not signed:
        zero_OG = torch.randint(0, 1 << bits, scale_OG.shape, generator=generator, dtype=torch.uint8)
        level_OI -= zero_OG.float().repeat_interleave(group, 1)
    stored_OB = pack_rows(code_OI.to(torch.int8 if signed else torch.uint8), bits).to(device)
    packed = view(bits, shape[1], stored_OB, scale_OG.to(device), None if zero_OG is None else zero_OG.to(device))
    return (scale_OG.float().repeat_interleave(group, 1) * level_OI).to(device), packed


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Of the whole result, in the Euclidean norm."""
    return float((found.double() - exact.double()).norm() / exact.double().norm())

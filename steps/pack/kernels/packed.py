"""What the kernels read: the tensors of a packed affine matrix (steps/pack/README.md). Needs torch alone.

O outputs, I inputs, G groups per row, W 32-bit words per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

BITS = (2, 3, 4, 5, 6, 8)
ALIGNED = 32
"""Codes of a row must be a multiple of this many, so that rows begin at whole words, whatever the bits."""


@dataclass(frozen=True)
class Packed:
    """codes_OW int32, scale_OG fp16 or bf16, zero_OG uint8 or None (codes are signed); `group` of the `columns` inputs
    share a scale."""

    bits: int
    columns: int
    group: int
    codes_OW: torch.Tensor
    scale_OG: torch.Tensor
    zero_OG: torch.Tensor | None = None

    def nbytes(self) -> int:
        """Bytes that one pass over the matrix reads."""
        parts = (self.codes_OW, self.scale_OG, self.zero_OG)
        return sum(p.numel() * p.element_size() for p in parts if p is not None)


def view(
    bits: int, columns: int, codes_OB: torch.Tensor, scale_OG: torch.Tensor, zero_OG: torch.Tensor | None
) -> Packed:
    """The stored tensors, nothing copied; `columns` is a multiple of ALIGNED."""
    return Packed(bits, columns, columns // scale_OG.shape[1], codes_OB.view(torch.int32), scale_OG, zero_OG)

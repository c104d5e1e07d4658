"""Dense packing of small integers, row by row, lowest bit first.

O rows, I columns, B bytes per row.
"""

from __future__ import annotations

import torch


def pack_rows(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes -> uint8 [O, ceil(I*bits/8)]; signed codes are stored in two's complement of `bits` bits.

    Each run of 8 codes fills exactly `bits` bytes; a row is padded with zeros to whole runs and then cut.
    """
    rows, columns = codes_OI.shape
    runs = -(-columns // 8)
    padded = torch.zeros(rows, runs * 8, dtype=torch.int64)
    padded[:, :columns] = codes_OI.to(torch.int64) & ((1 << bits) - 1)
    padded_ORJ = padded.view(rows, runs, 8)
    word_OR = torch.zeros(rows, runs, dtype=torch.int64)
    for j in range(8):
        word_OR |= padded_ORJ[..., j] << (bits * j)
    packed_ORB = torch.stack([(word_OR >> (8 * b)) & 0xFF for b in range(bits)], dim=-1).to(torch.uint8)
    return packed_ORB.view(rows, runs * bits)[:, : -(-columns * bits // 8)].contiguous()


def unpack_rows(packed_OB: torch.Tensor, bits: int, columns: int, signed: bool) -> torch.Tensor:
    """Undo `pack_rows`: int8 if `signed`, else uint8, of shape [O, columns]."""
    rows = packed_OB.shape[0]
    runs = -(-columns // 8)
    padded = torch.zeros(rows, runs * bits, dtype=torch.int64)
    padded[:, : packed_OB.shape[1]] = packed_OB.to(torch.int64)
    word_OR = torch.zeros(rows, runs, dtype=torch.int64)
    for b in range(bits):
        word_OR |= padded.view(rows, runs, bits)[..., b] << (8 * b)
    codes_ORJ = torch.stack([(word_OR >> (bits * j)) & ((1 << bits) - 1) for j in range(8)], dim=-1)
    codes_OI = codes_ORJ.view(rows, runs * 8)[:, :columns]
    if not signed:
        return codes_OI.to(torch.uint8)
    sign = 1 << (bits - 1)
    return ((codes_OI ^ sign) - sign).to(torch.int8)

"""Dense packing of rows whose columns have different widths, lowest bit first.

With one width it gives the bytes of `bitpack.pack_rows` (tested). O rows, I columns, B bytes or bits of a row.
"""

from __future__ import annotations

import torch

ROWS = 256
"""Rows at once: a byte of memory per bit of code, so 256 rows of 16,384 columns at 8 bits take 32 MiB."""


def pack_stream(codes_OI: torch.Tensor, bits_I: torch.Tensor, size: int) -> torch.Tensor:
    """Codes -> uint8 [O, size]; signed ones in two's complement of their column's width; what is left over is 0."""
    column_B, shift_B = _places(bits_I.to(codes_OI.device))
    assert len(column_B) <= 8 * size, "the widths add up to no more than the room there is"
    weight_8 = 1 << torch.arange(8, dtype=torch.uint8, device=codes_OI.device)
    packed_OB = torch.zeros(len(codes_OI), size, dtype=torch.uint8, device=codes_OI.device)
    for start in range(0, len(codes_OI), ROWS):
        rows = slice(start, start + ROWS)
        code_OB = codes_OI[rows].view(torch.uint8)[:, column_B]
        bit_OB = torch.zeros(len(code_OB), 8 * size, dtype=torch.uint8, device=codes_OI.device)
        bit_OB[:, : len(column_B)] = (code_OB >> shift_B) & 1
        packed_OB[rows] = (bit_OB.view(len(code_OB), size, 8) * weight_8).sum(-1, dtype=torch.uint8)
    return packed_OB


def unpack_stream(packed_OB: torch.Tensor, bits_I: torch.Tensor) -> torch.Tensor:
    """Undo `pack_stream`: signed codes, int8 [O, I]."""
    bits_I = bits_I.to(packed_OB.device)
    column_B, shift_B = _places(bits_I)
    byte_B, within_B = torch.arange(len(column_B), device=packed_OB.device) // 8, _eighths(len(column_B), packed_OB)
    sign_I = torch.ones_like(bits_I, dtype=torch.int16) << (bits_I.to(torch.int16) - 1)
    codes_OI = torch.zeros(len(packed_OB), len(bits_I), dtype=torch.int8, device=packed_OB.device)
    for start in range(0, len(packed_OB), ROWS):
        rows = slice(start, start + ROWS)
        bit_OB = (packed_OB[rows][:, byte_B] >> within_B) & 1
        code_OI = torch.zeros(len(bit_OB), len(bits_I), dtype=torch.int16, device=packed_OB.device)
        code_OI.index_add_(1, column_B, bit_OB.to(torch.int16) << shift_B.to(torch.int16))
        codes_OI[rows] = ((code_OI ^ sign_I) - sign_I).to(torch.int8)
    return codes_OI


def pack_widths(bits_K: torch.Tensor) -> torch.Tensor:
    """Widths up to 15, two in a byte, the first in the low half."""
    padded_K = torch.nn.functional.pad(bits_K.to(torch.uint8), (0, len(bits_K) % 2))
    return padded_K[0::2] | padded_K[1::2] << 4


def unpack_widths(packed_B: torch.Tensor, pieces: int) -> torch.Tensor:
    """Undo `pack_widths`: uint8 [pieces]."""
    return torch.stack([packed_B & 15, packed_B >> 4], dim=1).flatten()[:pieces]


def _places(bits_I: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each bit of a row: the column it belongs to, and which of that column's bits it is (uint8)."""
    column_B = torch.repeat_interleave(torch.arange(len(bits_I), device=bits_I.device), bits_I.long())
    first_I = torch.cumsum(bits_I.long(), 0) - bits_I.long()
    shift_B = torch.arange(len(column_B), device=bits_I.device) - first_I[column_B]
    return column_B, shift_B.to(torch.uint8)


def _eighths(length: int, like: torch.Tensor) -> torch.Tensor:
    return (torch.arange(length, device=like.device) % 8).to(torch.uint8)

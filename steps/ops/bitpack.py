"""Dense packing of small integers, row by row, lowest bit first.

O rows, I columns, B bytes per row, R runs of 8 codes in all rows together. A run fills exactly `bits` bytes, so the
work is done for all runs at once on bytes: code j of a run starts at bit j * bits.
"""

from __future__ import annotations

import torch


def pack_rows(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes -> uint8 [O, ceil(I*bits/8)]; signed codes are stored in two's complement of `bits` bits.

    A row is padded with zeros to whole runs and then cut.
    """
    rows, columns = codes_OI.shape
    runs = -(-columns // 8)
    padded_OI = torch.zeros(rows, runs * 8, dtype=torch.uint8, device=codes_OI.device)
    padded_OI[:, :columns] = codes_OI.to(torch.uint8) & ((1 << bits) - 1)
    code_8R = padded_OI.view(-1, 8).T.contiguous()
    byte_BR = torch.zeros(bits, rows * runs, dtype=torch.uint8, device=codes_OI.device)
    for j, code_R in enumerate(code_8R):
        byte, shift = divmod(j * bits, 8)
        byte_BR[byte] |= code_R << shift
        if shift + bits > 8:
            byte_BR[byte + 1] |= code_R >> (8 - shift)
    return byte_BR.T.reshape(rows, runs * bits)[:, : -(-columns * bits // 8)].contiguous()


def unpack_rows(packed_OB: torch.Tensor, bits: int, columns: int, signed: bool) -> torch.Tensor:
    """Undo `pack_rows`: int8 if `signed`, else uint8, of shape [O, columns]."""
    rows = packed_OB.shape[0]
    runs = -(-columns // 8)
    padded_OB = torch.zeros(rows, runs * bits, dtype=torch.uint8, device=packed_OB.device)
    padded_OB[:, : packed_OB.shape[1]] = packed_OB
    byte_BR = padded_OB.view(-1, bits).T.contiguous()
    code_8R = torch.empty(8, rows * runs, dtype=torch.uint8, device=packed_OB.device)
    for j in range(8):
        byte, shift = divmod(j * bits, 8)
        code_8R[j] = byte_BR[byte] >> shift
        if shift + bits > 8:
            code_8R[j] |= byte_BR[byte + 1] << (8 - shift)
    codes_OI = code_8R.bitwise_and_((1 << bits) - 1).T.reshape(rows, runs * 8)[:, :columns].contiguous()
    if not signed:
        return codes_OI
    sign = 1 << (bits - 1)
    return ((codes_OI ^ sign) - sign).view(torch.int8)

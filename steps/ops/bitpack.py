"""Dense packing of small integers, row by row, lowest bit first.

O rows, I columns, B bytes per row, R runs of 8 codes in all rows together. A run is 8 bytes before and `bits` bytes
after, so it is worked on as one little-endian 64-bit number: neighbouring lanes are joined in pairs, from 8 bits wide
to 64, which costs three steps whatever the bits. Runs are taken a cacheful at a time.
"""

from __future__ import annotations

import torch

CHUNK = 1 << 14
"""Runs at a time: 128 KiB."""


def pack_rows(codes_OI: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes -> uint8 [O, ceil(I*bits/8)]; signed codes are stored in two's complement of `bits` bits.

    A row is padded with zeros to whole runs and then cut.
    """
    rows, columns = codes_OI.shape
    runs = -(-columns // 8)
    run_R = torch.zeros(rows * runs, dtype=torch.int64, device=codes_OI.device)
    run_R.view(torch.uint8).view(rows, runs * 8)[:, :columns] = codes_OI
    packed_RB = torch.empty(rows * runs, bits, dtype=torch.uint8, device=codes_OI.device)
    for start in range(0, len(run_R), CHUNK):
        joined_R = _join(run_R[start : start + CHUNK], bits)
        packed_RB[start : start + CHUNK] = joined_R.view(torch.uint8).view(-1, 8)[:, :bits]
    return packed_RB.view(rows, runs * bits)[:, : -(-columns * bits // 8)].contiguous()


def unpack_rows(packed_OB: torch.Tensor, bits: int, columns: int, signed: bool) -> torch.Tensor:
    """Undo `pack_rows`: int8 if `signed`, else uint8, of shape [O, columns]."""
    rows, runs = packed_OB.shape[0], -(-columns // 8)
    padded_OB = torch.zeros(rows, runs * bits, dtype=torch.uint8, device=packed_OB.device)
    padded_OB[:, : packed_OB.shape[1]] = packed_OB
    byte_RB = padded_OB.view(-1, bits)
    run_R = torch.empty(rows * runs, dtype=torch.int64, device=packed_OB.device)
    for start in range(0, len(run_R), CHUNK):
        part_RB = byte_RB[start : start + CHUNK]
        joined_R = torch.zeros(len(part_RB), dtype=torch.int64, device=packed_OB.device)
        joined_R.view(torch.uint8).view(-1, 8)[:, :bits] = part_RB
        run_R[start : start + CHUNK] = _part(joined_R, bits)
    codes_OI = run_R.view(torch.uint8).view(rows, runs * 8)[:, :columns].contiguous()
    if not signed:
        return codes_OI
    sign = 1 << (bits - 1)
    return ((codes_OI ^ sign) - sign).view(torch.int8)


def _join(run_R: torch.Tensor, bits: int) -> torch.Tensor:
    """Eight codes in bytes -> the same codes in the lowest 8 * bits bits, the rest zero."""
    run_R = run_R & _lanes(bits, 0, 8)
    width, held = 8, bits
    while width < 64 and held < width:
        high_R = (run_R >> (width - held)).bitwise_and_(_lanes(held, held, 2 * width))
        run_R = run_R.bitwise_and_(_lanes(held, 0, 2 * width)).bitwise_or_(high_R)
        width, held = 2 * width, 2 * held
    return run_R


def _part(run_R: torch.Tensor, bits: int) -> torch.Tensor:
    """Undo `_join`."""
    width, held = 64, 8 * bits
    while width > 8 and held < width:
        width, held = width // 2, held // 2
        high_R = (run_R & _lanes(held, held, 2 * width)).bitwise_left_shift_(width - held)
        run_R = (run_R & _lanes(held, 0, 2 * width)).bitwise_or_(high_R)
    return run_R


def _lanes(bits: int, shift: int, width: int) -> int:
    """A signed 64-bit mask: `bits` ones from bit `shift` in every lane of `width` bits."""
    mask = sum(((1 << bits) - 1) << (lane + shift) for lane in range(0, 64, width))
    return mask - (1 << 64) if mask >> 63 else mask

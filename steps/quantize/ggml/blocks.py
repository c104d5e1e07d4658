"""Blocks <-> the numbers in them.

O outputs, I inputs, G groups and S blocks per row, N blocks in all, B bytes of a row.
"""

from __future__ import annotations

import torch

from schemas.format import GGML_BLOCKS, GgmlType
from steps.quantize.ggml.kinds import KINDS
from steps.quantize.ggml.layout import LAYOUTS, TRITS, Field
from steps.quantize.grids.ggml import GgmlGrid

SIGN = 0x80
TWOS_COMPLEMENT: dict[GgmlType, Field] = {"q8_0": "codes", "q6_k": "scales"}
"""Fields stored as int8; here they count from 0, like all others: q + 128."""


def unpack(kind: GgmlType, blocks_OB: torch.Tensor) -> tuple[torch.Tensor, GgmlGrid]:
    """uint8 [O, B] -> codes [O, I], uint8 from 0, and their grid. Any bytes can be read; a TQ2_0 code may then be 3."""
    layout, sizes = LAYOUTS[kind], _sizes(kind)
    blocks_NB = blocks_OB.reshape(-1, GGML_BLOCKS[kind].bytes)
    fields = {name: blocks_NB.new_zeros(len(blocks_NB), size) for name, size in sizes.items()}
    for piece in layout.pieces:
        bytes_NC = blocks_NB[:, piece.start : piece.start + piece.count]
        values_NC = fields[piece.field][:, piece.first :: piece.step][:, : piece.count]
        values_NC |= ((bytes_NC >> piece.shift) & ((1 << piece.bits) - 1)) << piece.at
    if kind == "tq1_0":
        fields["codes"] = _from_trits(blocks_NB)
    if kind in TWOS_COMPLEMENT:
        fields[TWOS_COMPLEMENT[kind]] ^= SIGN
    d_OS = _half(blocks_NB, layout.d).view(len(blocks_OB), -1)
    dmin_OS = None if layout.dmin is None else _half(blocks_NB, layout.dmin).view(len(blocks_OB), -1)
    by_row = {name: values.view(len(blocks_OB), -1) for name, values in fields.items()}
    return by_row["codes"], GgmlGrid(kind, d_OS, by_row.get("scales"), by_row.get("mins"), dmin_OS)


def pack(codes_OI: torch.Tensor, grid: GgmlGrid) -> torch.Tensor:
    """Undo `unpack`: uint8 [O, B]."""
    kind, layout = grid.type, LAYOUTS[grid.type]
    given = {"codes": codes_OI, "scales": grid.scale_OG, "mins": grid.min_OG}
    fields = {name: _blocked(given[name], size) for name, size in _sizes(kind).items()}
    if kind in TWOS_COMPLEMENT:
        fields[TWOS_COMPLEMENT[kind]] = fields[TWOS_COMPLEMENT[kind]] ^ SIGN
    blocks_NB = fields["codes"].new_zeros(len(fields["codes"]), GGML_BLOCKS[kind].bytes)
    for piece in layout.pieces:
        values_NC = fields[piece.field][:, piece.first :: piece.step][:, : piece.count]
        bytes_NC = blocks_NB[:, piece.start : piece.start + piece.count]
        bytes_NC |= ((values_NC >> piece.at) & ((1 << piece.bits) - 1)) << piece.shift
    if kind == "tq1_0":
        blocks_NB[:, : layout.d] = _to_trits(fields["codes"])
    for at, number_OS in ((layout.d, grid.d_OS), (layout.dmin, grid.dmin_OS)):
        if at is not None and number_OS is not None:
            blocks_NB[:, at : at + 2] = number_OS.reshape(-1, 1).contiguous().view(torch.uint8)
    return blocks_NB.view(len(codes_OI), -1)


def _sizes(kind: GgmlType) -> dict[Field, int]:
    """Values of each field in one block."""
    weights, facts = GGML_BLOCKS[kind].weights, KINDS[kind]
    groups = weights // facts.group
    found: dict[Field, int] = {"codes": weights}
    return found | ({"scales": groups} if facts.scale_bits else {}) | ({"mins": groups} if facts.mins else {})


def _blocked(values: torch.Tensor | None, size: int) -> torch.Tensor:
    assert values is not None
    return values.reshape(-1, size)


def _half(blocks_NB: torch.Tensor, at: int) -> torch.Tensor:
    return blocks_NB[:, at : at + 2].contiguous().view(torch.float16)


def _to_trits(codes_NI: torch.Tensor) -> torch.Tensor:
    """Codes 0, 1, 2 -> bytes: ceil(256 / 243 * number); digits then come out by multiplying (`quantize_row_tq1_0`)."""
    parts, first = [], 0
    for _, count, digits in TRITS:
        codes_NDC = codes_NI[:, first : first + count * digits].reshape(-1, digits, count).to(torch.int32)
        weights_D1 = torch.tensor([81, 27, 9, 3, 1], dtype=torch.int32, device=codes_NI.device)[:digits, None]
        parts.append((codes_NDC * weights_D1).sum(1))
        first += count * digits
    return ((torch.cat(parts, 1) * 256 + 242) // 243).to(torch.uint8)


def _from_trits(blocks_NB: torch.Tensor) -> torch.Tensor:
    """Undo `_to_trits`: the first digit of (byte * 3^k mod 256) / 256 in base 3."""
    parts = []
    for start, count, digits in TRITS:
        bytes_N1C = blocks_NB[:, None, start : start + count].to(torch.int32)
        powers_D1 = torch.tensor([1, 3, 9, 27, 81], dtype=torch.int32, device=blocks_NB.device)[:digits, None]
        parts.append((((bytes_N1C * powers_D1) & 0xFF) * 3 >> 8).flatten(1))
    return torch.cat(parts, 1).to(torch.uint8)

"""Dense packing against an obvious, slow implementation."""

from __future__ import annotations

from typing import get_args

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.format import Bits
from steps.ops.bitpack import pack_rows, unpack_rows


def slow_pack(row: list[int], bits: int) -> list[int]:
    """One long integer, lowest bits first, cut into bytes."""
    word = sum((code & (2**bits - 1)) << (bits * i) for i, code in enumerate(row))
    return list(word.to_bytes(-(-len(row) * bits // 8), "little"))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(get_args(Bits)), st.booleans(), st.integers(0, 4), st.integers(0, 41), st.integers(0, 2**31))
def test_packing_is_the_slow_one_and_undone_exactly(
    bits: int, signed: bool, rows: int, columns: int, seed: int
) -> None:
    low = -(2 ** (bits - 1)) if signed else 0
    generator = torch.Generator().manual_seed(seed)
    codes_OI = torch.randint(low, low + 2**bits, (rows, columns), generator=generator)
    codes_OI = codes_OI.to(torch.int8 if signed else torch.uint8)
    packed_OB = pack_rows(codes_OI, bits)
    assert packed_OB.dtype == torch.uint8 and packed_OB.is_contiguous()
    assert packed_OB.tolist() == [slow_pack(row, bits) for row in codes_OI.tolist()]
    back_OI = unpack_rows(packed_OB, bits, columns, signed)
    assert back_OI.dtype == codes_OI.dtype and torch.equal(back_OI, codes_OI) and back_OI.is_contiguous()

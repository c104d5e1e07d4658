"""Long prompts: a packed affine matrix made dense in one pass, for a library's matrix product.

O outputs, I inputs, G groups per row, W words per row. Lanes are codes, so that the result is written in order.

    W_OI = scale * (code - zero_point), exact in fp32, rounded once to the dtype asked for
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from steps.pack.kernels.packed import Packed

ROWS, COLUMNS = 4, 512


@triton.jit
def _kernel(
    codes_ptr,
    scale_ptr,
    zero_ptr,
    out_ptr,
    rows,
    columns,
    groups,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    o = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    i = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (o < rows)[:, None] & (i < columns)[None, :]
    word_ptr = codes_ptr + o[:, None] * (columns // 32 * BITS) + (i * BITS // 32)[None, :]
    at_OI = (i * BITS % 32)[None, :] + tl.zeros([ROWS, COLUMNS], tl.int32)
    crosses = at_OI + BITS > 32
    low = tl.load(word_ptr, mask=inside, other=0).to(tl.uint32, bitcast=True) >> at_OI.to(tl.uint32)
    high = tl.load(word_ptr + 1, mask=inside & crosses, other=0).to(tl.uint32, bitcast=True)
    code_OI = (low | (high << ((32 - at_OI) % 32).to(tl.uint32))) & ((1 << BITS) - 1)
    group_OI = o[:, None] * groups + (i // GROUP)[None, :]
    scale_OI = tl.load(scale_ptr + group_OI, mask=inside, other=0.0).to(tl.float32)
    if SIGNED:
        level_OI = (code_OI ^ (1 << (BITS - 1))).to(tl.int32) - (1 << (BITS - 1))
    else:
        level_OI = code_OI.to(tl.int32) - tl.load(zero_ptr + group_OI, mask=inside, other=0).to(tl.int32)
    weight_OI = scale_OI * level_OI.to(tl.float32)
    out = out_ptr + o[:, None] * columns + i[None, :]
    tl.store(out, weight_OI.to(out_ptr.dtype.element_ty), mask=inside)


def dense(packed: Packed, dtype: torch.dtype) -> torch.Tensor:
    """W_OI in `dtype`."""
    rows = len(packed.codes_OW)
    out_OI = torch.empty(rows, packed.columns, dtype=dtype, device=packed.codes_OW.device)
    _kernel[(triton.cdiv(rows, ROWS), triton.cdiv(packed.columns, COLUMNS))](
        packed.codes_OW,
        packed.scale_OG,
        packed.zero_OG if packed.zero_OG is not None else packed.codes_OW,
        out_OI,
        rows,
        packed.columns,
        packed.scale_OG.shape[1],
        BITS=packed.bits,
        GROUP=packed.group,
        SIGNED=packed.zero_OG is None,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        enable_fp_fusion=True,
    )
    return out_OI

"""Prefill of a small batch: some tokens times a packed affine matrix, on tensor cores, reading its bytes once for all.

O outputs, I inputs, G groups per row, R runs per row, J codes in a run, W words per row, M tokens.

    y_MO = x W^T; W rounded once to the dtype of x, as everywhere; sums in fp32

A sum over inputs may be taken in any order. Taken code by code of the runs, J products of tiles whose inner dimension
is runs, it needs no rearrangement of what was unpacked; x_JMR is x in that order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from steps.pack.kernels.fields import in_mantissa, needs_next, run_length, run_words, weight
from steps.pack.kernels.packed import Packed

ROWS, TOKENS, WARPS = 32, 32, 4
MOST_TOKENS = 64
"""Above, the product is bound by arithmetic, and a dense matrix serves better."""


@triton.jit
def _kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    y_ptr,
    rows,
    runs,
    groups,
    tokens,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    LENGTH: tl.constexpr = run_length(BITS)
    WORDS: tl.constexpr = run_words(BITS)
    dtype = x_ptr.dtype.element_ty
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(o, rows - 1).to(tl.int64)
    m = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    y_OM = tl.zeros([ROWS, TOKENS], tl.float32)
    for start in range(0, runs, RUNS):
        r = start + tl.arange(0, RUNS)
        inside = r < runs
        word_ptr = codes_ptr + row[:, None] * (runs * WORDS) + (r * WORDS)[None, :]
        group_OR = row[:, None] * groups + (r * LENGTH // GROUP)[None, :]
        scale_OR = tl.load(scale_ptr + group_OR, mask=inside[None, :], other=0.0).to(tl.float32)
        if SIGNED:
            zero_OR = tl.full([ROWS, RUNS], 1 << (BITS - 1), tl.float32)
        else:
            zero_OR = tl.load(zero_ptr + group_OR, mask=inside[None, :], other=0).to(tl.float32)
        word = tl.load(word_ptr, mask=inside[None, :], other=0).to(tl.uint32, bitcast=True)
        following = word
        for j in tl.static_range(LENGTH):
            if needs_next(BITS, j):
                following = tl.load(word_ptr + (j * BITS // 32 + 1), mask=inside[None, :], other=0)
                following = following.to(tl.uint32, bitcast=True)
            level_OR = (in_mantissa(word, following, BITS, SIGNED, j) - 1.0) * weight(BITS, j) - zero_OR
            if needs_next(BITS, j):
                word = following
            x_RM = tl.load(
                x_ptr + (j * tokens + m)[None, :] * runs + r[:, None],
                mask=inside[:, None] & (m < tokens)[None, :],
                other=0.0,
            )
            y_OM += tl.dot((scale_OR * level_OR).to(dtype), x_RM)
    inside_OM = (o < rows)[:, None] & (m < tokens)[None, :]
    tl.store(y_ptr + m[None, :] * rows + o[:, None], y_OM.to(dtype), mask=inside_OM)


def block(bits: int) -> dict[str, int]:
    """Runs at a time and iterations in flight: tiles of x, one per code of a run, lie in shared memory meanwhile."""
    length = run_length(bits)
    return {"RUNS": 16 if run_words(bits) > 1 else 32, "num_stages": 2 if length <= 8 else 1, "num_warps": WARPS}


def matmul(packed: Packed, x_MI: torch.Tensor) -> torch.Tensor:
    """y_MO = x W^T in the dtype of x, fp16 or bf16; at most MOST_TOKENS tokens."""
    rows, tokens, length = len(packed.codes_OW), len(x_MI), run_length(packed.bits)
    runs = packed.columns // length
    x_JMR = x_MI.reshape(tokens, runs, length).permute(2, 0, 1).contiguous()
    y_MO = torch.empty(tokens, rows, dtype=x_MI.dtype, device=x_MI.device)
    each = min(TOKENS, max(16, triton.next_power_of_2(tokens)))
    _kernel[(triton.cdiv(rows, ROWS), triton.cdiv(tokens, each))](
        x_JMR,
        packed.codes_OW,
        packed.scale_OG,
        packed.zero_OG if packed.zero_OG is not None else packed.codes_OW,
        y_MO,
        rows,
        runs,
        packed.scale_OG.shape[1],
        tokens,
        BITS=packed.bits,
        GROUP=packed.group,
        SIGNED=packed.zero_OG is None,
        ROWS=ROWS,
        TOKENS=each,
        enable_fp_fusion=True,
        **block(packed.bits),
    )
    return y_MO

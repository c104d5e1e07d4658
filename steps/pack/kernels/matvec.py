"""Decode: one token times a packed affine matrix, reading every stored byte once.

O outputs, I inputs, G groups per row, R runs per row, W words per row (fields.py).

    y_O = sum over runs of scale * (sum of level * x), levels in fp32, everything summed in fp32

A program has a few rows, whose runs lie across its threads; x is read four values at a time and serves all rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from steps.pack.kernels.fields import in_mantissa, needs_next, run_length, run_words, weight
from steps.pack.kernels.packed import Packed

ROWS, WARPS = 8, 4
FEW_ROWS = 2048
"""Rows of a matrix under which a program has half as many, so that there are programs for every multiprocessor."""


@triton.jit(do_not_specialize=["stride"])
def _kernel(
    x_ptr,
    codes_ptr,
    scale_ptr,
    zero_ptr,
    y_ptr,
    rows,
    runs,
    groups,
    stride,
    BITS: tl.constexpr,
    GROUP: tl.constexpr,
    SIGNED: tl.constexpr,
    HALF: tl.constexpr,
    ROWS: tl.constexpr,
    RUNS: tl.constexpr,
):
    LENGTH: tl.constexpr = run_length(BITS)
    WORDS: tl.constexpr = run_words(BITS)
    o = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(o, rows - 1).to(tl.int64)
    sum_OR = tl.zeros([ROWS, RUNS], tl.float32)
    # `stride` is WORDS, but unknown to the compiler, which would otherwise give a thread several neighbouring words,
    # and then exchange x between threads at every step.
    for start in range(0, runs, RUNS):
        r = start + tl.arange(0, RUNS)
        inside = r < runs
        word_ptr = codes_ptr + row[:, None] * (runs * WORDS) + (r * stride)[None, :]
        group_OR = row[:, None] * groups + (r * LENGTH // GROUP)[None, :]
        scale_OR = tl.load(scale_ptr + group_OR, mask=inside[None, :], other=0.0).to(tl.float32)
        word = tl.load(word_ptr, mask=inside[None, :], other=0).to(tl.uint32, bitcast=True)
        following = word
        part_OR = tl.zeros([ROWS, RUNS], tl.float32)
        ones_R = tl.zeros([RUNS], tl.float32)  # what the 1.0 of every float adds up to
        total_R = tl.zeros([RUNS], tl.float32)
        for j in tl.static_range(LENGTH):
            if j % 4 == 0:
                four_R = tl.load(x_ptr + r * (LENGTH // 4) + j // 4, mask=inside, other=0)
            bits_R = (four_R >> (16 * (j % 4))).to(tl.int16)
            if HALF:
                x_R = bits_R.to(tl.float16, bitcast=True).to(tl.float32)
            else:
                x_R = bits_R.to(tl.bfloat16, bitcast=True).to(tl.float32)
            if needs_next(BITS, j):
                following = tl.load(word_ptr + (j * BITS // 32 + 1), mask=inside[None, :], other=0)
                following = following.to(tl.uint32, bitcast=True)
            float_OR = in_mantissa(word, following, BITS, SIGNED, j)
            if needs_next(BITS, j):
                word = following
            part_OR += float_OR * (x_R * weight(BITS, j))[None, :]
            ones_R += x_R * weight(BITS, j)
            total_R += x_R
        if SIGNED:
            part_OR -= (ones_R + total_R * (1 << (BITS - 1)))[None, :]
        else:
            zero_OR = tl.load(zero_ptr + group_OR, mask=inside[None, :], other=0).to(tl.float32)
            part_OR -= ones_R[None, :] + zero_OR * total_R[None, :]
        sum_OR += scale_OR * part_OR
    y_O = tl.sum(sum_OR, axis=1)
    tl.store(y_ptr + o, y_O.to(y_ptr.dtype.element_ty), mask=o < rows)


def launch(packed: Packed, rows: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid, and the sizes of a block: a run for every thread, at most WARPS warps."""
    warps = max(1, min(WARPS, packed.columns // run_length(packed.bits) // 32))
    rows_each = ROWS if rows >= FEW_ROWS else ROWS // 2
    return (triton.cdiv(rows, rows_each),), {"ROWS": rows_each, "RUNS": 32 * warps, "num_warps": warps}


def matvec(packed: Packed, x_I: torch.Tensor) -> torch.Tensor:
    """y_O = W x in the dtype of x, fp16 or bf16."""
    if x_I.data_ptr() % 8 or not x_I.is_contiguous():
        x_I = x_I.clone(memory_format=torch.contiguous_format)
    rows, runs = len(packed.codes_OW), packed.columns // run_length(packed.bits)
    y_O = torch.empty(rows, dtype=x_I.dtype, device=x_I.device)
    grid, block = launch(packed, rows)
    _kernel[grid](
        x_I.view(torch.int64),
        packed.codes_OW,
        packed.scale_OG,
        packed.zero_OG if packed.zero_OG is not None else packed.codes_OW,
        y_O,
        rows,
        runs,
        packed.scale_OG.shape[1],
        run_words(packed.bits),
        BITS=packed.bits,
        GROUP=packed.group,
        SIGNED=packed.zero_OG is None,
        HALF=x_I.dtype == torch.float16,
        enable_fp_fusion=True,
        **block,
    )
    return y_O

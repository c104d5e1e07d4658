"""Codes out of packed words, as floats.

A row is one bit stream (steps/ops/bitpack.py), so it is a sequence of runs: the fewest codes that fill whole 32-bit
words, for example 8 codes of 4 bits in one word, or 32 codes of 3 bits in three. Lanes of a tile are runs, and the
codes of a run are unrolled at compile time, which makes every shift and mask a constant.

A code is not converted from integer to float, which GPUs do slowly. Placed into the mantissa of 1.0 at bit `place`, it
reads as 1 + code / 2^(23 - place), exactly; several neighbours are placed by one shift.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

ONE = tl.constexpr(0x3F800000)
"""The bits of 1.0 in fp32, whose mantissa has 23 bits."""
WINDOW = {2: 4, 3: 3, 4: 2, 5: 2, 6: 1, 8: 1}
"""bits -> codes that one shift places: at most 10 bits, so that a code is at least 2^-10 beside its 1.0, and sums of a
run in fp32 keep 13 bits and more below it."""


@triton.constexpr_function
def run_length(bits):
    """Codes in a run."""
    return 32 // math.gcd(32, bits)


@triton.constexpr_function
def run_words(bits):
    """32-bit words in a run."""
    return bits // math.gcd(32, bits)


@triton.constexpr_function
def crosses(bits, j):
    """Whether code j of a run has its high bits in the next word."""
    return j * bits % 32 + bits > 32


@triton.constexpr_function
def needs_next(bits, j):
    """Whether code j is the last that begins in its word, and the run goes on."""
    return (j + 1) * bits // 32 > j * bits // 32 and (j + 1) * bits < 32 * run_words(bits)


@triton.constexpr_function
def place(bits, j):
    """The bit of the mantissa at which code j is put."""
    if crosses(bits, j):
        return 23 - bits
    first = -(-(j * bits // 32) * 32 // bits)
    return 23 - bits * (WINDOW[bits] - (j - first) % WINDOW[bits])


@triton.constexpr_function
def weight(bits, j):
    """What a difference of 1 in the float of code j stands for."""
    return float(1 << (23 - place(bits, j)))


@triton.jit
def in_mantissa(word, following, BITS: tl.constexpr, SIGNED: tl.constexpr, J: tl.constexpr):
    """fp32 1 + u / weight(BITS, J), where u is code J, plus 2^(BITS-1) if signed (two's complement).

    `word` is the uint32 in which the code begins, `following` the one after.
    """
    at: tl.constexpr = J * BITS % 32
    to: tl.constexpr = place(BITS, J)
    moved = word >> (at - to) if at >= to else word << (to - at)
    if crosses(BITS, J):
        moved |= following << (32 - at + to)
    mask: tl.constexpr = ((1 << BITS) - 1) << to
    sign: tl.constexpr = 1 << (BITS - 1 + to) if SIGNED else 0
    return ((moved & mask) ^ (ONE | sign)).to(tl.float32, bitcast=True)

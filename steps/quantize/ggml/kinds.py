"""What the stored numbers of each of llama.cpp's types mean: w = d * scale * (code - zero) - dmin * min."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.format import GgmlType

IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""`kvalues_iq4nl` in ggml-common.h of llama.cpp: w = d * value[code]."""


@dataclass(frozen=True)
class Kind:
    """group: weights that share a scale. levels: how many codes there are. zero: the code that means 0.

    scale_bits: of a group's integer scale, 0 where the block's d is the only scale; scale_zero is taken off it.
    mins: groups have a minimum beside the scale, so the grid need not contain 0. values: a table in place of
    code - zero.
    """

    group: int
    levels: int
    zero: int = 0
    scale_bits: int = 0
    scale_zero: int = 0
    mins: bool = False
    values: tuple[int, ...] = ()


KINDS: dict[GgmlType, Kind] = {
    "q8_0": Kind(32, 256, zero=128),
    "q6_k": Kind(16, 64, zero=32, scale_bits=8, scale_zero=128),
    "q5_k": Kind(32, 32, scale_bits=6, mins=True),
    "q4_k": Kind(32, 16, scale_bits=6, mins=True),
    "q3_k": Kind(16, 8, zero=4, scale_bits=6, scale_zero=32),
    "q2_k": Kind(16, 4, scale_bits=4, mins=True),
    "q5_0": Kind(32, 32, zero=16),
    "q4_0": Kind(32, 16, zero=8),
    "iq4_nl": Kind(32, 16, values=IQ4_NL_VALUES),
    "tq1_0": Kind(256, 3, zero=1),
    "tq2_0": Kind(256, 3, zero=1),
}

"""Where the bits of a block are: for each of llama.cpp's types, a table from bytes to fields.

Source: ggml/src/ggml-common.h (structs `block_*`) and ggml-quants.c (`dequantize_row_*`) of llama.cpp. Fields:

    codes   one per weight, as stored, unsigned
    scales  one per group, as stored, unsigned (K-quants)
    mins    one per group (q2_k, q4_k, q5_k)

and the fp16 numbers d and dmin at a byte of their own. TQ1_0 writes five codes as one number in base 3 instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from schemas.format import GgmlType

Field = Literal["codes", "scales", "mins"]


@dataclass(frozen=True)
class Piece:
    """`bits` bits from `shift` up of `count` consecutive bytes are the bits from `at` up of `count` values of a field.

    The values are `first`, `first + step` and so on.
    """

    field: Field
    start: int
    count: int
    shift: int
    bits: int
    first: int
    step: int = 1
    at: int = 0


def _planes(field: Field, start: int, count: int, width: int, bits: int, at: int = 0) -> Iterator[Piece]:
    """`count` bytes in chunks of `width`; a chunk's lowest `bits` bits come first, then the next ones, and so on."""
    first = 0
    for chunk in range(start, start + count, width):
        for shift in range(0, 8, bits):
            yield Piece(field, chunk, width, shift, bits, first, at=at)
            first += width


def _k_scales(start: int) -> Iterator[Piece]:
    """The 12 bytes of 8 scales and 8 mins, 6 bits each, of q4_k and q5_k (`get_scale_min_k4`)."""
    for field, low, nibble in (("scales", start, 0), ("mins", start + 4, 4)):
        yield Piece(field, low, 4, 0, 6, 0)  # type: ignore[arg-type]
        yield Piece(field, start + 8, 4, nibble, 4, 4)  # type: ignore[arg-type]
        yield Piece(field, low, 4, 6, 2, 4, at=4)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """A block's pieces, the byte where d is, and the byte where dmin is."""

    pieces: tuple[Piece, ...]
    d: int
    dmin: int | None = None


LAYOUTS: dict[GgmlType, Layout] = {
    "q8_0": Layout(tuple(_planes("codes", 2, 32, 32, 8)), d=0),
    "q5_0": Layout(
        (
            *_planes("codes", 6, 16, 16, 4),
            *(Piece("codes", 2, 4, bit, 1, bit, step=8, at=4) for bit in range(8)),
        ),
        d=0,
    ),
    "q4_0": Layout(tuple(_planes("codes", 2, 16, 16, 4)), d=0),
    "iq4_nl": Layout(tuple(_planes("codes", 2, 16, 16, 4)), d=0),
    "q2_k": Layout(
        (Piece("scales", 0, 16, 0, 4, 0), Piece("mins", 0, 16, 4, 4, 0), *_planes("codes", 16, 64, 32, 2)),
        d=80,
        dmin=82,
    ),
    "q3_k": Layout(
        (
            *_planes("codes", 32, 64, 32, 2),
            *_planes("codes", 0, 32, 32, 1, at=2),
            *_planes("scales", 96, 8, 8, 4),
            *_planes("scales", 104, 4, 4, 2, at=4),
        ),
        d=108,
    ),
    "q4_k": Layout((*_k_scales(4), *_planes("codes", 16, 128, 32, 4)), d=0, dmin=2),
    "q5_k": Layout(
        (*_k_scales(4), *_planes("codes", 16, 32, 32, 1, at=4), *_planes("codes", 48, 128, 32, 4)), d=0, dmin=2
    ),
    "q6_k": Layout(
        (
            *_planes("codes", 0, 128, 64, 4),
            *_planes("codes", 128, 64, 32, 2, at=4),
            *_planes("scales", 192, 16, 16, 8),
        ),
        d=208,
    ),
    "tq2_0": Layout(tuple(_planes("codes", 0, 64, 32, 2)), d=64),
    "tq1_0": Layout((), d=52),
}
"""Every type with a scale; F16 is plain numbers."""

TRITS: tuple[tuple[int, int, int], ...] = ((0, 32, 5), (32, 16, 5), (48, 4, 4))
"""TQ1_0: (first byte, bytes, codes per byte). A byte's first code is its most significant digit in base 3."""

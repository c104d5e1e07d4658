"""A matrix of signed integer codes whose width changes along the row.

O outputs, I inputs, G groups that share a scale, K pieces that share a width (groups, or single inputs).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch

from schemas.errors import InputError
from schemas.format import Bits, Mixed, PerColumn
from steps.ops.bitstream import pack_stream, pack_widths, unpack_stream, unpack_widths
from steps.step import Value


@dataclass(frozen=True)
class MixedTensor:
    """w[o, i] = step[o, i] * codes[o, i], with step = scale[o, g(i)], times 2^(reference - bits[i]) if per column.

    codes_OI int8; scale_OG in the dtype it is stored in, possibly negative; bits_K uint8.
    """

    name: str
    format: Mixed | PerColumn
    codes_OI: torch.Tensor
    scale_OG: torch.Tensor
    bits_K: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.codes_OI.shape[0], self.codes_OI.shape[1]

    def dequantize(self) -> torch.Tensor:
        """The represented weights in fp32, exactly: powers of two change no digit of scale times code."""
        codes_OK = self.codes_OI.view(len(self.codes_OI), len(self.bits_K), -1)
        step_OK = steps(self.format, self.scale_OG.float(), self.bits_K)
        return (codes_OK.float() * step_OK.unsqueeze(-1)).flatten(1)

    def nbytes(self) -> int:
        """Bytes of codes (rows padded to whole bytes), scales and widths (4 bits each)."""
        return sum(t.numel() * t.element_size() for t in self.to_tensors().values())

    def rows(self, name: str, start: int, stop: int) -> MixedTensor:
        """Rows start:stop, under a name of their own; the widths are those of all rows."""
        return replace(self, name=name, codes_OI=self.codes_OI[start:stop], scale_OG=self.scale_OG[start:stop])

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """`<name>.codes` (each row one stream of bits), `.scale`, `.widths`."""
        columns = self.shape[1]
        size = -(-self.format.row_bits(columns) // 8)
        return {
            f"{self.name}.codes": pack_stream(
                self.codes_OI, self.bits_K.repeat_interleave(columns // len(self.bits_K)), size
            ),
            f"{self.name}.scale": self.scale_OG,
            f"{self.name}.widths": pack_widths(self.bits_K),
        }

    @classmethod
    def from_tensors(cls, value: Value, name: str, fmt: Mixed | PerColumn) -> MixedTensor:
        """Undo `to_tensors`; InputError for widths that the format cannot have."""
        columns = value.meta["members"][name]["shape"][1]
        pieces = fmt.pieces(columns)
        bits_K = unpack_widths(value.tensors[f"{name}.widths"], pieces)
        _check_widths(name, fmt, bits_K, columns)
        codes_OI = unpack_stream(value.tensors[f"{name}.codes"], bits_K.repeat_interleave(columns // pieces))
        return cls(name, fmt, codes_OI, value.tensors[f"{name}.scale"], bits_K)


def steps(fmt: Mixed | PerColumn, scale_OG: torch.Tensor, bits_K: torch.Tensor) -> torch.Tensor:
    """The step of each row and piece, [O, K], in the dtype of the scales (exact)."""
    if isinstance(fmt, Mixed):
        return scale_OG
    power_K = torch.exp2(fmt.reference - bits_K.to(scale_OG.dtype))
    return scale_OG.repeat_interleave(len(bits_K) // scale_OG.shape[1], dim=1) * power_K


def _check_widths(name: str, fmt: Mixed | PerColumn, bits_K: torch.Tensor, columns: int) -> None:
    legal = (fmt.low, fmt.high) if isinstance(fmt, Mixed) else get_args(Bits)
    total = int(bits_K.sum()) * (columns // len(bits_K))
    strange = sorted(set(bits_K.tolist()) - set(legal))
    if strange or total > fmt.row_bits(columns):
        raise InputError(
            "widths that the format cannot have",
            where=f"{name}.widths",
            got=f"{total} bits a row" if not strange else f"widths {', '.join(map(str, strange))}",
            wanted=f"{', '.join(map(str, legal))}, and at most {fmt.row_bits(columns)} bits a row in {fmt.name}",
            fix="quantize the unit again",
        )

"""A matrix on an affine integer grid.

O outputs, I inputs, G groups per row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.format import Affine
from steps.ops.bitpack import pack_rows, unpack_rows
from steps.quantize.grids.affine import decode
from steps.step import Value


@dataclass(frozen=True)
class AffineTensor:
    """w[o, i] = scale[o, g(i)] * (codes[o, i] - zero_point[o, g(i)]).

    codes_OI int8 (signed grids) or uint8 (asymmetric); scale_OG in the dtype it is stored in (bf16 or fp16), possibly
    negative; zero_point_OG uint8 or None.
    """

    name: str
    format: Affine
    codes_OI: torch.Tensor
    scale_OG: torch.Tensor
    zero_point_OG: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.codes_OI.shape[0], self.codes_OI.shape[1]

    def dequantize(self) -> torch.Tensor:
        """The represented weights in fp32, exactly."""
        return decode(self.codes_OI, self.scale_OG, self.zero_point_OG)

    def nbytes(self) -> int:
        """Bytes of codes (rows packed densely, padded to whole bytes), scales and zero points (b bits each)."""
        rows, columns = self.shape
        size = rows * -(-columns * self.format.bits // 8) + self.scale_OG.numel() * self.scale_OG.element_size()
        if self.zero_point_OG is not None:
            size += -(-self.zero_point_OG.numel() * self.format.bits // 8)
        return size

    def rows(self, name: str, start: int, stop: int) -> AffineTensor:
        """Rows start:stop, under a name of their own."""
        zero_OG = None if self.zero_point_OG is None else self.zero_point_OG[start:stop]
        return AffineTensor(name, self.format, self.codes_OI[start:stop], self.scale_OG[start:stop], zero_OG)

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """`<name>.codes` (bit-packed), `.scale`, `.zero_point`."""
        tensors = {
            f"{self.name}.codes": pack_rows(self.codes_OI, self.format.bits),
            f"{self.name}.scale": self.scale_OG,
        }
        if self.zero_point_OG is not None:
            tensors[f"{self.name}.zero_point"] = self.zero_point_OG
        return tensors

    @classmethod
    def from_tensors(cls, value: Value, name: str, fmt: Affine) -> AffineTensor:
        """Undo `to_tensors`; `value.meta` has `members[name].shape`."""
        columns = value.meta["members"][name]["shape"][1]
        signed = fmt.symmetry != "asymmetric"
        codes_OI = unpack_rows(value.tensors[f"{name}.codes"], fmt.bits, columns, signed)
        zero_point_OG = None if signed else value.tensors[f"{name}.zero_point"]
        return cls(name, fmt, codes_OI, value.tensors[f"{name}.scale"], zero_point_OG)

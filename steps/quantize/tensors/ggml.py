"""A matrix in one of llama.cpp's tensor types.

O outputs, I inputs, B bytes of a row.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from schemas.format import Ggml
from steps.quantize.ggml.blocks import unpack
from steps.step import Value


@dataclass(frozen=True)
class GgmlTensor:
    """The rows as llama.cpp lays them out, block after block: the format is defined by its bytes.

    blocks_OB uint8; what the bytes mean is in `steps/quantize/ggml`.
    """

    name: str
    format: Ggml
    blocks_OB: torch.Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        block = self.format.block
        return self.blocks_OB.shape[0], self.blocks_OB.shape[1] // block.bytes * block.weights

    def dequantize(self) -> torch.Tensor:
        """The represented weights in fp32, bit for bit as the `gguf` package decodes them."""
        if self.format.type == "f16":
            return self.blocks_OB.contiguous().view(torch.float16).float()
        codes_OI, grid = unpack(self.format.type, self.blocks_OB)
        return grid.decode(codes_OI)

    def nbytes(self) -> int:
        """Bytes of all blocks."""
        return self.blocks_OB.numel()

    def rows(self, name: str, start: int, stop: int) -> GgmlTensor:
        """Rows start:stop, under a name of their own."""
        return GgmlTensor(name, self.format, self.blocks_OB[start:stop])

    def to_tensors(self) -> dict[str, torch.Tensor]:
        """`<name>.blocks`."""
        return {f"{self.name}.blocks": self.blocks_OB}

    @classmethod
    def from_tensors(cls, value: Value, name: str, fmt: Ggml) -> GgmlTensor:
        """Undo `to_tensors`."""
        return cls(name, fmt, value.tensors[f"{name}.blocks"])

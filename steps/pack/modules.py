"""Modules of a loaded model whose matrix stays packed: multiplied by kernels where there are some for the device and
the format (kernels/choose.py), else dequantized, exactly, each time it is used.

O outputs, I inputs, S positions of any shape.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from schemas.format import Format
from steps.pack.container import TORCH_DTYPE, decode
from steps.pack.kernels.choose import product, serves
from steps.pack.kernels.packed import view
from steps.pack.sizes import linear_entries


class PackedMatrix(nn.Module):
    """The stored tensors of one matrix as buffers, named by part (`codes`, `scale`); they are never cast."""

    def __init__(self, name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str) -> None:
        super().__init__()
        self.name, self.format, self.shape = name, fmt, shape
        self.parts: tuple[str, ...] = ()
        for e in linear_entries("bitsmith", name, fmt, shape, scale_dtype):
            part = e.name.removeprefix(f"{name}.")
            self.parts += (part,)
            self.register_buffer(part, torch.empty(e.shape, dtype=TORCH_DTYPE[e.dtype]))

    def stored(self) -> dict[str, torch.Tensor]:
        """The stored tensors by full name."""
        return {f"{self.name}.{part}": self.get_buffer(part) for part in self.parts}

    def dense(self) -> torch.Tensor:
        """W_OI fp32."""
        return decode(self.name, self.format, self.shape, self.stored()).dequantize()

    def times(self, x_SI: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        """x W^T + bias in the dtype of x."""
        if not serves(self.format, self.shape, x_SI):
            return F.linear(x_SI, self.dense().to(x_SI.dtype), bias)
        part = {name: self.get_buffer(name) for name in self.parts}
        packed = view(int(self.format.bits), self.shape[1], part["codes"], part["scale"], part.get("zero_point"))
        y_SO = product(packed, x_SI)
        return y_SO if bias is None else y_SO + bias

    def rows(self, index_S: torch.Tensor) -> torch.Tensor:
        """W_SI fp32: some rows of the matrix."""
        kept, place_S = torch.unique(index_S, return_inverse=True)
        some = {name: tensor[kept] for name, tensor in self.stored().items()}
        shape = (len(kept), self.shape[1])
        return decode(self.name, self.format, shape, some).dequantize()[place_S]


class PackedLinear(PackedMatrix):
    """A linear layer; arithmetic in the dtype of its input, into which the exact weights are rounded once."""

    bias: nn.Parameter | None

    def __init__(self, name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str, bias: nn.Parameter | None):
        super().__init__(name, fmt, shape, scale_dtype)
        self.in_features, self.out_features = shape[1], shape[0]
        self.register_parameter("bias", bias)

    def forward(self, x_SI: torch.Tensor) -> torch.Tensor:
        """x W^T + bias."""
        return self.times(x_SI, self.bias)


class PackedEmbedding(PackedMatrix):
    """An embedding table that decodes the rows it is asked for; gives the dtype of the model."""

    def __init__(self, name: str, fmt: Format, shape: tuple[int, int], scale_dtype: str, dtype: torch.dtype):
        super().__init__(name, fmt, shape, scale_dtype)
        self.num_embeddings, self.embedding_dim = shape
        self.register_buffer("like", torch.empty(0, dtype=dtype), persistent=False)

    def forward(self, ids_S: torch.Tensor) -> torch.Tensor:
        """Rows by id."""
        return self.rows(ids_S).to(self.get_buffer("like").dtype)


class TiedHead(nn.Module):
    """An output layer that is the packed embedding of the same model; holds nothing itself."""

    def __init__(self, embedding: PackedEmbedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that torch does not register it as a second module
        self.in_features, self.out_features = embedding.embedding_dim, embedding.num_embeddings

    def forward(self, x_SI: torch.Tensor) -> torch.Tensor:
        """x E^T."""
        return self._embedding[0].times(x_SI)

"""All windows taken through one block, a batch at a time.

N windows, S positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from schemas.errors import InputError
from steps.model.stream import Stream
from steps.step import Value


def valid_NS(tokens: Value) -> torch.Tensor:
    """Boolean mask of the positions that hold a token, not padding."""
    length_N = tokens.tensors["lengths_N"]
    return torch.arange(tokens.tensors["ids_NS"].shape[1]) < length_N[:, None]


def _nothing(batch: slice) -> None:
    pass


def advance(
    stream: Stream,
    block: nn.Module,
    hidden_NSD: torch.Tensor,
    out_NSD: torch.Tensor,
    batch: int,
    before: Callable[[slice], None] = _nothing,
) -> None:
    """Write the block's output into `out_NSD` (may be `hidden_NSD` itself); `before` is told each batch of windows.

    Both hidden tensors stay where they are; only a batch of windows is on the stream's device. No gradients.
    """
    for start in range(0, len(hidden_NSD), batch):
        windows = slice(start, start + batch)
        before(windows)
        with torch.no_grad():
            out_NSD[windows] = stream.run(block, hidden_NSD[windows].to(stream.device)).to(out_NSD.device)


def check_finite(hidden_NSD: torch.Tensor, where: str) -> None:
    """InputError if the model itself overflows on these tokens."""
    if not torch.isfinite(hidden_NSD).all():
        raise InputError(
            "the model's hidden states are NaN or infinite",
            where=where,
            wanted="a model that works in fp32",
            fix="check the weights and config.json; transformers would compute the same",
        )

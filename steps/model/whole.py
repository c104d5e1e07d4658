"""All blocks of a small model at once, for what runs the tail of a model many times.

N windows, S positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from steps.model.stream import Stream
from steps.model.swap import run_swapped

Swaps = Mapping[int, Mapping[str, torch.Tensor]]
"""block -> parameter name within the block -> replacement."""


def all_blocks(stream: Stream) -> list[nn.Module]:
    """Every decoder block, resident: 4 bytes per weight on the stream's device."""
    return [stream.block(k) for k in range(stream.blocks)]


def hidden_from(
    stream: Stream,
    blocks: Sequence[nn.Module],
    start_block: int,
    hidden_NSD: torch.Tensor,
    swaps: Swaps | None = None,
) -> torch.Tensor:
    """Final-normed hidden_NSD, given the input of block `start_block`, with the weights in `swaps` replaced."""
    for k in range(start_block, stream.blocks):
        hidden_NSD = run_swapped(stream, blocks[k], hidden_NSD, (swaps or {}).get(k, {}))
    return stream.final(hidden_NSD)


def logits_from(
    stream: Stream,
    blocks: Sequence[nn.Module],
    start_block: int,
    hidden_NSD: torch.Tensor,
    swaps: Swaps | None = None,
) -> torch.Tensor:
    """fp32 logits_NSV, given the input of block `start_block`, with the weights in `swaps` replaced."""
    return stream.logits(hidden_from(stream, blocks, start_block, hidden_NSD, swaps))

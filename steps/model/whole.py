"""All blocks of a small model at once, for what runs the tail of a model many times.

N windows, S positions, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from schemas.artifact import Unit
from schemas.structure import EMBEDDING, HEAD
from steps.model.stream import Stream
from steps.model.structure import block_prefix
from steps.model.swap import run_swapped

OUTSIDE = -1
"""Stands for a block where embedding and head are meant; their parameters go by full name."""

Swaps = Mapping[int, Mapping[str, torch.Tensor]]
"""block -> parameter name within the block -> replacement."""


def swaps_of(unit: Unit, weights: Mapping[str, torch.Tensor]) -> dict[int, dict[str, torch.Tensor]]:
    """The swap of a unit, given a weight per member. A tied matrix is swapped at both ends."""
    if unit.use == "linear":
        prefix = block_prefix(unit.block)
        return {unit.block: {f"{member.removeprefix(prefix)}.weight": w for member, w in weights.items()}}
    (weight_VD,) = weights.values()
    ends = {"embedding": (EMBEDDING,), "head": (HEAD,), "tied": (EMBEDDING, HEAD)}[unit.use]
    return {OUTSIDE: dict.fromkeys(ends, weight_VD)}


def held_weight(stream: Stream, blocks: Sequence[nn.Module], block: int, name: str) -> torch.Tensor:
    """The weight that a swap replaces, fp32."""
    if block != OUTSIDE:
        return blocks[block].get_parameter(name)
    return stream.head_VD if name == HEAD else stream.table_VD()


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
    normed_NSD = hidden_from(stream, blocks, start_block, hidden_NSD, swaps)
    return stream.logits(normed_NSD, (swaps or {}).get(OUTSIDE, {}).get(HEAD))

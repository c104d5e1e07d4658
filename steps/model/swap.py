"""A block run with some of its weights replaced, the block itself left as it was.

N windows, S positions, D hidden size, O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from schemas.errors import InputError
from steps.model.stream import Stream


def run_swapped(
    stream: Stream, block: nn.Module, hidden_NSD: torch.Tensor, weights: Mapping[str, torch.Tensor]
) -> torch.Tensor:
    """`stream.run(block, hidden_NSD)` as if the parameters named in `weights` had these values.

    `weights` is keyed by parameter name within the block (`self_attn.q_proj.weight`), fp32, on the stream's
    device; gradients flow into it. The block holds the swapped tensors only during the call, so it must not be shared
    between threads.
    """
    for name, weight in weights.items():
        held = block.get_parameter(name)
        if held.shape != weight.shape:
            raise InputError(
                "a replacement weight has the wrong shape", where=name, got=list(weight.shape), wanted=list(held.shape)
            )
    arguments = stream.arguments(hidden_NSD)
    out_NSD: torch.Tensor = torch.func.functional_call(block, dict(weights), (hidden_NSD,), arguments)
    return out_NSD

"""A decoder block in two halves: attention, then MLP or experts, each added to the hidden states behind its own norm.

That order is the one of every supported architecture; a test holds it for each.

N windows, S positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from steps.model.stream import Stream

SECOND = "mlp."
"""Parameters of the second half begin so."""


def run_halves(stream: Stream, block: nn.Module, hidden_NSD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The hidden states between the halves, and the block's output."""
    seen: list[torch.Tensor] = []
    norm = block.get_submodule("post_attention_layernorm")
    hook = norm.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0]))
    try:
        out_NSD = stream.run(block, hidden_NSD)
    finally:
        hook.remove()
    (middle_NSD,) = seen
    return middle_NSD, out_NSD


def second_half(block: nn.Module, middle_NSD: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The block's output, with the weights given replaced; all of them are of the second half."""
    normed_NSD = block.get_submodule("post_attention_layernorm")(middle_NSD)
    inside = {name.removeprefix(SECOND): weight for name, weight in weights.items()}
    said = torch.func.functional_call(block.get_submodule("mlp"), inside, (normed_NSD,))
    added_NSD: torch.Tensor = said[0] if isinstance(said, tuple) else said
    return middle_NSD + added_NSD

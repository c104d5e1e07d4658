"""Inputs of a block's linears and gradients at their outputs, by running the block forward and backward once more.

N windows, S positions, D hidden size, P predicted positions, O outputs, I inputs; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from steps.model.positions import Batch
from steps.model.stream import Stream
from steps.model.structure import ORDER_GROUPS

PATHS = tuple(path for group in ORDER_GROUPS for path in group.members)
"""Linears within a block."""

Seen = dict[str, tuple[torch.Tensor, torch.Tensor]]
"""path -> (input, output) of a linear in the last forward pass, still in the autograd graph."""


@dataclass(frozen=True)
class Captured:
    """Of one batch of windows, by path within the block: input_PI and gradient_MPO of each linear."""

    input_PI: dict[str, torch.Tensor]
    gradient_MPO: dict[str, torch.Tensor]


@contextmanager
def watched(block: nn.Module) -> Iterator[Seen]:
    """What the block's linears see and say in each forward pass, while the context lasts."""
    seen: Seen = {}
    hooks = [block.get_submodule(path).register_forward_hook(partial(_note, seen, path)) for path in PATHS]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _note(seen: Seen, path: str, module: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    seen[path] = (arguments[0], output)


def capture(
    stream: Stream,
    block: nn.Module,
    parts: Sequence[Batch],
    entering: Sequence[torch.Tensor],
    gradient: Sequence[torch.Tensor],
) -> tuple[list[Captured], list[torch.Tensor]]:
    """Per batch: what the block's linears saw, and the gradient_MNSD at the block's input.

    `gradient` has, per batch, gradient_MNSD at the block's output. The last position of a window predicts nothing and
    nothing follows it, so its gradient is 0 and only predicted positions are kept.
    """
    captured, before = [], []
    with watched(block) as seen:
        for part, hidden_NSD, toward_MNSD in zip(parts, entering, gradient, strict=True):
            leaf_NSD = hidden_NSD.detach().requires_grad_()
            out_NSD = stream.run(block, leaf_NSD)
            at = [leaf_NSD, *(output for _, output in seen.values())]
            found = [torch.autograd.grad(out_NSD, at, toward_NSD, retain_graph=True) for toward_NSD in toward_MNSD]
            before.append(torch.stack([gradients[0] for gradients in found]))
            picked = [torch.stack([part.pick(g) for g in of_one]) for of_one in zip(*found, strict=True)][1:]
            captured.append(Captured(_pick_inputs(part, seen), dict(zip(seen, picked, strict=True))))
            seen.clear()
    return captured, before


def _pick_inputs(part: Batch, seen: Seen) -> dict[str, torch.Tensor]:
    """input_PI by path; linears that share an input share the tensor."""
    once = {id(x_NSI): x_NSI for x_NSI, _ in seen.values()}
    picked = {key: part.pick(x_NSI.detach()) for key, x_NSI in once.items()}
    return {path: picked[id(x_NSI)] for path, (x_NSI, _) in seen.items()}

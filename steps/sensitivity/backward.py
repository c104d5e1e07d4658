"""One backward pass through the original for labels drawn from its own predictions, block by block.

These gradients make the true Fisher matrix, not the empirical one, and need no labels.
N windows, S positions, D hidden size, P predicted positions, V vocabulary; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from steps.model.positions import Batch
from steps.model.stream import Stream
from steps.model.whole import OUTSIDE
from steps.sensitivity.capture import Captured, capture
from steps.sensitivity.ends import Ends
from steps.step import Env
from steps.verify.metrics import chunks


def backward(
    stream: Stream, parts: Sequence[Batch], samples: int, seed: int, env: Env
) -> Iterator[tuple[int, nn.Module | None, list[Captured]]]:
    """(k, block, captured per batch) from the last block to the first, then (OUTSIDE, None, of embedding and head).

    Forward keeping what enters each block, then backward with recomputation, one block resident; fp32. Labels are drawn
    on the CPU from a generator of this seed.
    """
    entering, final = forward(stream, parts)
    generator = torch.Generator().manual_seed(seed)
    drawn = [draw_gradient(stream, p, h, samples, generator) for p, h in zip(parts, final, strict=True)]
    labels, gradient = [label_PM for label_PM, _ in drawn], [gradient_MNSD for _, gradient_MNSD in drawn]
    for k in reversed(range(stream.blocks)):
        block = stream.block(k)
        captured, gradient = capture(stream, block, parts, entering.pop(), gradient)
        yield k, block, captured
        env.progress(stream.blocks - k, stream.blocks, "blocks")
    yield OUTSIDE, None, [_ends(stream, *each) for each in zip(parts, final, labels, gradient, strict=True)]


@torch.no_grad()
def _ends(
    stream: Stream, part: Batch, final_NSD: torch.Tensor, label_PM: torch.Tensor, gradient_MNSD: torch.Tensor
) -> Ends:
    gradient_MPD = torch.stack([part.pick(gradient_NSD) for gradient_NSD in gradient_MNSD])
    id_P = part.ids_NS.flatten()[part.rows_P].long().to(stream.device)
    return Ends(stream, id_P, stream.final(part.pick(final_NSD)), label_PM, gradient_MPD)


@torch.no_grad()
def forward(stream: Stream, parts: Sequence[Batch]) -> tuple[list[list[torch.Tensor]], list[torch.Tensor]]:
    """hidden_NSD entering each block, [block][batch], and leaving the last, [batch]."""
    hidden, entering = [stream.embed(part.ids_NS) for part in parts], []
    for k in range(stream.blocks):
        block = stream.block(k)
        entering.append(hidden)
        hidden = [stream.run(block, hidden_NSD) for hidden_NSD in hidden]
    return entering, hidden


def label_gradient(
    stream: Stream, part: Batch, hidden_NSD: torch.Tensor, samples: int, generator: torch.Generator
) -> torch.Tensor:
    """The gradient of `draw_gradient` alone."""
    return draw_gradient(stream, part, hidden_NSD, samples, generator)[1]


def draw_gradient(
    stream: Stream, part: Batch, hidden_NSD: torch.Tensor, samples: int, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels label_PM drawn from the model; gradient_MNSD of their summed log-likelihood at the last block's output.

    The gradient at the logits is onehot(label) - p.
    """
    rows_P = part.rows_P.to(hidden_NSD.device)
    picked_PD = hidden_NSD.flatten(0, 1)[rows_P]
    found_MPD, labels = torch.empty(samples, *picked_PD.shape, device=hidden_NSD.device), []
    for rows in chunks(len(picked_PD), stream.config.vocab_size):
        leaf_PD = picked_PD[rows].requires_grad_()
        logits_PV = stream.logits(stream.final(leaf_PD))
        p_PV = torch.softmax(logits_PV.detach(), dim=-1)
        label_PM = draw_labels(p_PV, samples, generator)
        for m in range(samples):
            toward_PV = (-p_PV).scatter_add_(1, label_PM[:, m, None], torch.ones_like(p_PV[:, :1]))
            (found_MPD[m, rows],) = torch.autograd.grad(logits_PV, leaf_PD, toward_PV, retain_graph=m + 1 < samples)
        labels.append(label_PM)
    gradient_MND = torch.zeros(samples, hidden_NSD[..., 0].numel(), hidden_NSD.shape[-1], device=hidden_NSD.device)
    gradient_MND[:, rows_P] = found_MPD
    return torch.cat(labels), gradient_MND.view(samples, *hidden_NSD.shape)


def draw_labels(p_PV: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """label_PM int64, drawn on the CPU from the model's predictions."""
    return torch.multinomial(p_PV.cpu(), samples, replacement=True, generator=generator).to(p_PV.device)

"""One backward pass through the original for labels drawn from its own predictions, block by block.

These gradients make the true Fisher matrix, not the empirical one, and need no labels.
N windows, S positions, D hidden size, P predicted positions, V vocabulary; M samples of labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from steps.model.positions import Batch
from steps.model.spill import Spill, spill
from steps.model.stream import Stream
from steps.model.whole import OUTSIDE
from steps.sensitivity.capture import Captured, capture
from steps.sensitivity.ends import Ends
from steps.step import Env
from steps.verify.metrics import chunks


def backward(
    stream: Stream, parts: Sequence[Batch], samples: int, seed: int, env: Env
) -> Iterator[tuple[int, nn.Module | None, Iterator[Captured]]]:
    """(k, block, captured per batch) from the last block to the first, then (OUTSIDE, None, of embedding and head).

    Forward keeping what enters each block, then backward with recomputation; fp32. Memory holds one block and one
    batch: the rest lies in scratch, and a batch is captured when it is asked for. Labels are drawn from a generator of
    this seed (`generator_of`).
    """
    with spill(env.scratch) as held:
        labels = _start(stream, parts, samples, seed, held)
        for k in reversed(range(stream.blocks)):
            block = stream.block(k)
            batches = _batches(stream, block, parts, held, k)
            yield k, block, batches
            deque(batches, maxlen=0)  # whatever nobody asked for leads to the blocks before all the same
            env.progress(stream.blocks - k, stream.blocks, "blocks")
        yield OUTSIDE, None, (_ends(stream, part, held, labels[n], n) for n, part in enumerate(parts))


def _start(stream: Stream, parts: Sequence[Batch], samples: int, seed: int, held: Spill) -> list[torch.Tensor]:
    """Labels drawn, label_PM per batch; what enters each block, what leaves the last, and the gradient there go to
    `held`."""
    forward(stream, parts, held)
    generator, labels = generator_of(stream.device, seed), []
    for n, part in enumerate(parts):
        final_NSD = held[_entering(stream.blocks, n)].to(stream.device)
        label_PM, held[_gradient(n)] = draw_gradient(stream, part, final_NSD, samples, generator)
        labels.append(label_PM)
    return labels


def _entering(k: int, n: int) -> str:
    """Name of the hidden_NSD of batch n that enters block k, or leaves block k - 1."""
    return f"hidden {k} {n}"


def _gradient(n: int) -> str:
    """Name of the gradient_MNSD of batch n at the output of the block in turn."""
    return f"gradient {n}"


def _batches(stream: Stream, block: nn.Module, parts: Sequence[Batch], held: Spill, k: int) -> Iterator[Captured]:
    entering = (held.pop(_entering(k, n)).to(stream.device) for n in range(len(parts)))
    gradient = (held.pop(_gradient(n)).to(stream.device) for n in range(len(parts)))
    for n, (captured, before_MNSD) in enumerate(capture(stream, block, parts, entering, gradient)):
        held[_gradient(n)] = before_MNSD
        yield captured


@torch.no_grad()
def _ends(stream: Stream, part: Batch, held: Spill, label_PM: torch.Tensor, n: int) -> Ends:
    final_NSD = held.pop(_entering(stream.blocks, n)).to(stream.device)
    gradient_MNSD = held.pop(_gradient(n)).to(stream.device)
    gradient_MPD = torch.stack([part.pick(gradient_NSD) for gradient_NSD in gradient_MNSD])
    id_P = part.ids_NS.flatten()[part.rows_P].long().to(stream.device)
    return Ends(stream, id_P, stream.final(part.pick(final_NSD)), label_PM, gradient_MPD)


@torch.no_grad()
def forward(stream: Stream, parts: Sequence[Batch], held: Spill) -> None:
    """Put what enters each block, and what leaves the last, into `held`, by `_entering`."""
    for n, part in enumerate(parts):
        held[_entering(0, n)] = stream.embed(part.ids_NS)
    for k in range(stream.blocks):
        block = stream.block(k)
        for n in range(len(parts)):
            held[_entering(k + 1, n)] = stream.run(block, held[_entering(k, n)].to(stream.device))


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


def generator_of(device: torch.device, seed: int) -> torch.Generator:
    """The CPU's, or a GPU's own: drawing from a large vocabulary on the CPU takes longer there than the whole pass."""
    return torch.Generator(device if device.type == "cuda" else "cpu").manual_seed(seed)


def draw_labels(p_PV: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """label_PM int64, drawn from the model's predictions where the generator lies.

    On a GPU one at a time: several at once would add up probabilities there, which has no deterministic kernel.
    """
    here_PV, at_once = p_PV.to(generator.device), 1 if generator.device.type == "cuda" else samples
    drawn = [
        torch.multinomial(here_PV, at_once, replacement=True, generator=generator) for _ in range(samples // at_once)
    ]
    return torch.cat(drawn, dim=1).to(p_PV.device)

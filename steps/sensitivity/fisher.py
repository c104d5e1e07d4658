"""Second-order estimate of the KL that quantizing a unit causes, from one backward pass for all candidates.

For outputs z = W x perturbed by dW x, KL per predicted position is about (1 / 2P) E[(sum over tokens of g . dW x)^2],
where g is the gradient at z of the log-likelihood of labels drawn from the model itself (the true Fisher matrix, not
the empirical one). Here the square is taken token by token, as the schema says, which drops the cross terms between the
tokens of a window: they would leave one random number per window instead of one per token.

N windows, S positions, D hidden size, P predicted positions, V vocabulary, O outputs, I inputs; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from schemas.artifact import Unit
from schemas.errors import InputError
from schemas.sensitivity import Fisher
from steps.model.overlay import dequantized
from steps.model.positions import Batch, batches, predicted_positions
from steps.model.stream import Stream
from steps.model.structure import block_prefix, units
from steps.sensitivity.capture import Captured, capture
from steps.sensitivity.score import score_output
from steps.step import Env, Output, Value
from steps.verify.metrics import chunks


def run(spec: Fisher, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: for every candidate, 1/2 sum over tokens of (sum over members of g . dW x)^2 per predicted position.

    Forward keeping what enters each block, then backward with recomputation, one block resident; all candidates of a
    block are scored while its inputs and gradients are at hand. fp32, sums over positions in fp64. Labels are drawn on
    the CPU from a generator seeded by `spec.seed`.
    """
    model, tokens = inputs["model"], inputs["tokens"]
    stream, positions, parts = Stream(model, env.device), predicted_positions(tokens), list(batches(tokens, spec.batch))
    wanted = _by_block(model, inputs["candidates"])
    entering, final = forward(stream, parts)
    generator = torch.Generator().manual_seed(spec.seed)
    gradient = [label_gradient(stream, p, h, spec.samples, generator) for p, h in zip(parts, final, strict=True)]
    scores: dict[str, Output] = {}
    for k in reversed(range(stream.blocks)):
        block = stream.block(k)
        captured, gradient = capture(stream, block, parts, entering.pop(), gradient)
        for unit, name in wanted.get(k, []):
            item = inputs["candidates"].children[name]
            delta = deltas(block, unit, item, env.device)
            changed = any(bool(d.any()) for d in delta.values())
            scores[name] = score_output(item.meta, damage(captured, delta), positions, changed)
        env.progress(stream.blocks - k, stream.blocks, "blocks")
    return {"scores": Output(children={name: scores[name] for name in inputs["candidates"].children})}


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
    """gradient_MNSD, at the last block's output, of the summed log-likelihood of labels drawn from the model.

    The gradient at the logits is onehot(label) - p.
    """
    rows_P = part.rows_P.to(hidden_NSD.device)
    picked_PD = hidden_NSD.flatten(0, 1)[rows_P]
    found_MPD = torch.empty(samples, *picked_PD.shape, device=hidden_NSD.device)
    for rows in chunks(len(picked_PD), stream.config.vocab_size):
        leaf_PD = picked_PD[rows].requires_grad_()
        logits_PV = stream.logits(stream.final(leaf_PD))
        p_PV = torch.softmax(logits_PV.detach(), dim=-1)
        label_PM = draw_labels(p_PV, samples, generator)
        for m in range(samples):
            toward_PV = (-p_PV).scatter_add_(1, label_PM[:, m, None], torch.ones_like(p_PV[:, :1]))
            (found_MPD[m, rows],) = torch.autograd.grad(logits_PV, leaf_PD, toward_PV, retain_graph=m + 1 < samples)
    gradient_MND = torch.zeros(samples, hidden_NSD[..., 0].numel(), hidden_NSD.shape[-1], device=hidden_NSD.device)
    gradient_MND[:, rows_P] = found_MPD
    return gradient_MND.view(samples, *hidden_NSD.shape)


def draw_labels(p_PV: torch.Tensor, samples: int, generator: torch.Generator) -> torch.Tensor:
    """label_PM int64, drawn on the CPU from the model's predictions."""
    return torch.multinomial(p_PV.cpu(), samples, replacement=True, generator=generator).to(p_PV.device)


@torch.no_grad()
def damage(captured: Sequence[Captured], delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """1/2 mean over samples of (sum over members of g . dW x)^2 at each predicted position, P on the CPU."""
    found = []
    for part in captured:
        dot_MP = sum(
            torch.einsum("mpo,po->mp", part.gradient_MPO[path], part.input_PI[path] @ delta_OI.T)
            for path, delta_OI in delta.items()
        )
        assert isinstance(dot_MP, torch.Tensor)
        found.append(dot_MP.square().mean(0).div(2).cpu())
    return torch.cat(found)


def _by_block(model: Value, candidates: Value) -> dict[int, list[tuple[Unit, str]]]:
    """block -> (unit, item name) of every candidate; InputError for one of an unknown unit. Reads no candidate."""
    known = {unit.name: unit for unit in units(model.meta["config"], model.meta["shapes"])}
    found: dict[int, list[tuple[Unit, str]]] = {}
    for name in candidates.children:
        unit = known.get(name.rpartition("/")[0])
        if unit is None:
            raise InputError("a candidate is of a unit that the model does not have", where=f"candidate {name}")
        found.setdefault(unit.block, []).append((unit, name))
    return found


def deltas(block: nn.Module, unit: Unit, item: Value, device: str) -> dict[str, torch.Tensor]:
    """Dequantized minus original weights, delta_OI fp32 by path within the block."""
    paths = {member.removeprefix(block_prefix(unit.block)): member for member in unit.members}
    return {
        path: dequantized(item, member).to(device) - block.get_parameter(f"{path}.weight")
        for path, member in paths.items()
    }

"""Swap one quantized unit into the original and measure what that alone does to the predictions.

The score is the change of the loss with one layer quantized, as in the integer program of Hubara et al., "Improving
post training neural quantization" (2020). Differs from the paper: KL to the original instead of the loss on labels.

N windows, S positions, D hidden size, P predicted positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from schemas.artifact import Unit
from schemas.sensitivity import KLProbe
from schemas.structure import EMBEDDING, HEAD
from steps.model.halves import SECOND, run_halves, second_half
from steps.model.overlay import dequantized
from steps.model.positions import Batch, Positions, batches, predicted_positions
from steps.model.stream import Stream
from steps.model.structure import find_units
from steps.model.whole import OUTSIDE, Swaps, all_blocks, held_weight, hidden_from, swaps_of
from steps.sensitivity.score import score_output
from steps.step import Env, Output, Value
from steps.verify.metrics import chunks, kl, log_probabilities

RESIDENT_LOGITS = 1 << 28
"""Keep the original's log-probabilities (1 GiB in fp32 at most) between probes; beyond, recompute them each time."""


@dataclass(frozen=True)
class Original:
    """What every probe of one model on the same tokens shares. `sources` keeps what identities in the memo refer to."""

    stream: Stream
    blocks: Sequence[nn.Module]
    positions: Positions
    parts: Sequence[Batch]
    inputs: Sequence[Sequence[torch.Tensor]]
    """hidden_NSD entering each block, [block][batch]."""
    middles: Sequence[Sequence[torch.Tensor]]
    """hidden_NSD between attention and MLP of each block, from which a unit of the MLP is probed."""
    reference_PD: torch.Tensor
    head_VD: torch.Tensor
    """Of the model that KL is to."""
    log_p_PV: torch.Tensor | None
    sources: tuple[Value, ...]
    noise: float = 0.0
    """Largest KL at any position with nothing swapped: rounding, since the reference was computed apart."""

    def log_p(self, rows: slice) -> torch.Tensor:
        """The original's log-probabilities at some predicted positions."""
        if self.log_p_PV is not None:
            return self.log_p_PV[rows]
        return log_probabilities(self.stream.logits(self.reference_PD[rows], self.head_VD))


@torch.no_grad()
def run(spec: KLProbe, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: KL(original || original with this unit quantized) in nats per predicted position, its means per
    document, and their weights in tokens. Model in fp32, sums over positions in fp64.

    Runs from the unit's half of its block on. The blocks, what enters them and their MLPs, and the original's
    log-probabilities stay in `env.memo`, in which the blocks are swapped during a call: one memo must not serve two
    threads at once.
    """
    item, original = inputs["candidates"], remembered(inputs, spec.batch, env)
    swaps = unit_swaps(find_unit(inputs["model"], item), item, env.device)
    kl_P = probe(original, swaps)
    return {"scores": score_output(item.meta, kl_P, original.positions, differs(original, swaps), original.noise)}


def remembered(inputs: Mapping[str, Value], batch: int, env: Env) -> Original:
    """`prepare` of the inputs model, tokens and reference, once per process."""
    sources = (inputs["model"], inputs["tokens"], inputs["reference"])
    key = ("kl_probe", *map(_identity, sources), env.device, batch)
    return env.remember(key, lambda: prepare(*sources, batch, env.device))


def prepare(
    model: Value, tokens: Value, reference: Value, batch: int, device: str, teacher: Value | None = None
) -> Original:
    """Load all blocks and run the model once, keeping what enters each block and its second half.

    KL is to the model itself, or to `teacher`, whose hidden states the reference then holds.
    """
    stream, positions, parts = Stream(model, device), predicted_positions(tokens), list(batches(tokens, batch))
    head_VD = stream.head_VD if teacher is None else Stream(teacher, device).head_VD
    blocks = all_blocks(stream)
    inputs, middles = [[stream.embed(part.ids_NS) for part in parts]], []
    for block in blocks:
        halves = [run_halves(stream, block, hidden_NSD) for hidden_NSD in inputs[-1]]
        middles.append([middle_NSD for middle_NSD, _ in halves])
        inputs.append([out_NSD for _, out_NSD in halves])
    reference_PD = reference.tensors["hidden_TD"][positions.valid_P].to(device)
    vocabulary = stream.config.vocab_size
    log_p_PV = None
    if len(positions) * vocabulary <= RESIDENT_LOGITS:
        rows = chunks(len(positions), vocabulary)
        log_p_PV = torch.cat([log_probabilities(stream.logits(reference_PD[r], head_VD)) for r in rows])
    sources = (model, tokens, reference)
    original = Original(
        stream, blocks, positions, parts, inputs[:-1], middles, reference_PD, head_VD, log_p_PV, sources
    )
    return replace(original, noise=probe(original, {stream.blocks - 1: {}}).max().item())


def unit_swaps(unit: Unit, item: Value, device: str) -> dict[int, dict[str, torch.Tensor]]:
    """The swap that puts a candidate in its unit's place, fp32."""
    return swaps_of(unit, {member: dequantized(item, member).to(device) for member in unit.members})


def differs(original: Original, swaps: Swaps) -> bool:
    """Whether any weight in `swaps` is another than the model's."""
    stream, blocks = original.stream, original.blocks
    pairs = (
        (weight, held_weight(stream, blocks, k, name)) for k, held in swaps.items() for name, weight in held.items()
    )
    return any(not torch.equal(weight, own) for weight, own in pairs)


def probe(original: Original, swaps: Swaps) -> torch.Tensor:
    """kl_P on the CPU, with the weights in `swaps` replaced."""
    stream, found, done = original.stream, list[torch.Tensor](), 0
    head_VD = swaps.get(OUTSIDE, {}).get(HEAD)
    for i, part in enumerate(original.parts):
        normed_PD = part.pick(_final(original, i, swaps))
        for rows in chunks(len(normed_PD), stream.config.vocab_size):
            log_q_PV = torch.log_softmax(stream.logits(normed_PD[rows], head_VD), dim=-1)
            found.append(kl(original.log_p(slice(done + rows.start, done + rows.stop)), log_q_PV).cpu())
        done += len(normed_PD)
    return torch.cat(found)


def _final(original: Original, i: int, swaps: Swaps) -> torch.Tensor:
    """Final-normed hidden_NSD of batch i, from the first block, or half of a block, that is swapped."""
    stream, blocks = original.stream, original.blocks
    table_VD = swaps.get(OUTSIDE, {}).get(EMBEDDING)
    if table_VD is not None:
        hidden_NSD = table_VD[original.parts[i].ids_NS.long().to(table_VD.device)]
        return hidden_from(stream, blocks, 0, hidden_NSD, swaps)
    first = min((k for k in swaps if k != OUTSIDE), default=stream.blocks - 1)
    weights = swaps.get(first, {})
    if not all(name.startswith(SECOND) for name in weights):
        return hidden_from(stream, blocks, first, original.inputs[first][i], swaps)
    hidden_NSD = second_half(blocks[first], original.middles[first][i], weights)
    return hidden_from(stream, blocks, first + 1, hidden_NSD, swaps)


def find_unit(model: Value, item: Value) -> Unit:
    """The unit that a candidate quantizes; InputError when the model has no such unit."""
    (unit,) = find_units(model.meta["config"], model.meta["shapes"], [item.meta["unit"]])
    return unit


def _identity(value: Value) -> Any:
    return getattr(value, "digest", id(value))

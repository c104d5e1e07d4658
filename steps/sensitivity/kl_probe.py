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
from schemas.errors import InputError
from schemas.sensitivity import KLProbe
from steps.model.overlay import dequantized
from steps.model.positions import Batch, Positions, batches, predicted_positions
from steps.model.stream import Stream
from steps.model.structure import block_prefix, units
from steps.model.whole import all_blocks, hidden_from
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
    reference_PD: torch.Tensor
    log_p_PV: torch.Tensor | None
    sources: tuple[Value, ...]
    noise: float = 0.0
    """Largest KL at any position with nothing swapped: rounding, since the reference was computed apart."""

    def log_p(self, rows: slice) -> torch.Tensor:
        """The original's log-probabilities at some predicted positions."""
        if self.log_p_PV is not None:
            return self.log_p_PV[rows]
        return log_probabilities(self.stream.logits(self.reference_PD[rows]))


@torch.no_grad()
def run(spec: KLProbe, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: KL(original || original with this unit quantized) in nats per predicted position, its means per
    document, and their weights in tokens. Model in fp32, sums over positions in fp64.

    Runs from the unit's block on. The blocks, their inputs and the original's log-probabilities stay in `env.memo`, in
    which the blocks are swapped during a call: one memo must not serve two threads at once.
    """
    model, item = inputs["model"], inputs["candidates"]
    sources = (model, inputs["tokens"], inputs["reference"])
    key = ("kl_probe", *map(_identity, sources), env.device, spec.batch)
    original = env.remember(key, lambda: prepare(*sources, spec.batch, env.device))
    unit = find_unit(model, item)
    prefix = block_prefix(unit.block)
    weights = {f"{m.removeprefix(prefix)}.weight": dequantized(item, m).to(env.device) for m in unit.members}
    kl_P = probe(original, unit.block, weights)
    changed = any(
        not torch.equal(weight, original.blocks[unit.block].get_parameter(name)) for name, weight in weights.items()
    )
    return {"scores": score_output(item.meta, kl_P, original.positions, changed, original.noise)}


def prepare(model: Value, tokens: Value, reference: Value, batch: int, device: str) -> Original:
    """Load all blocks and run the original once, keeping what enters each block."""
    stream, positions, parts = Stream(model, device), predicted_positions(tokens), list(batches(tokens, batch))
    blocks = all_blocks(stream)
    inputs = [[stream.embed(part.ids_NS) for part in parts]]
    for block in blocks[:-1]:
        inputs.append([stream.run(block, hidden_NSD) for hidden_NSD in inputs[-1]])
    reference_PD = reference.tensors["hidden_TD"][positions.valid_P].to(device)
    vocabulary = stream.config.vocab_size
    log_p_PV = None
    if len(positions) * vocabulary <= RESIDENT_LOGITS:
        rows = chunks(len(positions), vocabulary)
        log_p_PV = torch.cat([log_probabilities(stream.logits(reference_PD[r])) for r in rows])
    sources = (model, tokens, reference)
    original = Original(stream, blocks, positions, parts, inputs, reference_PD, log_p_PV, sources)
    return replace(original, noise=probe(original, stream.blocks - 1, {}).max().item())


def probe(original: Original, block: int, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """kl_P on the CPU, with the weights of one block replaced by name within the block."""
    stream, found, done = original.stream, [], 0
    for part, hidden_NSD in zip(original.parts, original.inputs[block], strict=True):
        normed_NSD = hidden_from(stream, original.blocks, block, hidden_NSD, {block: weights})
        normed_PD = part.pick(normed_NSD)
        for rows in chunks(len(normed_PD), stream.config.vocab_size):
            log_q_PV = torch.log_softmax(stream.logits(normed_PD[rows]), dim=-1)
            found.append(kl(original.log_p(slice(done + rows.start, done + rows.stop)), log_q_PV).cpu())
        done += len(normed_PD)
    return torch.cat(found)


def find_unit(model: Value, item: Value) -> Unit:
    """The unit that a candidate quantizes; InputError when the model has no such unit."""
    name = item.meta["unit"]
    for unit in units(model.meta["config"], model.meta["shapes"]):
        if unit.name == name:
            return unit
    raise InputError("a candidate is of a unit that the model does not have", where=f"candidate of {name}")


def _identity(value: Value) -> Any:
    return getattr(value, "digest", id(value))

"""Mean eigenvalue of a unit's Hessian times its squared weight error, from products of the Hessian with random signs.

Omega = mean trace x ||dW||^2: Dong et al., "HAWQ-V2" (arXiv:1911.03852), after the trace estimate of Hutchinson (1990):
E v^T H v = tr H for v of independent random signs. Differs from the paper: the loss is KL(original || model) instead of
the loss on labels, whose Hessian at the original is the Fisher matrix, so that nothing but text is needed; and half of
Omega is returned, the second-order estimate of KL for an error that lies in no direction in particular.

N windows, S positions, P predicted positions, V vocabulary, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from schemas.artifact import Unit
from schemas.sensitivity import Hutchinson
from schemas.structure import EMBEDDING, HEAD
from steps.model.positions import Batch, batches, predicted_positions
from steps.model.stream import Stream
from steps.model.structure import block_prefix
from steps.model.whole import OUTSIDE, all_blocks, held_weight, hidden_from
from steps.sensitivity.recorded import changed, energies, squared_error, units_of
from steps.sensitivity.score import plain_score
from steps.step import Env, Output, Value

Leaves = Mapping[int, Mapping[str, torch.Tensor]]
"""block -> parameter name within the block -> the weight that is differentiated."""


def run(spec: Hutchinson, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: 1/2 (tr H / number of weights) ||dW||^2, with H of the KL per predicted position. A negative estimate
    of a trace, which is never negative, counts as it is: more samples mend it. All blocks are resident; fp32."""
    model, energy = inputs["model"], energies(inputs["model"], inputs["candidates"])
    found = {unit.name: unit for _, unit, _ in units_of(model, inputs["candidates"])}
    trace = traces(spec, model, list(found.values()), inputs["tokens"], env)
    scores = {}
    for name, unit, item in units_of(model, inputs["candidates"]):
        weights = sum(rows * columns for rows, columns in unit.shapes)
        damage = trace[unit.name] / weights * squared_error(item, energy) / 2
        scores[name] = plain_score(item.meta, damage, changed(item))
    return {"scores": Output(children=scores)}


def traces(spec: Hutchinson, model: Value, found: Sequence[Unit], tokens: Value, env: Env) -> dict[str, float]:
    """tr H by unit. One sign vector serves all units at once: what couples two units averages to 0."""
    stream = Stream(model, env.device)
    blocks, generator = all_blocks(stream), torch.Generator().manual_seed(spec.seed)
    leaves = differentiable(stream, blocks, found)
    names = [(k, name) for k, held in leaves.items() for name in held]
    signs = [random_signs(leaves, generator) for _ in range(spec.samples)]
    total = dict.fromkeys(names, 0.0)
    parts = list(batches(tokens, spec.batch))
    for done, part in enumerate(parts):
        for name, value in _quadratic(stream, blocks, part, leaves, signs).items():
            total[name] += value
        env.progress(done + 1, len(parts), "batches")
    scale = spec.samples * len(predicted_positions(tokens))
    return {
        unit.name: sum(total[_block(unit), _parameter(unit, member)] for member in unit.members) / scale
        for unit in found
    }


def _block(unit: Unit) -> int:
    return unit.block if unit.use == "linear" else OUTSIDE


def _parameter(unit: Unit, member: str) -> str:
    return f"{member.removeprefix(block_prefix(unit.block))}.weight"


def differentiable(stream: Stream, blocks: Sequence[nn.Module], found: Sequence[Unit]) -> Leaves:
    """Leaves that share memory with the blocks' weights; a tied matrix is one leaf, the embedding."""
    leaves: dict[int, dict[str, torch.Tensor]] = {}
    for unit in found:
        for member in unit.members:
            block, name = _block(unit), _parameter(unit, member)
            leaf = held_weight(stream, blocks, block, name).detach().requires_grad_()
            leaves.setdefault(block, {})[name] = leaf
    return leaves


def random_signs(leaves: Leaves, generator: torch.Generator) -> list[torch.Tensor]:
    """+1 or -1 for every weight, drawn on the CPU; int8, one tensor per leaf in order."""
    shapes = [leaf.shape for held in leaves.values() for leaf in held.values()]
    return [torch.randint(0, 2, shape, generator=generator, dtype=torch.int8) * 2 - 1 for shape in shapes]


def _quadratic(
    stream: Stream, blocks: Sequence[nn.Module], part: Batch, leaves: Leaves, signs: Sequence[Sequence[torch.Tensor]]
) -> dict[tuple[int, str], float]:
    """Per leaf, the sum over sign vectors v of v^T H v, with H of the KL summed over the batch's positions."""
    names = [(k, name) for k, held in leaves.items() for name in held]
    flat = [leaves[k][name] for k, name in names]
    with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        gradient = torch.autograd.grad(summed_kl(stream, blocks, part, leaves), flat, create_graph=True)
        total = dict.fromkeys(names, 0.0)
        for i, v in enumerate(signs):
            signed = [sign.to(leaf) for sign, leaf in zip(v, flat, strict=True)]
            product = torch.autograd.grad(gradient, flat, signed, retain_graph=i + 1 < len(signs))
            for name, sign, Hv in zip(names, signed, product, strict=True):
                total[name] += float((sign * Hv).sum(dtype=torch.float64))
    return total


def summed_kl(stream: Stream, blocks: Sequence[nn.Module], part: Batch, leaves: Leaves) -> torch.Tensor:
    """KL(original || model) summed over the batch's predicted positions, 0 at the original, as a function of leaves."""
    ends = leaves.get(OUTSIDE, {})
    table_VD, head_VD = ends.get(EMBEDDING), ends.get(EMBEDDING if stream.tied else HEAD)
    hidden_NSD = stream.embed(part.ids_NS) if table_VD is None else table_VD[part.ids_NS.long().to(table_VD.device)]
    logits_PV = stream.logits(part.pick(hidden_from(stream, blocks, 0, hidden_NSD, leaves)), head_VD)
    log_q_PV = torch.log_softmax(logits_PV, dim=-1)
    log_p_PV = log_q_PV.detach()
    return (log_p_PV.exp() * (log_p_PV - log_q_PV)).sum()

"""Second-order estimate of the KL that quantizing a unit causes, from one backward pass for all candidates.

For outputs z = W x perturbed by dW x, KL per predicted position is about (1 / 2P) E[(sum over tokens of g . dW x)^2],
where g is the gradient at z of the log-likelihood of labels drawn from the model itself. Here the square is taken token
by token, as the schema says, which drops the cross terms between the tokens of a window: they would leave one random
number per window instead of one per token.

P predicted positions, O outputs, I inputs; M samples of labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from schemas.artifact import Unit
from schemas.sensitivity import Fisher
from steps.model.overlay import dequantized
from steps.model.positions import batches, predicted_positions
from steps.model.stream import Stream
from steps.model.structure import block_prefix
from steps.model.whole import OUTSIDE
from steps.sensitivity.backward import backward
from steps.sensitivity.capture import Captured
from steps.sensitivity.recorded import units_of
from steps.sensitivity.score import score_output
from steps.step import Env, Output, Value


def run(spec: Fisher, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: for every candidate, 1/2 sum over tokens of (sum over members of g . dW x)^2 per predicted position.

    All candidates of a block are scored while its inputs and gradients, of all batches, are at hand. fp32, sums over
    positions in fp64.
    """
    model, tokens, candidates = inputs["model"], inputs["tokens"], inputs["candidates"]
    stream, positions, parts = Stream(model, env.device), predicted_positions(tokens), list(batches(tokens, spec.batch))
    wanted, scores = by_block(model, candidates), dict[str, Output]()
    for k, block, batches_of in backward(stream, parts, spec.samples, spec.seed, env):
        captured = list(batches_of) if k in wanted else []
        for unit, name in wanted.get(k, []):
            item = candidates.children[name]
            delta = deltas(block, unit, item, model, env.device)
            changed = any(bool(d.any()) for d in delta.values())
            scores[name] = score_output(item.meta, damage(captured, delta), positions, changed)
    return {"scores": Output(children={name: scores[name] for name in candidates.children})}


@torch.no_grad()
def damage(captured: Sequence[Captured], delta: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """1/2 mean over samples of (sum over members of g . dW x)^2 at each predicted position, P on the CPU."""
    found = []
    for part in captured:
        dots = [part.dot(path, delta_OI) for path, delta_OI in delta.items()]
        found.append(torch.stack(dots).sum(0).square().mean(0).div(2).cpu())
    return torch.cat(found)


def by_block(model: Value, candidates: Value) -> dict[int, list[tuple[Unit, str]]]:
    """block (OUTSIDE: embedding and head) -> (unit, item name) of every candidate. Reads no candidate.

    InputError for a candidate of an unknown unit.
    """
    found: dict[int, list[tuple[Unit, str]]] = {}
    for name, unit, _ in units_of(model, candidates):
        found.setdefault(unit.block if unit.use == "linear" else OUTSIDE, []).append((unit, name))
    return found


def paths(unit: Unit) -> dict[str, str]:
    """Path within the block -> member."""
    return {member.removeprefix(block_prefix(unit.block)): member for member in unit.members}


def deltas(block: nn.Module | None, unit: Unit, item: Value, model: Value, device: str) -> dict[str, torch.Tensor]:
    """Dequantized minus original weights, delta_OI fp32 by path within the block; read from the model outside them."""

    def own(path: str) -> torch.Tensor:
        held = model.tensors[f"{path}.weight"].to(device) if block is None else block.get_parameter(f"{path}.weight")
        return held.float()

    return {path: dequantized(item, member).to(device) - own(path) for path, member in paths(unit).items()}

"""LIM: a block matters as much as it turns its input.

LIM = -cos(x_in, x_out), averaged over tokens: Dumitru et al., "Layer-Wise Quantization" (arXiv:2406.17415). Differs
from the paper: 1 + LIM, which is 0 for a block that does nothing, is multiplied by the relative squared error of the
unit in the format at hand. An importance alone says which blocks come first, not what a format costs; ranked by the
damage of one format (allocator `rankcut`) the order is the paper's, up to how well each unit took to that format.

N windows, S positions, D hidden size, P predicted positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.nn.functional import normalize

from schemas.sensitivity import LIM
from steps.model.positions import batches, predicted_positions
from steps.model.stream import Stream
from steps.sensitivity.recorded import changed, energies, relative_squared_error, units_of
from steps.sensitivity.score import score_output
from steps.step import Env, Output, Value


def run(spec: LIM, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`scores`: (1 - cos(x_in, x_out)) of the unit's block, times ||dW||^2 / ||W||^2. No unit.

    Embedding and head, of which LIM says nothing, count with the last block.
    """
    model, tokens, candidates = inputs["model"], inputs["tokens"], inputs["candidates"]
    turn_BP, positions = turns(model, tokens, spec.batch, env), predicted_positions(tokens)
    energy, scores = energies(model, candidates), {}
    for name, unit, item in units_of(model, candidates):
        damage_P = turn_BP[unit.block] * relative_squared_error(item, energy)
        scores[name] = score_output(item.meta, damage_P, positions, changed(item))
    return {"scores": Output(children=scores)}


@torch.no_grad()
def turns(model: Value, tokens: Value, batch: int, env: Env) -> list[torch.Tensor]:
    """1 - cos(x_in, x_out) per block, each of P numbers in fp32; one block resident.

    As half the squared distance of the directions, which is exactly 0 where the block changes nothing.
    """
    stream, parts = Stream(model, env.device), list(batches(tokens, batch))
    hidden, found = [stream.embed(part.ids_NS) for part in parts], []
    for k in range(stream.blocks):
        block, turn = stream.block(k), []
        for i, part in enumerate(parts):
            out_NSD = stream.run(block, hidden[i])
            before_PD, after_PD = (normalize(part.pick(each), dim=-1) for each in (hidden[i], out_NSD))
            turn.append((before_PD - after_PD).square_().sum(-1).div_(2).cpu())
            hidden[i] = out_NSD
        found.append(torch.cat(turn))
        env.progress(k + 1, stream.blocks, "blocks")
    return found

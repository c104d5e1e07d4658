"""Refine one block of a selection, streamed: nothing of the model but this block is in memory.

N windows, S positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from schemas.distill import Outputs, Reconstruct
from steps.distill.blocks import Around, BlocksTask
from steps.distill.memory import available_bytes, batch_tokens, block_bytes, check_fits
from steps.distill.run import check_text, output
from steps.distill.schedule import split
from steps.distill.student import student
from steps.distill.train import train
from steps.model.overlay import NORMS, overlay
from steps.model.stream import Stream
from steps.model.windows import advance, check_finite
from steps.step import Env, Output, Value


def run(spec: Reconstruct, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`selection`: this block's units (and norms) as trained; `hidden`: what leaves the block, of both models.

    Inputs come from the blocks refined before (`hidden` of the block before), the target from the original. The first
    block starts from the embedding: the selection's own where it has one.
    """
    model, tokens = inputs["model"], inputs["tokens"]
    check_text(tokens)
    block, length = int(model.meta["block"]), tokens.tensors["ids_NS"].shape[1]
    selection = _own(model, inputs["selection"])
    all_tokens = 0 if env.device.startswith("cuda") else tokens.tensors["ids_NS"].numel()
    needed = block_bytes(spec, model.meta, block, batch_tokens(spec, len(tokens.tensors["ids_NS"]), length), all_tokens)
    check_fits(needed, available_bytes(env.device), f"block {block}")
    stream, quantized = Stream(model, env.device), Stream(overlay(model, selection), env.device)
    entering_NSD, original_NSD = _entering(stream, quantized, inputs)
    original = stream.block(block)
    advance(stream, original, original_NSD, original_NSD, spec.batch)
    check_finite(original_NSD, f"the original's block {block}")
    windows, kept_out = split(len(entering_NSD), spec.held_out, spec.seed)
    around = Around(stream, {block: original}, block, 1, entering_NSD, original_NSD, None)
    given, trained = (student(s, model, selection, [block], final=False, device=env.device) for s in (None, spec))
    task = BlocksTask((Outputs(kind="outputs"),), around, given, trained, tokens, kept_out)
    outcome = train(spec, task, windows, length, env)
    refined = output(selection, outcome)
    after = Stream(overlay(model, refined), env.device).block(block)
    advance(stream, after, entering_NSD, entering_NSD, spec.batch)
    hidden = Output(tensors={"quantized_NSD": entering_NSD, "original_NSD": original_NSD})
    return {"selection": refined, "hidden": hidden}


def _own(model: Value, selection: Value) -> Output:
    """What of the selection replaces weights that are at hand: of the first block also the embedding, never a head."""
    children: dict[str, Value] = {}
    for unit, item in selection.children.items():
        if unit == NORMS:
            children[unit] = Output(tensors={n: t for n, t in item.tensors.items() if n in model.tensors})
        elif all(f"{member}.weight" in model.tensors for member in item.meta["members"]):
            children[unit] = item
    return Output(children=children)


def _entering(stream: Stream, quantized: Stream, inputs: Mapping[str, Value]) -> tuple[torch.Tensor, torch.Tensor]:
    """hidden_NSD that enter the block in the quantized and in the original model, ours to write to."""
    if "hidden" in inputs:
        before = inputs["hidden"].tensors
        return before["quantized_NSD"].clone(), before["original_NSD"].clone()
    ids_NS = inputs["tokens"].tensors["ids_NS"]
    return quantized.embed(ids_NS).cpu(), stream.embed(ids_NS).cpu()

"""Choose a selection's codes again by the curvature of the whole model's predictions, block by block.

N windows, T valid positions, P predicted positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from schemas.distill import Recode
from steps.distill.build import build_start
from steps.distill.curvature import Moments, moments
from steps.distill.descend import Descent, Gain, descend
from steps.distill.descents import once
from steps.distill.judge import judge, window_rows
from steps.distill.matrices.matrix import Start
from steps.distill.run import check_text
from steps.distill.schedule import split
from steps.distill.student import selection_of
from steps.model.overlay import NORMS
from steps.model.positions import take
from steps.model.spill import Spill
from steps.model.stream import Stream
from steps.model.structure import block_prefix
from steps.model.whole import OUTSIDE
from steps.sensitivity.backward import backward
from steps.step import Env, Output, Value

KEPT_INPUT = "codes stay as the solver chose them: others were no better on the held-out windows beyond the interval"


def run(spec: Recode, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`selection`: the same formats, scales and bytes with other codes; meta `recoded` holds facts.

    One backward pass through the original gives all curvatures, one block and one batch resident at a time; what waits
    lies in scratch, and so do the new codes. fp32. A matrix that no position reached keeps its codes, and so do
    embedding, head and f16. After a kill the pass is made again, and descents that had ended are read.
    """
    model, selection, tokens = inputs["model"], inputs["selection"], inputs["tokens"]
    check_text(tokens)
    windows, kept_out = split(len(tokens.tensors["lengths_N"]), spec.held_out, spec.seed)
    used = windows[: spec.windows]
    stream, wanted = Stream(model, env.device), _members(selection)
    parts = [take(tokens, used[at : at + spec.batch]) for at in range(0, len(used), spec.batch)]
    found, tensors = dict[str, Gain](), Spill(env.scratch / "recoded")
    for k, block, captured in backward(stream, parts, spec.samples, spec.seed, env):
        own = {m.removeprefix(block_prefix(k)): m for m in wanted if k != OUTSIDE and m.startswith(block_prefix(k))}
        seen = moments(captured, own)
        for path, member in own.items():
            start = build_start(wanted[member], member, env.device, scaled=False)
            descent = once(env, member, partial(_descent, spec, start, block, path, seen))
            if descent is not None:
                found[member] = descent.gain
                tensors.update(start.frame.stored(descent.level_OGJ).to_tensors())
    recoded = Output(selection.meta, selection.tensors, selection_of(selection, tensors), selection.files)
    before, after = window_rows(model, (selection, recoded), tokens, kept_out, spec.batch, env)
    facts, better = judge(before, after, spec.seed, "KL")
    facts |= _facts(spec, wanted, found, len(used), better)
    kept = recoded if better else selection
    return {"selection": Output({**selection.meta, "recoded": facts}, kept.tensors, kept.children, kept.files)}


def _members(selection: Value) -> dict[str, Value]:
    """Every quantized matrix with the item that holds it."""
    return {m: item for unit, item in selection.children.items() if unit != NORMS for m in item.meta["members"]}


def _descent(spec: Recode, start: Start, block: nn.Module | None, path: str, seen: Moments) -> Descent | None:
    curve = None if start.bounds is None or block is None else seen.curvature(path, spec.damping)
    if curve is None or start.bounds is None or block is None:
        return None
    with torch.no_grad():
        spacing, W_OI = start.frame.spacing(), block.get_parameter(f"{path}.weight").float()
    return descend(start.level_OGJ, start.bounds, spacing, W_OI, curve, spec.passes)


def _facts(
    spec: Recode, wanted: Mapping[str, Value], found: Mapping[str, Gain], windows: int, better: bool
) -> dict[str, Any]:
    codes = sum(each.codes for each in found.values())
    ratios = [each.after / each.before if each.before else 1.0 for each in found.values()]
    notes = [] if better else [KEPT_INPUT]
    if windows < spec.windows:
        notes.append(f"the curvature is of {windows} windows; {spec.windows} were asked for: give more text")
    return {
        "windows": windows,
        "moved": sum(each.moved for each in found.values()) / codes if better and codes else 0.0,
        "estimate": sum(ratios) / len(ratios) if ratios else 1.0,
        "stayed": sorted(set(wanted) - set(found)),
        "notes": notes,
    }

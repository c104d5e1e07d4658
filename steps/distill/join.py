"""Put blocks that were refined one by one back into one selection, and judge it as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from schemas.distill import Join
from steps.distill.judge import judge, of_blocks, window_rows
from steps.distill.run import told
from steps.distill.schedule import split
from steps.model.overlay import NORMS
from steps.step import Env, Output, Value

if TYPE_CHECKING:
    import torch


def run(spec: Join, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`selection` with the units of `refined` in place of its own, if its KL on held-out windows is less beyond the
    interval, else as it was; meta `distilled` holds that comparison and the blocks' trainings.

    One block is resident at a time.
    """
    model, selection, tokens = inputs["model"], inputs["selection"], inputs["tokens"]
    refined = {int(k): block for k, block in inputs["refined"].children.items()}
    found = [{"first_block": k, **refined[k].meta["distilled"]} for k in sorted(refined)]
    joined = _joined(selection, [refined[k] for k in sorted(refined)])
    _, kept_out = split(len(tokens.tensors["lengths_N"]), spec.held_out, spec.seed)
    before, after = window_rows(model, (selection, joined), tokens, kept_out, spec.batch, env)
    facts, better = judge(before, after, spec.seed, "KL")
    facts = told(selection, of_blocks(facts, better, found))
    kept = joined if better else selection
    return {"selection": Output({**selection.meta, "distilled": facts}, kept.tensors, kept.children, kept.files)}


def _joined(selection: Value, blocks: Sequence[Value]) -> Output:
    """The selection with what each block has, by name; of norms, both."""
    children = dict(selection.children)
    norms: dict[str, torch.Tensor] = dict(children[NORMS].tensors) if NORMS in children else {}
    for block in blocks:
        children |= {name: child for name, child in block.children.items() if name != NORMS}
        norms |= block.children[NORMS].tensors if NORMS in block.children else {}
    if norms:
        children[NORMS] = Output(tensors=norms)
    return Output(selection.meta, selection.tensors, children, selection.files)

"""Put blocks that were refined one by one back into one selection. No tensor is read or changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from schemas.distill import Join
from steps.distill.run import notes_of, summary, told
from steps.model.overlay import NORMS
from steps.step import Env, Output, Value

if TYPE_CHECKING:
    import torch


def run(spec: Join, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """`selection` with the units of `refined` in place of its own; meta `distilled` sums up the blocks' trainings.

    `before` and `after` are means over blocks of the relative squared error of a block's output on held-out windows.
    """
    selection, blocks = inputs["selection"], inputs["refined"].children
    children, found = dict(selection.children), list[dict[str, Any]]()
    norms: dict[str, torch.Tensor] = dict(children[NORMS].tensors) if NORMS in children else {}
    for k in sorted(blocks, key=int):
        found.append({"first_block": int(k), **blocks[k].meta["distilled"]})
        children |= {name: child for name, child in blocks[k].children.items() if name != NORMS}
        if NORMS in blocks[k].children:
            norms |= blocks[k].children[NORMS].tensors
    if norms:
        children[NORMS] = Output(tensors=norms)
    means = {key: sum(each[key] for each in found) / len(found) for key in ("before", "after")}
    notes = notes_of(found)
    facts = {"measure": found[0]["measure"], **means, **summary(found), "blocks": found, "notes": notes}
    facts = told(selection, facts)
    return {"selection": Output({**selection.meta, "distilled": facts}, selection.tensors, children, selection.files)}

"""A short training of a tiny model, and what it did, measured by transformers' own code."""

from __future__ import annotations

from typing import Any

import torch
from models import tiny_tokens
from selections import modified_transformer

from schemas.distill import Distill
from steps.distill import run as distill
from steps.model.positions import take
from steps.step import Env, Output
from steps.verify.metrics import compare_chunk

TOKENS = tiny_tokens(80, 16)
SETTINGS: dict[str, Any] = {
    "tokens": 12 * 8 * 16,
    "batch": 8,
    "held_out": 16,
    "check_every": 4,
    "rates": {"codes": 1e-2, "scales": 0.01, "norms": 0.01},
}


def trained(model: Output, selection: Output, env: Env | None = None, text: Output = TOKENS, **settings: Any) -> Output:
    spec = Distill.model_validate({"step": "distill", **SETTINGS, **settings})
    return distill.run(spec, {"model": model, "selection": selection, "tokens": text}, env or Env())["selection"]


def other_text(tokens: Output, windows: list[int]) -> Output:
    """The same windows, of which these have other tokens."""
    ids_NS = tokens.tensors["ids_NS"].clone()
    ids_NS[windows] = torch.where(ids_NS[windows] > 0, ids_NS[windows] % 96 + 1, 0)
    return Output(tokens.meta, {**tokens.tensors, "ids_NS": ids_NS})


def mean_kl(model: Output, selection: Output, windows: list[int]) -> float:
    """By transformers' own model with the stored tensors loaded."""
    part = take(TOKENS, windows)
    with torch.no_grad():
        original, changed = (
            part.pick(modified_transformer(model, s)(input_ids=part.ids_NS.long()).logits)
            for s in (Output(), selection)
        )
    return compare_chunk(original, changed, torch.zeros(len(original), dtype=torch.int64)).kl_P.double().mean().item()


def same(first: Output, second: Output) -> bool:
    """Equal children, tensor for tensor, and equal facts."""
    return first.meta == second.meta and all(
        torch.equal(tensor, second.children[unit].tensors[name])
        for unit, child in first.children.items()
        for name, tensor in child.tensors.items()
    )

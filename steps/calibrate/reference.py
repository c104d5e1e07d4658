"""The original's final hidden states: its logits in D instead of V numbers per token.

N windows, S positions, D hidden size, T valid positions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from schemas.calibrate import Reference
from steps.model.stream import Stream
from steps.model.windows import advance, check_finite, valid_NS
from steps.step import Env, Output, Value


def run(spec: Reference, inputs: Mapping[str, Value], env: Env) -> dict[str, Output]:
    """hidden_TD fp32, final-normed, at valid positions, windows in order. Holds one block and one hidden_NSD."""
    model, tokens = inputs["model"], inputs["tokens"]
    stream = Stream(model, env.device)
    hidden_NSD = stream.embed(tokens.tensors["ids_NS"]).cpu()
    for k in range(stream.blocks):
        advance(stream, stream.block(k), hidden_NSD, hidden_NSD, spec.batch)
        check_finite(hidden_NSD, f"{model.meta.get('name', 'model')}: output of block {k}")
        env.progress(k + 1, stream.blocks, "blocks")
    hidden_TD = hidden_NSD[valid_NS(tokens)]
    _normalize(stream, hidden_TD, spec.batch * hidden_NSD.shape[1])
    return {"reference": Output(meta={"tokens": len(hidden_TD)}, tensors={"hidden_TD": hidden_TD})}


def _normalize(stream: Stream, hidden_TD: torch.Tensor, rows: int) -> None:
    """Final norm in place, `rows` tokens at a time."""
    for start in range(0, len(hidden_TD), rows):
        part = slice(start, start + rows)
        with torch.no_grad():
            hidden_TD[part] = stream.final(hidden_TD[part].to(stream.device)).to(hidden_TD.device)

"""Names of things: digests, ports, units of a model."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from schemas.base import Spec

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]

PortType = Literal[
    "model",  # config, tokenizer files, lazily read weights
    "documents",  # texts with names
    "tokens",  # windows of token ids
    "statistics",  # per block: Hessians, ranges, norms
    "reference",  # final hidden states of the original on some tokens
    "candidates",  # per (unit, format): quantized tensors
    "scores",  # per (unit, format): predicted damage with its spread over documents
    "plan",  # unit -> format, with its certificate
    "selection",  # unit -> quantized tensors
    "evaluation",  # per-document KL, negative log-likelihood, top-1
    "packed",  # a folder that an engine loads
    "verdict",  # metrics and gates measured on the packed file
]


class Unit(Spec):
    """What gets one format: a linear, or linears that engines fuse and that share an input.

    `name` is for people, for example `layers.3.self_attn.qkv`; `members` are full module paths, for example
    `model.layers.3.self_attn.q_proj`; `statistics` names the Hessian within the block's statistics.
    """

    name: str
    block: int = Field(ge=0)
    members: tuple[str, ...]
    shapes: tuple[tuple[int, int], ...]
    statistics: str


def item_name(unit: str, format_name: str) -> str:
    """Name of one (unit, format) child of a candidates or scores artifact."""
    return f"{unit}/{format_name}"
